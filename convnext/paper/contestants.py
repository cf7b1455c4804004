"""Networks that stand for a benchmark: ours by name, and the same ConvNeXt as other libraries build it, with the same weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convnext.errors import ConvnextError, UsageError, nearest
from convnext.export.load import load
from convnext.export.runtimes import ENDINGS, Network
from convnext.models.backbones.convnext import ConvNeXt
from convnext.models.load import create_model
from convnext.models.weights.formats import from_native


@dataclass
class Contestant:
    """A classifier on the CPU in float32, from which each measurement takes its own copy."""

    name: str
    library: str
    model: Any
    beside: int | None = None  # the place among the contestants of the one that its ratio is to
    relative_error: float | None = None  # of its outputs to those of `beside`, where both hold the same weights


def enter(names: Sequence[str], against: str | None, image_size: int) -> list[Contestant]:
    """The contestants: each name, and with `against` its peer behind it, compared with it at that size.

    A ratio is to the peer, or without peers to the first name. Raises UsageError for what there is not.
    """
    contestants: list[Contestant] = []
    for name in names:
        ours, place = build(name), len(contestants)
        if against is not None and isinstance(ours, Network):
            raise UsageError(f"{name} is an exported file, which has no peer in {against}: time it beside names")
        if against is None:
            contestants.append(Contestant(name, "convnext", ours, beside=0 if place else None))
        else:
            peer = build_peer(name, ours, against)
            contestants.append(Contestant(name, "convnext", ours, place + 1, relative_error(ours, peer, image_size)))
            contestants.append(Contestant(name, against, peer))
    return contestants


def build(name: str) -> Any:
    """The network with random weights under which every part of it matters to its outputs, the same each time; or that of a file."""
    if Path(name).suffix in ENDINGS:
        loaded = load(name)
        if loaded.task != "classify":
            raise UsageError(f"{name} is no classifier, which are what is timed")
        return loaded.model
    with torch.device("meta"):  # no time for the usual random weights
        model = create_model(name)
    # Only the constructor knows what belongs into buffers.
    model = create_model(name) if any(True for _ in model.buffers()) else model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.empty_like(parameter).normal_(generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:  # layer scales too: at the 1e-6 that they begin with, no block would show in the outputs
                parameter.copy_(0.1 * noise if key.endswith("bias") else 1 + 0.3 * noise)
    return model


def build_peer(name: str, ours: Any, library: str) -> Any:
    """The network `name` built by "timm", "torchvision" or "transformers", with a copy of the weights of `ours`.

    Args:
        ours: the network of that name here, in float32 on the CPU, with its 1,000 classes.

    Returns: a module from images to logits, without stochastic depth like ours.

    Raises UsageError if the library is unknown or has no such network, ConvnextError if it is not installed.
    """
    if library not in LIBRARIES:
        raise UsageError(f"there are no peers from {library!r}{nearest(library, LIBRARIES)}")
    if not isinstance(ours, ConvNeXt):
        raise UsageError(f"{name} has no peer that could hold the same weights: --against is for the four-stage ConvNeXts")
    try:
        with torch.device("meta"):
            peer = LIBRARIES[library](name, ours)
    except ImportError as error:
        raise ConvnextError(f"--against {library} needs {library}, which is not installed: pip install {library}") from error
    if peer is None:
        raise UsageError(f"{library} has no {name}: take another network or another library")
    state = {key: tensor.clone() for key, tensor in ours.state_dict().items()}
    # timm's own sizes below tiny have 1 x 1 convolutions where all others have linear layers.
    convolutions = any(key.endswith("mlp.fc1.weight") and tensor.ndim == 4 for key, tensor in peer.state_dict().items())
    network = peer.network if isinstance(peer, _Logits) else peer
    network.load_state_dict(from_native(state, library, conv_mlp=convolutions), assign=True)
    return peer


@torch.inference_mode()
def relative_error(ours: Any, theirs: Any, image_size: int) -> float:
    """The largest difference between the logits of two networks on random images, relative to the largest logit."""
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    found, wanted = ours.eval()(images), theirs.eval()(images)
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


class _Logits(nn.Module):
    """A network of transformers of which only the logits come out."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images).logits


def _timm(name: str, ours: ConvNeXt) -> Any:
    import timm

    return timm.create_model(name) if timm.is_model(name) else None


def _torchvision(name: str, ours: ConvNeXt) -> Any:
    from torchvision import models

    return models.get_model(name, stochastic_depth_prob=0.0) if name in models.list_models() else None


def _transformers(name: str, ours: ConvNeXt) -> Any:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(
        depths=list(ours.depths),
        hidden_sizes=list(ours.channels),
        patch_size=ours.strides[0],
        num_labels=ours.num_classes,
        layer_norm_eps=ours.norm.eps,
    )
    return _Logits(ConvNextForImageClassification(config))


LIBRARIES: dict[str, Callable[[str, ConvNeXt], Any]] = {"timm": _timm, "torchvision": _torchvision, "transformers": _transformers}
