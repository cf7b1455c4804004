"""What the rest of the package asks of a network. A network of one's own needs these attributes, not these base classes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

Spec = Mapping[str, object]  # the arguments of `create_model` that rebuild a network around its weights, its name among them


class Network(nn.Module):
    """A network that can be trained: a backbone that classifies, a detector or a segmenter."""

    num_classes: int  # outputs of its head
    spec: Spec

    if TYPE_CHECKING:

        def no_weight_decay(self) -> set[str]:
            """Return the names of the parameters that weight decay leaves alone, beside biases and one-dimensional ones."""

        def layer_group(self, name: str) -> int:
            """Return the group of a parameter for layer-wise decay, counted from the stem: 0 for the stem, then up to the head."""


class Backbone(Network):
    """A network with maps: `forward(x) -> logits` (N, classes), `features(x)` the maps at `strides`, finest first."""

    channels: tuple[int, ...]  # of each map
    strides: tuple[int, ...]  # of each map, in pixels of the input
    head_name: str  # the submodule whose parameters depend on the number of classes

    if TYPE_CHECKING:

        def features(self, x: Tensor) -> list[Tensor]:
            """Return the maps of an input (N, 3, H, W), each (N, channels, H / stride, W / stride)."""

        def drop_head(self) -> None:
            """Remove what only classifies: under a detector or segmenter it has no use."""
