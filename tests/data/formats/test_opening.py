"""The limit of pixels: whose it is, what it says, and that the process keeps Pillow's."""

import io
import warnings

import numpy as np
import pytest
from helpers import sample_image
from PIL import Image

from convnext import tasks
from convnext.data.formats.opening import opened
from convnext.data.images import AS_RGB, CorruptImageError, Reading, read_image, read_pixels
from convnext.data.sources.open import open_segmentation
from convnext.recipe import load_recipe


def saved(kind, size=(60, 40)):
    file = io.BytesIO()
    sample_image(size=size).save(file, kind)
    return file.getvalue()


@pytest.fixture
def small_limit(monkeypatch):
    """Pillow's limit as if 500 pixels, which 2,400 exceed by far, as a photograph of 200 million would the real one."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "GIF"])
def test_the_limit_is_the_readers_own(kind, small_limit):
    content, wanted = saved(kind), r"x: 60 x 40 pixels are more than the limit, .* set data.max_pixels=2400 \(or --max-pixels 2400\)"
    for read in (read_image, read_pixels):
        for how in (AS_RGB, Reading(max_pixels=2399)):
            with pytest.raises(CorruptImageError, match=wanted):
                read(content, "x", how)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(content, how=Reading(max_pixels=2400)).size == (60, 40)
    assert read_pixels(content, how=Reading(max_pixels=2400)).shape == (3, 40, 60)
    assert Image.MAX_IMAGE_PIXELS == 500


def test_webp_beyond_twice_pillows_limit_is_named(small_limit):
    with pytest.raises(CorruptImageError, match="x: .*Pillow's for WebP: save such an image as JPEG or PNG"):
        read_image(saved("WEBP"), "x", Reading(max_pixels=2400))


def test_a_stricter_limit_applies_too():
    with pytest.raises(CorruptImageError, match="set data.max_pixels=2400"):
        read_image(saved("PNG"), how=Reading(max_pixels=100))


def test_a_recipe_hands_the_limit_to_images_and_masks(tmp_path, small_limit):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for i in range(3):
        sample_image(i, (60, 40)).save(tmp_path / "images" / f"{i}.jpg")
        Image.fromarray((np.arange(2400).reshape(40, 60) % 2).astype(np.uint8)).save(tmp_path / "masks" / f"{i}.png")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    task, recipe = tasks.get("segment"), {"data.train": str(tmp_path), "data.val": None}
    assert "set data.max_pixels=2400" in task.check(str(tmp_path))[0]
    assert task.check(str(tmp_path), Reading(max_pixels=2400)) == []
    data = task.open(load_recipe("segment_digits", recipe | {"data.max_pixels": 2400}))
    assert data.train[0, 0].label.shape == (128, 128)
    assert open_segmentation(str(tmp_path)).reading == AS_RGB


def test_files_are_closed(tmp_path):
    (tmp_path / "a.png").write_bytes(saved("PNG"))
    (tmp_path / "b.png").write_bytes(b"no image")
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        with opened(tmp_path / "a.png") as image:
            file = image.fp
        assert file.closed
        with pytest.raises(CorruptImageError, match=r"b\.png: not an image of any known format"):
            read_image(tmp_path / "b.png")
