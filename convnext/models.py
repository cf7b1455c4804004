"""`create_model(name)`: from a name to a network, with weights. The one place where names, networks and weight files meet."""

import fnmatch
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convnext import runtimes
from convnext.backbones.zoo import BACKBONES
from convnext.checkpoints import files, formats, hub
from convnext.data.augment_detection import DetectionPreprocessing
from convnext.data.augment_segmentation import SegmentationPreprocessing
from convnext.data.preprocessing import Preprocessing
from convnext.errors import ConvnextError, UsageError, nearest
from convnext.metrics.cost import Cost
from convnext.names import NAMES, find

log = logging.getLogger("convnext")

Weights = str | Path | Mapping[str, Tensor]
PREPROCESSINGS: dict[str, Any] = {"classify": Preprocessing, "detect": DetectionPreprocessing, "segment": SegmentationPreprocessing}


def list_models(pattern: str = "*") -> list[str]:
    """Names of models that match a shell pattern such as `convnext_*`, in the order of their size within a family."""
    return [name for name in NAMES if fnmatch.fnmatch(name, pattern)]


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    drop_path: float = 0.0,
    layer_scale: float | None = None,
    weights: Weights | None = None,
    new_head: bool = False,
    **architecture: Any,
) -> Any:
    """Build the network of that name, with random weights or published ones.

    Args:
        name: one of `list_models()`.
        num_classes: outputs of the head; 0 for none. By default those of ImageNet-1K, ADE20K (150) or COCO (80).
        in_channels: channels of the pictures.
        drop_path: stochastic depth of the last block.
        layer_scale: initial scale of the residual branches, 0 for none. By default as published: 1e-6, and none in
            convnext_isotropic_small and _base.
        weights: a tag such as "fb_in1k" (`convnext models NAME` lists them), a file, `hf://owner/name`, an `https://`
            address, or a state dict; in any format of `convnext.checkpoints`. A detector or segmenter also takes those of its
            backbone alone.
        new_head: keep the fresh head even if the weights have one for as many classes.
        architecture: other arguments of the constructors of backbone and head, for instance depths, widths, patch_size, kernel_size.

    Returns: an `nn.Module` in training mode: a backbone, a detector or a segmenter. (Typed Any so that its attributes need no casts.)

    Raises UsageError for an unknown name, argument or tag, ConvnextError for weights that do not fit or can't be had.
    """
    entry = find(name)
    given = {"num_classes": entry.num_classes if num_classes is None else num_classes, "in_channels": in_channels} | architecture
    if layer_scale is not None:
        given["layer_scale"] = layer_scale
    if unknown := sorted(given.keys() - entry.known):
        raise UsageError(f"{name} has no argument {unknown[0]!r}{nearest(unknown[0], entry.known)}")
    model: Any = entry.make(**given, drop_path=drop_path)
    model.spec = {"name": name} | given  # all that rebuilds it around its weights
    if weights is not None:
        source = entry.weights.get(weights, weights) if isinstance(weights, str) else weights
        if isinstance(source, str) and _is_tag(source):
            raise UsageError(f"{name} has no weights called {source!r}, nor is there such a file{nearest(source, entry.weights)}")
        load_weights(model, source, new_head=new_head)
    return model


def load_weights(model: Any, weights: Weights, *, new_head: bool = False) -> None:
    """Fill a model with weights of any known format, every key accounted for.

    The model's own fresh head stays if `new_head` or if the weights' head is for another number of classes, which is told.

    Raises ConvnextError that names the missing, unexpected and misshapen keys, and the format the weights were taken for.
    """
    state, _ = read_source(weights)
    entry = find(model.spec["name"])
    native, known = entry.to_native(model, state)
    own = model.state_dict()

    theirs = entry.count_classes(model, native)
    if new_head or theirs != model.num_classes:
        if not new_head:
            log.warning("the weights' head has %d classes, the model %d: its head starts afresh", theirs, model.num_classes)
        native = {key: tensor for key, tensor in native.items() if not entry.is_of_classes(model, key)}
        native |= {key: tensor for key, tensor in own.items() if entry.is_of_classes(model, key)}

    problems = {
        "missing": sorted(own.keys() - native.keys()),
        "unexpected": sorted(native.keys() - own.keys()),
        "misshapen": [
            f"{key} {tuple(native[key].shape)} instead of {tuple(own[key].shape)}"
            for key in sorted(own.keys() & native.keys())
            if native[key].shape != own[key].shape
        ],
    }
    if any(problems.values()):
        told = "; ".join(f"{what}: {_some(keys)}" for what, keys in problems.items() if keys)
        raise ConvnextError(f"these weights (taken for the {known} format) do not fit {model.spec['name']}: {told}")
    model.load_state_dict(native, assign=next(model.parameters()).is_meta)


