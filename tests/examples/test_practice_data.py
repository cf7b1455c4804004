"""The practice data are read as the scenes that they were written from."""

import sys
from pathlib import Path

import torch

from convnext.data.sources.open import open_detection, open_segmentation
from convnext.data.sources.scenes import Scenes

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import practice_data


def test_what_is_written_is_read_again(tmp_path):
    assert practice_data.write(tmp_path / "practice", "val", 2).startswith(f"{tmp_path / 'practice' / 'val.json'}: 2 images, ")
    scenes = Scenes("val", 2)
    objects = open_detection(f"coco:{tmp_path}/practice/val.json:{tmp_path}/practice/images/val")
    masks = open_segmentation(f"{tmp_path}/practice:val")
    assert objects.classes == scenes.classes
    assert masks.classes == ["background", *scenes.classes]
    for index in range(2):
        found, wanted = objects.target(index), scenes.target(index)
        assert torch.equal(found.boxes, wanted.boxes)
        assert torch.equal(found.labels, wanted.labels)
        assert torch.equal(found.masks, wanted.masks)
        assert torch.equal(masks.mask(index), scenes.semantic(index))
