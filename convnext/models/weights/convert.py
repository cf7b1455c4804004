"""Convert weights from any known format to any other, for `convnext convert`."""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.errors import ConvnextError, UsageError, nearest
from convnext.models.entry import Entry
from convnext.models.load import identify, weights_of_run
from convnext.models.network import Spec
from convnext.models.registry import find
from convnext.models.weights import files, formats, published
from convnext.models.weights.identify import FUNCTION
from convnext.models.weights.open import Opened, open_weights

log = logging.getLogger("convnext")

TARGETS = ("official", "timm", "torchvision", "transformers", "transformers-dinov3")
# timm's own sizes, and its tiny with the norm first, have 1 x 1 convolutions.
_CONV_MLP = re.compile(r"convnext(v2)?_(zepto|atto|femto|pico|nano)(_\w+)?|convnext_tiny_hnf")
# What transformers calls the activations.
_HIDDEN_ACT = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu", "silu": "silu", "relu": "relu"}
# What timm calls the arguments that differ from its networks', with the values that all of its names have which do not set them.
_TIMM: dict[str, tuple[str, object]] = {"in_channels": ("in_chans", 3), "patch_size": ("patch_size", 4), "kernel_size": ("kernel_sizes", 7)}
_TIMM |= {"stem": ("stem_type", "patch"), "head_norm_first": ("head_norm_first", False), "head_hidden_size": ("head_hidden_size", 0)}
_WORDS = {"norm_layer": "norms of the kind", "activation": "the activation", "norm_eps": "norms with epsilon"}


def convert(source: str, output: Path, to: str) -> str:
    """Write the weights of `source` (a file, run folder, hub name or address) to `output` in the format `to`.

    Args:
        output: a .safetensors or .pth file. For transformers and timm also a folder, which gets all that `from_pretrained`, `pipeline`
            and `timm.create_model("local-dir:FOLDER", pretrained=True)` need: the configuration, class names and preprocessing too.

    Returns one line for the user. Raises UsageError for an unknown format or ending, ConvnextError for unknown weights.
    """
    if to not in TARGETS:
        raise UsageError(f"unknown weight format {to!r}{nearest(to, TARGETS)}")
    path = Path(source).expanduser()
    if path.is_dir():
        source = str(weights_of_run(path))
    opened = open_weights(source)
    entry = find(opened.name)
    if entry.backbone is not None:
        raise ConvnextError(f"{source} holds a {opened.name}: convert writes classifiers and backbones, and no other heads")
    if opened.calibration is not None:
        log.warning("%s is calibrated, which %s's files can't say: prediction sets need the file as it is", opened.file, to)
    if entry.format is not None:
        return _write_as_it_is(opened, entry, output, to)
    known = formats.recognise(opened.state)
    native = formats.to_native(opened.state, known)
    spec = {**identify(native, entry), **opened.function()}
    _refuse_other_function(spec, to)
    foreign = formats.from_native(native, to, conv_mlp=to == "timm" and _CONV_MLP.fullmatch(cast("str", spec["name"])) is not None)
    if to == "timm" and not output.suffix:
        output = _timm_folder(output, opened, *_of_timm(spec))
    elif to.startswith("transformers") and not output.suffix:
        _write_json(output / "config.json", _of_transformers(spec, opened.classes, to))
        if isinstance(opened.preprocessing, ClassifyPreprocessing) and (how := published.to_transformers(opened.preprocessing)) is not None:
            _write_json(output / "preprocessor_config.json", how)
        else:
            log.warning("transformers' image processor can't prepare images as this network needs: %s", opened.preprocessing)
        output = output / "model.safetensors"
    files.write_weights(output, foreign)
    return f"{spec['name']}: {len(foreign)} tensors from the {known} format to {to}, written to {output}"


def is_in_transformers(entry: Entry) -> bool:
    """Return whether transformers has the network of an entry: only as the papers on ConvNeXt and ConvNeXt V2 have it."""
    return entry.format is None and entry.fixed.keys() <= {"depths", "widths", "grn", "layer_scale", "step", "regime"}


