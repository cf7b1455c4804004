"""The network whose features are fitted on: its weights, and the head that is put on it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import cast

import numpy as np
import torch
from torch import Tensor

from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.errors import UsageError
from convnext.fit.heads import Linear
from convnext.models.load import create_model, weights_of_run
from convnext.models.network import Network
from convnext.models.registry import find, names
from convnext.models.weights import download, published
from convnext.models.weights.open import Opened, open_weights
from convnext.models.weights.tags.table import terms

_TAKES = 224  # pixels a side of images for a backbone whose weights do not say


_DEFAULT = "convnext_tiny"
# Of the digits, from `benchmarks/digit_features.py`: it was trained without their labels.
_EMBEDDED = dict.fromkeys(("digits", "digit-facts", "digit-values"), "digits.safetensors")


@dataclass(frozen=True)
class FitStart:
    """Opened weights, how a recipe names them, and how their network takes images."""

    opened: Opened
    weights: str
    how: ClassifyPreprocessing
    remarks: list[str]  # to report to the user

    @property
    def architecture(self) -> dict[str, object]:
        """Return the arguments of their network, but for its name, classes and channels."""
        return {key: value for key, value in self.opened.spec.items() if key not in ("name", "num_classes", "in_channels")}


def default_model(source: object) -> str:
    """Return the model whose features are fitted on where none is named: a file of the package for embedded data, or else a name."""
    embedded = _EMBEDDED.get(str(source).partition(":")[0])
    return _DEFAULT if embedded is None else str(files("convnext.fit").joinpath(embedded))


def open_start(model: str, weights: str | None) -> FitStart:
    """Return the weights to start from.

    Args:
        model: a name, a run folder, a weight file or an address.
        weights: of a name: a tag, a file or an address; by default the most accurate of a free licence.

    Raises UsageError or ConvnextError for weights that can't be read, and UsageError for a network that takes no images of one size.
    """
    if model in names():
        named, opened = weights or "best", open_weights(weights or "best", model)
    else:
        if weights is not None:
            raise UsageError(f"--weights belongs to a model's name, and {model} is not one: omit one of the two")
        folder = download.expanded(model)
        named = str(weights_of_run(folder)) if folder.is_dir() else model
        opened = open_weights(named)
    entry = find(opened.name)
    if entry.backbone is not None:  # a detector's, a segmenter's or an autoencoder's backbone
        opened = open_weights(named, entry.backbone.name)
    how = opened.preprocessing
    if not isinstance(how, ClassifyPreprocessing):
        how = ClassifyPreprocessing(_TAKES, mean=tuple(how.mean), std=tuple(how.std), range=how.range, channels=how.channels)
    licence = published.licence_of(opened.source or opened.file)
    remarks = [f"weights: {opened.source or opened.file}" + (f", licence: {terms(licence)}" if licence is not None else "")]
    if opened.assumed:
        remarks.append(f"{opened.file} does not say how its images are prepared; assumed: {how}")
    return FitStart(opened, named, replace(how, mirror=False, unit=None), remarks)


def build(start: FitStart, outputs: int) -> Network:
    """Return the network with its weights and a head for so many outputs, in evaluation mode."""
    create = cast(Callable[..., Network], create_model)
    given = {**start.architecture, "in_channels": start.how.channels}
    if start.how.channels == 3 and "in_channels" not in find(start.opened.name).arguments:
        del given["in_channels"]
    return create(start.opened.name, num_classes=outputs, weights=start.opened, new_head=True, **given).eval()


def head_of(model: Network) -> tuple[Tensor, Tensor]:
    """Return the weight and the bias of a network's last layer. Raises UsageError if that layer is not linear in the embedding."""
    entry = find(str(model.spec["name"]))
    of_classes = [parameter for key, parameter in model.named_parameters() if entry.is_of_classes(model, key)]
    weights, biases = ([one for one in of_classes if (one.ndim > 1) == wanted] for wanted in (True, False))
    if len(weights) != 1 or len(biases) != 1:
        raise UsageError(f"fit puts a linear head on embeddings, and {entry.name} has another: take another network")
    return weights[0], biases[0]


def put_head(model: Network, head: Linear) -> None:
    """Write a linear head into a network. Raises UsageError if the network's last layer is of another size or kind."""
    for parameter, values in zip(head_of(model), (head.weight, head.bias), strict=True):
        if parameter.numel() != values.size:
            raise UsageError(f"fit puts a linear head on embeddings, and {model.spec['name']} has another: take another network")
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(values)).view(parameter.shape))
