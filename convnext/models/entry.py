"""What a model name means. Importing this takes no PyTorch, so that an unknown name or argument is reported at once.

Code is named as "package.module:attribute" and imported when it is used.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from convnext.errors import ConvnextError
from convnext.models.arguments import Argument, arguments_of

if TYPE_CHECKING:
    from torch import Tensor

    from convnext.data.transforms.preprocessing import Preprocessing
    from convnext.models.cost import Cost, ImageSize
    from convnext.models.network import Backbone, Network
    from convnext.models.own import OwnNetwork

    State = Mapping[str, Tensor]


class WeightNames(Protocol):
    """What a module with the weight formats of a head offers."""

    def is_whole(self, state: "State") -> bool:
        """Return whether a state holds the head, in any format, not the backbone alone."""

    def recognise(self, state: "State") -> str:
        """Return the format that a state is in. Raises ConvnextError if it is in none."""

    def to_native(self, state: "State", name: str) -> "dict[str, Tensor]":
        """Return a state in that format, renamed to ours."""

    def is_of_classes(self, key: str) -> bool:
        """Return whether the shape of that parameter depends on the number of classes."""

    def count_classes(self, native: "State") -> int:
        """Return the number of classes of a state in our names."""

    def head_of(self, native: "State") -> "tuple[str, dict[str, object]]":
        """Return the name of the head that a state in our names is of, and the head's arguments as its tensors show them."""


