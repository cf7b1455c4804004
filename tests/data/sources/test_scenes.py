"""Composed scenes: exact annotations, the right digits, the same everywhere."""

import pickle
import random
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch

from convnext.data.sources import scenes
from convnext.data.sources.digits import Digits
from convnext.data.sources.scenes import PARTS, Scenes, compose


def test_a_scene_is_a_function_of_its_place_alone():
    first = compose("train", 0, 17, 128)
    compose.cache_clear()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    again = compose("train", 0, 17, 128)
    assert all(np.array_equal(a, b) for a, b in zip(vars(first).values(), vars(again).values(), strict=True))
    assert np.random.random() == np.random.RandomState(1).random_sample()  # nothing was drawn from it
    for part, seed, index in (("val", 0, 17), ("train", 1, 17), ("train", 0, 18)):
        assert not np.array_equal(compose(part, seed, index, 128).pixels[:8, :8], first.pixels[:8, :8])  # not even the ground


def test_a_scene_is_the_same_in_another_process():
    code = "import zlib; from convnext.data.sources.scenes import compose; print(zlib.crc32(compose('val', 0, 3, 128).pixels.tobytes()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(found) == zlib.crc32(compose("val", 0, 3, 128).pixels.tobytes())


@pytest.mark.parametrize(("part", "size"), [("train", 128), ("val", 64), ("val", 192)])
def test_boxes_masks_and_semantics_agree(part, size):
    source = Scenes(part, 40, size)
    for i in range(len(source)):
        objects, semantic = source.target(i), source.semantic(i)
        assert 1 <= len(objects) <= 6
        assert source.pixels(i).shape == (3, source.heights[i], source.widths[i]) == (3, size, size)
        assert objects.masks.sum(0).max() == 1  # later digits hide earlier ones
        assert torch.equal(objects.area, objects.masks.sum((1, 2)).float())
        assert objects.area.min() >= 40
        for mask, box, label in zip(objects.masks, objects.boxes.int().tolist(), objects.labels, strict=True):
            left, top, right, bottom = box
            assert mask[top:bottom, left:right].sum() == mask.sum()
            assert mask[top, left:right].any()
            assert mask[bottom - 1, left:right].any()
            assert mask[top:bottom, left].any()
            assert mask[top:bottom, right - 1].any()
            assert (semantic[mask.bool()] == label + 1).all()
        assert torch.equal(semantic > 0, objects.masks.any(0))
        assert np.array_equal(np.asarray(source.read(i)), source.pixels(i).permute(1, 2, 0).numpy())


def test_scenes_are_varied():
    source = Scenes("val", 300)
    objects = [source.target(i) for i in range(300)]
    counts = np.bincount([len(o) for o in objects], minlength=7)[1:]
    assert counts.min() > 25  # one to six, evenly
    labels = np.bincount(torch.cat([o.labels for o in objects]), minlength=10)
    assert labels.min() > 50
    heights = torch.cat([o.boxes[:, 3] - o.boxes[:, 1] for o in objects])
    assert heights.quantile(0.05) < 38
    assert heights.quantile(0.95) > 62
    assert heights.max() <= 76


def test_what_is_masked_is_the_ink():
    source, contrast = Scenes("val", 150), []
    for i in range(len(source)):
        grey, objects = source.pixels(i).float().mean(0), source.target(i)
        ground = grey[source.semantic(i) == 0].median()
        rim = 255 if ground > 128 else 0
        for mask in objects.masks.bool():
            ink = grey[mask]
            # Each pixel is nearer to the digit's colour than to a rim, its own or that of a digit over it.
            assert ((ink - ink.median()).abs() <= (ink - rim).abs()).float().mean() > 0.95
            contrast.append(float((ink.median() - ground).abs()))
    assert np.quantile(contrast, 0.02) > 30


def test_validation_scenes_hold_no_training_digit():
    for part in PARTS:
        digits, (images, labels) = Digits(part), scenes._digits(part)
        assert labels.tolist() == [digits.label(i) for i in range(len(digits))]
        assert np.array_equal(images[7, 1:-1, 1:-1], np.asarray(digits.read(7))[..., 0])
    assert not set(Digits("train").indices) & set(Digits("val").indices)


def test_no_earlier_digit_is_hidden_by_more_than_half(monkeypatch):
    # What a scene shows of each digit against all its ink, where only one of that kind was drawn, so that it is known which.
    drawn = []
    digit = scenes._digit

    def noting(*arguments):
        drawn.append(digit(*arguments))
        return drawn[-1]

    monkeypatch.setattr(scenes, "_digit", noting)
    compose.cache_clear()
    shown = []
    for index in range(60):
        drawn.clear()
        scene = compose("val", 5, index, 128)
        inks = {label: [] for label in range(10)}
        for label, grey in drawn:
            inks[label].append((grey >= 0.45).sum())
        shown += [mask.sum() / inks[label][0] for mask, label in zip(scene.masks, scene.labels, strict=True) if len(inks[label]) == 1]
    assert len(shown) > 80
    assert 0.5 <= min(shown) < 0.8
    assert max(shown) == 1


def test_positions_beyond_the_end_and_workers():
    source = Scenes("val", 3)
    with pytest.raises(IndexError):
        source.read(3)
    assert torch.equal(pickle.loads(pickle.dumps(source)).pixels(2), source.pixels(2))
    assert source.name(2) == "scene 2"
    assert (len(Scenes("train")), len(Scenes("val"))) == (24000, 200)
