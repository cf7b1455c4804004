"""The description that a weight file or an exported file holds: one strict schema, because the file may be a stranger's.

A description must not name weights, start a download, or ask for more memory than the tensors of the file take.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypedDict, cast

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PlainValidator, Tag, ValidationError, model_validator
from torch import Tensor

from convnext.data.transforms.detect import DetectPreprocessing
from convnext.data.transforms.preprocessing import ClassifyPreprocessing, Preprocessing
from convnext.data.transforms.segment import SegmentPreprocessing
from convnext.errors import ConvnextError, first_line
from convnext.models.calibration import DescribedCalibration
from convnext.models.weights.known import entry_for, is_ours

_MAX_LENGTH = 16 << 20  # characters of a description; 21,841 class names are half a million
_MAX_CLASSES = 1_000_000
_MAX_NAME = 1000  # characters
_MAX_SIDE = 8192  # pixels of a prepared image


class Description(TypedDict, total=False):
    """What a file says; {} of a file that others wrote."""

    model: dict[str, object]  # the arguments of `create_model`
    task: str
    preprocessing: dict[str, object]
    classes: list[str] | None
    class_ids: list[int | list[int]] | None
    metrics: dict[str, float | int] | None
    step: int | None
    source: str | None
    imports: list[str]  # the modules that register the network or the task
    calibration: dict[str, object] | None
    graph: dict[str, object]  # of an exported file, as the next two
    labels: list[str] | None
    convnext: str | None


def _short(value: object) -> str:
    if not isinstance(value, str) or len(value) > _MAX_NAME:
        raise ValueError(f"must be text of at most {_MAX_NAME} characters")
    return value


Name = Annotated[str, PlainValidator(_short)]  # pydantic's own refuses names that are not UTF-8, which folders may have
Kernel = Annotated[int, Field(ge=1, le=255)]
Width = Annotated[int, Field(ge=1, le=65536)]
Count = Annotated[int, Field(ge=0, le=10_000)]
Pixels = Annotated[int, Field(ge=1, le=_MAX_SIDE)]
Channel = Annotated[float, Field(ge=-1000, le=1000)]
Std = Annotated[float, Field(gt=1e-8, le=1000)]
Colour = Annotated[list[int], Field(min_length=3, max_length=3)]
Names = Annotated[list[Name], Field(max_length=_MAX_CLASSES)]
Span = Annotated[list[Annotated[float, Field(ge=-1e12, le=1e12)]], Field(min_length=2, max_length=2)]
Size = Annotated[list[Pixels], Field(min_length=2, max_length=2)]


class Strict(BaseModel):
    """Unknown keys, other types and numbers that are not finite are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DescribedModel(Strict):
    """The arguments of `create_model`: those of all constructors, but for those that only training needs."""

    name: Name
    num_classes: int = Field(ge=0, le=_MAX_CLASSES)
    in_channels: int = Field(3, ge=1, le=4096)
    layer_scale: float | None = Field(None, ge=0, le=1000)
    head_init_scale: float | None = Field(None, ge=0, le=1e6)
    grad_checkpointing: bool | None = None
    depths: Annotated[list[Count], Field(max_length=16)] | None = None
    widths: Annotated[list[Width], Field(max_length=16)] | None = None
    depth: Count | None = None
    width: Width | None = None
    patch_size: int | None = Field(None, ge=1, le=256)
    kernel_size: Kernel | Annotated[list[Kernel], Field(max_length=16)] | None = None
    norm_eps: float | None = Field(None, ge=1e-12, le=0.1)
    head_norm_eps: float | None = Field(None, ge=1e-12, le=0.1)
    grn: bool | None = None
    norm_layer: Literal["layernorm", "rmsnorm", "simplenorm"] | None = None
    activation: Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "relu"] | None = None
    stem: Literal["patch", "overlap", "overlap_tiered", "overlap_act"] | None = None
    head_norm_first: bool | None = None
    head_hidden_size: int | None = Field(None, ge=0, le=65536)
    image_size: int | None = Field(None, ge=1, le=2048)  # of a ViT: memory is its square
    step: Count | None = None
    regime: Literal["t", "b"] | None = None
    channels: Width | None = None
    fc_channels: Width | None = None
    auxiliary_channels: Width | None = None
    masks: bool | None = None
    anchor_scale: float | None = Field(None, gt=0, le=1000)
    proposals: int | None = Field(None, ge=1, le=10_000)
    regions: int | None = Field(None, ge=1, le=10_000)
    dropout: float | None = Field(None, ge=0, lt=1)
    mask_ratio: float | None = Field(None, gt=0, lt=1)


