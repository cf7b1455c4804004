"""Measure a detector on large scenes of small digits: in the whole image, and in tiles with three ways of merging them.

    python benchmarks/tiles.py RUN [--count 3] [--tile 512]

RUN is a run of `convnext demo --task detect`. Each scene has 4000 x 3000 pixels, 60 digits as high as in training (34 to 72 pixels) and
six large ones. The network sees whole images at 128 pixels, as in training, and at 1333, and tiles at their own size.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torchvision.ops import batched_nms

import convnext
from convnext.data.sources import scenes
from convnext.data.transforms.detect import DetectPreprocessing
from convnext.models.detection.postprocess import Selection
from convnext.tasks.detect import options, tiles
from convnext.tasks.detect.metric import AveragePrecision

HEIGHT, WIDTH, SMALL, LARGE = 3000, 4000, 60, 6
Found = dict[str, Tensor]
Merge = Callable[[Found, Tensor, Selection], Found]


def compose(seed: int) -> tuple[PIL.Image.Image, dict[str, Tensor]]:
    """Return a scene and its target: digits beside each other on a ground with clouds of the sizes of training."""
    rng = np.random.default_rng(seed)
    ground = np.full((HEIGHT, WIDTH, 3), rng.integers(150, 226, 3), dtype=np.float32)
    for cells in (3, 9, 27):
        shape = cells * HEIGHT // scenes.SIZE, cells * WIDTH // scenes.SIZE, 3
        noise = PIL.Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).resize((WIDTH, HEIGHT), PIL.Image.Resampling.BILINEAR)
        ground += (np.asarray(noise) - np.float32(127.5)) * np.float32(0.14)
    canvas, boxes, labels = ground.clip(0, 255).astype(np.uint8), [], []
    for size in [8 * scenes.SIZE] * LARGE + [scenes.SIZE] * SMALL:
        while True:
            label, grey = scenes._digit(rng, "val", size)
            height, width = grey.shape
            top, left = rng.integers(0, HEIGHT - height), rng.integers(0, WIDTH - width)
            box = (left, top, left + width, top + height)
            if all(box[2] < x1 or x2 < box[0] or box[3] < y1 or y2 < box[1] for x1, y1, x2, y2 in boxes):
                break
        area = canvas[top : top + height, left : left + width]
        scenes._paint(area, 255, np.clip((grey - 0.1) / 0.15, 0, 0.7))
        scenes._paint(area, rng.integers(0, 100, 3), np.clip((grey - 0.3) / 0.3, 0, 1))
        boxes.append(box)
        labels.append(label)
    found = torch.tensor(boxes, dtype=torch.float32)
    target = {"boxes": found, "labels": torch.tensor(labels), "area": (found[:, 2:] - found[:, :2]).prod(1), "image_id": seed}
    return PIL.Image.fromarray(canvas), target | {"iscrowd": torch.zeros(len(boxes), dtype=torch.bool)}


def by_iou(found: Found, is_cut: Tensor, selection: Selection) -> Found:
    """Merge by non-maximum suppression alone."""
    kept = batched_nms(found["boxes"], found["scores"], found["labels"], selection.nms)
    return {key: values[kept] for key, values in found.items()}


def by_smaller_box(found: Found, is_cut: Tensor, selection: Selection) -> Found:
    """Merge by the intersection over the smaller of two boxes, as SAHI's NMS does."""
    order = found["scores"].argsort(descending=True)
    boxes, labels = found["boxes"][order], found["labels"][order]
    kept: list[int] = []
    for i, box in enumerate(boxes):
        others = boxes[kept]
        sides = (torch.minimum(box[2:], others[:, 2:]) - torch.maximum(box[:2], others[:, :2])).clamp(min=0)
        areas = (others[:, 2:] - others[:, :2]).prod(1).minimum((box[2:] - box[:2]).prod())
        if not ((sides.prod(1) > 0.5 * areas) & (labels[kept] == labels[i])).any():
            kept.append(i)
    return {key: values[order[kept]] for key, values in found.items()}


MERGES: dict[str, Merge] = {"cut boxes last (ours)": tiles._merged, "IoU alone": by_iou, "intersection over smaller": by_smaller_box}


def main() -> None:
    """Print a row for each way to look at the scenes: AP of all, of small, medium and large digits, and seconds per image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--tile", type=int, default=512)
    given = parser.parse_args()
    predictor = convnext.load(given.run, device="cpu")
    how = predictor.preprocessing
    assert isinstance(how, DetectPreprocessing)
    own = replace(how, short=given.tile, longest=given.tile)
    views: dict[str, tuple[DetectPreprocessing, tuple[str, ...]]] = {"whole, 128 pixels": (how, ("",))}
    views["whole, 1333 pixels"] = replace(how, short=1000, longest=1333), ("",)
    for overlap in (0.0, 0.2):
        views[f"tiles of {given.tile}, overlap {overlap}"] = replace(own, tile=given.tile, overlap=overlap), tuple(MERGES)
    captured: list[tuple[Found, Tensor, Selection]] = []

    def capture(*merged: object) -> Found:
        captured.append(merged)  # type: ignore[arg-type]
        return MERGES["cut boxes last (ours)"](*merged)  # type: ignore[arg-type]

    tiles._merged = capture  # type: ignore[assignment]
    for name, (view, merges) in views.items():
        measured = {merge: AveragePrecision(predictor.classes, with_masks=False) for merge in merges}
        seconds = 0.0
        for seed in range(given.count):
            image, target = compose(seed)
            begun = time.process_time()
            with torch.inference_mode():
                prepared, sizes = [view.transform()(image)], [(HEIGHT, WIDTH)]
                (found,) = tiles.detect(predictor.model, prepared, sizes, view, options.selection_of(view), masks="none")
            seconds += time.process_time() - begun
            for merge in merges:
                measured[merge].update([MERGES[merge](*captured[-1]) if merge else found], [target])  # type: ignore[list-item]
        for merge, precision in measured.items():
            metrics = precision.compute()
            values = "  ".join(f"{key} {metrics[key]:5.1f}" for key in ("box_ap", "box_ap_medium", "box_ap_large"))
            print(f"{name}  {merge}  {values}  {seconds / given.count:.1f} CPU s per image", flush=True)


if __name__ == "__main__":
    main()
