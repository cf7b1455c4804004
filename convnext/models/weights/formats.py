"""The formats of ConvNeXt weight files: one table of names per format, read in both directions.

`to_native` renames a state of any known format to our names, which are the published code's. `from_native` is its inverse, bit for bit.
A new format is one more table and one more row in `FORMATS`.
The formats and who writes them: official (the paper's code, that of ConvNeXt V2, of DINOv3 and of EUPE), timm, torchvision, transformers,
and open_clip, whose image tower is in timm's.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from convnext.errors import ConvnextError
from convnext.models.weights import wrapped

State = dict[str, Tensor]
Table = list[tuple[str, str]]  # (native name, foreign name) of a module or parameter; {j} is a block's number

_STAGES = range(4)
_BETWEEN = range(1, 4)
_BLOCK_PARTS = ("dwconv", "norm", "pwconv1", "pwconv2", "gamma", "grn.gamma", "grn.beta")  # the last two are of ConvNeXt V2


def _blocks(native: str, foreign: str, *parts: str) -> Table:
    """Return the rows of a block; a format that has no GRN names fewer parts."""
    return [(f"{native}.{ours}", f"{foreign}.{theirs}") for ours, theirs in zip(_BLOCK_PARTS, parts, strict=False)]


def _official() -> Table:
    names = [f"downsample_layers.{i}.{k}" for i in _STAGES for k in (0, 1)] + ["norm", "head"]
    names += [f"stages.{i}.{{j}}.{part}" for i in _STAGES for part in _BLOCK_PARTS]
    return [(name, name) for name in names]


def _isotropic() -> Table:
    names = ["stem", *[f"blocks.{{j}}.{part}" for part in _BLOCK_PARTS[:5]], "norm", "head"]
    return [(name, name) for name in names]


_TIMM_PARTS = ("conv_dw", "norm", "mlp.fc1", "mlp.fc2", "gamma", "mlp.grn.weight", "mlp.grn.bias")


def _timm() -> Table:
    table = [(f"downsample_layers.0.{k}", f"stem.{k}") for k in range(4)]  # an overlapped stem has up to four layers
    table += [("norm", "head.norm"), ("norm_pre", "norm_pre"), ("pre_logits", "head.pre_logits.fc"), ("head", "head.fc")]
    table += [(f"downsample_layers.{i}.{k}", f"stages.{i}.downsample.{k}") for i in _BETWEEN for k in (0, 1)]
    for i in _STAGES:
        table += _blocks(f"stages.{i}.{{j}}", f"stages.{i}.blocks.{{j}}", *_TIMM_PARTS)
    return table


def _timm_features() -> Table:
    # `features_only=True` makes its networks flat, without the last norm and the head.
    return [
        (ours, re.sub(r"^(stem|stages)\.(\d)", r"\1_\2", theirs))
        for ours, theirs in _timm()
        if not theirs.startswith(("head.", "norm_pre"))
    ]


def _torchvision() -> Table:
    table = [(f"downsample_layers.{i}.{k}", f"features.{2 * i}.{k}") for i in _STAGES for k in (0, 1)]
    table += [("norm", "classifier.0"), ("head", "classifier.2")]
    for i in _STAGES:
        parts = ("block.0", "block.2", "block.3", "block.5", "layer_scale")
        table += _blocks(f"stages.{i}.{{j}}", f"features.{2 * i + 1}.{{j}}", *parts)
    return table


def _transformers_body() -> Table:
    stem = [("downsample_layers.0.0", "embeddings.patch_embeddings"), ("downsample_layers.0.1", "embeddings.layernorm")]
    body = [*stem, ("norm", "layernorm")]
    for i in _STAGES:
        stage = f"encoder.stages.{i}"
        if i in _BETWEEN:
            body += [(f"downsample_layers.{i}.{k}", f"{stage}.downsampling_layer.{k}") for k in (0, 1)]
        parts = ("dwconv", "layernorm", "pwconv1", "pwconv2", "layer_scale_parameter", "grn.weight", "grn.bias")
        body += _blocks(f"stages.{i}.{{j}}", f"{stage}.layers.{{j}}", *parts)
    return body


def _transformers(prefix: str, *without: str) -> Table:
    body = [(ours, theirs) for ours, theirs in _transformers_body() if not any(part in ours for part in without)]
    return [(ours, f"{prefix}.{theirs}") for ours, theirs in body] + [("head", "classifier")]


def _transformers_dinov3(prefix: str) -> Table:
    table = [("norm", "layer_norm")]
    for i in _STAGES:
        stage = f"{prefix}stages.{i}"
        table += [(f"downsample_layers.{i}.{k}", f"{stage}.downsample_layers.{k}") for k in (0, 1)]
        parts = ("depthwise_conv", "layer_norm", "pointwise_conv1", "pointwise_conv2", "gamma")
        table += _blocks(f"stages.{i}.{{j}}", f"{stage}.layers.{{j}}", *parts)
    return table


@dataclass(frozen=True)
class Format:
    """The names of ConvNeXt's weights in a library."""

    table: Table
    mark: str  # a key that every state of this format has, and no state of another
    shape: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor  # native tensor to the foreign shape


def _torchvision_shape(name: str, tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, 1, 1) if name.endswith("layer_scale") else tensor


def _v2_shape(name: str, tensor: Tensor) -> Tensor:
    return tensor.reshape(1, 1, 1, -1) if ".grn." in name else tensor


