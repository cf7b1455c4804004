"""The formats of UperNet weight files with a ConvNeXt backbone: one table of names per format, read in both directions.

The formats and who writes them: official (the paper's code, on mmsegmentation 0.11), mmsegmentation (1, with mmpretrain's ConvNeXt)
and transformers (`openmmlab/upernet-convnext-*`). Our own names are the official ones. The rows of the backbone come from
`convnext.models.weights.formats`.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from convnext.errors import ConvnextError
from convnext.models.weights import formats
from convnext.models.weights.formats import Format, State, Table, renamer

# Words of a dotted name in which a format differs from the official one: in a block (mmpretrain), in the heads (transformers).
_MMPRETRAIN = {"dwconv": "depthwise_conv", "pwconv1": "pointwise_conv1", "pwconv2": "pointwise_conv2"}
_TRANSFORMERS = {"bn": "batch_norm", "conv_seg": "classifier"}


def _heads() -> list[str]:
    decoder = [f"psp_modules.{i}.1" for i in range(4)] + ["bottleneck", "fpn_bottleneck"]
    decoder += [f"{part}.{i}" for part in ("lateral_convs", "fpn_convs") for i in range(3)]
    convs = [f"decode_head.{name}" for name in decoder] + ["auxiliary_head.convs.0"]
    parts = ("conv", "bn", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked")
    return ["decode_head.conv_seg", "auxiliary_head.conv_seg"] + [f"{conv}.{part}" for conv in convs for part in parts]


def _reworded(name: str, words: Mapping[str, str]) -> str:
    return ".".join(words.get(word, word) for word in name.split("."))


def _table(backbone: Table, norm: str, words: Mapping[str, str]) -> Table:
    """Return the rows of a whole segmenter.

    Args:
        backbone: the rows of its backbone.
        norm: the name of an output norm, with {i} counted from 0 or {n} from 1.
        words: words of dotted names that differ from ours.
    """
    rows = [(f"backbone.{ours}", f"backbone.{_reworded(theirs, words)}") for ours, theirs in backbone if ours not in ("norm", "head")]
    rows += [(f"backbone.norm{i}", f"backbone.{norm.format(i=i, n=i + 1)}") for i in range(4)]
    return rows + [(name, _reworded(name, words)) for name in _heads()]


_OFFICIAL_BACKBONE = formats.FORMATS["official"].table
_TRANSFORMERS_BACKBONE = formats.FORMATS["transformers-body"].table

FORMATS: dict[str, Format] = {
    "mmsegmentation": Format(_table(_OFFICIAL_BACKBONE, "norm{i}", _MMPRETRAIN), mark="backbone.stages.0.0.depthwise_conv.weight"),
    "transformers": Format(
        _table(_TRANSFORMERS_BACKBONE, "hidden_states_norms.stage{n}", _TRANSFORMERS),
        mark="decode_head.classifier.weight",
        shape=formats.FORMATS["transformers-v2"].shape,
    ),
    # Last, because mmsegmentation's states have this key, too. Our own have it with every backbone.
    "official": Format(_table(_OFFICIAL_BACKBONE, "norm{i}", {}), mark="decode_head.conv_seg.weight"),
}


_DINOV3 = {"backbone.stages.0.layers.0.depthwise_conv.weight", "decode_head.classifier.weight"}
_WHOLE = {"decode_head.classifier.weight", "decode_head.conv_seg.weight"}  # of transformers, and of the others


def is_whole(state: Mapping[str, Tensor]) -> bool:
    """Return whether these are a segmenter's weights, in any format, not those of its backbone alone."""
    return not _WHOLE.isdisjoint(state)


def recognise(state: Mapping[str, Tensor]) -> str:
    """Return the name of the format that `state` is in; "official" for our own names, too. Raises ConvnextError for an unknown one."""
    if _DINOV3.issubset(state):
        raise ConvnextError(
            "this is a UperNet of transformers over a DINOv3 backbone, whose maps have no norms of their own, unlike those of the UperNet "
            "here: another function. Its backbone alone can be read: give a model's name, as upernet_convnext_tiny, and the backbone's file"
        )
    for name, known in FORMATS.items():
        if known.mark in state:
            return name
    some = ", ".join(sorted(state)[:3]) or "no tensors at all"
    raise ConvnextError(f"no known format of UperNet's weights has these keys ({some} …); known formats: {', '.join(FORMATS)}")


def is_of_classes(key: str) -> bool:
    """Return whether the shape of that parameter depends on the number of classes."""
    return re.match(r"(decode_head|auxiliary_head)\.conv_seg\.", key) is not None


def count_classes(native: Mapping[str, Tensor]) -> int:
    """Return the number of classes of a state in our names."""
    return native["decode_head.conv_seg.weight"].shape[0] if "decode_head.conv_seg.weight" in native else 0


def head_of(native: Mapping[str, Tensor]) -> tuple[str, dict[str, object]]:
    """Return "upernet" and the arguments of a UperNet that its tensors show: the widths of its two heads."""
    widths = {"channels": "decode_head.conv_seg.weight", "auxiliary_channels": "auxiliary_head.conv_seg.weight"}
    return "upernet", {key: native[name].shape[1] for key, name in widths.items() if name in native and native[name].ndim > 1}


def to_native(state: Mapping[str, Tensor], name: str) -> State:
    """Return a state in the format `name`, renamed to our names. Keys that the format does not have stay as they are."""
    rename = renamer([(theirs, ours) for ours, theirs in FORMATS[name].table])
    native = ((rename(key) or key, tensor) for key, tensor in state.items())
    return {key: tensor.reshape(-1) if ".grn." in key else tensor for key, tensor in native}  # (1, 1, 1, C) in ConvNeXt V2's code


def from_native(state: Mapping[str, Tensor], name: str) -> State:
    """Return our state in the format `name`: the inverse of `to_native`, bit for bit.

    Raises ConvnextError if the format has no name for a key, for instance with another backbone than ConvNeXt.
    """
    rename = renamer(FORMATS[name].table)
    foreign = {}
    for key, tensor in state.items():
        theirs = rename(key)
        if theirs is None:
            raise ConvnextError(f"the {name} format has no name for {key!r}: this segmenter does not exist there")
        foreign[theirs] = FORMATS[name].shape(theirs, tensor)
    return foreign
