"""`create_model(name)`: from a name to a network, with weights. The one place where names, networks and weight files meet."""

import fnmatch
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convnext.errors import ConvnextError, UsageError, first_line, nearest
from convnext.models.cost import Cost
from convnext.models.registry import NAMES, find
from convnext.models.weights import download
from convnext.models.weights.open import FUNCTION, Opened, open_weights
from convnext.models.weights.open import identify as identify

log = logging.getLogger("convnext")

Weights = str | Path | Mapping[str, Tensor] | Opened


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
        in_channels: channels of the images.
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
    opened = None if weights is None else weights if isinstance(weights, Opened) else open_weights(weights, name)
    given = {"num_classes": entry.num_classes if num_classes is None else num_classes, "in_channels": in_channels} | architecture
    if layer_scale is not None:
        given["layer_scale"] = layer_scale
    if opened is not None:  # a network with the weights of another function would be neither
        given = {key: value for key, value in opened.function().items() if key in entry.known} | given
    if unknown := sorted(given.keys() - entry.known):
        raise UsageError(f"{name} has no argument {unknown[0]!r}{nearest(unknown[0], entry.known)}")
    model: Any = entry.make(**given, drop_path=drop_path)
    model.spec = {"name": name} | given  # all that rebuilds it around its weights
    if opened is not None:
        load_weights(model, opened, new_head=new_head)
    return model


def load_weights(model: Any, weights: Weights, *, new_head: bool = False) -> None:
    """Fill a model with weights of any known format, every key accounted for.

    The model's own fresh head stays if `new_head` or if the weights' head is for another number of classes, which is told.

    Raises ConvnextError that names the missing, unexpected and misshapen keys, and the format the weights were taken for.
    """
    _fill(model, weights if isinstance(weights, Opened) else open_weights(weights, model.spec["name"]), new_head)


def _fill(model: Any, opened: Opened, new_head: bool = False, whole: bool = False) -> None:
    """See `load_weights`; with `whole` all of the network must be among the weights, its head too."""
    entry = find(model.spec["name"])
    _check_function(model, opened)
    native, known = entry.to_native(model, opened.state)
    own = model.state_dict()

    theirs = entry.count_classes(model, native)
    if new_head or theirs != model.num_classes:
        if not new_head:
            if whole:
                raise ConvnextError(f"{opened.file} has a head of {theirs} classes, and was to have one of {model.num_classes}")
            log.warning("the weights' head has %d classes, the model %d: its head starts afresh", theirs, model.num_classes)
        native = {key: tensor for key, tensor in native.items() if not entry.is_of_classes(model, key)}
        native |= {key: tensor for key, tensor in own.items() if entry.is_of_classes(model, key)}

    if whole:
        native = {key: tensor for key, tensor in native.items() if not tensor.is_meta}  # what a head's weights lack is no part of them
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


def _check_function(model: Any, opened: Opened) -> None:
    for key, value in opened.function().items():
        if key == "head_norm_eps" and not hasattr(model, "norm"):  # under a head
            continue
        ours = model.spec.get(key) or (model.spec.get("norm_eps") if key == "head_norm_eps" else None) or FUNCTION["norm_eps"]
        if ours != value:
            name = model.spec["name"]
            how = f"create_model({name!r}, {key}={value})" if key in find(name).known else "a ConvNeXt by its own name"
            raise ConvnextError(f"{opened.file} is of a network with {key} {value}, this {name} has {ours}: another function; build {how}")


@dataclass
class Loaded:
    """A network ready to be used, and what it needs beside it."""

    model: Any
    preprocessing: Any  # of its task
    task: str = "classify"
    classes: list[str] | None = None  # None where the weights do not say
    run: Path | None = None  # the run folder it came from
    source: str | None = None  # the address its weights come from, by the hub's commit; None where that is not known
    class_ids: list[Any] | None = None  # the data's own number of each class; None where the weights do not say


def load(source: str | Path, weights: str | None = None) -> Loaded:
    """A network in evaluation mode from what a user has of it.

    Args:
        source: a run folder (its best weights), a weight file of any known format, `hf://owner/name` (with `@revision` for one of
            its versions), an `https://` address, or, with `weights`, a model's name. `convnext.export.load` opens exported files too.
        weights: a tag, file or address, as for `create_model`; only with a name.

    Raises UsageError or ConvnextError as `create_model` does.
    """
    if weights is not None:
        return _load_file(weights, str(source))
    if str(source) in NAMES:
        tags = ", ".join(find(str(source)).weights) or "no tags, so a file"
        raise UsageError(f"{source} alone has no weights: add --weights with one of {tags}")
    return _load_file(source)


def _load_file(source: str | Path, name: str | None = None) -> Loaded:
    # Without a name, weights that others wrote are a ConvNeXt's; with one, weights of any other network are refused.
    folder = download.expanded(source)
    run = folder if folder.is_dir() else None
    opened = open_weights(weights_of_run(run) if run is not None else source, name)
    if name not in (None, opened.spec["name"]):
        raise UsageError(f"{source} holds a {opened.spec['name']}, not a {name}")
    model = _filled(opened)
    if opened.assumed:
        log.warning("%s does not say how it wants its images; assumed: %s", opened.file, opened.preprocessing)
    return Loaded(model.eval(), opened.preprocessing, opened.task, opened.classes, run, opened.source, opened.class_ids)


def _filled(opened: Opened) -> Any:
    if not opened.described:
        model = _empty_model(opened.spec)
    else:
        try:
            model = _empty_model(opened.spec)
        except UsageError as error:
            raise ConvnextError(f"{opened.file} describes a network that is not known here: {error}") from error
        except Exception as error:  # whatever a stranger's numbers do in a constructor
            raise ConvnextError(f"{opened.file} describes a network that can't be built: {first_line(error)}") from error
    _fill(model, opened, whole=True)
    return model


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


def _some(keys: list[str], most: int = 8) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
