"""What a model's name stands for: a backbone alone, as `convnext_tiny`, or a head over one, as `upernet_convnext_tiny`.

Adding a head is one entry in `HEADS`; adding a backbone is one in `convnext.models.backbones.zoo`. A head offers, besides what its task
calls, `backbone`, `num_classes`, `no_weight_decay()` and `layer_group(name)`.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convnext.data.transforms.detect import DetectPreprocessing
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.data.transforms.segment import SegmentPreprocessing
from convnext.errors import UsageError, nearest
from convnext.models.backbones.zoo import BACKBONES, Backbone
from convnext.models.cost import Cost, count_cost
from convnext.models.detection import cascade_mask_rcnn, mask_rcnn
from convnext.models.detection import cost as detector_cost
from convnext.models.segmentation.upernet import UperNet
from convnext.models.weights import detectors, formats, segmenters

State = dict[str, Tensor]

_OFFICIAL = "https://dl.fbaipublicfiles.com/convnext"


@dataclass(frozen=True)
class Head:
    """What makes a detector or segmenter of a backbone with a pyramid."""

    build: Callable[..., Any]  # (backbone, num_classes, output_norm=…, …) -> nn.Module
    task: str
    num_classes: int  # of the data set it was published for
    image_size: int | tuple[int, int]  # (height, width) of the paper's tables
    formats: Any  # the module with `recognise` and `to_native` of its weight files
    of_classes: re.Pattern[str]  # the parameters whose shape depends on the number of classes
    counted: re.Pattern[str]  # the one of them whose first side is that number,
    rows: int  # times this
    published: Callable[[str], Any]  # a tag or file name → how its weights were tested
    weights: Mapping[str, Mapping[str, str]]  # backbone → tag → address
    cost: Callable[[Any, int | tuple[int, int]], Cost] = count_cost


class Alone:
    """A backbone that classifies."""

    task = "classify"
    num_classes = 1000

    def __init__(self, backbone: Backbone) -> None:
        self.backbone, self.weights = backbone, backbone.weights
        self.known = set(inspect.signature(backbone.build).parameters)  # what `make` takes
        self.image_size: int | tuple[int, int] = backbone.image_size  # of the paper's tables
        self.cost = count_cost

    def make(self, **given: Any) -> Any:
        """The network."""
        return self.backbone.build(**self.backbone.arguments | given)

    def to_native(self, model: Any, state: Mapping[str, Tensor]) -> tuple[State, str]:
        """A state of any known format in the model's own names, and the format it was taken for."""
        if self.backbone.format is not None:
            return model.to_native(state), self.backbone.format
        known = formats.recognise(state)
        return formats.to_native(state, known), known

    def is_of_classes(self, model: Any, key: str) -> bool:
        """Whether the shape of that parameter depends on the number of classes."""
        return key.startswith(f"{model.head_name}.")

    def count_classes(self, model: Any, native: Mapping[str, Tensor]) -> int:
        """How many classes a state is for."""
        key = f"{model.head_name}.weight"
        return native[key].shape[0] if key in native else 0

    def published(self, source: str) -> tuple[ClassifyPreprocessing, int]:
        """How the weights of a tag or file were tested, and how many classes they tell apart."""
        return self.backbone.published(source)


