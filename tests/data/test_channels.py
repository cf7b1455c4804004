"""Images of other channels than RGB: what is read, what becomes what, and what is refused by name."""

import io

import numpy as np
import pytest
import torch
from deep_files import png16, tiff
from helpers import sample_image
from PIL import Image

from convnext.data.annotations.objects import ImageObjects
from convnext.data.deep import shown
from convnext.data.images import AS_RGB, CorruptImageError, Reading, read_image, read_pixels, to_pixels
from convnext.data.randomness import seeded
from convnext.data.sources.base import ClassifySubset, read_by
from convnext.data.sources.folder import ImageFolder
from convnext.data.transforms.classify import Augmentation, train_transform
from convnext.data.transforms.detect import DetectAugmentation, DetectPreprocessing
from convnext.data.transforms.detect import train_transform as detect_transform
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.data.transforms.segment import SegmentPreprocessing, TrainTransform
from convnext.data.transforms.statistics import measure
from convnext.data.walk import walk
from convnext.errors import ConvnextError, UsageError
from convnext.recipe import load_recipe

RNG = np.random.default_rng(0)
GREY, FIVE = Reading(1), Reading(5)


def saved(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_grey_and_rgb_become_each_other(kind):
    grey = sample_image().convert("L")
    content = saved(grey, kind)
    found = read_image(content, how=GREY)
    assert found.mode == "L"
    assert np.array_equal(np.asarray(found), np.asarray(Image.open(io.BytesIO(content))))
    assert torch.equal(read_pixels(content, how=GREY), to_pixels(found, channels=1))
    assert torch.equal(read_pixels(content), read_pixels(content, how=GREY).expand(3, -1, -1))
    colour = sample_image()
    assert np.array_equal(np.asarray(read_image(colour, how=GREY)), np.asarray(colour.convert("L")))
    assert torch.equal(to_pixels(to_pixels(colour), channels=1)[0], torch.from_numpy(np.array(colour.convert("L"))))


def test_deep_images_become_grey():
    values = RNG.integers(0, 65536, (9, 7, 3), dtype=np.uint16)
    found = read_image(png16(values), how=GREY).pixels(None, 1)
    wanted = values @ np.array([0.299, 0.587, 0.114]) / 257
    assert np.allclose(found[0], wanted, atol=1e-2)
    assert np.allclose(read_image(png16(values[..., :1]), how=GREY).pixels(None, 1)[0], values[..., 0] / 257, atol=1e-3)


def test_opacity_is_a_channel_where_so_many_are_wanted():
    for channels, mode in ((4, "RGBA"), (2, "LA")):
        values = RNG.integers(0, 256, (9, 7, channels), dtype=np.uint8)
        for source in (Image.fromarray(values, mode), saved(Image.fromarray(values, mode)), values, np.moveaxis(values, -1, 0)):
            found = read_image(source, how=Reading(channels))
            assert np.array_equal(found.values, np.moveaxis(values, -1, 0))
            assert torch.equal(found.pixels(4095.0, channels), torch.tensor(found.values).float())  # 8 bits: no range applies
        deep = RNG.integers(0, 65536, (9, 7, channels), dtype=np.uint16)
        assert np.array_equal(read_image(png16(deep), how=Reading(channels)).values, np.moveaxis(deep, -1, 0))
    four = RNG.integers(0, 256, (9, 7, 4), dtype=np.uint8)
    assert np.array_equal(read_image(tiff(four), how=Reading(4)).values, np.moveaxis(four, -1, 0))
    assert np.array_equal(np.asarray(read_image(tiff(four))), four[..., :3])  # as ever


@pytest.mark.parametrize(
    ("source", "how", "message"),
    [
        (saved(sample_image(), "JPEG"), FIVE, "x: 3 channels instead of 5: set data.channels=3"),
        (saved(sample_image().convert("L")), Reading(2), "x: 1 channel instead of 2: set data.channels=1"),
        (saved(sample_image().convert("CMYK"), "JPEG"), Reading(2), "x: 4 channels instead of 2"),
        (
            tiff(np.zeros((6, 7, 4), np.uint16)),
            FIVE,
            "x: TIFF of 4 channels, 16-bit integers, which can't be read as 5: set data.channels=4",
        ),
        (
            tiff(np.zeros((6, 7, 5), np.float32)),
            AS_RGB,
            "x: TIFF of 5 channels, 32-bit floats, which can't be read as 3: set data.channels=5",
        ),
        (tiff(np.zeros((6, 7, 5), np.float32)), GREY, "x: TIFF of 5 channels, .* read as 1: set data.channels=5"),
    ],
)
def test_other_channels_are_refused_with_the_remedy(source, how, message):
    for read in (read_image, read_pixels):
        with pytest.raises(CorruptImageError, match=message):
            read(source, "x", how)


def test_float_colour_is_read_with_its_range():
    values = RNG.random((6, 7, 3), dtype=np.float32)
    assert np.allclose(read_image(tiff(values)).pixels(None), values.transpose(2, 0, 1) * 255, atol=1e-3)
    planar = RNG.integers(0, 65536, (6, 7, 3), dtype=np.uint16)
    assert np.allclose(read_image(tiff(planar, planar=True)).pixels(None), planar.transpose(2, 0, 1) / 257, atol=1e-2)


def objects():
    return ImageObjects(torch.tensor([[4.0, 4, 30, 30]]), torch.tensor([0]), None, torch.tensor([False]), torch.tensor([9.0]), 1)


@pytest.mark.parametrize("channels", [1, 2, 5, 13])
def test_every_task_prepares_every_number_of_channels(channels):
    values = RNG.integers(0, 4096, (channels, 40, 48)).astype(np.uint16)
    image = read_image(values.transpose(1, 2, 0), how=Reading(channels))
    assert shown(image).mode == "RGB"
    more = {"mean": (0.5,) * channels, "std": (0.25,) * channels, "range": 4095.0, "channels": channels}
    mask = torch.randint(0, 2, (40, 48), dtype=torch.uint8)
    with seeded(0):
        augmented = {"vflip": 0.5, "rotate": 20.0, "blur": 1.0}
        found = [
            ClassifyPreprocessing(image_size=32, **more).transform()(image),
            ClassifyPreprocessing(image_size=(24, 32), letterbox=True, **more).transform()(image),
            train_transform(Augmentation(image_size=32, random_erasing=1.0, **augmented, **more))(image),
            DetectPreprocessing(short=32, longest=48, **more).transform()(image),
            detect_transform(DetectAugmentation((32,), 48, (32,), (20, 30), vflip=0.5, blur=1.0, **more))(image, objects())[0],
            SegmentPreprocessing(**more).transform()(image),
            TrainTransform(
                32, None, distort=False, mean=more["mean"], std=more["std"], value_range=4095.0, channels=channels, **augmented
            )(image, mask)[0],
        ]  # fmt: skip
    for one in found:
        assert one.shape[0] == channels
        assert one.dtype == torch.float32
        assert one.isfinite().all()
    exact = SegmentPreprocessing(**more).transform()(image)
    assert torch.allclose(exact, (torch.from_numpy(values.astype(np.float32)) / 4095 - 0.5) / 0.25, atol=1e-4)  # all 12 bits


def test_grey_images_of_8_bits_take_every_augmentation():
    image = read_image(sample_image(), how=GREY)
    more = {"mean": (0.5,), "std": (0.25,), "channels": 1, "image_size": 32}
    for augment in ({"rand_augment": "rand-m9-mstd0.5-inc1"}, {"trivial_augment": True}, {"color_jitter": 0.4}):
        for seed in range(12):
            with seeded(seed):
                assert train_transform(Augmentation(**augment, **more))(image).shape == (1, 32, 32)
    assert ClassifyPreprocessing(**more).transform()(image).shape == (1, 32, 32)
    rgb = sample_image()
    assert torch.equal(ClassifyPreprocessing(**more).transform()(rgb), ClassifyPreprocessing(**more).transform()(rgb.convert("L")))


def test_a_source_and_its_parts_open_files_in_one_way(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            np.save(tmp_path / name / f"{i}.npy", RNG.integers(0, 100, (8, 9, 5), dtype=np.uint8))
    source = ImageFolder(tmp_path)
    assert len(source) == 6
    part = ClassifySubset(source, [1, 4])
    read_by(part, FIVE)
    assert part.read(0).shape == (5, 8, 9)
    assert source.pixels(0).shape == (5, 8, 9)
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "x.png")  # beside images, arrays are none
    found = walk(tmp_path)
    assert found.images == ["a/x.png"]
    assert len(found.others) == 6


def test_mean_and_std_are_those_of_the_images(tmp_path):
    (tmp_path / "a").mkdir()
    values = RNG.integers(0, 2000, (4, 6, 8, 9)).astype(np.uint16)
    for i, one in enumerate(values):
        np.save(tmp_path / "a" / f"{i}.npy", one)
    (tmp_path / "a" / "broken.npy").write_bytes(b"x")
    source = ImageFolder(tmp_path)
    read_by(source, Reading(6))
    mean, std = measure(source, 4095.0, 6)
    assert mean == pytest.approx(values.mean((0, 2, 3)) / 4095, abs=1e-5)
    assert std == pytest.approx(values.std((0, 2, 3)) / 4095, abs=1e-5)
    read_by(source, FIVE)
    with pytest.raises(ConvnextError, match=r"data.mean=auto: no image can be read: .*6 channels instead of 5"):
        measure(source, 4095.0, 5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.channels=5"], "data.channels=5 needs 5 numbers in data.mean and in data.std .*data.mean=auto"),
        (["data.channels=1", "data.mean=0.5"], "data.channels=1 needs 1 number in data.mean and in data.std"),
        (["data.mean=[0.5,0.5]"], "data.channels=3 needs 3 numbers .*data.mean has 2"),
        (["data.channels=17"], "data.channels: .*16"),
        (["data.channels=5", "data.mean=auto", "augment.rand_augment=rand-m9"], "augment.rand_augment works on RGB and grey"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(overrides, message):
    with pytest.raises(UsageError, match=message):
        load_recipe("digits", ["augment.rand_augment=null", *overrides])
