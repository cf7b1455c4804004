"""The networks of a benchmark: ours by name, and the same ConvNeXt as other libraries build it, with the same weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from convnext.data.transforms.preprocessing import ClassifyPreprocessing, ImageSize, sides
from convnext.errors import ConvnextError, UsageError, nearest
from convnext.export.load import ENDINGS, load
from convnext.models.backbones.convnext import ConvNeXt
from convnext.models.load import create_model
from convnext.models.registry import find
from convnext.models.weights.convert import is_in_transformers
from convnext.models.weights.formats import from_native


@dataclass
class Contestant:
    """A classifier on the CPU in float32, from which each measurement takes its own copy."""

    name: str
    library: str
    model: nn.Module
    beside: int | None = None  # the index of the contestant that its ratio is to
    relative_error: float | None = None  # of its outputs to those of `beside`, where both hold the same weights
    is_exported: bool = False  # opened from an exported file: it can't be trained, compiled or converted


def enter(names: Sequence[str], against: str | None, image_size: ImageSize) -> list[Contestant]:
    """Return the contestants: each name and, with `against`, its peer after it; their outputs are compared at that image size.

    A ratio is to the peer, or without peers to the first name. Raises UsageError for unknown names and libraries.
    """
    contestants: list[Contestant] = []
    for name in names:
        is_exported, index = Path(name).suffix in ENDINGS, len(contestants)
        if against is not None and is_exported:
            raise UsageError(f"{name} is an exported file, which has no peer in {against}: time it beside names")
        ours = build(name)
        if against is None:
            contestants.append(Contestant(name, "convnext", ours, 0 if index else None, is_exported=is_exported))
        else:
            peer = build_peer(name, ours, against)
            contestants.append(Contestant(name, "convnext", ours, index + 1, relative_error(ours, peer, image_size)))
            contestants.append(Contestant(name, against, peer))
    return contestants


def build(name: str) -> nn.Module:
    """Return the classifier of an exported file, or that of a name with random weights.

    The random weights are the same each time, and every part of the network matters to its outputs.

    Raises UsageError for an unknown name and for a file of another network than a classifier.
    """
    if Path(name).suffix in ENDINGS:
        loaded = load(name)
        if not isinstance(loaded.preprocessing, ClassifyPreprocessing):  # other networks do not take batches of one size to logits
            raise UsageError(f"{name} is not a classifier: only classifiers are timed")
        return cast("nn.Module", loaded.model)
    with torch.device("meta"):  # the usual random weights would take time
        model = create_model(name)
    # Only the constructor knows the content of buffers.
    model = create_model(name) if any(True for _ in model.buffers()) else model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.empty_like(parameter).normal_(generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:  # layer scales too: with their initial 1e-6 no block would show in the outputs
                parameter.copy_(0.1 * noise if key.endswith("bias") else 1 + 0.3 * noise)
    return model


def build_peer(name: str, ours: nn.Module, library: str) -> nn.Module:
    """Return the network `name` built by "timm", "torchvision" or "transformers", with a copy of the weights of `ours`.

    Args:
        ours: the network of that name here, in float32 on the CPU, with its 1,000 classes.

    Returns: a module from images to logits, without stochastic depth like ours.

    Raises UsageError if the library is unknown or has no such network, ConvnextError if it is not installed.
    """
    if library not in LIBRARIES:
        raise UsageError(f"unknown library {library!r}{nearest(library, LIBRARIES)}")
    if not isinstance(ours, ConvNeXt):
        raise UsageError(f"{name} has no peer that could hold the same weights: --against is for the four-stage ConvNeXts")
    try:
        with torch.device("meta"):
            peer = LIBRARIES[library](name, ours)
    except ImportError as error:
        raise ConvnextError(f"--against {library} needs {library}, which is not installed: pip install {library}") from error
    if peer is None:
        raise UsageError(f"{library} has no {name}: choose another network or another library")
    state = {key: tensor.clone() for key, tensor in ours.state_dict().items()}
    # timm's own sizes below tiny have 1 x 1 convolutions where all others have linear layers.
    convolutions = any(key.endswith("mlp.fc1.weight") and tensor.ndim == 4 for key, tensor in peer.state_dict().items())
    network = peer.network if isinstance(peer, _Logits) else peer
    network.load_state_dict(from_native(state, library, conv_mlp=convolutions), assign=True)
    return peer


@torch.inference_mode()
def relative_error(ours: nn.Module, theirs: nn.Module, image_size: ImageSize) -> float:
    """Return the largest difference between the logits of two networks on random images, relative to the largest logit."""
    images = torch.randn(2, 3, *sides(image_size), generator=torch.Generator().manual_seed(0))
    found, expected = ours.eval()(images), theirs.eval()(images)
    return float((found - expected).abs().max() / expected.abs().max())


class _Logits(nn.Module):
    """A network of transformers that gives only its logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images).logits
        return logits


def _timm(name: str, ours: ConvNeXt) -> nn.Module | None:
    import timm

    return timm.create_model(name) if timm.is_model(name) else None


def _torchvision(name: str, ours: ConvNeXt) -> nn.Module | None:
    from torchvision import models

    return models.get_model(name, stochastic_depth_prob=0.0) if name in models.list_models() else None


def _transformers(name: str, ours: ConvNeXt) -> nn.Module | None:
    import transformers

    entry = find(name)
    if not is_in_transformers(entry):
        return None
    version = "V2" if entry.fixed.get("grn") else ""
    config = getattr(transformers, f"ConvNext{version}Config")(
        depths=list(ours.depths),
        hidden_sizes=list(ours.channels),
        patch_size=ours.strides[0],
        num_labels=ours.num_classes,
        layer_norm_eps=ours.norm.eps,
    )
    return _Logits(getattr(transformers, f"ConvNext{version}ForImageClassification")(config))


LIBRARIES: dict[str, Callable[[str, ConvNeXt], nn.Module | None]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "transformers": _transformers,
}
