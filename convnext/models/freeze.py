"""Freezing: parts of a network that training leaves exactly as they are."""

from typing import Literal, cast

from convnext.errors import UsageError
from convnext.models.network import Backbone, Network
from convnext.models.registry import find
from convnext.text import counted

Freeze = Literal["head_only", "backbone", "neck"] | int

_NECK = ("neck", *(f"decode_head.{part}" for part in ("psp_modules", "bottleneck", "lateral_convs", "fpn_convs")))


def freeze(model: Network, what: Freeze) -> None:
    """Take the gradient from parameters of a network, so that training leaves them alone; the others get theirs.

    Args:
        model: a backbone, or a detector or segmenter over one.
        what: "backbone" or "head_only" trains a classifier's last layer alone, or everything that a detector or segmenter puts on its
            backbone. "neck" freezes the feature pyramid, too: the heads alone are trained. A number N freezes the stem and the first
            N stages.

    Raises UsageError if the network has fewer stages, or no feature pyramid.
    """
    names = {"neck": _up_to_neck, "backbone": _backbone_parameters, "head_only": _backbone_parameters}
    frozen = _first_stages(model, what) if isinstance(what, int) else names[what](model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)


def eval_frozen(model: Network) -> None:
    """Put the modules whose parameters are all frozen into evaluation mode: no stochastic depth, no moving statistics.

    To be called after each `model.train()`.
    """
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def count_trained(model: Network) -> int:
    """Return the number of parameters that are not frozen."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _backbone_parameters(model: Network) -> set[str]:
    if _is_backbone(model):
        of_classes = find(str(model.spec["name"])).is_of_classes
        return {name for name, _ in model.named_parameters() if not of_classes(model, name)}
    return set(_stages(model))


def _up_to_neck(model: Network) -> set[str]:
    names = [name for name, _ in model.named_parameters()]
    # The output norms, which a head puts on the backbone's maps, are part of what the pyramid gets.
    found = {name for name in names if name.startswith(tuple(f"{part}." for part in ("backbone", *_NECK)))}
    if not any(name.startswith(_NECK) for name in names):
        raise UsageError(f"model.freeze=neck: {model.spec['name']} has no feature pyramid; give model.freeze=backbone")
    return found


def _first_stages(model: Network, count: int) -> set[str]:
    stages = _stages(model)
    if count > (last := max(stages.values())):
        name = model.spec["name"]
        raise UsageError(f"model.freeze={count}: {name} has {counted(last, 'stage')}; give at most {last}, or model.freeze=backbone")
    return {name for name, stage in stages.items() if stage <= count}


def _stages(model: Network) -> dict[str, int]:
    is_backbone = _is_backbone(model)
    # The output norms of a head are named as parts of the backbone, which does not know their stage.
    backbone = cast(Backbone, model if is_backbone else model.get_submodule("backbone"))
    if not callable(stages := getattr(backbone, "stages_of_parameters", None)):
        raise UsageError(
            f"model.freeze: {model.spec['name']} does not say which of its parameters belong to which stage; give it a method "
            "stages_of_parameters, which returns the number of the stage of each parameter by its name, from 1, 0 for the stem"
        )
    return {f"{'' if is_backbone else 'backbone.'}{name}": stage for name, stage in stages().items()}


def _is_backbone(model: Network) -> bool:
    return find(str(model.spec["name"])).backbone is None
