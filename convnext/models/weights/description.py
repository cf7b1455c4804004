"""What a weight file or an exported file says of itself: one strict schema, because the file may be a stranger's.

Nothing of it may name weights, make files be fetched, or ask for more memory than the file itself has tensors for.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError, model_validator
from torch import Tensor

from convnext.errors import ConvnextError, first_line

_LONGEST = 16 << 20  # characters of a description; 21,841 class names are half a million
_MOST_CLASSES = 1_000_000
_LONGEST_NAME = 1000
_LARGEST = 8192  # pixels a side of a prepared image


def _short(value: object) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST_NAME:
        raise ValueError(f"is no text of at most {_LONGEST_NAME} characters")
    return value


Name = Annotated[str, PlainValidator(_short)]  # pydantic's own refuses names that are not UTF-8, which folders may have
Width = Annotated[int, Field(ge=1, le=65536)]
Count = Annotated[int, Field(ge=0, le=10_000)]
Pixels = Annotated[int, Field(ge=1, le=_LARGEST)]
Channel = Annotated[float, Field(ge=-1000, le=1000)]
Deviation = Annotated[float, Field(gt=1e-8, le=1000)]
Colour = Annotated[list[int], Field(min_length=3, max_length=3)]
Names = Annotated[list[Name], Field(max_length=_MOST_CLASSES)]
Span = Annotated[list[Annotated[float, Field(ge=-1e12, le=1e12)]], Field(min_length=2, max_length=2)]
Size = Annotated[list[Pixels], Field(min_length=2, max_length=2)]


class Strict(BaseModel):
    """Unknown keys, other types and numbers that are not finite are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Model(Strict):
    """What `create_model` builds the network of: the arguments of all constructors, and nothing that only training knows."""

    name: Name
    num_classes: int = Field(ge=0, le=_MOST_CLASSES)
    in_channels: int = Field(3, ge=1, le=4096)
    layer_scale: float | None = Field(None, ge=0, le=1000)
    head_init_scale: float | None = Field(None, ge=0, le=1e6)
    grad_checkpointing: bool | None = None
    depths: Annotated[list[Count], Field(max_length=16)] | None = None
    widths: Annotated[list[Width], Field(max_length=16)] | None = None
    depth: Count | None = None
    width: Width | None = None
    patch_size: int | None = Field(None, ge=1, le=256)
    kernel_size: int | None = Field(None, ge=1, le=255)
    norm_eps: float | None = Field(None, ge=1e-12, le=0.1)
    head_norm_eps: float | None = Field(None, ge=1e-12, le=0.1)
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


class Normalised(Strict):
    """What the preprocessing of every task has."""

    mean: list[Channel]
    std: list[Deviation]
    range: Annotated[float, Field(gt=0, le=1e12)] | Span | None = None  # see `DeepImage.pixels`

    @model_validator(mode="after")
    def _of_rgb(self) -> "Normalised":
        if len(self.mean) not in (1, 3) or len(self.std) != len(self.mean):
            raise ValueError("mean and std have a number for each of three channels, or one for all")
        return self


class ForClassification(Normalised):
    """See `ClassifyPreprocessing`."""

    image_size: int = Field(ge=1, le=4096)
    crop_ratio: float = Field(gt=0, le=1)
    warp: bool
    interpolation: Literal["nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos"]

    @model_validator(mode="after")
    def _bounded(self) -> "ForClassification":
        if not self.warp and self.image_size / self.crop_ratio > _LARGEST:
            raise ValueError(f"image_size / crop_ratio is more than {_LARGEST} pixels")
        return self


class ForDetection(Normalised):
    """See `DetectPreprocessing`."""

    short: Pixels
    longest: Pixels


class ForSegmentation(Normalised):
    """See `SegmentPreprocessing`."""

    scale: Size | None
    window: Pixels | None
    stride: Pixels | None
    scales: Annotated[list[Annotated[float, Field(gt=0.01, le=8)]], Field(min_length=1, max_length=32)] = [1.0]
    mirror: bool = False


