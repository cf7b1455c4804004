"""Cityscapes as distributed; ADE20K and CamVid are in test_masks.py."""

import pytest
from source_files import cityscapes

from convnext.data.sources.masks import check
from convnext.data.sources.open import open_segmentation
from convnext.errors import ConvnextError, UsageError


def test_cityscapes_is_read_as_distributed(tmp_path, monkeypatch):
    root = cityscapes(tmp_path)
    source = open_segmentation(f"cityscapes:{root}:val")
    assert (len(source), len(source.classes), source.classes[11], check(source)) == (2, 19, "person", [])
    assert source.mask(0)[0, ::12].tolist() == [255, 0, 11, 18]
    assert source.class_ids[:3] == [7, 8, 11]
    monkeypatch.setenv("CONVNEXT_DATA", str(tmp_path.parent))
    with pytest.raises(ConvnextError, match=r"no .*/cityscapes/leftImg8bit: unpack leftImg8bit_trainvaltest\.zip"):
        open_segmentation("cityscapes:val")
    with pytest.raises(UsageError, match="has no part 'vla'; did you mean 'val'"):
        open_segmentation(f"cityscapes:{root}:vla")
    with pytest.raises(UsageError, match=f"looks like Cityscapes: name it as in cityscapes:{root}:train"):
        open_segmentation(f"{root}:val")


def test_cityscapes_prepared_masks_are_read_where_there_are_no_others(tmp_path):
    source = open_segmentation(f"cityscapes:{cityscapes(tmp_path, (0, 18, 255), 'labelTrainIds')}:val")
    assert source.mask(1)[0, ::12].tolist() == [0, 18, 255]
    assert check(source) == []