FORMATS: dict[str, Format] = {
    "official": Format(_official(), mark="downsample_layers.0.0.weight", shape=_v2_shape),
    "official-isotropic": Format(_isotropic(), mark="blocks.0.dwconv.weight"),
    "timm": Format(_timm(), mark="stages.0.blocks.0.conv_dw.weight"),
    "timm-features": Format(_timm_features(), mark="stages_0.blocks.0.conv_dw.weight"),
    "torchvision": Format(_torchvision(), mark="features.1.0.block.0.weight", shape=_torchvision_shape),
    "transformers": Format(_transformers("convnext", ".grn."), mark="convnext.encoder.stages.0.layers.0.dwconv.weight"),
    "transformers-v2": Format(
        _transformers("convnextv2", "}.gamma"), mark="convnextv2.encoder.stages.0.layers.0.dwconv.weight", shape=_v2_shape
    ),
    "transformers-body": Format(_transformers_body(), mark="encoder.stages.0.layers.0.dwconv.weight"),  # Model and Backbone, V2's too
    "transformers-dinov3": Format(_transformers_dinov3(""), mark="stages.0.layers.0.depthwise_conv.weight"),  # in files
    "transformers-dinov3-module": Format(_transformers_dinov3("model."), mark="model.stages.0.layers.0.depthwise_conv.weight"),
}


# Norms on the maps of a backbone: of mmsegmentation, of transformers' ConvNextBackbone, and of DINOv3, which saves its last norm there too.
_OUTPUT_NORMS = re.compile(r"(norm[0-3]|norms\.[0-3]|hidden_states_norms\.stage\d)\.(weight|bias)")
_OF_HEADS = ("decode_head.", "auxiliary_head.", "rpn_head.", "roi_head.", "neck.")  # of mmsegmentation and mmdetection


def unwrap(state: Mapping[str, Tensor], alone: bool) -> tuple[State, list[str]]:
    """Return a ConvNeXt's weights without the prefix of the modules around it, and the names of what is not a ConvNeXt's.

    Unless it is wanted `alone`, the ConvNeXt under the head of a detector or segmenter is not taken out.
    """
    state = wrapped.with_clip_head(state)
    found, outside = wrapped.unwrapped(state, [known.mark for known in FORMATS.values()])
    if not alone and any(key.startswith(_OF_HEADS) for key in outside):
        return dict(state), []
    norms = [key for key in found if _OUTPUT_NORMS.fullmatch(key) or key.startswith("projectors.")]  # the latter EUPE's, of distillation
    return {key: tensor for key, tensor in found.items() if key not in norms}, outside + norms


def recognise(state: Mapping[str, Tensor]) -> str:
    """Return the name of the format that `state` is in. Raises ConvnextError for an unknown one."""
    for name, known in FORMATS.items():
        if known.mark in state:
            return name
    some = ", ".join(sorted(state)[:3]) or "no tensors at all"
    raise ConvnextError(
        f"no known ConvNeXt weight format has these keys ({some} …); known formats: {', '.join(FORMATS)}. "
        "If they are another network's weights, give its name too: --weights FILE after the name"
    )


def to_native(state: Mapping[str, Tensor], name: str) -> State:
    """Return a state in the format `name`, renamed and reshaped to ours. Keys that the format does not have stay as they are."""
    rename = renamer([(theirs, ours) for ours, theirs in FORMATS[name].table])
    native = {}
    for key, tensor in state.items():
        ours = rename(key) or key
        if ours.endswith((".gamma", ".beta")):
            tensor = tensor.reshape(-1)
        elif ours.endswith(("pwconv1.weight", "pwconv2.weight")):  # 1 x 1 convolutions in timm's sizes below tiny
            tensor = tensor.flatten(1)
        native[ours] = tensor
    return native


def from_native(state: Mapping[str, Tensor], name: str, *, conv_mlp: bool = False) -> State:
    """Return our state in the format `name`; `conv_mlp` writes the linear layers as timm's sizes below tiny have them.

    Raises ConvnextError if the format has no name for a key (an isotropic network exists in the official format only).
    """
    if name == "official" and FORMATS["official-isotropic"].mark in state:
        name = "official-isotropic"
    if name == "transformers" and "stages.0.0.grn.gamma" in state:
        name = "transformers-v2"
    known = FORMATS[name]
    rename = renamer(known.table)
    foreign = {}
    for key, tensor in state.items():
        theirs = rename(key)
        if theirs is None:
            raise ConvnextError(f"the {name} format has no name for {key!r}: this network does not exist there")
        if conv_mlp and key.endswith(("pwconv1.weight", "pwconv2.weight")):
            tensor = tensor[:, :, None, None]
        foreign[theirs] = known.shape(theirs, tensor)
    return foreign


def renamer(table: Table) -> Callable[[str], str | None]:
    """Return the function from a key (`module.weight`, `module.bias` or a bare parameter) to its new name, or None."""
    names = dict(table)

    def find(name: str) -> str | None:
        if name in names:
            return names[name]
        # The table has {j} for the block's number. Try each number of the name as it.
        for number in re.finditer(r"(?<=\.)\d+(?=\.)", name):
            template = f"{name[: number.start()]}{{j}}{name[number.end() :]}"
            if template in names:
                return names[template].replace("{j}", number.group())
        return None

    def rename(key: str) -> str | None:
        module, dot, leaf = key.rpartition(".")
        if dot and leaf in ("weight", "bias") and (found := find(module)) is not None:
            return f"{found}.{leaf}"
        return find(key)

    return rename
