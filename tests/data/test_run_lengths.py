"""Masks that are decoded where they are wanted are those of whole masks, bit for bit, in a fraction of the memory."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import shared
from hypothesis import given, settings
from hypothesis import strategies as st

from convnext.data.randomness import seeded
from convnext.data.run_lengths import EncodedMasks, decode, encode, from_columns, from_segmentation, lengths, sampled
from convnext.data.sources.coco import CocoSource
from convnext.data.sources.open import open_detection
from convnext.data.transforms.detect import DetectAugmentation, train_transform


def blob(rng, height, width):
    """A random mask with several parts and holes, sometimes empty or full."""
    coarse = torch.from_numpy(rng.random((1, 1, *rng.integers(1, 8, 2))))
    return (torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0, 0] > rng.choice([0.2, 0.5, 0.9])).to(torch.uint8)


@given(st.integers(0, 2**32), st.integers(1, 50), st.integers(1, 50))
@settings(max_examples=150, deadline=None)
def test_rows_and_columns_of_a_mask_are_those_of_the_whole_mask(seed, height, width):
    rng = np.random.default_rng(seed)
    mask = blob(rng, height, width)
    runs = encode(mask)
    assert torch.equal(decode(runs), mask)
    assert lengths(runs).sum() == height * width
    rows, columns = (np.sort(rng.integers(0, side, rng.integers(1, 70))) for side in (height, width))  # with repetitions and gaps
    for chosen in (columns, columns[::-1]):
        assert np.array_equal(sampled(runs, rows, chosen), mask.numpy()[rows][:, chosen])


@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_a_window_is_encoded_as_the_whole_mask_would_be(seed, height, width):
    rng = np.random.default_rng(seed)
    mask = blob(rng, height, width)
    (top, bottom), (left, right) = (sorted(rng.integers(0, side + 1, 2).tolist()) for side in (height, width))
    window = mask[top:bottom, left:right]
    whole = torch.zeros_like(mask)
    whole[top:bottom, left:right] = window
    columns = np.zeros((right - left, bottom - top + 1), bool)
    columns[:, 1:] = window.numpy().T
    assert from_columns(columns, top, left, (height, width)) == encode(whole)


@pytest.mark.parametrize("counts", ["ZZZZZ", "", ";2300", ";2300091"])
def test_damaged_run_lengths_are_refused(counts):
    with pytest.raises((ValueError, RuntimeError)):
        from_segmentation({"size": [5, 7], "counts": counts}, 5, 7)


def whole(objects):
    return replace(objects, masks=objects.masks.to_tensor())


PUBLISHED = DetectAugmentation(tuple(range(480, 801, 32)), 1333, (400, 500, 600), (384, 600))


def assert_transformed_alike(pixels, objects, settings, seeds):
    """Against the transform of whole masks, which is what training did before: crop, flip and resize as published."""
    transform = train_transform(settings)
    for seed in seeds:
        with seeded(0, 0, seed):
            image, found = transform(pixels, objects)
        with seeded(0, 0, seed):
            same, wanted = transform(pixels, whole(objects))
        assert isinstance(found.masks, EncodedMasks)
        assert torch.equal(image, same)
        assert torch.equal(found.boxes, wanted.boxes)
        assert torch.equal(found.to_dict()["masks"], wanted.masks)


def segmentations(rng, height, width, count):
    """Random polygons of one or two parts and run lengths of both kinds, over the border too."""
    for i in range(count):
        if i % 3 == 2:
            runs = encode(blob(rng, height, width))
            yield runs if i % 2 else {"size": [height, width], "counts": lengths(runs).tolist()}
        else:
            parts = [rng.uniform(-5, 1.1, (int(rng.integers(3, 9)), 2)) * [width, height] for _ in range(1 + i % 2)]
            yield [part.clip(-5, 2 * max(height, width)).ravel().tolist() for part in parts]


def test_training_sees_the_same_bits_of_any_segmentation(tmp_path):
    rng, height, width = np.random.default_rng(3), 83, 120
    (tmp_path / "x.png").touch()
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": [1, 1, 100, 70], "segmentation": segmentation}
        for i, segmentation in enumerate(segmentations(rng, height, width, 40), 1)
    ]
    image = {"id": 1, "file_name": "x.png", "height": height, "width": width}
    content = {"images": [image], "categories": [{"id": 1, "name": "a"}], "annotations": annotations}
    (tmp_path / "x.json").write_text(json.dumps(content))
    objects = CocoSource(tmp_path / "x.json", tmp_path).encoded_target(0)
    assert len(objects) == 40
    pixels = torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
    assert_transformed_alike(pixels, objects, DetectAugmentation((64, 96, 200), 300, (60, 80), (40, 70)), range(24))


def test_training_sees_the_same_bits_of_coco():
    source = open_detection(str(shared("data/coco/train2017")))
    for index in range(6):
        assert torch.equal(whole(source.encoded_target(index)).masks, source.target(index).masks)
        assert_transformed_alike(source.pixels(index), source.encoded_target(index), PUBLISHED, range(3))


# Peak memory is of a process, so each is one. 12 megapixels with 200 objects: all masks at once were 2.4 GB.
TRAINING = """
import json, resource, sys
import torch
import numpy
from convnext.data.transforms.detect import DetectAugmentation, train_transform
from convnext.data.sources.coco import CocoSource
from pathlib import Path
source = CocoSource(Path(sys.argv[1]) / "x.json", Path(sys.argv[1]))
pixels = torch.zeros(3, 3000, 4000, dtype=torch.uint8)
transform = train_transform(DetectAugmentation(tuple(range(480, 801, 32)), 1333, (400, 500, 600), (384, 600)))
numpy.random.seed(0)
transform(pixels[:, :300, :400], source.target(1))  # the libraries are loaded now
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
image, objects = transform(pixels, source.encoded_target(0))
masks = objects.to_dict()["masks"]
print(json.dumps({"grown": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, "shape": masks.shape, "ones": int(masks.sum())}))
"""


@pytest.mark.slow
def test_large_images_with_many_polygons_take_the_memory_of_their_final_masks(tmp_path):
    rng, angle = np.random.default_rng(0), np.linspace(0, 2 * np.pi, 60, endpoint=False)
    annotations = []
    for i in range(200):
        x, y, r = rng.uniform(500, 3500), rng.uniform(500, 2500), rng.uniform(50, 400)
        polygon = np.stack([x + r * np.cos(angle), y + r * np.sin(angle)], 1).ravel().tolist()
        annotations.append({"id": i + 1, "image_id": 1, "category_id": 1, "bbox": [x - r, y - r, 2 * r, 2 * r], "segmentation": [polygon]})
    images = [{"id": 1, "file_name": "x.png", "height": 3000, "width": 4000}, {"id": 2, "file_name": "y.png", "height": 300, "width": 400}]
    annotations.append({"id": 999, "image_id": 2, "category_id": 1, "bbox": [0, 0, 9, 9], "segmentation": [[0, 0, 9, 0, 9, 9]]})
    for image in images:
        (tmp_path / image["file_name"]).touch()
    content = {"images": images, "categories": [{"id": 1, "name": "a"}], "annotations": annotations}
    (tmp_path / "x.json").write_text(json.dumps(content))
    printed = subprocess.run([sys.executable, "-c", TRAINING, str(tmp_path)], check=True, capture_output=True, text=True).stdout
    found = json.loads(printed)
    assert found["ones"] > 100_000
    left = found["shape"][0] * found["shape"][1] * found["shape"][2] / 1024  # KiB
    assert found["grown"] < left + 300 * 1024  # masks at the size that is left, and the image's own arithmetic