@dataclass(frozen=True)
class Entry:
    """What a name means. For a head over a backbone, `build` is the head's constructor, which is called with the backbone."""

    build: str | Callable[..., "Network"]  # where it is, as "package.module:attribute", or the function or class itself
    fixed: Mapping[str, object] = field(default_factory=dict)  # arguments that make it this network
    weights: Mapping[str, str] = field(default_factory=dict)  # tag → hf://owner/name or https://…; those of the backbone too
    name: str = ""
    task: str = "classify"
    num_classes: int = 1000  # of the data set that it was published for
    image_size: "ImageSize" = 224  # of the paper's tables
    format: str | None = None  # of a backbone: the one format of its weights, which its `to_native` reads; None: `formats` recognises it
    weight_names: str = ""  # of a head: the module with the formats of its weights, see `WeightNames`
    preprocessing_class: str = "convnext.data.transforms.preprocessing:ClassifyPreprocessing"
    published_by: str = "convnext.models.weights.published:of_convnext"
    cost_by: str = "convnext.models.cost:count_cost"
    output_norm: bool = False  # of a backbone: whether heads put another LayerNorm on each of its maps, as published
    has_pyramid: bool = True  # of a backbone: whether it has maps of strides 4, 8, 16, 32
    timm_name: str | None = None  # of a backbone that timm builds
    backbone: "Entry | None" = None  # of a head: the entry of what is under it
    over: str = "*"  # of a head: a pattern of the names of backbones that it goes over
    is_own: bool = False  # whether it comes from outside the package; then the network is an `OwnNetwork`

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that the network can be trained for: a classifier's outputs may also be any number of classes, or a number."""
        return (self.task, "multilabel", "regress") if self.task == "classify" else (self.task,)

    @cached_property
    def arguments(self) -> Mapping[str, Argument]:
        """The keyword arguments that `create_model` takes for this name. Reading them imports no PyTorch."""
        if self.backbone is None:
            return self._own
        return {key: argument for key, argument in self.backbone.arguments.items() if key != "head_init_scale"} | self._own

    @cached_property
    def _own(self) -> dict[str, Argument]:
        # Without what the entry itself gives: the fixed arguments that have no default, and those of a head.
        own = arguments_of(self.build)
        given = {"backbone", "output_norm"} if self.backbone is not None else {key for key in self.fixed if own[key].required}
        return {key: argument for key, argument in own.items() if key not in given}

    def make(self, **given: object) -> "Network":
        """Return the network with random weights."""
        build = cast("Callable[..., Network]", resolve(self.build))
        if self.backbone is None:
            return build(**{**self.fixed, **given})
        own = {key: given.pop(key) for key in list(given) if key in self._own}
        num_classes = own.pop("num_classes", self.num_classes)
        backbone = self.backbone.make(num_classes=0, **given)
        return build(backbone, num_classes, output_norm=self.backbone.output_norm, **own)

    def preprocessing(self) -> "type[Preprocessing]":
        """Return the class of its preprocessing."""
        return cast("type[Preprocessing]", resolve(self.preprocessing_class))

    def published(self, source: str) -> "tuple[Preprocessing, int]":
        """Return how the weights of a tag or file were tested, and their number of classes."""
        return cast("Callable[[Entry, str], tuple[Preprocessing, int]]", resolve(self.published_by))(self, source)

    def cost(self, model: "Network", image_size: "ImageSize") -> "Cost":
        """Return what the network, which lies on the meta device, costs for an image of that size."""
        return cast("Callable[[Network, ImageSize], Cost]", resolve(self.cost_by))(model, image_size)

    def to_native(self, model: "Network", state: "State") -> "tuple[dict[str, Tensor], str]":
        """Return a state of any known format in the model's own names, and the format that it was taken for.

        A state of the backbone alone is completed by the model's own, fresh parameters.
        """
        from convnext.models.weights import formats

        if self.backbone is None and self.format is not None:
            return cast("Backbone", model).to_native(state), self.format
        if self.backbone is not None and not self.is_whole(state):
            return self._completed(model, state)
        if self.is_own:
            return dict(state), "own"
        names = formats if self.backbone is None else self._weight_names
        known = names.recognise(state)
        return names.to_native(state, known), known

    def is_whole(self, state: "State") -> bool:
        """Return whether a state of any format holds the head, too, of a network with one, and not its backbone alone."""
        return any(key.startswith("backbone.") for key in state) or (bool(self.weight_names) and self._weight_names.is_whole(state))

    def is_of_classes(self, model: "Network", key: str) -> bool:
        """Return whether the shape of that parameter depends on the number of classes."""
        if self.is_own:
            return cast("OwnNetwork", model).is_of_classes(key)
        if self.backbone is None:
            return key.startswith(f"{cast('Backbone', model).head_name}.")
        return self._weight_names.is_of_classes(key)

    def count_classes(self, model: "Network", native: "State") -> int:
        """Return the number of classes of a state in the model's own names; 0 for one without a head.

        Raises ConvnextError if it is damaged.
        """
        if self.is_own:
            return cast("OwnNetwork", model).count_classes(native)
        if self.backbone is not None:
            return self._weight_names.count_classes(native)
        key = f"{cast('Backbone', model).head_name}.weight"
        if key in native and not native[key].ndim:
            raise ConvnextError(f"{key} of these weights is a single number, not a layer: the file is damaged, get it again")
        return native[key].shape[0] if key in native else 0

    def _completed(self, model: "Network", state: "State") -> "tuple[dict[str, Tensor], str]":
        import torch

        assert self.backbone is not None
        under = cast("Backbone", model.get_submodule("backbone"))
        native, known = self.backbone.to_native(under, state)
        with torch.device("meta"):
            given = {key: value for key, value in model.spec.items() if key in self.backbone.arguments}
            alone = self.backbone.make(**given | {"num_classes": 1}).state_dict().keys()
        fresh = {key: tensor for key, tensor in model.state_dict().items() if key.removeprefix("backbone.") not in alone}
        only_to_classify = alone - under.state_dict().keys()
        return fresh | {f"backbone.{key}": tensor for key, tensor in native.items() if key not in only_to_classify}, known

    @property
    def _weight_names(self) -> WeightNames:
        return cast("WeightNames", resolve(self.weight_names))


def resolve(reference: object) -> object:
    """Return what "package.module:attribute" or "package.module" names; what is no text is returned as it is."""
    if not isinstance(reference, str):
        return reference
    module, _, attribute = reference.partition(":")
    return getattr(import_module(module), attribute) if attribute else import_module(module)
