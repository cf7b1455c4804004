"""`convnext convert`: weights from any known format to any other."""

import json
from pathlib import Path

from torch import Tensor

from convnext.backbones.zoo import BACKBONES
from convnext.checkpoints import files, formats
from convnext.errors import UsageError, nearest
from convnext.models import identify, read_source, weights_of_run

TARGETS = ("official", "timm", "torchvision", "transformers")
_CONV_MLP = ("convnext_atto", "convnext_femto", "convnext_pico", "convnext_nano")  # timm's own sizes have 1 x 1 convolutions


def convert(source: str, output: Path, to: str) -> str:
    """Write the weights of `source` (a file, run folder, hub name or address) to `output` in the format `to`.

    Args:
        output: a .safetensors or .pth file; for transformers also a folder, made so that `from_pretrained` reads it.

    Returns what was done, in one line. Raises UsageError for an unknown format or ending, ConvnextError for unknown weights.
    """
    if to not in TARGETS:
        raise UsageError(f"no weight format is called {to!r}{nearest(to, TARGETS)}")
    path = Path(source).expanduser()
    if path.is_dir():
        source = str(weights_of_run(path))
    state, description = read_source(source)
    entry = BACKBONES.get(description["model"]["name"]) if description else None
    if entry is not None and entry.format is not None:
        return _write_as_it_is(state, description["model"]["name"], entry.format, output, to)
    known = formats.recognise(state)
    native = formats.to_native(state, known)
    spec = identify(native)
    foreign = formats.from_native(native, to, conv_mlp=to == "timm" and spec["name"] in _CONV_MLP)
    if to == "transformers" and not output.suffix:
        files.write_atomically(output / "config.json", lambda file: file.write_text(_config(spec, description.get("classes"))))
        output = output / "model.safetensors"
    files.write_weights(output, foreign)
    return f"{spec['name']}: {len(foreign)} tensors from the {known} format to {to}, written to {output}"


def _write_as_it_is(state: dict[str, Tensor], name: str, own: str, output: Path, to: str) -> str:
    # What timm builds has timm's names in our files too.
    if own != "timm":
        raise UsageError(f"the weights of {name} can't be converted: no other library names them as we do")
    if to != own:
        raise UsageError(f"the weights of {name} exist in timm's format only, not in {to}'s: give --to timm")
    files.write_weights(output, state)
    return f"{name}: {len(state)} tensors in timm's names, written to {output}"


def _config(spec: dict, classes: list[str] | None) -> str:  # type: ignore[type-arg]
    sizes = BACKBONES[spec["name"]].arguments | spec
    config = {
        "architectures": ["ConvNextForImageClassification"],
        "model_type": "convnext",
        "num_channels": sizes["in_channels"],
        "patch_size": sizes["patch_size"],
        "num_stages": 4,
        "depths": sizes["depths"],
        "hidden_sizes": sizes["widths"],
        "layer_scale_init_value": sizes["layer_scale"],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,  # of the last norm; transformers' default, 1e-12, is another function
    }
    if classes is None:
        config["num_labels"] = sizes["num_classes"]
    else:
        config["id2label"] = dict(enumerate(classes))
        config["label2id"] = {name: i for i, name in enumerate(classes)}
    return json.dumps(config, indent=2) + "\n"
