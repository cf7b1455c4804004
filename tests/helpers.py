"""What several tests need: networks with telling weights, images, the shared data."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import convnext

SHARED = Path(__file__).parents[2] / "shared"


def shared(path: str) -> Path:
    """A file or folder of the shared data; skips the test where this machine lacks it."""
    if not (SHARED / path).exists():
        pytest.skip(f"no {SHARED / path} on this machine")
    return SHARED / path


def randomise(model, seed=0):
    """Weights under which every part of the network matters: layer scale of order 1, activations of order 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.empty_like(parameter).normal_(generator=generator)
        if parameter.ndim > 1:
            parameter.data = noise / parameter[0].numel() ** 0.5
        else:
            parameter.data = 0.1 * noise if name.endswith("bias") else 1 + 0.3 * noise
    return model


def random_model(name, **arguments):
    """A network in evaluation mode with such weights."""
    with torch.device("meta"):  # no time for random weights that are replaced
        model = convnext.create_model(name, **{"layer_scale": 1.0} | arguments)
    model.to_empty(device="cpu")
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
    return randomise(model).eval()


def relative_error(found, wanted):
    """The largest difference, relative to the largest wanted value."""
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def sample_image(seed=0, size=(48, 40)):
    """An RGB image with structure at several scales."""
    rng = np.random.default_rng(seed)
    total = np.zeros((size[1], size[0], 3))
    for cells in (2, 5, 11):
        coarse = Image.fromarray(rng.integers(0, 255, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)) / 3
    return Image.fromarray(total.astype(np.uint8))


def image_folder(root, classes=("ant", "bee", "wasp"), each=8):
    """Folders of JPEGs of one colour a class, so that a network can learn them."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(each):
            pixels = np.asarray(sample_image(100 * label + i)).copy()
            pixels[..., label % 3] = pixels[..., label % 3] // 2 + 120
            Image.fromarray(pixels).save(root / name / f"{i:03d}.jpg", quality=92)
    return root


def swin_large_attention_macs(height, width):
    """Multiply-adds of the two products of matrices without weights in Swin-L's attention: queries by keys, weights by values.

    The tables print Swin-L under a detector and a segmenter without them (a count of layers does not see them), and the other Swins
    with them.
    """
    total = 0
    for stage, depth in enumerate((2, 2, 18, 2)):
        sides = [-(-side // (4 * 2**stage)) for side in (height, width)]
        windows = -(-sides[0] // 7) * -(-sides[1] // 7)
        total += 2 * depth * windows * 49**2 * 192 * 2**stage
    return total
