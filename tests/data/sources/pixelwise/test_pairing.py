"""Masks whose file names differ from those of their images by more than the ending."""

import numpy as np
import pytest
import torch
from PIL import Image
from source_files import mask_folder

from convnext.data.sources.masks import check
from convnext.data.sources.open import open_segmentation
from convnext.errors import ConvnextError


@pytest.mark.parametrize(
    ("image", "mask"), [("", "_mask"), ("", "-mask"), ("", ".seg"), ("", "L"), ("_img", "_label"), ("_leftImg8bit", "")]
)
def test_masks_whose_names_end_otherwise_are_found(tmp_path, image, mask):
    root = mask_folder(tmp_path, 12)
    wanted = open_segmentation(str(root)).mask(3)
    for folder, end in (("images", image), ("masks", mask)):
        for path in (root / folder).iterdir():
            path.rename(path.with_name(f"{path.stem}{end}{path.suffix}"))
    source = open_segmentation(str(root))
    assert source.remarks == [f"{root}/masks: the mask of NAME{image} is called NAME{mask}"]
    assert check(source) == []
    assert torch.equal(source.mask(3), wanted)
    (root / "masks" / f"00{mask}.png").unlink()
    assert check(open_segmentation(str(root))) == [
        f"{root}/images/00{image}.jpg has no mask: add {root}/masks/00{mask}.png, or remove the image"
    ]


def test_a_suffix_chooses_among_several_files_for_an_image(tmp_path):
    root = mask_folder(tmp_path)
    for path in list((root / "masks").iterdir()):
        path.with_name(f"{path.stem}_colour.png").write_bytes(b"")
        path.rename(path.with_name(f"{path.stem}_ids.png"))
    with pytest.raises(ConvnextError, match="not one image of .* has a mask"):
        open_segmentation(str(root))
    source = open_segmentation(f"{root}:suffix=_ids:ignore=7")
    assert check(source) == []
    assert source.mask(0).unique().tolist() == [0, 1]


@pytest.mark.parametrize("end", ["", "_mask"])
def test_masks_that_formats_blur_are_refused_with_the_reason(tmp_path, end):
    root = mask_folder(tmp_path)
    for path in sorted((root / "masks").iterdir()):
        Image.open(path).save(path.with_name(f"{path.stem}{end}.jpg"))
        path.unlink()
    with pytest.raises(ConvnextError, match=rf"masks/00{end}\.jpg is no mask: JPEG blurs values .*: export the masks as PNG"):
        open_segmentation(str(root))
    Image.fromarray(np.zeros((40, 48), np.uint8)).save(root / "masks" / f"00{end}.png")
    if not end:
        assert [problem.partition(" is no mask")[0] for problem in check(open_segmentation(str(root)))] == [
            f"{root}/masks/0{i}.jpg" for i in (1, 2, 3)
        ]