Plain = bool | int | float | Name | None


class DescribedOwnModel(Strict):
    """The arguments of a network from outside the package: of its own plain values, or short lists of them."""

    model_config = ConfigDict(extra="allow")

    __pydantic_extra__: dict[Annotated[str, Field(max_length=100)], Plain | Annotated[list[Plain], Field(max_length=64)]]
    name: Name
    num_classes: int = Field(ge=0, le=_MAX_CLASSES)


_OURS, _OWN = "ours", "own"  # tags of the two, which messages do not show


def _whose(model: object) -> str:
    name = model.get("name") if isinstance(model, dict) else getattr(model, "name", None)
    return _OURS if not isinstance(name, str) or is_ours(name) else _OWN


class Normalised(Strict):
    """Base of the preprocessing of every task."""

    mean: list[Channel]
    std: list[Std]
    range: Annotated[float, Field(gt=0, le=1e12)] | Span | None = None  # see `DeepImage.pixels`

    channels: int = Field(3, ge=1, le=16)

    @model_validator(mode="after")
    def _of_every_channel(self) -> "Normalised":
        if len(self.mean) not in (1, self.channels) or len(self.std) != len(self.mean):
            raise ValueError(f"mean and std must have a number for each of {self.channels} channels, or one for all")
        return self


class ForClassification(Normalised):
    """See `ClassifyPreprocessing`."""

    image_size: Pixels | Size
    crop_ratio: float = Field(gt=0, le=1)
    warp: bool
    interpolation: Literal["nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos"]
    letterbox: bool = False
    mirror: bool = False
    unit: Span | None = None

    @model_validator(mode="after")
    def _bounded(self) -> "ForClassification":
        if self.warp and self.letterbox:
            raise ValueError("warp and letterbox exclude each other")
        largest = self.image_size if isinstance(self.image_size, int) else max(self.image_size)
        if not (self.warp or self.letterbox) and largest / self.crop_ratio > _MAX_SIDE:
            raise ValueError(f"image_size / crop_ratio is more than {_MAX_SIDE} pixels")
        return self


class ForDetection(Normalised):
    """See `DetectPreprocessing`."""

    short: Pixels
    longest: Pixels
    most: int = Field(100, ge=1, le=10_000)
    tile: None = None  # a caller's choice, not a file's: small tiles of a large image take hours
    overlap: float = Field(0.2, ge=0, le=0.9)


class ForSegmentation(Normalised):
    """See `SegmentPreprocessing`."""

    scale: Size | None
    window: Pixels | None
    stride: Pixels | None
    scales: Annotated[list[Annotated[float, Field(gt=0.01, le=8)]], Field(min_length=1, max_length=32)] = [1.0]
    mirror: bool = False


_PREPROCESSINGS: dict[type[Preprocessing], type[Normalised]] = {
    ClassifyPreprocessing: ForClassification,
    DetectPreprocessing: ForDetection,
    SegmentPreprocessing: ForSegmentation,
}