def _refuse_other_function(spec: Spec, to: str) -> None:
    # No tensor shows these. The other library would build a network of another function around the weights.
    ours = {**FUNCTION, **find(cast("str", spec["name"])).fixed, **spec}
    # timm has a name for this very network. Else the other library's is the published code's.
    theirs = {**FUNCTION, **(find(cast("str", spec["name"])).fixed if to == "timm" else {})}
    transformers = to.startswith("transformers")
    for key in ("norm_layer", "activation", "norm_eps"):
        free = transformers and (key == "activation" or (key == "norm_eps" and to == "transformers-dinov3"))
        if ours[key] != theirs[key] and not free:
            raise ConvnextError(f"this network has {_WORDS[key]} {ours[key]}, which {to} can't express: it has {theirs[key]}")
    if transformers and ours.get("kernel_size", 7) != 7:
        raise ConvnextError(f"this network has kernels of {ours['kernel_size']}, which {to} can't express: it has 7")
    of_head = cast("float | None", spec.get("head_norm_eps"))
    last = cast("float", ours["norm_eps"] if to == "transformers-dinov3" else theirs["norm_eps"])
    if of_head in (None, last) or to == "transformers":
        return
    if of_head > 1e-5:
        raise ConvnextError(f"this network's last norm has epsilon {of_head}, which {to} can't express: it has {last}")
    log.warning("the last norm's epsilon is %s here and will be %s in %s: outputs differ by parts in a million", of_head, last, to)


def _write_as_it_is(opened: Opened, entry: Entry, output: Path, to: str) -> str:
    # Our files of networks that timm builds have timm's names, too.
    name = entry.name
    if entry.format != "timm":
        raise UsageError(f"the weights of {name} can't be converted: no other library has a format for them")
    if to != entry.format:
        raise UsageError(f"the weights of {name} exist in timm's format only, not in {to}'s: give --to timm")
    if not output.suffix:
        output = _timm_folder(output, opened, cast("str", entry.timm_name), {})
    files.write_weights(output, opened.state)
    return f"{name}: {len(opened.state)} tensors in timm's names, written to {output}"


def _timm_folder(folder: Path, opened: Opened, architecture: str, arguments: Mapping[str, object]) -> Path:
    """Write config.json as timm reads it, and return where its weights belong."""
    how = opened.preprocessing
    stated = published.to_timm(how) if isinstance(how, ClassifyPreprocessing) else None
    if stated is None:
        log.warning("timm's transforms can't prepare images as this network needs: %s", how)
    config = {
        "architecture": architecture,
        "num_classes": opened.spec["num_classes"],
        "model_args": arguments,
        "pretrained_cfg": stated or {},
    }
    _write_json(folder / "config.json", config | ({} if opened.classes is None else {"label_names": opened.classes}))
    return folder / "model.safetensors"


def _of_timm(spec: Spec) -> tuple[str, dict[str, object]]:
    """Return timm's name of a ConvNeXt, and the arguments that make it the network of `spec`, the arguments of `create_model`."""
    import timm

    name, sizes = cast("str", spec["name"]), {**find(cast("str", spec["name"])).fixed, **spec}
    if not timm.is_model(name):
        name = "convnextv2_tiny" if sizes.get("grn") else "convnext_tiny"
    arguments: dict[str, object] = {"depths": sizes["depths"], "dims": sizes["widths"]}
    arguments |= {theirs: sizes[key] for key, (theirs, usual) in _TIMM.items() if sizes.get(key, usual) != usual}
    if not sizes.get("grn"):
        arguments["ls_init_value"] = sizes["layer_scale"] or None
    return name, arguments


def _of_transformers(spec: Spec, classes: list[str] | None, to: str) -> dict[str, object]:
    """Return the config.json of transformers for a ConvNeXt.

    Args:
        spec: arguments of `create_model`.
        classes: the names of its classes; None where unknown.
        to: "transformers", or "transformers-dinov3" for a backbone without head.
    """
    sizes = {**FUNCTION, **find(cast("str", spec["name"])).fixed, **spec}
    kind = ("ConvNextForImageClassification", "convnext")
    if to == "transformers-dinov3":
        kind = ("DINOv3ConvNextModel", "dinov3_convnext")
    elif sizes.get("grn"):
        kind = ("ConvNextV2ForImageClassification", "convnextv2")
    config: dict[str, object] = {
        "architectures": [kind[0]],
        "model_type": kind[1],
        "num_channels": sizes["in_channels"],
        "depths": sizes["depths"],
        "hidden_sizes": sizes["widths"],
        **({} if to == "transformers-dinov3" else {"patch_size": sizes["patch_size"], "num_stages": 4}),
        **({} if sizes.get("grn") else {"layer_scale_init_value": sizes["layer_scale"]}),
        "hidden_act": _HIDDEN_ACT[cast("str", sizes["activation"])],
        # Of the last norm. transformers' default, 1e-12, is not what most networks have.
        "layer_norm_eps": spec.get("head_norm_eps") or spec.get("norm_eps", 1e-6),
    }
    if to == "transformers-dinov3":
        return config
    if classes is None:
        config["num_labels"] = sizes["num_classes"]
    else:
        config["id2label"] = dict(enumerate(classes))
        config["label2id"] = {name: i for i, name in enumerate(classes)}
    return config


def _write_json(path: Path, values: Mapping[str, object]) -> None:
    files.write_atomically(path, lambda file: file.write_text(json.dumps(values, indent=2) + "\n", "utf-8"))
