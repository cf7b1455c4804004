"""Networks for the tests of the baselines, with weights that make every part matter."""

import torch

import convnext
from convnext.models.backbones import baselines
from convnext.models.registry import BACKBONES


def build(network, **arguments):
    """Return a network by our name or timm's."""
    if network in BACKBONES:
        return convnext.create_model(network, **arguments)
    return (baselines.build_vit if network.startswith("deit") else baselines.build)(network, **arguments)


def telling(model, seed=0):
    """Return the network with weights and statistics that make every part matter."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.empty_like(parameter).normal_(generator=generator)
        if parameter.ndim > 2 or (name.endswith(("weight", "fc.weight")) and parameter.ndim == 2):
            parameter.data = noise / (parameter[0].numel() ** 0.5 if "token" not in name and "embed" not in name else 1)
        elif name.endswith("table"):
            parameter.data = noise
        else:
            parameter.data = 0.1 * noise if name.endswith("bias") else 1 + 0.3 * noise
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1, generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5, generator=generator)
    return model


def numbers(size, count=2, seed=0):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
