"""Read the configuration of weights in foreign formats: config.json of timm and transformers, and what else states their images.

That is transformers' preprocessor_config.json and open_clip's open_clip_config.json.

Two networks may have the same tensors and compute different functions. A configuration of a function that no network here computes is
refused, and the message names it.
"""

import functools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from convnext.data import imagenet
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.errors import ConvnextError, first_line
from convnext.models.weights import published
from convnext.models.weights.download import Downloaded

log = logging.getLogger("convnext")

_MAX_LENGTH = 16 << 20  # bytes of a configuration
# Arguments of timm's networks that the tensors show, or that only training needs.
_VISIBLE = {"num_classes", "in_chans", "depths", "dims", "kernel_sizes", "ls_init_value", "patch_size", "conv_mlp", "conv_bias", "use_grn"}
_VISIBLE |= {"stem_type", "head_norm_first", "head_hidden_size", "head_init_scale", "drop_rate", "drop_path_rate", "img_size"}
_SAME: dict[str, tuple[object, ...]] = {"output_stride": (32,), "global_pool": ("avg",)}  # allowed values of others
# What timm's layers and arguments, and transformers' hidden_act, are called here.
_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_tanh", "gelutanh": "gelu_tanh", "quick_gelu": "quick_gelu", "quickgelu": "quick_gelu"}
_ACTIVATIONS |= {"silu": "silu", "swish": "silu", "relu": "relu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
_NORMS = {name + end: name for name in ("layernorm", "rmsnorm", "simplenorm") for end in ("", "2d")}
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # open_clip's defaults
_OF_TRANSFORMERS = {"convnext": 1e-12, "convnextv2": 1e-12, "dinov3_convnext": 1e-6}  # model_type → the default of layer_norm_eps


@dataclass(frozen=True)
class Shape:
    """What the tensors show of a network."""

    num_classes: int
    in_channels: int = 3
    depths: tuple[int, ...] | None = None  # None for other networks than ConvNeXt
    widths: tuple[int, ...] | None = None
    timm_name: str | None = None  # of a network that timm builds
    image_size: int = 224  # of the paper's tables


@dataclass(frozen=True)
class Configuration:
    """What a configuration adds to the tensors."""

    function: dict[str, object]  # arguments of `create_model` that no tensor shows: of the norms and the activation
    preprocessing: ClassifyPreprocessing | None
    classes: list[str] | None


def of(downloaded: Downloaded, shape: Shape) -> Configuration | None:
    """Return the configuration of weights: from beside the file, from the same commit of its repository, or from timm's own table.

    A configuration of another network than `shape` is ignored, with a warning. Raises ConvnextError, naming the file, for an invalid one,
    and for one of a function that no network here computes.
    """
    path = downloaded.beside("config.json") or downloaded.beside("open_clip_config.json")
    config = _by_timm(downloaded) if path is None else _read(path)
    where = "timm's table" if path is None else str(path)
    if config is None:
        return None
    if isinstance(config.get("architecture"), str):
        found = _timm(config, where, shape)
    elif isinstance(config.get("model_type"), str):
        found = _transformers(config, where, shape, downloaded)
    elif isinstance(config.get("model_cfg"), dict):
        found = _open_clip(config, where, shape)
    else:
        found = None
    if found is None:
        log.warning("%s was ignored: it is of another network than %s", where, downloaded.path)
    return found


def _read(path: Path) -> dict[str, object]:
    try:
        if path.stat().st_size > _MAX_LENGTH:
            raise ValueError("it is too long")
        found = json.loads(path.read_text("utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is not a table")
    except (OSError, ValueError, RecursionError) as error:
        raise ConvnextError(f"{path}, the configuration of its weights, can't be read: {first_line(error)}") from error
    return found


def _by_timm(downloaded: Downloaded) -> dict[str, object] | None:
    # By the repository's name, or by that of a file copied from there: NETWORK.TAG
    hub = downloaded.on_hub
    name = hub.repository.removeprefix("timm/") if hub is not None else downloaded.path.name.removesuffix(downloaded.path.suffix)
    if hub is not None and not hub.repository.startswith("timm/"):
        return None
    config = published.timm_config(name)
    return None if config is None else {"architecture": name.partition(".")[0], "pretrained_cfg": config}


def _timm(config: Mapping[str, object], where: str, shape: Shape) -> Configuration | None:
    architecture, arguments = cast("str", config["architecture"]), config.get("model_args") or {}
    stated = config.get("pretrained_cfg", config)  # older files have no part of that name
    if not isinstance(arguments, dict) or not isinstance(stated, dict):
        raise ConvnextError(f"{where} is invalid: model_args and pretrained_cfg must be tables")
    if shape.timm_name is not None:
        if not _same_network(architecture, shape, where):
            return None
        function: dict[str, object] = {}
        changed = {key: value for key, value in arguments.items() if key in ("act_layer", "norm_layer", "norm_eps", "output_stride")}
        _refuse(changed, architecture, where)
    else:
        found = _convnext_of_timm(architecture, arguments, where, shape)
        if found is None:
            return None
        function = found
    if shape.depths is not None:
        _refuse({"global_pool": config.get("global_pool")}, architecture, where)
    names = config.get("label_names") or config.get("labels") or stated.get("label_names")
    return Configuration(function, published.from_timm(stated, where, shape.image_size), _class_names(names, shape.num_classes))


@dataclass(frozen=True)
class _Known:
    """What timm builds under a name."""

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    activations: frozenset[str]  # in small letters
    norms: frozenset[str]
    eps: frozenset[float]


@functools.cache
def _known_to_timm(architecture: str) -> _Known:
    import timm
    import torch

    with torch.device("meta"):
        network = timm.create_model(architecture)
    norms = [module for module in network.modules() if type(module).__name__.lower() in _NORMS]
    return _Known(
        tuple(len(stage.blocks) for stage in network.stages),
        tuple(stage["num_chs"] for stage in network.feature_info),
        frozenset(type(module).__name__.lower() for name, module in network.named_modules() if name.endswith("mlp.act")),
        frozenset(type(module).__name__.lower() for module in norms),
        frozenset(module.eps for module in norms) or frozenset({1e-6}),
    )


def _convnext_of_timm(architecture: str, arguments: Mapping[str, object], where: str, shape: Shape) -> dict[str, object] | None:
    """Return what no tensor shows of a ConvNeXt of timm; None if it has other sizes. Raises ConvnextError for another function."""
    import timm

    if shape.depths is None or shape.widths is None:
        return None
    if timm.models.is_model(architecture):
        if not timm.models.is_model_in_modules(architecture, ["convnext"]):
            return None
        known = _known_to_timm(architecture)
    elif "convnext" in architecture:
        log.warning("%s names %s, which this version of timm does not know: its GELU and epsilon are assumed", where, architecture[:80])
        known = _Known(shape.depths, shape.widths, frozenset({"gelu"}), frozenset({"layernorm"}), frozenset({1e-6}))
    else:
        return None
    sizes = (_numbers(arguments.get("depths"), known.depths), _numbers(arguments.get("dims"), known.widths))
    if sizes != (shape.depths, shape.widths):
        return None
    shown = _VISIBLE | {"norm_eps", "act_layer", "norm_layer"}
    _refuse({key: value for key, value in arguments.items() if key not in shown}, architecture, where)
    function = _named("act_layer", _ACTIVATIONS, known.activations, arguments, f"{where}: {architecture}")
    function |= _named("norm_layer", _NORMS, known.norms, arguments, f"{where}: {architecture}")
    eps, stated = known.eps, arguments.get("norm_eps")
    if stated is not None:
        eps = frozenset({_epsilon(stated, where, "norm_eps")})
    if len(eps) > 1:
        raise ConvnextError(f"{where}: {architecture} has norms of different epsilon, the networks here of one: another function")
    return {"norm_eps": min(eps), **function}


def _named(key: str, names: Mapping[str, str], built: frozenset[str], arguments: Mapping[str, object], whose: str) -> dict[str, object]:
    """Return a layer of the networks here by its own name, unless it is the usual one and not asked for."""
    stated = arguments.get(key)
    found = {names.get(one.lower(), one) for one in ([str(stated)[:40]] if stated is not None else built)}
    ours = {"act_layer": "activation", "norm_layer": "norm_layer"}[key]
    if unknown := sorted(found - set(names.values())):
        raise ConvnextError(f"{whose} has {key}={unknown[0]}, which no network here has: another function")
    if len(found) > 1:
        raise ConvnextError(f"{whose} has {' and '.join(sorted(found))} for {key}, the networks here one: another function")
    usual = found <= {"gelu", "layernorm"}
    return {} if usual and stated is None else {ours: found.pop()}


def _epsilon(value: object, where: str, key: str) -> float:
    if not isinstance(value, float) or not 1e-12 <= value <= 0.1:
        raise ConvnextError(f"{where} is invalid: {key} is {str(value)[:20]}")
    return value


def _same_network(architecture: str, shape: Shape, where: str) -> bool:
    """Return whether timm's `architecture` computes what the network here does. Raises ConvnextError if only the tensors are alike."""
    import timm
    import torch

    if architecture == shape.timm_name:
        return True
    if not timm.models.is_model(architecture):
        return False
    with torch.device("meta"):
        theirs, ours = (timm.create_model(name, num_classes=1) for name in (architecture, str(shape.timm_name)))
    if str(theirs) == str(ours):
        return True
    if {key: value.shape for key, value in theirs.state_dict().items()} != {key: value.shape for key, value in ours.state_dict().items()}:
        return False
    raise ConvnextError(
        f"{where}: the weights are of {architecture}, the network here is {shape.timm_name}: same tensors, another function"
    )


def _transformers(config: Mapping[str, object], where: str, shape: Shape, downloaded: Downloaded) -> Configuration | None:
    under_head = config.get("backbone_config")
    alone = not isinstance(under_head, dict)
    body = under_head if isinstance(under_head, dict) else config
    sizes = (_numbers(body.get("depths"), (3, 3, 9, 3)), _numbers(body.get("hidden_sizes"), (96, 192, 384, 768)))
    kind = str(body.get("model_type"))
    if shape.timm_name is not None or kind not in _OF_TRANSFORMERS or sizes != (shape.depths, shape.widths):
        return None
    activation, eps = body.get("hidden_act", "gelu"), body.get("layer_norm_eps", _OF_TRANSFORMERS[kind])
    if activation not in _ACTIVATIONS:
        raise ConvnextError(f"{where}: hidden_act is {str(activation)[:40]!r}, which no network here has: another function")
    eps = _epsilon(eps, where, "layer_norm_eps")
    function: dict[str, object] = {} if activation == "gelu" else {"activation": _ACTIVATIONS[str(activation)]}
    if kind == "dinov3_convnext":
        function["norm_eps"] = eps
    elif alone:  # blocks have 1e-6 whatever the configuration says. The epsilon is of the last norm, which is not there under a head.
        function["head_norm_eps"] = eps
    labels = config.get("id2label")
    names = [labels.get(str(i)) for i in range(len(labels))] if isinstance(labels, dict) else None
    processor = downloaded.beside("preprocessor_config.json") if alone else None
    how = None if processor is None else published.from_transformers(_read(processor), processor)
    return Configuration(function, how, _class_names(names, shape.num_classes))


def _open_clip(config: Mapping[str, object], where: str, shape: Shape) -> Configuration | None:
    vision, stated = cast("dict[str, object]", config["model_cfg"]).get("vision_cfg"), config.get("preprocess_cfg") or {}
    if not isinstance(vision, dict) or not isinstance(stated, dict):
        raise ConvnextError(f"{where} is invalid: vision_cfg and preprocess_cfg must be tables")
    function = _convnext_of_timm(str(vision.get("timm_model_name")), {}, where, shape)
    if function is None:
        return None
    size, mode = vision.get("image_size", 224), stated.get("resize_mode", "shortest")
    if mode not in ("shortest", "squash"):
        raise ConvnextError(f"{where} asks for resize_mode {str(mode)[:40]!r}, which is not supported")
    as_timm = {
        "input_size": [3, *(size if isinstance(size, (list, tuple)) else [size, size])],
        "crop_pct": 1.0,
        "crop_mode": "squash" if mode == "squash" else "center",
        "interpolation": stated.get("interpolation", "bicubic"),
        "mean": stated.get("mean", _CLIP_MEAN),
        "std": stated.get("std", _CLIP_STD),
    }
    return Configuration(function, published.from_timm(as_timm, where), None)


def _refuse(arguments: Mapping[str, object], architecture: str, where: str) -> None:
    for key, value in arguments.items():
        if value is not None and value not in _SAME.get(key, ()):
            raise ConvnextError(f"{where}: {architecture} has {key[:40]}={str(value)[:40]}, which no network here has: another function")


def _numbers(value: object, default: Sequence[int] | None) -> tuple[int, ...] | None:
    if isinstance(value, (list, tuple)) and all(isinstance(number, int) for number in value):
        return tuple(value)
    return None if default is None else tuple(default)


def _class_names(names: object, num_classes: int) -> list[str] | None:
    """Return the names of the head's classes; None if they are not given, or are ImageNet's, which the package knows."""
    if not isinstance(names, (list, tuple)) or len(names) != num_classes or not all(isinstance(name, str) for name in names):
        return None
    given = list(names)
    if given == [f"LABEL_{i}" for i in range(num_classes)]:  # transformers writes these if nobody named the classes
        return None
    if num_classes in imagenet.SUBSETS:
        first = imagenet.descriptions(num_classes)
        if given == imagenet.synsets(num_classes) or all(_word(given[i]) == _word(first[i]) for i in (0, 1, -2, -1)):
            return None
    return given


def _word(description: str) -> str:
    return description.split(",")[0].strip().lower()
