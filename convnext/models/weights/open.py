"""What is known of weights: their tensors, the network they are of, how it wants its images, and the names of its classes."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convnext.data.transforms.detect import DetectPreprocessing
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.data.transforms.segment import SegmentPreprocessing
from convnext.errors import ConvnextError, UsageError, nearest
from convnext.models.backbones.zoo import BACKBONES
from convnext.models.registry import Alone, Assembled, find
from convnext.models.weights import configuration, download, files, formats, published
from convnext.models.weights.configuration import Shape

log = logging.getLogger("convnext")

PREPROCESSINGS: dict[str, Any] = {"classify": ClassifyPreprocessing, "detect": DetectPreprocessing, "segment": SegmentPreprocessing}
FUNCTION = {"norm_eps": 1e-6, "head_norm_eps": None}  # arguments that no tensor shows, with their defaults
# Sizes that only networks of another function than the published code's have, as far as anybody published weights.
XXLARGE = ((3, 4, 30, 3), (384, 768, 1536, 3072))
_TANH = {((1, 2, 4, 2), (24, 32, 48, 64)): "test_convnext", ((1, 1, 1, 1), (32, 64, 96, 128)): "test_convnext2"}


@dataclass(frozen=True)
class Opened:
    """Weights, and what is known of them."""

    state: dict[str, Tensor]
    spec: dict[str, Any]  # the arguments of `create_model` that make their network
    task: str
    preprocessing: Any  # of that task
    assumed: bool  # whether nothing says so, and that is a guess
    classes: list[str] | None = None
    class_ids: list[Any] | None = None
    source: str | None = None  # where they were downloaded from, by the hub's commit, or were trained from; without secrets
    file: str = "these weights"  # for messages
    described: bool = False  # by ourselves

    def function(self) -> dict[str, Any]:
        """The arguments of their network that no tensor shows."""
        return {key: self.spec[key] for key in FUNCTION if self.spec.get(key) is not None}


def open_weights(weights: str | Path | Mapping[str, Tensor], name: str | None = None) -> Opened:
    """Read weights, with what is said of them: by themselves, by a configuration beside them, or by a table.

    Args:
        weights: a tag of the network `name`, a file, an address, or a state dict.
        name: of the network, where it is known. Without, weights that others wrote are a ConvNeXt's.

    Raises UsageError or ConvnextError as `create_model` does.
    """
    entry = None if name is None else find(name)
    if isinstance(weights, Mapping):
        state = files.strip_prefixes(weights)
        spec, part, _ = _identified(state, entry, name)
        return Opened(state, spec, part.task, part.published("")[0], True)
    tag = str(weights) if entry is not None and str(weights) in entry.weights else None
    if entry is not None and tag is None and is_tag(str(weights)):
        raise UsageError(f"{name} has no weights called {str(weights)!r}, nor is there such a file{nearest(str(weights), entry.weights)}")
    fetched = download.fetch(entry.weights[tag] if entry is not None and tag is not None else str(weights))
    state, about = files.read_weights(fetched.path, fetched.entry)
    if about:
        how = PREPROCESSINGS[about["task"]].from_json(about["preprocessing"])
        source = fetched.address or about.get("source")
        named = (about.get("classes"), about.get("class_ids"))
        return Opened(state, about["model"], about["task"], how, False, *named, source, str(fetched.path), True)
    spec, part, known = _identified(state, entry, name)
    found = configuration.of(fetched, _shape(spec, part)) if tag is None else None
    if found is not None:
        spec |= found.function
    elif known == "timm" and (network := _TANH.get(_sizes(spec, part))) is not None:
        raise ConvnextError(
            f"{fetched.path} has the sizes of timm's {network}, whose GELU is another function than that of the networks here: "
            "put its config.json beside it if it is another network"
        )
    how, assumed = _prepared(part, tag, found, fetched, spec, known)
    classes = None if found is None else found.classes
    return Opened(state, spec, part.task, how, assumed, classes, None, fetched.address, str(fetched.path))


def _identified(state: Mapping[str, Tensor], entry: Alone | Assembled | None, name: str | None) -> tuple[dict[str, Any], Any, str]:
    """The arguments of the network that weights of others are of, what its name stands for, and the format they are in.

    Of a network that is a backbone and a head, the weights may be of the backbone alone.
    """
    if isinstance(entry, Assembled) and not any(key.startswith("backbone.") for key in state):
        name, entry = entry.under_name, entry.under
    if name is None or (isinstance(entry, Alone) and entry.backbone.format is None):
        known = formats.recognise(state)
        try:
            spec = identify(formats.to_native(state, known))
        except ConvnextError:
            if name is None:
                raise
            spec = {"name": name}  # who fills the network with them says what is missing
        return spec, find(spec["name"]), known
    assert entry is not None
    with torch.device("meta"):
        model = entry.make(num_classes=entry.num_classes, in_channels=3, drop_path=0.0)
    model.spec = {"name": name, "num_classes": entry.num_classes, "in_channels": 3}
    native, known = entry.to_native(model, state)
    return {"name": name, "num_classes": entry.count_classes(model, native)}, entry, known


def _sizes(spec: Mapping[str, Any], part: Alone | Assembled) -> tuple[Any, Any]:
    backbone = part.backbone.arguments | dict(spec)
    return backbone.get("depths"), backbone.get("widths")


def _shape(spec: Mapping[str, Any], part: Alone | Assembled) -> Shape:
    depths, widths = _sizes(spec, part)
    network = part.backbone.timm_name
    return Shape(spec.get("num_classes", 0), spec.get("in_channels", 3), depths, widths, network, part.backbone.image_size)


def _prepared(
    part: Alone | Assembled, tag: str | None, found: configuration.Configuration | None, fetched: download.Fetched, spec: Any, known: str
) -> tuple[Any, bool]:
    """How images are prepared for weights that others wrote, and whether that is a guess."""
    name = fetched.path.name
    if tag is not None and tag in part.weights:
        return part.published(tag)[0], False
    stated = None if found is None else found.preprocessing
    if isinstance(part, Assembled):
        return part.published(name)[0], not _is_published(name, part)
    if stated is None and known == "torchvision":
        stated = published.from_torchvision(spec["name"])
    if stated is not None:
        return stated, False
    return part.published(name)[0], not _is_published(name, part)


def _is_published(file_name: str, part: Alone | Assembled) -> bool:
    addresses = {address.rpartition("/")[2] for address in part.weights.values()}
    tagged = part.backbone.timm_name is not None and any(tag in file_name for tag in part.weights)  # as `rivals.published` looks for them
    return tagged or file_name in addresses or published.from_official(file_name) is not None


def is_tag(weights: str) -> bool:
    """Whether that can only be a tag: it is no address, has no ending, and no such file is there."""
    return "/" not in weights and not Path(weights.partition("#")[0]).exists() and "." not in weights


def identify(native: Mapping[str, Tensor]) -> dict[str, Any]:
    """The `create_model` arguments of the network that a state in our own names belongs to: its name, if it has one, and sizes."""
    stem = native.get("downsample_layers.0.0.weight", native.get("stem.weight"))
    if stem is None:
        raise ConvnextError("no stem among these weights: neither 'downsample_layers.0.0.weight' nor 'stem.weight'")
    block = "blocks.0" if "stem.weight" in native else "stages.0.0"
    if stem.ndim != 4 or (first := native.get(f"{block}.dwconv.weight")) is None or first.ndim != 4:
        raise ConvnextError(f"no ConvNeXt among these weights: a stem and '{block}.dwconv.weight' have four dimensions")
    spec: dict[str, Any] = {
        "num_classes": native["head.weight"].shape[0] if "head.weight" in native else 0,
        "in_channels": stem.shape[1],
        "patch_size": stem.shape[-1],
        "kernel_size": first.shape[-1],
        "layer_scale": 1e-6 if f"{block}.gamma" in native else 0.0,
    }
    if "stem.weight" in native:
        shape: dict[str, Any] = {"depth": len({key.split(".")[1] for key in native if key.startswith("blocks.")}), "width": stem.shape[0]}
        family = "convnext_isotropic_small"
    else:
        stages = [[key for key in native if key.startswith(f"stages.{i}.") and key.endswith(".norm.weight")] for i in range(4)]
        shape = {"depths": tuple(map(len, stages)), "widths": tuple(native[keys[0]].shape[0] for keys in stages if keys)}
        family = "convnext_tiny"
        if (shape["depths"], shape["widths"]) == XXLARGE:  # all weights of these sizes that anybody published have it
            spec["norm_eps"] = 1e-5
    for name, entry in BACKBONES.items():
        if all(entry.arguments.get(key) == value for key, value in shape.items()):
            return {"name": name} | spec
    return {"name": family} | spec | shape