def read_source(weights: Weights) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a state dict, file, hub name or address, and our own description of them if they have one."""
    if isinstance(weights, Mapping):
        return files.strip_prefixes(weights), {}
    path, entry = hub.fetch(str(weights))
    return files.read_weights(path, entry)


@dataclass
class Loaded:
    """A network ready to be used, and what it needs beside it."""

    model: Any
    preprocessing: Any  # of its task
    task: str = "classify"
    classes: list[str] | None = None  # None where the weights do not say
    run: Path | None = None  # the run folder it came from


def load(source: str | Path, weights: str | None = None) -> Loaded:
    """A network in evaluation mode from what a user has of it.

    Args:
        source: a run folder (its best weights), a weight file of any known format, a file that `convnext export` wrote,
            `hf://owner/name`, an `https://` address, or, with `weights`, a model's name.
        weights: a tag, file or address, as for `create_model`; only with a name.

    Raises UsageError or ConvnextError as `create_model` does.
    """
    if weights is None:
        if str(source) in NAMES:
            tags = ", ".join(find(str(source)).weights) or "no tags, so a file"
            raise UsageError(f"{source} alone has no weights: add --weights with one of {tags}")
        return _load_file(source)
    name = str(source)
    entry = find(name)
    if weights in entry.weights:
        preprocessing, classes = entry.published(weights)
        model = _empty_model({"name": name, "num_classes": classes})
        load_weights(model, entry.weights[weights])
        return Loaded(model.eval(), preprocessing, entry.task)
    if _is_tag(weights):
        create_model(name, weights=weights)  # raises with the nearest tag
    return _load_file(weights, name)


def _load_file(source: str | Path, name: str | None = None) -> Loaded:
    # Without a name, weights that others wrote are a ConvNeXt's; with one, weights of any other network are refused.
    path = Path(source).expanduser()
    if path.suffix in runtimes.ENDINGS:
        return _load_exported(str(source), name)
    run = path if path.is_dir() else None
    state, description = read_source(weights_of_run(run) if run is not None else source)
    if description:
        spec, task = description["model"], description["task"]
        preprocessing = PREPROCESSINGS[task].from_json(description["preprocessing"])
    else:
        spec = _identify_foreign(state, name)
        task = find(spec["name"]).task
        preprocessing, _ = find(spec["name"]).published(str(source))
    if name not in (None, spec["name"]):
        raise UsageError(f"{source} holds a {spec['name']}, not a {name}")
    model = _empty_model(spec)
    load_weights(model, state)
    return Loaded(model.eval(), preprocessing, task, description.get("classes"), run)


def _load_exported(source: str, name: str | None) -> Loaded:
    network, description = runtimes.open_exported(hub.fetch(source)[0])
    if name not in (None, network.spec["name"]):
        raise UsageError(f"{source} holds a {network.spec['name']}, not a {name}")
    task = description["task"]
    return Loaded(network, PREPROCESSINGS[task].from_json(description["preprocessing"]), task, description["classes"])


def _identify_foreign(state: Mapping[str, Tensor], name: str | None) -> dict[str, Any]:
    if name is None or (name in BACKBONES and BACKBONES[name].format is None):
        return identify(formats.to_native(state, formats.recognise(state)))
    entry, model = find(name), _empty_model({"name": name})
    return {"name": name, "num_classes": entry.count_classes(model, entry.to_native(model, state)[0])}


def identify(native: Mapping[str, Tensor]) -> dict[str, Any]:
    """The `create_model` arguments of the network that a state in our own names belongs to: its name, if it has one, and sizes."""
    stem = native.get("downsample_layers.0.0.weight", native.get("stem.weight"))
    if stem is None:
        raise ConvnextError("no stem among these weights: neither 'downsample_layers.0.0.weight' nor 'stem.weight'")
    block = "blocks.0" if "stem.weight" in native else "stages.0.0"
    spec: dict[str, Any] = {
        "num_classes": native["head.weight"].shape[0] if "head.weight" in native else 0,
        "in_channels": stem.shape[1],
        "patch_size": stem.shape[-1],
        "kernel_size": native[f"{block}.dwconv.weight"].shape[-1],
        "layer_scale": 1e-6 if f"{block}.gamma" in native else 0.0,
    }
    if "stem.weight" in native:
        shape: dict[str, Any] = {"depth": len({key.split(".")[1] for key in native if key.startswith("blocks.")}), "width": stem.shape[0]}
        family = "convnext_isotropic_small"
    else:
        stages = [[key for key in native if key.startswith(f"stages.{i}.") and key.endswith(".norm.weight")] for i in range(4)]
        shape = {"depths": tuple(map(len, stages)), "widths": tuple(native[keys[0]].shape[0] for keys in stages if keys)}
        family = "convnext_tiny"
    for name, entry in BACKBONES.items():
        if all(entry.arguments.get(key) == value for key, value in shape.items()):
            return {"name": name} | spec
    return {"name": family} | spec | shape


def cost_of(name: str, image_size: int | tuple[int, int] | None = None, **arguments: Any) -> Cost:
    """Parameters and multiply-adds of a model with the classes it was published for, or as the arguments of `create_model` say.

    Args:
        image_size: pixels a side, or (height, width); by default as in the paper's tables.
    """
    entry = find(name)
    return entry.cost(_empty_model({"name": name} | arguments), image_size or entry.image_size)


def _empty_model(spec: Mapping[str, Any]) -> Any:
    # On the meta device: no time goes into random weights that the file's replace.
    with torch.device("meta"):
        return create_model(**spec)


def weights_of_run(run: Path) -> Path:
    """The weight file to take from a run folder: the best, or the last where there is none. Raises ConvnextError if neither is there."""
    for name in ("best.safetensors", "last.safetensors"):
        if (run / name).is_file():
            return run / name
    raise ConvnextError(f"{run} is no run folder: it holds neither best.safetensors nor last.safetensors")


def _is_tag(weights: str) -> bool:
    return "/" not in weights and not Path(weights.partition("#")[0]).expanduser().exists() and "." not in weights


def _some(keys: list[str], most: int = 8) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
