"""Detectors as exported files."""

from collections.abc import Sequence

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
from convnext.tasks.exported import ExportedNetwork, TaskExport

_SIDE = 320  # pixels: a size to trace and compare at; the graph takes any other too
_STRIDE = 32  # pixels: images are padded to multiples of this
_COMPARED = 50  # best objects of an image
_SAME_BOX = 0.95  # IoU
_SAME_OBJECTS = 0.96  # fraction of the best that both must find; of two near boxes either may be kept
_SAME_MASK = 0.01  # fraction of the pixels that may differ


class ExportedDetector(ExportedNetwork):
    """An exported detector, with `Detector.predict`; images go through it one by one."""

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
        sizes = output_sizes or [(image.shape[1], image.shape[2]) for image in images]
        return [self._predict(image, size, threshold, masks, selection) for image, size in zip(images, sizes, strict=True)]

    def _predict(self, image: Tensor, size: Size, threshold: float, kind: Masks, selection: Selection) -> dict[str, Tensor]:
        height, width = image.shape[1:]
        padded = F.pad(image, (0, -width % _STRIDE, 0, -height % _STRIDE))[None]
        boxes, labels, scores, *masks = self.call(padded, torch.tensor([height, width]), torch.tensor(threshold))
        found = scores > 0
        if selection.labels is not None:
            found &= torch.isin(labels, torch.tensor(selection.labels, device=labels.device))
        found = found.nonzero().flatten()[: selection.most]
        boxes = boxes[found] * boxes.new_tensor((size[1] / width, size[0] / height) * 2)
        result = {"boxes": boxes, "labels": labels[found], "scores": scores[found]}
        if masks and kind != "none":
            small = masks[0][found]
            result["masks"] = paste_masks(small, boxes, size)[:, None] if kind == "pasted" else small
        return result


class DetectExport(TaskExport):
    """The graph is a `FixedDetector`: one padded image, its size and a threshold to boxes, labels, scores and masks."""

    network = ExportedDetector
    inputs = ("images", "size", "threshold")
    is_batched = False
    stride = _STRIDE
    can_fix_size = False
    refused = {  # noqa: RUF012  (read only)
        "fp16": "detectors are exported in float32 only: which of two near boxes is kept depends on the last bits of their scores, "
        "so a file in fp16 finds other objects now and then, and could not be verified"
    }

    def graph(self, model: nn.Module, how: Preprocessing) -> nn.Module:
        assert isinstance(model, Detector)
        assert isinstance(how, DetectPreprocessing)
        return FixedDetector(model, how.most)

    def run(self, graph: nn.Module, images: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = graph(images, *others)
        return outputs

    def masked(self, images: Tensor, *others: Tensor) -> Tensor:
        """Return images with the padding set to 0: detectors train with padding of 0 after normalisation, which is no pixel value."""
        rows, columns = (torch.arange(side) < length for side, length in zip(images.shape[2:], others[0].unbind(), strict=True))
        return images * rows[:, None] * columns

    def example(self, height: int, width: int) -> tuple[Tensor, ...]:
        return torch.tensor([height, width]), torch.tensor(SCORE)

    def outputs(self, model: nn.Module) -> list[str]:
        assert isinstance(model, Detector)
        return ["boxes", "labels", "scores", *(["masks"] if model.roi_head.has_masks else [])]

    def size(self, how: Preprocessing, chosen: ImageSize | None) -> tuple[int, int]:
        height, width = sides(chosen or _SIDE)
        return -(-height // _STRIDE) * _STRIDE, -(-width // _STRIDE) * _STRIDE

    def error(self, model: nn.Module, exported: ExportedNetwork, ours: Tensor, theirs: Tensor) -> float:
        """Return the largest difference in score of the best 50 objects; raises ConvnextError if boxes, classes or masks differ.

        Every score above 0 counts as a detection, so that there are objects to compare even in noise. The images are cut to a size
        that needs padding.
        """
        assert isinstance(model, Detector)
        assert isinstance(exported, ExportedDetector)
        pairs = zip(ours[:, :, :-5, :-3], theirs[:, :, :-5, :-3], strict=True)
        return max(_difference(model.predict([one], threshold=0.0)[0], exported.predict([other], threshold=0.0)[0]) for one, other in pairs)


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