class Assembled:
    """A head over a backbone; what the methods do is as in `Alone`."""

    def __init__(self, head: Head, backbone: Backbone, backbone_name: str) -> None:
        self.head, self.backbone, self.task, self.num_classes = head, backbone, head.task, head.num_classes
        self.weights = {**head.weights.get(backbone_name, {}), **backbone.weights}  # of the whole, and of the backbone alone
        self.under, self.under_name = Alone(backbone), backbone_name
        self.own = set(inspect.signature(head.build).parameters) - {"backbone", "output_norm"}
        self.known = (self.own | self.under.known) - {"head_init_scale"}
        self.image_size, self.cost = head.image_size, head.cost

    def make(self, num_classes: int, **given: Any) -> Any:
        own = {key: given.pop(key) for key in list(given) if key in self.own}
        backbone = self.under.make(num_classes=0, **given)
        return self.head.build(backbone, num_classes, output_norm=self.backbone.output_norm, **own)

    def to_native(self, model: Any, state: Mapping[str, Tensor]) -> tuple[State, str]:
        """Of a state of the backbone alone, without what it only classifies with; the rest is then the model's own, fresh."""
        if any(key.startswith("backbone.") for key in state):
            known = self.head.formats.recognise(state)
            return self.head.formats.to_native(state, known), known
        native, known = self.under.to_native(model.backbone, state)
        with torch.device("meta"):
            given = {key: value for key, value in model.spec.items() if key in self.under.known}
            alone = self.under.make(**given | {"num_classes": 1}).state_dict().keys()
        fresh = {key: tensor for key, tensor in model.state_dict().items() if key.removeprefix("backbone.") not in alone}
        only_to_classify = alone - model.backbone.state_dict().keys()
        return fresh | {f"backbone.{key}": tensor for key, tensor in native.items() if key not in only_to_classify}, known

    def is_of_classes(self, model: Any, key: str) -> bool:
        return self.head.of_classes.match(key) is not None

    def count_classes(self, model: Any, native: Mapping[str, Tensor]) -> int:
        return next((tensor.shape[0] // self.head.rows for key, tensor in native.items() if self.head.counted.fullmatch(key)), 0)

    def published(self, source: str) -> tuple[Any, int]:
        return self.head.published(source), self.num_classes


def _of_ade20k(source: str) -> SegmentPreprocessing:
    # By tag, or by the name of the published file. The single-scale test: windows of the crop, two thirds of it apart.
    crop = 640 if re.search(r"22k_640(x640)?$", source.rpartition("/")[2].partition(".")[0]) else 512
    return SegmentPreprocessing((4 * crop, crop), crop, 2 * crop // 3)


def _ade20k(size: str, *tags: str) -> dict[str, str]:
    of = {"fb_in1k_512": "1k_512x512", "fb_in22k_640": "22k_640x640"}
    return {tag: f"{_OFFICIAL}/ade20k/upernet_convnext_{size}_{of[tag]}.pth" for tag in tags}


def _of_coco(source: str) -> DetectPreprocessing:
    return DetectPreprocessing()


def _detector_cost(model: Any, image_size: int | tuple[int, int]) -> Cost:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    found = detector_cost.count_cost(model, height, width)
    return Cost(found.parameters, found.macs, image_size)


def _coco(kind: str, **tags: str) -> dict[str, dict[str, str]]:
    """Weights by backbone and tag, from the tags of each size."""
    files = {size: {f"fb_in{of}": f"{_OFFICIAL}/coco/{kind}_convnext_{size}_{of}_3x.pth" for of in tags[size].split()} for size in tags}
    return {f"convnext_{size}": found for size, found in files.items()}


def _two_stage(build: Callable[..., Any], weights: Mapping[str, Mapping[str, str]]) -> Head:
    return Head(
        build,
        task="detect",
        num_classes=80,
        image_size=(800, 1280),
        formats=detectors,
        of_classes=detectors.OF_CLASSES,
        counted=re.compile(r"roi_head\.bbox_head\.(0\.)?fc_reg\.weight"),
        rows=4,
        published=_of_coco,
        weights=weights,
        cost=_detector_cost,
    )


HEADS: dict[str, Head] = {
    "mask_rcnn": _two_stage(mask_rcnn, _coco("mask_rcnn", tiny="1k")),
    "cascade_mask_rcnn": _two_stage(
        cascade_mask_rcnn, _coco("cascade_mask_rcnn", tiny="1k", small="1k", base="1k 22k", large="22k", xlarge="22k")
    ),
    "upernet": Head(
        UperNet,
        task="segment",
        num_classes=150,
        image_size=(512, 2048),
        formats=segmenters,
        of_classes=re.compile(r"(decode_head|auxiliary_head)\.conv_seg\."),
        counted=re.compile(r"decode_head\.conv_seg\.weight"),
        rows=1,
        published=_of_ade20k,
        weights={
            "convnext_tiny": _ade20k("tiny", "fb_in1k_512"),
            "convnext_small": _ade20k("small", "fb_in1k_512"),
            "convnext_base": _ade20k("base", "fb_in1k_512", "fb_in22k_640"),
            "convnext_large": _ade20k("large", "fb_in22k_640"),
            "convnext_xlarge": _ade20k("xlarge", "fb_in22k_640"),
        },
    ),
}

# Every backbone, and every head over every backbone that has a pyramid. (The steps of the road can be had under a head, too.)
_UNDER_HEADS = [name for name, backbone in BACKBONES.items() if backbone.has_pyramid and not name.startswith("roadmap_")]
NAMES = [*BACKBONES, *(f"{head}_{name}" for head in HEADS for name in _UNDER_HEADS)]


def find(name: str) -> Alone | Assembled:
    """What a name stands for. Raises UsageError, with the nearest name, if it is none."""
    if name in BACKBONES:
        return Alone(BACKBONES[name])
    for key, head in HEADS.items():
        under = name.removeprefix(f"{key}_")
        if under != name and under in BACKBONES:
            return Assembled(head, BACKBONES[under], under)
    raise UsageError(f"no model is called {name!r}{nearest(name, NAMES)}")
