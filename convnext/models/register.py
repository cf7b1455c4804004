"""Networks that are added to the registry from outside, and the modules that a network needs to be imported."""

from collections.abc import Callable
from typing import Any, TypeVar

from convnext.errors import UsageError
from convnext.extend import TASKS, caller
from convnext.models.arguments import arguments_of
from convnext.models.own_entry import own_entry
from convnext.models.registry import BACKBONE_REGISTER, HEAD_REGISTER

Built = TypeVar("Built", bound=Callable[..., Any])  # a user's class or function


def register_backbone(
    name: str, *, image_size: int = 224, num_classes: int = 1000, pyramid: bool | None = None
) -> Callable[[Built], Built]:
    """Add a network by the decorated class or function; its name is then one like any other, in recipes and in every command.

    It is called with `num_classes`, with `in_channels` and `drop_path` if it takes them, and with every key of the recipe's `model` that
    is an argument of it. Its `forward(x)` returns logits (N, num_classes) of images (N, 3, H, W). Under detectors and segmenters it needs
    `channels`, those of four maps, and `features(x)`, which returns the maps of strides 4, 8, 16 and 32.

    Args:
        name: of letters, digits and underscores.
        image_size: pixels a side at which `convnext cost` counts.
        num_classes: outputs where nobody says how many.
        pyramid: whether it has these maps; by default whether a class has `features`.

    Raises UsageError for a name that is taken.
    """
    module = caller()

    def register(build: Built) -> Built:
        has_maps = callable(getattr(build, "features", None)) if pyramid is None else pyramid
        entry = own_entry(name, build, image_size=image_size, num_classes=num_classes, has_pyramid=has_maps)
        BACKBONE_REGISTER.add(name, entry, module)
        return build

    return register


def register_head(name: str, *, task: str, image_size: int = 224, num_classes: int = 80) -> Callable[[Built], Built]:
    """Add a detector or segmenter by the decorated class: NAME_convnext_tiny and the like are then names of networks.

    It is called as `build(backbone, num_classes, …)` and keeps the backbone as `backbone`. For "segment" it needs the methods `features`,
    `logits` and `forward` of `UperNet`; for "detect" those of `Detector`.

    Args:
        name: of letters, digits and underscores.
        task: that it is for.
        image_size: pixels a side at which `convnext cost` counts.
        num_classes: outputs where nobody says how many.

    Raises UsageError for a name that is taken, and for an unknown task.
    """
    module = caller()
    TASKS.get(task)

    def register(build: Built) -> Built:
        parameters = list(arguments_of(build))
        if parameters[:2] != ["backbone", "num_classes"]:
            raise UsageError(f"the head {name!r} is built from (backbone, num_classes, …), not from ({', '.join(parameters)})")
        HEAD_REGISTER.add(name, own_entry(name, build, task, True, image_size=image_size, num_classes=num_classes), module)
        return build

    return register


def imports_of(name: str, task: str) -> list[str]:
    """Return the modules that register a network of that name and a task; none for those of the package."""
    found = [BACKBONE_REGISTER.origins.get(name), TASKS.origins.get(task)]
    for head, module in HEAD_REGISTER.origins.items():
        found += [module] if name.startswith(f"{head}_") else []
    for backbone, module in BACKBONE_REGISTER.origins.items():
        found += [module] if name.endswith(f"_{backbone}") else []
    return list(dict.fromkeys(module for module in found if module is not None))
