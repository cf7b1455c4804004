"""Which ConvNeXt weights are of, by their names and shapes."""

from collections.abc import Mapping
from typing import cast

from torch import Tensor

from convnext.errors import ConvnextError
from convnext.models.entry import Entry, WeightNames, resolve
from convnext.models.network import Spec
from convnext.models.registry import BACKBONES, HEADS
from convnext.models.segmentation.decay import is_output_norm

State = Mapping[str, Tensor]

# Arguments that no tensor shows, with their defaults. A norm_layer without bias may be one of two.
FUNCTION = {"norm_eps": 1e-6, "head_norm_eps": None, "activation": "gelu", "norm_layer": "layernorm"}
_OF_FAMILY = {"grn": False, "stem": "patch", "head_norm_first": False, "head_hidden_size": 0}  # that tensors show, with their defaults
_OF_HEAD = ("head_norm_first", "head_hidden_size")


def identify(native: State, named: Entry | None = None) -> Spec:
    """Return the `create_model` arguments of the ConvNeXt that a state in our own names belongs to.

    The name is the registry's if one has these sizes, else the family's with the sizes. Of networks whose tensors are alike, it is that of
    `named` if it is among them, else the one with LayerNorm and GELU. Raises ConvnextError if it is not a ConvNeXt.
    """
    stem = native.get("downsample_layers.0.0.weight", native.get("stem.weight"))
    if stem is None:
        raise ConvnextError("no stem among these weights: neither 'downsample_layers.0.0.weight' nor 'stem.weight'")
    block = "blocks.0" if "stem.weight" in native else "stages.0.0"
    if stem.ndim != 4 or (first := native.get(f"{block}.dwconv.weight")) is None or first.ndim != 4:
        raise ConvnextError(f"no ConvNeXt among these weights: a stem and '{block}.dwconv.weight' have four dimensions")
    spec: dict[str, object] = {
        "num_classes": _outputs(native, "head.weight"),
        "in_channels": stem.shape[1],
        "patch_size": stem.shape[-1],
        "kernel_size": first.shape[-1],
        "layer_scale": 1e-6 if f"{block}.gamma" in native else 0.0,
    }
    if "stem.weight" in native:
        depth = len({key.split(".")[1] for key in native if key.startswith("blocks.")})
        shape: dict[str, object] = {"depth": depth, "width": stem.shape[0]}
        found = next((entry for entry in BACKBONES.values() if shape.items() <= entry.fixed.items()), None)
        return {"name": "convnext_isotropic_small", **spec, **shape} if found is None else {"name": found.name, **spec}
    shape = _sizes(native)
    member = _members(native, cast("tuple[int, ...]", shape["widths"]))
    if member["stem"] != "patch":
        spec["patch_size"] = 4
    kernels = _kernels(native)
    spec["kernel_size"] = kernels[0] if len(set(kernels)) == 1 else kernels
    chosen = _chosen(native, shape, member, kernels, named)
    if chosen is None:
        family = BACKBONES["convnextv2_tiny" if member["grn"] else "convnext_tiny"]
        return {"name": family.name, **spec, **shape, **_others(member, family.fixed)}
    function = {key: chosen.fixed[key] for key in FUNCTION if key in chosen.fixed}
    others = _others(member, chosen.fixed)
    if not any(key.startswith(("norm.", "norm_pre.")) for key in native):
        others.pop("head_norm_first", None)  # of a network without its last norm the tensors do not show it
    return {"name": chosen.name, **spec, **function, **others}


def identify_head(state: State) -> tuple[Spec, str] | None:
    """Return the `create_model` arguments of the head over a ConvNeXt that a state belongs to, and the state's format.

    None if it is of no head that is known here, or of one over another backbone. Raises ConvnextError for a network that is known to
    compute another function.
    """
    for module in dict.fromkeys(entry.weight_names for entry in HEADS.values() if entry.weight_names):
        names = cast("WeightNames", resolve(module))
        if not names.is_whole(state):
            continue
        known = names.recognise(state)
        native = names.to_native(state, known)
        under = {key: tensor for key, tensor in native.items() if key.startswith("backbone.") and not is_output_norm(key)}
        try:
            backbone = identify({key.removeprefix("backbone."): tensor for key, tensor in under.items()})
        except ConvnextError:
            return None
        head, arguments = names.head_of(native)
        return {**backbone, **arguments, "name": f"{head}_{backbone['name']}", "num_classes": names.count_classes(native)}, known
    return None


def _outputs(native: State, key: str) -> int:
    """Return the first side of a tensor; 0 where there is none."""
    return native[key].shape[0] if key in native and native[key].ndim else 0


def _sizes(native: State) -> dict[str, object]:
    norms = [[key for key in native if key.startswith(f"stages.{i}.") and key.endswith(".norm.weight")] for i in range(4)]
    return {"depths": tuple(map(len, norms)), "widths": tuple(_outputs(native, keys[0]) for keys in norms if keys)}


def _kernels(native: State) -> tuple[int, ...]:
    firsts = (native.get(f"stages.{i}.0.dwconv.weight") for i in range(4))
    return tuple(first.shape[-1] for first in firsts if first is not None and first.ndim)


def _members(native: State, widths: tuple[int, ...]) -> dict[str, object]:
    """Return the arguments that distinguish the family's members, as the tensors show them."""
    stem = "patch"
    if "downsample_layers.0.3.weight" in native:
        stem = "overlap_act"
    elif "downsample_layers.0.2.weight" in native:
        stem = "overlap" if widths[:1] == (_outputs(native, "downsample_layers.0.0.weight"),) else "overlap_tiered"
    hidden = _outputs(native, "pre_logits.weight")
    return dict(zip(_OF_FAMILY, ("stages.0.0.grn.gamma" in native, stem, "norm_pre.weight" in native, hidden), strict=True))


def _others(member: Mapping[str, object], fixed: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in member.items() if fixed.get(key, _OF_FAMILY[key]) != value}


def _chosen(
    native: State, shape: Mapping[str, object], member: Mapping[str, object], kernels: tuple[int, ...], named: Entry | None
) -> Entry | None:
    """Return the first entry of these sizes whose tensors are alike; of several the one called for."""
    biased = "stages.0.0.norm.bias" in native
    for entry in (*([named] if named is not None else []), *BACKBONES.values()):
        fixed = entry.fixed
        if not shape.items() <= fixed.items() or biased != (fixed.get("norm_layer", "layernorm") == "layernorm"):
            continue
        if "activation" in fixed and (entry is not named or kernels != _four(fixed.get("kernel_size", 7))):
            continue  # the tensors do not show it
        others = _others(member, fixed)
        if not others or (entry is named and others.keys() <= set(_OF_HEAD) and "head.weight" not in native):
            return entry
    return None


def _four(kernel: object) -> tuple[int, ...]:
    return (kernel,) * 4 if isinstance(kernel, int) else cast("tuple[int, ...]", kernel)
