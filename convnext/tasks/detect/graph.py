"""Detectors as exported files."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou

from convnext.data.transforms.detect import DetectPreprocessing
from convnext.data.transforms.preprocessing import ImageSize, Preprocessing, sides
from convnext.errors import ConvnextError, UsageError
from convnext.models.detection.boxes import Size
from convnext.models.detection.detector import Detector
from convnext.models.detection.fixed import FixedDetector
from convnext.models.detection.postprocess import AS_PUBLISHED, SCORE, Masks, Selection, paste_masks
from convnext.tasks.detect.prediction import SHOWN_SCORE, DetectPrediction
from convnext.tasks.exported import ExportedNetwork, TaskExport

_SIDE = 320  # pixels: a size to trace and compare at; the graph takes any other too
_STRIDE = 32  # pixels: images are padded to multiples of this
_COMPARED = 50  # best objects of an image
_SAME_BOX = 0.95  # IoU
_SAME_OBJECTS = 0.96  # fraction of the best that both must find; of two near boxes either may be kept
_FOUND_AGAIN = 0.5  # IoU of an object that a network of lower precision finds too
_SAME_MASK = 0.01  # fraction of the pixels that may differ


class ExportedDetector(ExportedNetwork):
    """An exported detector, with `Detector.predict`. Files of before batches take one image, by the input `size`."""

    def forward(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        return self.predict(images)

    def predict(
        self,
        images: Sequence[Tensor],
        output_sizes: Sequence[Size] | None = None,
        threshold: float = SCORE,
        masks: Masks = "pasted",
        selection: Selection = AS_PUBLISHED,
    ) -> list[dict[str, Tensor]]:
        """Return the objects of each image; see `Detector.predict`. Of `selection` it has the classes and the number.

        Raises UsageError for another non-maximum suppression than that in the graph.
        """
        if (selection.nms, selection.class_agnostic) != (AS_PUBLISHED.nms, AS_PUBLISHED.class_agnostic):
            raise UsageError(f"non-maximum suppression is a part of {self.path}: predict with the weights that it was made from")
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        rows = self._rows(images, sizes, threshold)
        return [
            _detections(row, size, output_size, masks, selection)
            for row, size, output_size in zip(rows, sizes, output_sizes or sizes, strict=True)
        ]

    def run(self, images: Sequence[Tensor], threshold: float) -> list[Tensor]:
        """Return the graph's outputs for images that are padded here: boxes, labels, scores, and, if it has them, masks and pasted masks.

        For all of the file's axes see `FixedDetector`.
        """
        height, width = (-(-max(side) // _STRIDE) * _STRIDE for side in zip(*(image.shape[1:] for image in images), strict=True))
        padded = torch.stack([F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images])
        return self.call(padded, torch.tensor([image.shape[1:] for image in images]), torch.tensor(threshold))

    def _rows(self, images: Sequence[Tensor], sizes: Sequence[Size], threshold: float) -> list[tuple[Tensor, ...]]:
        """Return boxes, labels, scores and, if there are, masks of each image."""
        if "sizes" in self.graph.get("inputs", ()):
            return list(zip(*self.run(images, threshold)[:4], strict=True))
        padded = [F.pad(image, (0, -image.shape[2] % _STRIDE, 0, -image.shape[1] % _STRIDE))[None] for image in images]
        return [tuple(self.call(image, torch.tensor(size), torch.tensor(threshold))) for image, size in zip(padded, sizes, strict=True)]


class DetectExport(TaskExport):
    """The graph is a `FixedDetector`: padded images, their sizes and a threshold to boxes, labels, scores and masks."""

    network = ExportedDetector
    inputs = ("images", "sizes", "threshold")
    defaults: ClassVar[Mapping[str, float]] = MappingProxyType({"threshold": SCORE})
    stride = _STRIDE
    can_fix_size = False
    refused = {  # noqa: RUF012  (read only)
        precision: "detectors are exported in float32 only: which of two near boxes is kept depends on the last bits of their scores, "
        f"so a file in {precision} finds other objects now and then, and could not be verified"
        for precision in ("fp16", "bf16")
    }

    def graph(self, model: nn.Module, how: Preprocessing, paste_masks: bool = False) -> nn.Module:
        if not isinstance(model, Detector):  # a network from outside
            raise UsageError("a detector of your own can't be exported, only Mask R-CNN and Cascade Mask R-CNN: use its run folder")
        assert isinstance(how, DetectPreprocessing)
        if paste_masks and not model.roi_head.has_masks:
            return super().graph(model, how, paste_masks)
        return FixedDetector(model, how.most, paste_masks)

    def run(self, graph: nn.Module, images: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = graph(images, *others)
        return outputs

    def masked(self, images: Tensor, *others: Tensor) -> Tensor:
        """Return images with the padding set to 0: detectors train with padding of 0 after normalisation, which is no pixel value."""
        rows, columns = (torch.arange(side) < length[:, None] for side, length in zip(images.shape[2:], others[0].unbind(1), strict=True))
        return images * rows[:, None, :, None] * columns[:, None, None]

    def example(self, count: int, height: int, width: int) -> tuple[Tensor, ...]:
        return torch.tensor([[height, width]] * count), torch.tensor(SCORE)

    def outputs(self, graph: nn.Module) -> list[str]:
        assert isinstance(graph, FixedDetector)
        masks = ["masks"] if graph.detector.roi_head.has_masks else []
        return ["boxes", "labels", "scores", *masks, *(["pasted"] if graph.pasted else [])]

    def size(self, how: Preprocessing, chosen: ImageSize | None) -> tuple[int, int]:
        height, width = sides(chosen or _SIDE)
        return -(-height // _STRIDE) * _STRIDE, -(-width // _STRIDE) * _STRIDE

    def error(self, model: nn.Module, exported: ExportedNetwork, ours: Tensor, theirs: Tensor) -> float:
        """Return the largest difference in score of the best 50 objects; raises ConvnextError if boxes, classes or masks differ.

        Every score above 0 counts as a detection, so that there are objects to compare even in noise. The images are cut to sizes
        that need padding, each to another.
        """
        assert isinstance(model, Detector)
        assert isinstance(exported, ExportedDetector)
        cut, others = ([image[:, : -5 - 8 * i, : -3 - 8 * i] for i, image in enumerate(images)] for images in (ours, theirs))
        expected, found = model.predict(cut, threshold=0.0), exported.predict(others, threshold=0.0)
        if "pasted" in exported.graph["outputs"]:
            *_, pasted = exported.run(others, 0.0)
            for one, masks, image in zip(found, pasted, others, strict=True):
                one["masks"] = masks[: len(one["scores"]), None, : image.shape[1], : image.shape[2]]
        return max(_difference(*pair) for pair in zip(expected, found, strict=True))

    def agreement(self, expected: object, found: object) -> float:
        """Return the fraction of the objects, of both together, that the other has too: same class, IoU above 0.5.

        Compared are objects of a score of at least 0.5. Two predictions without any agree.
        """
        assert isinstance(expected, DetectPrediction)
        assert isinstance(found, DetectPrediction)
        one, other = (prediction.scores >= SHOWN_SCORE for prediction in (expected, found))
        same = (box_iou(expected.boxes[one], found.boxes[other]) > _FOUND_AGAIN) & (expected.labels[one][:, None] == found.labels[other])
        count = sum(same.shape)
        return 1.0 if count == 0 else int(same.any(0).sum() + same.any(1).sum()) / count


def _difference(expected: dict[str, Tensor], found: dict[str, Tensor]) -> float:
    expected = {key: value[:_COMPARED] for key, value in expected.items()}
    overlap = box_iou(expected["boxes"], found["boxes"]) * (expected["labels"][:, None] == found["labels"])
    best, which = overlap.max(1)
    same = best > _SAME_BOX
    differing = 0.0
    if "masks" in expected:
        masks, others = expected["masks"][same], found["masks"][which[same]]
        differing = int((masks ^ others).sum()) / max(int(masks.sum()), 1)
    if same.float().mean() < _SAME_OBJECTS or differing > _SAME_MASK:
        reason = f"{int(same.sum())} of the best {len(same)} are the same, whose masks differ in {differing:.1%} of their pixels"
        raise ConvnextError(f"it finds other objects than the network: {reason}")
    return (expected["scores"] - found["scores"][which])[same].abs().max().item()


def _detections(row: Sequence[Tensor], size: Size, output_size: Size, kind: Masks, selection: Selection) -> dict[str, Tensor]:
    """Return what `Detector.predict` does of a graph's outputs for an image of `size`, in pixels of `output_size`."""
    boxes, labels, scores, *masks = row
    found = scores > 0
    if selection.labels is not None:
        found &= torch.isin(labels, torch.tensor(selection.labels, device=labels.device))
    found = found.nonzero().flatten()[: selection.most]
    boxes = boxes[found] * boxes.new_tensor((output_size[1] / size[1], output_size[0] / size[0]) * 2)
    result = {"boxes": boxes, "labels": labels[found], "scores": scores[found]}
    if masks and kind != "none":
        small = masks[0][found]
        result["masks"] = paste_masks(small, boxes, output_size)[:, None] if kind == "pasted" else small
    return result