class Described(Strict):
    """The description of a weight file."""

    model: Annotated[Annotated[DescribedModel, Tag(_OURS)] | Annotated[DescribedOwnModel, Tag(_OWN)], Discriminator(_whose)]
    task: Name
    preprocessing: dict[str, object]  # checked by the schema of the network's own preprocessing
    classes: Names | None = None
    class_ids: list[int | Colour] | None = None  # the data's own number of each class
    metrics: dict[Name, Annotated[float, Field(allow_inf_nan=True)] | int] | None = None  # NaN: of a class that no image shows
    step: int | None = Field(None, ge=0)
    source: Name | None = None  # the weights that training began from, or that were exported
    imports: Annotated[list[Name], Field(max_length=16)] = []
    calibration: DescribedCalibration | None = None

    @model_validator(mode="after")
    def _classes_of_the_head(self) -> "Described":
        for key in ("classes", "class_ids"):
            named = getattr(self, key)
            if named is not None and len(named) != self.model.num_classes:
                raise ValueError(f"{key} has {len(named)} entries, the head {self.model.num_classes} classes")
        return self


class DescribedGraph(Strict):
    """How a graph was exported."""

    precision: Name
    pixels: bool
    size: Size | None
    num_classes: int = Field(ge=0, le=_MAX_CLASSES)
    outputs: Annotated[list[Name], Field(max_length=16)]
    inputs: Annotated[list[Name], Field(max_length=16)] = []
    defaults: Annotated[dict[Name, float], Field(max_length=16)] = {}


class DescribedExport(Described):
    """The description of an exported file."""

    graph: DescribedGraph
    labels: Names | None = None
    convnext: Name | None = None  # the version that wrote it

    @model_validator(mode="after")
    def _one_number_of_classes(self) -> "DescribedExport":
        if self.graph.num_classes != self.model.num_classes:
            raise ValueError(f"the graph has {self.graph.num_classes} classes, the model {self.model.num_classes}")
        return self


def parse(text: str, path: Path, exported: bool = False) -> Description:
    """Return the checked description of a file, with the keys that it has.

    Args:
        text: JSON.
        path: of the file, for messages.
        exported: whether it is a file that `convnext export` wrote.

    Raises ConvnextError, naming the file and the key, for anything that the schema does not have.
    """
    if len(text) > _MAX_LENGTH:
        raise ConvnextError(f"{path} was not loaded: its description has {len(text)} characters, at most {_MAX_LENGTH} are allowed")
    try:
        found = (DescribedExport if exported else Described).model_validate(json.loads(text))
        _check_preprocessing(found)
    except (ValueError, RecursionError) as error:  # pydantic's and json's are ValueErrors
        reason = _first(error) if isinstance(error, ValidationError) else first_line(error)
        raise ConvnextError(f"{path} was not loaded: its description is invalid: {reason}") from error
    return cast("Description", found.model_dump(exclude_unset=True))


def _check_preprocessing(found: Described) -> None:
    """Raise ValueError if task or preprocessing are not those of the network. Those of an unknown network are not used."""
    try:
        entry = entry_for(found.model.name, found.task, found.imports)
    except ConvnextError:
        return
    if found.task not in entry.tasks and not found.imports:  # a task from outside may be for any network
        raise ValueError(f"task: {entry.name} is for {entry.task!r}, not {_ascii(found.task[:50])!r}")
    try:
        _PREPROCESSINGS.get(entry.preprocessing(), Normalised).model_validate(found.preprocessing)
    except ValidationError as error:
        raise ValueError(f"preprocessing.{_first(error)}") from error


def check_size(model: Mapping[str, object], state: Mapping[str, Tensor], path: Path) -> None:
    """Raise ConvnextError if a description asks for a network that has more blocks, or wider ones, than the file has tensors."""
    if not is_ours(str(model["name"])):  # whose arguments mean what its constructor says
        return
    known = DescribedModel.model_validate(model)
    largest = max((max(tensor.shape, default=0) for tensor in state.values()), default=0)
    widths = [*(known.widths or ()), known.channels or 0, known.fc_channels or 0, known.auxiliary_channels or 0]
    if sum(known.depths or ()) + (known.depth or 0) > len(state) or max(widths) > largest:
        raise ConvnextError(f"{path} was not loaded: it describes a network of other sizes than its {len(state)} tensors have")


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"] if part not in (_OURS, _OWN))
    what = first["msg"].removeprefix("Value error, ").split("\n")[0]
    return _ascii(f"{where[:200]}: {what[:300]}" if where else what[:300])


def _ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()  # it may be a stranger's text
