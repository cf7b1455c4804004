"""The heads that turn a proposal into a class, a better box and a mask, in one stage (Mask R-CNN) or several (Cascade R-CNN)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convnext.models.detection.box_heads import REGION as BOX_REGION
from convnext.models.detection.box_heads import BoxHead, BoxLoss, ClassLoss, cross_entropy
from convnext.models.detection.boxes import DeltaCoder, Size
from convnext.models.detection.mask_head import REGION as MASK_REGION
from convnext.models.detection.mask_head import MaskHead, mask_loss, mask_targets
from convnext.models.detection.postprocess import AS_PUBLISHED, SCORE, Masks, Selection, paste_masks, select
from convnext.models.detection.roi_align import pool, to_rois
from convnext.models.detection.targets import Matcher, Sampler, Truth


@dataclass(frozen=True)
class Stage:
    """How the box head of one stage is trained, and how its deltas are decoded."""

    matcher: Matcher
    coder: DeltaCoder
    box_loss: BoxLoss
    weight: float = 1.0  # of its losses


@dataclass(frozen=True)
class _Regions:
    """The training boxes of one image in a stage: boxes with an object first, then background."""

    boxes: Tensor  # (n, 4)
    labels: Tensor  # (n,), num_classes for background
    objects: Tensor  # (p,), the index of its object for each box that has one
    added: Tensor  # (p,) bool, whether that box is the object's own


class RoIHead(nn.Module):
    """Box heads and mask heads, one of each for a stage; a stage starts from the boxes that the one before it predicts.

    Args:
        strides: of the four levels that regions are pooled from.
        stages: how the stages are trained.
        box_head: of each stage.
        mask_head: of each stage; empty for a network without masks.
        regions: number per image that is trained in a step.
    """

    def __init__(
        self,
        strides: Sequence[int],
        stages: Sequence[Stage],
        box_head: Sequence[BoxHead],
        mask_head: Sequence[MaskHead],
        *,
        regions: int = 512,
    ) -> None:
        super().__init__()
        self.strides, self.stages = tuple(strides), tuple(stages)
        self.num_classes = box_head[0].num_classes
        self.sampler = Sampler(regions, 0.25)
        self.has_masks = bool(mask_head)
        # The published weights have a list of heads only for several stages.
        self.bbox_head: nn.Module = nn.ModuleList(box_head) if len(stages) > 1 else box_head[0]
        self.mask_head: nn.Module = mask_head[0] if len(mask_head) == 1 else nn.ModuleList(mask_head)

    @property
    def box_heads(self) -> list[nn.Module]:
        """The box head of each stage."""
        return list(self.bbox_head) if isinstance(self.bbox_head, nn.ModuleList) else [self.bbox_head]

    @property
    def mask_heads(self) -> list[nn.Module]:
        """The mask head of each stage."""
        return list(self.mask_head) if isinstance(self.mask_head, nn.ModuleList) else [self.mask_head]

    def losses(
        self,
        levels: Sequence[Tensor],
        proposals: list[Tensor],
        sizes: Sequence[Size],
        targets: Sequence[Truth],
        class_loss: ClassLoss = cross_entropy,
    ) -> dict[str, Tensor]:
        """Return the losses (scalars) of all stages, and `acc`, the percentage of regions with the right class.

        Args:
            levels: four maps (N, C, H, W).
            proposals: boxes (n, 4) in each image.
            sizes: of the images before padding.
            targets: of the images.
            class_loss: of the classes of regions.
        """
        levels = [level.float() for level in levels]  # RoIAlign converts boxes to the levels' type; in 16 bits they would be pixels off
        losses: dict[str, Tensor] = {}
        for number, stage in enumerate(self.stages):
            regions = [self._draw(stage, boxes, truth) for boxes, truth in zip(proposals, targets, strict=True)]
            found, logits, deltas = self._box_losses(number, levels, regions, targets, class_loss)
            if self.has_masks:
                found |= self._mask_losses(number, levels, regions, targets)
            prefix = f"s{number}." if len(self.stages) > 1 else ""
            losses |= {prefix + name: loss * stage.weight if "loss" in name else loss for name, loss in found.items()}
            if number + 1 < len(self.stages):
                proposals = self._refined(stage, regions, logits, deltas, sizes)
        return losses

    def _draw(self, stage: Stage, boxes: Tensor, truth: Truth) -> _Regions:
        """Return regions to train on: boxes (n, 4) and the objects' own boxes, matched with the objects of the image, then sampled."""
        own = torch.arange(len(truth.boxes), device=boxes.device)
        matched = torch.cat([own, stage.matcher(boxes, truth.boxes)])
        boxes = torch.cat([truth.boxes, boxes])
        positive, negative = self.sampler(matched)
        background = torch.full_like(negative, self.num_classes)
        labels = torch.cat([truth.labels[matched[positive]], background])
        return _Regions(boxes[torch.cat([positive, negative])], labels, matched[positive], positive < len(own))

    def _box_losses(
        self, number: int, levels: list[Tensor], regions: list[_Regions], targets: Sequence[Truth], class_loss: ClassLoss
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return the losses of a stage's box head, and its logits and deltas for all regions."""
        stage = self.stages[number]
        rois = to_rois([region.boxes for region in regions])
        logits, deltas = self.box_heads[number](pool(levels, self.strides, rois, BOX_REGION))
        labels = torch.cat([region.labels for region in regions])
        count = max(len(labels), 1)
        positive = (labels < self.num_classes).nonzero().flatten()
        boxes = torch.cat([truth.boxes[region.objects] for truth, region in zip(targets, regions, strict=True)])
        found = deltas[positive, labels[positive]]
        losses = {
            "loss_cls": class_loss(logits, labels) / count,
            "acc": 100 * (logits.detach().argmax(1) == labels).sum() / count,
            "loss_bbox": stage.box_loss(stage.coder, rois[positive, 1:], found, boxes) / count,
        }
        return losses, logits.detach(), deltas.detach()

    def _mask_losses(self, number: int, levels: list[Tensor], regions: list[_Regions], targets: Sequence[Truth]) -> dict[str, Tensor]:
        boxes, masks = [region.boxes[: len(region.objects)] for region in regions], [truth.masks for truth in targets]
        labels = torch.cat([region.labels[: len(region.objects)] for region in regions])
        target = [
            mask_targets(mask, box, region.objects) for mask, box, region in zip(masks, boxes, regions, strict=True) if mask is not None
        ]
        pooled = pool(levels, self.strides, to_rois(boxes), MASK_REGION)
        return {"loss_mask": mask_loss(self.mask_heads[number](pooled, labels), target)}

    def _refined(self, stage: Stage, regions: list[_Regions], logits: Tensor, deltas: Tensor, sizes: Sequence[Size]) -> list[Tensor]:
        """Return the refined boxes of a stage's regions, without the objects' own: by the true class, or the likeliest for background."""
        labels = torch.cat([region.labels for region in regions])
        labels = torch.where(labels < self.num_classes, labels, logits[:, :-1].argmax(1))
        chosen = deltas[torch.arange(len(labels), device=labels.device), labels]
        parts = torch.split(chosen, [len(region.boxes) for region in regions])
        refined = []
        for region, delta, size in zip(regions, parts, sizes, strict=True):
            kept = torch.ones_like(region.labels, dtype=torch.bool)
            kept[: len(region.added)] = ~region.added
            refined.append(stage.coder.decode(region.boxes[kept], delta[kept], size))
        return refined

    @torch.no_grad()
    def detect(
        self,
        levels: Sequence[Tensor],
        proposals: list[Tensor],
        sizes: Sequence[Size],
        output_sizes: Sequence[Size],
        threshold: float = SCORE,
        masks: Masks = "pasted",
        selection: Selection = AS_PUBLISHED,
    ) -> list[dict[str, Tensor]]:
        """Return the detections in each image, best first; see `Detector.predict`. Other arguments are as for `losses`."""
        levels = [level.float() for level in levels]
        counts = [len(boxes) for boxes in proposals]
        stage_logits = []
        for number, (stage, head) in enumerate(zip(self.stages, self.box_heads, strict=True)):
            logits, deltas = head(pool(levels, self.strides, to_rois(proposals), BOX_REGION))
            stage_logits.append(logits)
            if number + 1 < len(self.stages):
                likeliest = deltas[torch.arange(len(logits), device=logits.device), logits[:, :-1].argmax(1)]
                parts = zip(proposals, torch.split(likeliest, counts), sizes, strict=True)
                proposals = [stage.coder.decode(boxes, delta, size) for boxes, delta, size in parts]
        scores = torch.stack(stage_logits).mean(0).softmax(1)
        images = zip(proposals, torch.split(deltas, counts), torch.split(scores, counts), sizes, strict=True)
        found = [select(self.stages[-1].coder, *image, threshold, selection) for image in images]
        drawn: Sequence[Tensor] = []
        if self.has_masks and masks != "none":
            drawn = torch.split(self._masks(levels, found), [len(image["labels"]) for image in found])
        for image, size, output in zip(found, sizes, output_sizes, strict=True):
            factor = (output[1] / size[1], output[0] / size[0])
            image["boxes"] = image["boxes"] * image["boxes"].new_tensor(factor * 2)
        for image, mask, output in zip(found, drawn, output_sizes, strict=False):
            image["masks"] = paste_masks(mask, image["boxes"], output)[:, None] if masks == "pasted" else mask
        return found

    def _masks(self, levels: list[Tensor], found: list[dict[str, Tensor]]) -> Tensor:
        """Return the masks (n, 28, 28) of all detections, 0 to 1: the mean of the stages'."""
        pooled = pool(levels, self.strides, to_rois([image["boxes"] for image in found]), MASK_REGION)
        labels = torch.cat([image["labels"] for image in found])
        return torch.stack([head(pooled, labels).sigmoid() for head in self.mask_heads]).mean(0)
