import json
import math
import subprocess
import sys

import pytest
import torch

from convnext.data.run_lengths import decode
from convnext.models.detection import postprocess
from convnext.models.detection.boxes import DeltaCoder
from convnext.models.detection.postprocess import encode_masks, paste_masks, select


def slow_paste(mask, box, height, width):
    """Bilinear between the mask's 28 x 28 pixel centres, zeros around, at each of the image's: pixel by pixel."""
    x1, y1, x2, y2 = box
    pasted = torch.zeros(height, width)

    def at(i, j):
        return mask[i][j] if 0 <= i < 28 and 0 <= j < 28 else 0.0

    for row in range(height):
        for column in range(width):
            v, u = (row + 0.5 - y1) / (y2 - y1) * 28 - 0.5, (column + 0.5 - x1) / (x2 - x1) * 28 - 0.5
            i, j = math.floor(v), math.floor(u)
            a, b = v - i, u - j
            above, below = (1 - b) * at(i, j) + b * at(i, j + 1), (1 - b) * at(i + 1, j) + b * at(i + 1, j + 1)
            pasted[row, column] = (1 - a) * above + a * below
    return pasted


BOXES = torch.tensor(
    [[3.2, 4.7, 20.9, 17.1], [0.0, 0.0, 31.0, 23.0], [-4.0, 5.5, 7.3, 40.0], [10.1, 10.1, 10.4, 10.3], [28.5, 21.5, 31.0, 23.0]]
)


def masks(count):
    noise = torch.rand(count, 1, 7, 7, generator=torch.Generator().manual_seed(5))
    return torch.nn.functional.interpolate(noise, (28, 28), mode="bilinear")[:, 0]


@pytest.mark.parametrize("together", ["one by one", "in chunks"])
def test_pasting_agrees_with_a_slow_one(together, monkeypatch):
    if together == "in chunks":  # as on a GPU
        monkeypatch.setitem(postprocess.AT_ONCE, "cpu", 2 * 23 * 31)
    found = paste_masks(masks(5), BOXES, (23, 31))
    assert found.dtype == torch.bool
    for mask, box, pasted in zip(masks(5).tolist(), BOXES.tolist(), found, strict=True):
        wanted = slow_paste(mask, box, 23, 31)
        sure = (wanted - 0.5).abs() > 1e-5
        assert torch.equal(pasted[sure], wanted[sure] >= 0.5)


def test_a_box_without_area_has_no_pixel():
    flat = torch.tensor([[5.0, 3.0, 5.0, 9.0], [4.0, 6.0, 9.0, 6.0], [31.0, 23.0, 31.0, 23.0]])
    assert not paste_masks(torch.ones(3, 28, 28), flat, (23, 31)).any()


def test_no_masks_make_none():
    assert paste_masks(torch.empty(0, 28, 28), torch.empty(0, 4), (23, 31)).shape == (0, 23, 31)


def drawn(count, cells, kind):
    """Masks of several kinds: clear ones, noise, ones that are everywhere as good as undecided, and plateaus."""
    noise = torch.rand(count, 1, cells, cells, generator=torch.Generator().manual_seed(cells))
    smooth = torch.nn.functional.interpolate(noise, (28, 28), mode="bilinear")[:, 0]
    return {
        "smooth": smooth,
        "undecided": 0.4999 + 0.0002 * smooth,
        "binary": (smooth > 0.5).float(),
        "flat": torch.full_like(smooth, 0.5),
    }[kind]


@pytest.mark.parametrize("kind", ["smooth", "undecided", "binary", "flat"])
@pytest.mark.parametrize("small", [0, 2**14])
def test_encoded_masks_are_the_pasted_ones_bit_for_bit(kind, small, monkeypatch):
    monkeypatch.setattr(postprocess, "_SMALL", small)  # 0: as in large boxes
    generator = torch.Generator().manual_seed(7)
    for cells, size in ((3, (23, 31)), (9, (150, 90)), (28, (300, 410)), (28, (1, 1))):
        corner = torch.rand(12, 2, generator=generator) * torch.tensor(size[::-1]) * 1.1 - 5
        boxes = torch.cat([corner, corner + torch.rand(12, 2, generator=generator) * torch.tensor(size[::-1])], 1)
        boxes = torch.cat([boxes, boxes.round(), torch.tensor([[0.0, 0, size[1], size[0]], [5, 3, 5, 9], [-9, -9, 2e4, 2e4]])])
        masks = drawn(len(boxes), cells, kind)
        encoded = encode_masks(masks, boxes, size)
        assert all(torch.equal(decode(runs).bool(), pasted) for runs, pasted in zip(encoded, paste_masks(masks, boxes, size), strict=True))
    assert encode_masks(torch.empty(0, 28, 28), torch.empty(0, 4), (23, 31)) == []


# Objects as large as an image of 25 megapixels: each mask was kept, 25 MB, and 400 MB were needed to sample it.
LARGE = """
import json, resource, torch
from convnext.models.detection.postprocess import encode_masks
masks = torch.nn.functional.interpolate(torch.rand(8, 1, 5, 5), (28, 28), mode="bilinear")[:, 0]
encode_masks(masks[:1], torch.tensor([[0.0, 0, 50, 50]]), (50, 50))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
encoded = encode_masks(masks, torch.tensor([[0.0, 0, 5000, 5000]] * 8), (5000, 5000))
print(json.dumps([len(encoded), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
"""


@pytest.mark.slow
def test_memory_is_that_of_one_mask():
    output = subprocess.run([sys.executable, "-c", LARGE], check=True, capture_output=True, text=True).stdout
    count, grown = json.loads(output)
    assert count == 8
    assert grown < 250 * 1024  # KiB


def slow_select(coder, boxes, deltas, scores, size):
    """Every class by itself, greedily, then the best 100 of all."""
    found = []
    for label in range(scores.shape[1] - 1):
        decoded = coder.decode(boxes, deltas[:, label], size)
        kept = []
        for i in scores[:, label].argsort(descending=True).tolist():
            if scores[i, label] > 0.05 and all(overlap(decoded[i], decoded[j]) <= 0.5 for j in kept):
                kept.append(i)
        found += [(scores[i, label].item(), label, decoded[i]) for i in kept]
    return sorted(found, key=lambda detection: -detection[0])[:100]


def overlap(a, b):
    sides = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0)
    shared = sides.prod()
    return shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared)


@pytest.mark.parametrize("classes", [1, 4])
def test_selection_agrees_with_a_slow_one(classes):
    generator = torch.Generator().manual_seed(classes)
    corner = torch.rand(120, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + 10 + 20 * torch.rand(120, 2, generator=generator)], 1)
    deltas = torch.randn(120, classes, 4, generator=generator)
    scores = torch.randn(120, classes + 1, generator=generator).mul(2).softmax(1)
    coder = DeltaCoder((0.1, 0.1, 0.2, 0.2))
    found = select(coder, boxes, deltas, scores, (80, 90))
    wanted = slow_select(coder, boxes, deltas, scores, (80, 90))
    assert len(wanted) == (100 if classes > 1 else len(found["scores"]))
    assert found["labels"].tolist() == [label for _, label, _ in wanted]
    torch.testing.assert_close(found["scores"], torch.tensor([score for score, _, _ in wanted]))
    torch.testing.assert_close(found["boxes"], torch.stack([box for _, _, box in wanted]))
