"""The attributes and methods that the package needs of a network. A user's network needs them, but not these base classes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

Spec = Mapping[str, object]  # the arguments of `create_model` that rebuild a network around its weights, its name among them


class Network(nn.Module):
    """A network that can be trained: a backbone that classifies, a detector or a segmenter."""

    num_classes: int  # outputs of its head
    spec: Spec  # set by `create_model`

    if TYPE_CHECKING:

        def no_weight_decay(self) -> set[str]:
            """Return the names of the parameters that weight decay leaves alone, beside biases and one-dimensional ones."""

        def layer_group(self, name: str) -> int:
            """Return the group of a parameter for layer-wise decay, counted from the stem: 0 for the stem, then up to the head."""


class Backbone(Network):
    """A network with maps: `forward(x) -> logits` (N, classes), `features(x)` the maps at `strides`, finest first."""

    channels: tuple[int, ...]  # of each map
    strides: tuple[int, ...]  # of each map, in pixels of the input
    num_features: int  # inputs of the head
    head_name: str  # the submodule whose parameters depend on the number of classes

    if TYPE_CHECKING:

        def stages_of_parameters(self) -> dict[str, int]:
            """Return the stage of each parameter, counted from 1; 0 for the stem. What comes after the last stage is missing."""

        def features(self, x: Tensor) -> list[Tensor]:
            """Return the maps of an input (N, 3, H, W), each (N, channels, H / stride, W / stride)."""

        def drop_head(self) -> None:
            """Remove what only classifies: under a detector or segmenter it has no use."""

        def reset_classifier(self, num_classes: int) -> None:
            """Put a fresh head for that many classes on the network; 0 leaves the features as output."""

        def to_native(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
            """Return a state of the one format of its weights in the network's own names. A ConvNeXt has several, and not this."""

    def set_num_classes(self, count: int) -> None:
        """Note the number of classes of a new head, also in `spec`, so that weight files describe the network as it is."""
        self.num_classes = count
        if "spec" in self.__dict__:
            self.spec = {**self.spec, "num_classes": count}
