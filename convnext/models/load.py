"""From a name to a network with weights: `create_model(name)` and `load(source)`."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from convnext.data.transforms.preprocessing import Preprocessing, sides, size_text
from convnext.errors import ConvnextError, UsageError, first_line, nearest
from convnext.models.calibration import Calibration, check_width
from convnext.models.cost import Cost, ImageSize
from convnext.models.entry import Entry
from convnext.models.network import Network, Spec
from convnext.models.registry import find, names
from convnext.models.weights import download, published
from convnext.models.weights.complete import with_channels, with_last_norm
from convnext.models.weights.identify import FUNCTION
from convnext.models.weights.identify import identify as identify
from convnext.models.weights.open import ClassIds, Opened, open_weights, unknown_architecture
from convnext.text import counted

log = logging.getLogger("convnext")

Weights = str | Path | Mapping[str, Tensor] | Opened


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    drop_path: float = 0.0,
    layer_scale: float | None = None,
    weights: Weights | None = None,
    new_head: bool = False,
    **architecture: object,
) -> Any:
    """Return the network of that name, with random or published weights, in training mode.

    It is a `Backbone`, a `Detector` or a `UperNet`. Its type is Any so that a user's code can take it for what it is without a cast.

    Args:
        name: one of `list_models()`.
        num_classes: outputs of the head; 0 for none. By default 1000 (ImageNet-1K), 150 (ADE20K) or 80 (COCO).
        in_channels: channels of the images. Weights of RGB are adapted to other numbers, see `weights.complete.adapt_stem`.
        drop_path: stochastic depth of the last block.
        layer_scale: initial scale of the residual branches, 0 for none. By default as published: 1e-6, and none in
            convnext_isotropic_small and _base.
        weights: a tag such as "fb_in1k" (`convnext models NAME` lists them), "best" for the most accurate of a free licence, a file,
            `hf://owner/name`, an `https://` address, a folder of transformers, or a state dict; in any format of
            `convnext.models.weights`. A detector or segmenter also takes those of its backbone alone. For other `in_channels` the first
            convolution is adapted, with a warning.
        new_head: keep the fresh head even if the weights have one for as many classes.
        architecture: other arguments of the constructors of backbone and head, for instance depths, widths, patch_size, kernel_size.

    Raises UsageError for an unknown name, argument or tag, ConvnextError for weights that do not fit or can't be downloaded.
    """
    entry = find(name)
    opened = None if weights is None else weights if isinstance(weights, Opened) else open_weights(weights, name)
    given: dict[str, object] = {"num_classes": entry.num_classes if num_classes is None else num_classes, "in_channels": in_channels}
    given |= architecture
    if layer_scale is not None:
        given["layer_scale"] = layer_scale
    if opened is not None:  # weights that were trained as another function need that function
        given = {key: value for key, value in opened.function().items() if key in entry.arguments} | given
    if unknown := sorted(given.keys() - entry.arguments.keys()):
        raise UsageError(f"{name} has no argument {unknown[0]!r}{nearest(unknown[0], entry.arguments)}")
    model = entry.make(**given, drop_path=drop_path)
    model.spec = {"name": name} | given  # all that rebuilds it around its weights
    if opened is not None:
        load_weights(model, opened, new_head=new_head)
    return model


def load_weights(model: Network, weights: Weights, *, new_head: bool = False) -> None:
    """Fill a model with weights of any known format. Every key must fit.

    The model keeps its own fresh head if `new_head`, and also, with a warning, if the weights' head is for another number of classes.

    Raises ConvnextError that names the missing, unexpected and misshapen keys, and the format that the weights were taken for.
    """
    _fill(model, weights if isinstance(weights, Opened) else open_weights(weights, name_of(model)), new_head)


def name_of(model: Network) -> str:
    """Return the name that `create_model` built a model by."""
    return cast("str", model.spec["name"])


def _fill(model: Network, opened: Opened, new_head: bool = False, whole: bool = False) -> None:
    """Fill a model as `load_weights` does. With `whole`, all of the network must be among the weights, its head too."""
    entry = find(name_of(model))
    _check_function(model, opened)
    native, known = entry.to_native(model, opened.state)
    own = model.state_dict()
    theirs = entry.count_classes(model, native)
    if new_head or theirs != model.num_classes:
        if not new_head:
            if whole:
                raise ConvnextError(f"{opened.file} has a head of {counted(theirs, 'class')}, but describes one of {model.num_classes}")
            if theirs:
                log.warning("the weights' head has %d classes, the model %d: the model keeps its fresh head", theirs, model.num_classes)
            else:
                log.warning("%s has no head: the model's head for %s is new", opened.file, counted(model.num_classes, "class"))
        native = {key: tensor for key, tensor in native.items() if not entry.is_of_classes(model, key)}
        native |= {key: tensor for key, tensor in own.items() if entry.is_of_classes(model, key)}

    if whole:
        native = {key: tensor for key, tensor in native.items() if not tensor.is_meta}  # the weights lack what is on the meta device
    if not theirs:
        native = with_last_norm(native, own, opened.file)
    if not whole:  # published weights are of RGB; those of a run are of its own channels
        native = with_channels(native, own, opened.file)
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
        listed = "; ".join(f"{what}: {_some(keys)}" for what, keys in problems.items() if keys)
        why = unknown_architecture(opened.source or opened.file)
        raise ConvnextError(f"these weights (taken for the {known} format) do not fit {entry.name}: {listed}{why}")
    model.load_state_dict(native, assign=next(model.parameters()).is_meta)


def _check_function(model: Network, opened: Opened) -> None:
    entry = find(name_of(model))
    for key, value in opened.function().items():
        if key == "head_norm_eps" and entry.backbone is not None:  # the norm is not there under a head
            continue
        ours = _built_with(entry, model.spec, key)
        if ours != value:
            name = entry.name
            how = f"create_model({name!r}, {key}={value!r})" if key in entry.arguments else "a ConvNeXt by its own name"
            raise ConvnextError(f"{opened.file} is of a network with {key} {value}, this {name} has {ours}: another function; build {how}")


def _built_with(entry: Entry, spec: Spec, key: str) -> object:
    given = {**(entry.backbone or entry).fixed, **spec}
    if given.get(key) is not None:
        return given[key]
    return _built_with(entry, spec, "norm_eps") if key == "head_norm_eps" else FUNCTION[key]


@dataclass
class Loaded:
    """A network ready for use, and what belongs to it."""

    model: Network
    preprocessing: Preprocessing
    task: str = "classify"
    classes: list[str] | None = None  # None where the weights do not name them
    run: Path | None = None  # the run folder that it came from
    source: str | None = None  # the address of its weights, by the hub's commit; None where it is unknown
    class_ids: ClassIds | None = None  # the data's own number of each class; None where the weights do not say them
    calibration: Calibration | None = None  # None where the weights have none


def load(source: str | Path, weights: str | None = None) -> Loaded:
    """Return a network in evaluation mode from a run folder, a file, an address or a name.

    Args:
        source: a run folder (its best weights), a weight file of any known format, `hf://owner/name` (with `@revision` for one of
            its versions), an `https://` address, or, with `weights`, a model's name. `convnext.export.load` opens exported files too.
        weights: a tag, file or address, as for `create_model`; only with a name.

    Raises UsageError or ConvnextError as `create_model` does.
    """
    if weights is not None:
        return _load_file(weights, str(source))
    if str(source) in names():
        tags = ", ".join(find(str(source)).weights) or "no tags, so a file"
        raise UsageError(f"{source} is a name without weights: add --weights with one of {tags}")
    return _load_file(source)


def _load_file(source: str | Path, name: str | None = None) -> Loaded:
    # Without a name, weights in a foreign format are taken for a ConvNeXt's. With one, weights of another network are refused.
    folder = download.expanded(source)
    path = weights_of_run(folder) if folder.is_dir() else None
    run = folder if path is not None and path.name in download.OF_RUN else None
    opened = open_weights(path or source, name)
    if name not in (None, opened.spec["name"]):
        raise UsageError(f"{source} holds a {opened.spec['name']}, not a {name}")
    model = _filled(opened)
    if opened.calibration is not None:
        check_width(opened.calibration, model, opened.file)
    if opened.assumed:
        log.warning("%s does not say how its images are prepared; assumed: %s", opened.file, opened.preprocessing)
    return Loaded(model.eval(), opened.preprocessing, opened.task, opened.classes, run, opened.source, opened.class_ids, opened.calibration)


def at_size(loaded: Loaded, size: ImageSize, named: str, device: torch.device) -> Loaded:
    """Return a network that takes images of another size, on `device`.

    Args:
        loaded: as `load` returns it.
        size: pixels a side, or (height, width).
        named: by which the user named its weights. At a size at which published weights were tested, the crop is the published one.
        device: to try the network on.

    Raises UsageError if the network can't take images of that size, and for a detector or segmenter.
    """
    height_width = sides(size)
    if len(height_width) != 2 or not all(type(side) is int and side > 0 for side in height_width):
        raise UsageError(f"size must be pixels a side, for instance 224, or (height, width), not {size!r}")
    how = published.at_size(loaded.preprocessing, size, loaded.source or named)
    model = loaded.model.to(device)
    try:
        with torch.inference_mode():
            model(torch.zeros(1, how.channels, *height_width, device=device))
    except Exception as error:  # networks, and runtimes of exported ones, raise whatever they like
        raise UsageError(f"size {size_text(size)}: this network can't take images of that size ({first_line(error)})") from error
    return replace(loaded, model=model, preprocessing=how)


def _filled(opened: Opened) -> Network:
    if not opened.described:
        model = _empty_model(opened.spec)
    else:
        try:
            model = _empty_model(opened.spec)
        except UsageError as error:
            raise ConvnextError(f"{opened.file} describes an unknown network: {error}") from error
        except Exception as error:  # the numbers in a stranger's file may raise anything in a constructor
            raise ConvnextError(f"{opened.file} describes a network that can't be built: {first_line(error)}") from error
    _fill(model, opened, whole=True)
    return model


def cost_of(name: str, image_size: ImageSize | None = None, **arguments: object) -> Cost:
    """Return the parameters and multiply-adds of a model with the classes it was published for, or with these arguments.

    Args:
        image_size: pixels a side, or (height, width); by default as in the paper's tables.
        arguments: as for `create_model`.
    """
    entry = find(name)
    model = _empty_model({"name": name} | arguments)
    if entry.backbone is not None:
        model.to("meta")  # where a head or backbone from outside is not yet: `OwnBuilder` makes it on the CPU
    return entry.cost(model, image_size or entry.image_size)


def _empty_model(spec: Spec) -> Network:
    # On the meta device: drawing random weights takes time, and the file's replace them.
    build = cast("Callable[..., Network]", create_model)
    with torch.device("meta"):
        return build(**spec)


def weights_of_run(run: Path) -> Path:
    """Return the weight file of a run folder: the best, or else the last; or that of a folder of transformers.

    Raises ConvnextError if it has none.
    """
    if (found := download.of_run(run) or download.in_folder(run)) is not None:
        return found
    raise ConvnextError(
        f"{run} is not a run folder: it holds neither best.safetensors nor last.safetensors, nor {' or '.join(download.OF_OTHERS)}"
    )


def _some(keys: list[str], limit: int = 8) -> str:
    return ", ".join(keys[:limit]) + (f" and {len(keys) - limit} more" if len(keys) > limit else "")
