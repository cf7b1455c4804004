"""What a caller can say of how to detect, and what a network can do of it."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypedDict

from torch import Tensor, nn

from convnext.data.transforms.detect import DetectPreprocessing
from convnext.data.transforms.preprocessing import Preprocessing
from convnext.errors import UsageError, nearest
from convnext.models.detection.boxes import Size
from convnext.models.detection.postprocess import AS_PUBLISHED, NMS_IOU, SCORE, Masks, Selection
from convnext.tasks.exported import ExportedNetwork
from convnext.text import class_name


class DetectNetwork(Protocol):
    """A detector, or an exported one, in evaluation mode; see `models.detection.detector.Detector`."""

    def predict(
        self,
        images: Sequence[Tensor],
        output_sizes: Sequence[Size] | None,
        threshold: float = SCORE,
        masks: Masks = "pasted",
        selection: Selection = AS_PUBLISHED,
    ) -> list[dict[str, Tensor]]: ...
    def maps(self, images: Sequence[Tensor]) -> list[Tensor]: ...


class DetectOptions(TypedDict, total=False):
    """What a caller can say of how to detect."""

    threshold: float  # the score that a detection exceeds
    nms: float  # IoU with a better detection above which one is dropped
    class_agnostic: bool  # whether a detection of another class is such a better one, too
    classes: str | Sequence[str]  # names of those to find, also several with commas between them; by default all
    masks: bool  # whether a detector that has masks gives them
    max_pixels: int | None  # that the boxes of an image's objects may hold together for their masks to be made
    check: Callable[[], object]  # called before each mask is made; it may raise an error to end the work


def selection_of(how: Preprocessing, options: DetectOptions | None = None, classes: Sequence[str] = ()) -> Selection:
    """Return which boxes are detections, by a detector's preprocessing and a caller's options.

    Raises UsageError for an unknown class, TypeError for the preprocessing of another task.
    """
    if not isinstance(how, DetectPreprocessing):
        raise TypeError(f"a detector needs a DetectPreprocessing, not a {type(how).__name__}")
    asked = options or {}
    labels = labels_of(asked["classes"], classes) if "classes" in asked else None
    return Selection(how.most, asked.get("nms", NMS_IOU), asked.get("class_agnostic", False), labels)


def labels_of(wanted: str | Sequence[str], classes: Sequence[str]) -> tuple[int, ...]:
    """Return the labels of the classes that are wanted, see `DetectOptions`. Raises UsageError for an unknown name, or for none."""
    names: set[str] = set()
    for text in [wanted] if isinstance(wanted, str) else wanted:
        names |= {text} if text in classes else {class_name(part.strip()) for part in text.split(",")}
    for name in sorted(names):
        if name not in classes:
            raise UsageError(f"classes: the network has no class {name!r}{nearest(name, classes)}")
    if not names:
        raise UsageError("classes: name at least one class, or omit the option to find all")
    return tuple(label for label, name in enumerate(classes) if name in names)


def why_not(option: str, value: object, model: nn.Module, classes: Sequence[str]) -> str | None:
    """Return why a network of those classes has no answer to an option with that value, None for any; None if it has one."""
    if option in ("nms", "class_agnostic") and isinstance(model, ExportedNetwork):
        return f"{option}: non-maximum suppression is a part of an exported file: predict with the weights that it was made from"
    if option in ("threshold", "nms") and isinstance(value, int | float) and not 0 <= value <= 1:
        return f"{option}={value} must be from 0 to 1"
    if option == "classes" and isinstance(value, str | list | tuple):
        try:
            labels_of(value, classes)
        except UsageError as error:
            return str(error)
    return None