class Described(Strict):
    """What every file says."""

    model: Model
    classes: Names | None = None
    class_ids: list[int | Colour] | None = None  # the data's own number of each class
    metrics: dict[Name, Annotated[float, Field(allow_inf_nan=True)] | int] | None = None  # NaN: of a class that no image shows
    step: int | None = Field(None, ge=0)
    source: Name | None = None  # the weights that training began from, or that were exported

    @model_validator(mode="after")
    def _classes_of_the_head(self) -> "Described":
        for key in ("classes", "class_ids"):
            named = getattr(self, key)
            if named is not None and len(named) != self.model.num_classes:
                raise ValueError(f"{key} has {len(named)} entries, the head {self.model.num_classes} classes")
        return self


class Classifies(Described):
    """A classifier."""

    task: Literal["classify"]
    preprocessing: ForClassification


class Detects(Described):
    """A detector."""

    task: Literal["detect"]
    preprocessing: ForDetection


class Segments(Described):
    """A segmenter."""

    task: Literal["segment"]
    preprocessing: ForSegmentation


class Graph(Strict):
    """How a graph was exported."""

    precision: Name
    pixels: bool
    size: Size | None
    num_classes: int = Field(ge=0, le=_MOST_CLASSES)
    outputs: Annotated[list[Name], Field(max_length=16)]


class Exported(Strict):
    """What an exported file says beside what every file does."""

    graph: Graph
    labels: Names | None = None
    convnext: Name | None = None  # the version that wrote it


class ExportedClassifies(Exported, Classifies):
    """An exported classifier."""


class ExportedDetects(Exported, Detects):
    """An exported detector."""


class ExportedSegments(Exported, Segments):
    """An exported segmenter."""


_WEIGHTS: TypeAdapter[Described] = TypeAdapter(Annotated[Classifies | Detects | Segments, Field(discriminator="task")])
_EXPORTED: TypeAdapter[Described] = TypeAdapter(
    Annotated[ExportedClassifies | ExportedDetects | ExportedSegments, Field(discriminator="task")]
)


def parse(text: str, path: Path, exported: bool = False) -> dict[str, Any]:
    """What a file says of itself, checked, with the keys that it has.

    Args:
        text: JSON.
        path: of the file, for messages.
        exported: whether it is a file that `convnext export` wrote.

    Raises ConvnextError, naming the file and the key, for anything that the schema does not have.
    """
    if len(text) > _LONGEST:
        raise ConvnextError(f"{path} describes itself in {len(text)} characters: no file of ours does, and it was not loaded")
    try:
        found = (_EXPORTED if exported else _WEIGHTS).validate_python(json.loads(text))
    except (ValueError, RecursionError) as error:  # pydantic's and json's are ValueErrors
        reason = _first(error) if isinstance(error, ValidationError) else first_line(error)
        raise ConvnextError(f"{path} does not describe itself as our files do, and was not loaded: {reason}") from error
    if exported and (graph := getattr(found, "graph", None)) is not None and graph.num_classes != found.model.num_classes:
        raise ConvnextError(f"{path} does not describe itself as our files do, and was not loaded: two numbers of classes")
    return found.model_dump(exclude_unset=True)


def check_size(model: Mapping[str, Any], state: Mapping[str, Tensor], path: Path) -> None:
    """Raise ConvnextError if a description asks for a network that has more blocks, or wider ones, than the file has tensors."""
    blocks = sum(model.get("depths") or ()) + (model.get("depth") or 0)
    widest = max((max(tensor.shape, default=0) for tensor in state.values()), default=0)
    widths = [*(model.get("widths") or ()), *(model[key] for key in ("channels", "fc_channels", "auxiliary_channels") if model.get(key))]
    if blocks > len(state) or max(widths, default=0) > widest:
        raise ConvnextError(f"{path} describes a network of other sizes than its {len(state)} tensors have, and was not loaded")


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if first["type"].startswith("union_tag"):
        return "task: it is none of classify, detect and segment"
    where = ".".join(str(part) for part in first["loc"] if part not in ("classify", "detect", "segment"))
    what = first["msg"].removeprefix("Value error, ").split("\n")[0]
    told = f"{where[:200]}: {what[:300]}" if where else what[:300]
    return told.encode("ascii", "backslashreplace").decode()  # it may be a stranger's text
