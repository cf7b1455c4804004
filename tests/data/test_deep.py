"""Images of more than 8 bits: one scale for all, and every level kept."""

import io
import json

import numpy as np
import pytest
import torch
from deep_files import chunk, png16, tiff
from helpers import sample_image
from PIL import Image

from convnext import tasks
from convnext.data import deep
from convnext.data.annotations.objects import ImageObjects
from convnext.data.images import CorruptImageError, read_image, read_pixels, to_pixels
from convnext.data.sampling.order import EVALUATION
from convnext.data.sources.open import open_detection, open_segmentation
from convnext.data.transforms.classify import train_transform
from convnext.data.transforms.detect import DetectAugmentation, DetectPreprocessing
from convnext.data.transforms.detect import train_transform as detection_transform
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.data.transforms.segment import SegmentPreprocessing, TrainTransform
from convnext.errors import UsageError
from convnext.recipe import load_recipe
from convnext.tasks.classify.task import augmentation

RNG = np.random.default_rng(0)
GREY12 = RNG.integers(0, 4096, (64, 64), dtype=np.uint16)
GREY12[0, 0] = 4095
BYTES = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}  # a normalisation whose result is 0 to 255


def saved(values, kind="TIFF"):
    buffer = io.BytesIO()
    (values if isinstance(values, Image.Image) else Image.fromarray(values)).save(buffer, kind)
    return buffer.getvalue()


def levels(source, scale=None):
    """From 0 to 255, as both readers give them."""
    found = to_pixels(read_image(source), scale)
    assert torch.equal(found, to_pixels(read_pixels(source), scale))
    return found.numpy()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_twelve_bits_in_sixteen_keep_all_their_levels(kind):
    found = levels(saved(GREY12, kind), 4095.0)
    assert found.dtype == np.float32
    assert np.allclose(found, GREY12 * (255 / 4095), atol=1e-4)
    assert len(np.unique(found)) == len(np.unique(GREY12))
    assert np.allclose(levels(saved(GREY12, kind)), GREY12 / 257, atol=1e-4)  # 65535 is white where nobody says


def test_eight_bits_written_as_sixteen_are_the_same_image():
    values = np.asarray(sample_image().convert("L"))
    assert np.allclose(levels(saved(values.astype(np.uint16) * 257)), levels(saved(values)), atol=1e-4)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(("channels", "extra"), [(3, None), (4, [2]), (4, [0]), (4, None)])
def test_sixteen_bit_colour_keeps_all_its_levels(order, compressed, channels, extra):
    values = RNG.integers(0, 4096, (9, 7, channels), dtype=np.uint16)
    wanted = values[..., :3] * (255 / 4095)
    if extra == [2]:  # opacity; undeclared, it may be infrared
        alpha = values[..., 3:] / 65535
        wanted = wanted * alpha + 255 * (1 - alpha)
    found = levels(tiff(values, order, compressed, extra=extra), 4095.0)
    assert np.allclose(found.transpose(1, 2, 0), wanted, atol=1e-3)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_sixteen_bit_colour_in_png_keeps_all_its_levels(channels):
    values = RNG.integers(0, 65536, (9, 7, channels), dtype=np.uint16)
    wanted = np.broadcast_to(values[..., : 1 if channels == 2 else 3] / 257, (9, 7, 3))
    if channels != 3:
        alpha = values[..., -1:] / 65535
        wanted = wanted * alpha + 255 * (1 - alpha)
    assert np.allclose(levels(png16(values)).transpose(1, 2, 0), wanted, atol=1e-3)


def test_sixteen_bit_colour_in_ppm_is_scaled_by_what_it_says_is_white():
    values = RNG.integers(0, 1024, (5, 7, 3), dtype=np.uint16)
    for content in (
        b"P6 7 5 1023\n" + values.astype(">u2").tobytes(),
        b"P3 7 5 1023\n" + b" ".join(b"%d" % value for value in values.ravel()),
    ):
        assert np.allclose(levels(content).transpose(1, 2, 0), values * (255 / 1023), atol=0.01)
        with pytest.raises(CorruptImageError):
            read_image(content[:-9])


def test_a_transparent_number_is_laid_over_white():
    values = RNG.integers(0, 9000, (5, 5, 3), dtype=np.uint16)
    for one in (values, values[..., :1]):
        marked = one[2, 3].astype(">u2").tobytes()
        found = levels(png16(one, chunk(b"tRNS", marked)), 9000.0)
        assert (found[:, 2, 3] == 255).all()
        assert (found == 255).all(0).sum() == 1 + (one == 9000).all(-1).sum()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_images_are_turned_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turns = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}
    grey = GREY12[:9, :7]
    upright = Image.fromarray(grey)
    upright = np.asarray(upright.transpose(Image.Transpose[turns[orientation]]) if orientation > 1 else upright) / 257
    stored = np.repeat(grey[..., None], 3, 2)
    kept = chunk(b"eXIf", exif.tobytes()[6:])
    for content in (
        png16(grey[..., None], kept), png16(stored, kept), tiff(stored, orientation=orientation),
        tiff(grey[..., None], orientation=orientation), tiff(stored, ">", True, orientation=orientation),
    ):  # fmt: skip
        assert np.allclose(levels(content)[1], upright, atol=1e-4)


def test_floats_are_zero_to_one_unless_a_range_says_otherwise_and_never_scaled_by_their_own_maximum():
    values = RNG.random((8, 8), dtype=np.float32)
    assert np.allclose(levels(saved(values)), 255 * values, atol=1e-3)
    assert np.allclose(levels(saved(values / 2)), 127.5 * values, atol=1e-3)
    values[0, 0] = 1.02
    with pytest.raises(CorruptImageError, match=r"image: values up to 1.02, beyond 1: set data.range=1.02"):
        levels(saved(values))
    assert np.allclose(levels(saved(values), 1.02), 255 * values / 1.02, atol=1e-3)
    assert levels(saved(values), 1.0)[0, 0, 0] == 255  # clipped: the range says so
    with pytest.raises(CorruptImageError, match=r"image: 1 of its 64 numbers are NaN or infinite"):
        levels(saved(np.where(values > 1, np.float32("nan"), values)), 1.0)


def test_numbers_with_a_sign_need_both_ends_of_the_range():
    values = RNG.integers(-1024, 3072, (16, 16, 1), dtype=np.int16)
    values[0, :2, 0] = -1024, 3071
    with pytest.raises(CorruptImageError, match=r"values from -1024 to 3071: set data.range=\[-1024,3071\]"):
        levels(tiff(values))
    found = levels(tiff(values), (-1024.0, 3071.0))
    assert np.allclose(found[0], (values[..., 0] + 1024.0) * 255 / 4095, atol=1e-3)
    assert levels(tiff(values), 400.0).min() == 0  # a window: clipped at both ends
    with pytest.raises(CorruptImageError, match=r"values from -0.5 to 0.5: set data.range=\[-0.5,0.5\]"):
        levels(saved(np.array([[-0.5, 0.5]], np.float32)))


def test_integers_of_32_bits_are_sixteen_bits_or_need_a_range():
    values = np.array([[0, 20_000, 65_535]], np.int32)
    assert np.allclose(levels(saved(values))[0], values / 257, atol=1e-3)
    for top in (255, 1_000_000):
        message = "do not say what is white: .* data.range=255" if top == 255 else "up to 1000000, beyond 65535: set data.range=1000000"
        with pytest.raises(CorruptImageError, match=message):
            levels(saved(np.array([[0, top]], np.int32)))
        assert levels(saved(np.array([[0, top]], np.int32)), float(top)).max() == 255
    large = np.array([[[0], [3_000_000_000]]], np.uint32)
    assert levels(tiff(large), 3e9)[0].tolist() == [[0, 255]]


def test_pgm_is_scaled_by_what_it_says_is_white():
    content = b"P5 3 1 1023\n" + np.array([0, 512, 1023], ">u2").tobytes()
    assert np.allclose(levels(content)[0], np.array([[0, 512, 1023]]) * 255 / 1023, atol=0.01)
    assert not levels(b"P5 2 2 1023\n" + bytes(8)).any()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((6, 7, 5), np.uint8), "TIFF of 5 channels, 8-bit integers, which can't be read"),
        (np.zeros((6, 7, 13), np.uint16), "TIFF of 13 channels, 16-bit integers"),
    ],
)
def test_tiffs_that_cannot_be_read_are_named(tmp_path, values, message):
    (tmp_path / "bands.tif").write_bytes(tiff(values))
    for read in (read_image, read_pixels):
        with pytest.raises(CorruptImageError, match=rf"bands\.tif: {message}"):
            read(tmp_path / "bands.tif")
    with pytest.raises(CorruptImageError, match="separate planes.*save it as PNG"):
        read_image(Image.open(io.BytesIO(tiff(np.zeros((6, 7, 3), np.uint16), planar=True))))


def test_a_fourth_channel_that_is_not_declared_is_not_opacity():
    values = RNG.integers(0, 256, (6, 7, 4), dtype=np.uint8)
    assert np.array_equal(np.asarray(read_image(tiff(values))), values[..., :3])
    assert not np.array_equal(np.asarray(read_image(tiff(values, extra=[2]))), values[..., :3])


def test_all_levels_reach_the_network_in_every_task():
    steps = (1000 + np.add.outer(np.arange(64), np.arange(64)) % 16).astype(np.uint16)  # one level of 8 bits
    image = read_image(saved(steps))
    recipe = load_recipe(
        "digits",
        {
            "data.range": 4095,
            "data.image_size": 64,
            "augment.crop_scale": (0.9, 1.0),
            "augment.rand_augment": None,
            "augment.color_jitter": 0,
            "augment.random_erasing": 0,
        }
        | {f"data.{k}": v for k, v in BYTES.items()},
    )
    objects = ImageObjects(torch.tensor([[4.0, 4, 60, 60]]), torch.tensor([0]), None, torch.tensor([False]), torch.tensor([9.0]), 1)
    mask = torch.randint(0, 2, (64, 64), dtype=torch.uint8)
    how = {"range": 4095.0} | BYTES
    found = [
        ClassifyPreprocessing(image_size=64, crop_ratio=1.0, **how).transform()(image),
        ClassifyPreprocessing(image_size=40, warp=True, **how).transform()(image),
        train_transform(augmentation(recipe))(image),
        DetectPreprocessing(short=64, longest=64, **how).transform()(image),
        detection_transform(DetectAugmentation((64,), 64, (64,), (50, 64), **how))(image, objects)[0],
        SegmentPreprocessing(**how).transform()(image),
        TrainTransform(64, None, distort=False, **BYTES, value_range=4095.0)(image, mask)[0][:, :10, :10],
    ]
    for one in found:
        assert one.dtype == torch.float32
        assert 1000 * 255 / 4095 - 0.3 <= one.min() <= one.max() <= 1015 * 255 / 4095 + 0.3
        assert len(one.unique()) >= 8


def test_augmentations_that_need_eight_bits_get_them():
    image, more = read_image(saved(GREY12)), {"data.range": 4095, "data.image_size": 32}
    for augment in ({"augment.rand_augment": "rand-m9-mstd0.5-inc1"}, {"augment.rand_augment": None, "augment.color_jitter": 0.4}):
        recipe = load_recipe("digits", more | augment)
        assert train_transform(augmentation(recipe))(image).shape == (3, 32, 32)
    found, _ = TrainTransform(32, None, value_range=4095.0)(image, torch.randint(0, 2, (64, 64), dtype=torch.uint8))
    assert found.isfinite().all()


@pytest.mark.parametrize("scale", [None, 4095.0, (-1024.0, 3071.0)])
@pytest.mark.parametrize("kind", [ClassifyPreprocessing, DetectPreprocessing, SegmentPreprocessing])
def test_the_range_travels_with_the_weights(kind, scale):
    how = kind(range=scale)
    assert kind.from_json(json.loads(json.dumps(how.to_json()))) == how
    older = {key: value for key, value in how.to_json().items() if key != "range"}
    assert kind.from_json(older) == kind()


@pytest.mark.parametrize("value", [0, -1, [5, 5], [3, 1], float("inf")])
def test_a_range_without_extent_is_refused(value):
    with pytest.raises(UsageError, match="data.range: white must be a number above black"):
        load_recipe("digits", {"data.range": value})
    assert load_recipe("digits", ["data.range=[-1024,3071]"]).data.range == (-1024, 3071)


def test_what_is_shown_goes_from_black_to_white():
    shown = read_image(saved(GREY12)).shown()
    assert (shown.mode, shown.size) == ("RGB", (64, 64))
    assert shown.getextrema() == ((0, 255),) * 3
    assert read_image(saved(np.full((4, 4), 3, np.uint16))).shown().size == (4, 4)


def test_depths_name_the_largest_value_and_the_key():
    def problems(*contents):
        depths = deep.Depths()
        for content in contents:
            depths.add(read_pixels(content))
        return depths.problems()

    dark = saved(GREY12 // 2)
    assert problems(dark, saved(GREY12)) == ["2 images have more than 8 bits, the largest value is 4095: set data.range=4095"]
    assert problems(saved(sample_image(), "PNG"), saved(GREY12 * 16)) == []  # all 16 bits are used
    assert problems(tiff(np.array([[[-1000], [3000]]], np.int16))) == [
        "1 image has more than 8 bits, the values go from -1000 to 3000: set data.range=[-1000,3000]"
    ]
    both = problems(saved(GREY12), saved(np.array([[0, 1.02]], np.float32)))
    assert both[0] == "1 image has more than 8 bits (uint16), the largest value is 4095: set data.range=4095"
    assert both[1] == "1 image has more than 8 bits (float32), the largest value is 1.02: set data.range=1.02"
    assert (
        both[2] == "images with more than 8 bits have numbers of uint16 and float32, but there is one data.range for all: save them alike"
    )
    assert problems(png16(np.full((2, 2, 3), 1023, np.uint16)))[0].endswith("the largest value is 1023: set data.range=1023")


def test_a_damaged_deep_file_is_reported():
    content = bytearray(png16(RNG.integers(0, 65536, (9, 7, 3), dtype=np.uint16)))
    for cut in (60, len(content) // 2):
        with pytest.raises(CorruptImageError):
            read_image(bytes(content[:cut]))
    with pytest.raises(CorruptImageError):
        read_image(tiff(np.zeros((9, 7, 3), np.uint16))[:-50])


def test_detection_and_segmentation_data_are_read_and_checked_likewise(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    annotations = []
    for i in range(2):
        Image.fromarray(GREY12).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray((GREY12 > 2000).astype(np.uint8)).save(tmp_path / "masks" / f"{i}.png")
        annotations.append({"id": i, "image_id": i, "category_id": 1, "bbox": [4, 4, 20, 20], "area": 400, "iscrowd": 0})
    images = [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 64} for i in range(2)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    (tmp_path / "classes.txt").write_text("a\nb\n")
    wanted = "2 images have more than 8 bits, the largest value is 4095: set data.range=4095"
    for task, where in (("detect", f"coco:{tmp_path}/a.json:{tmp_path}/images"), ("segment", str(tmp_path))):
        assert wanted in tasks.get(task).check(where)
    source = open_detection(f"coco:{tmp_path}/a.json:{tmp_path}/images")
    assert source.read(0).size == (64, 64)
    assert torch.equal(source.read(0).pixels(4095.0), source.pixels(0).pixels(4095.0))
    source.heights[0] = 63
    with pytest.raises(CorruptImageError, match="64 x 64 pixels, .* says 64 x 63"):
        source.pixels(0)
    message = f"in a sample of the images: {wanted}; `convnext data check` reads all"
    assert deep.remarks(open_segmentation(str(tmp_path)), None) == [message]
    assert deep.remarks(open_segmentation(str(tmp_path)), 4095.0) == []


def test_the_samples_of_a_run_have_one_scale_in_training_and_evaluation(tmp_path):
    root = tmp_path / "photos"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(GREY12).save(root / name / f"{i}.png")
    more = {"data.train": str(root), "data.val": str(root), "data.range": 4095, "data.image_size": 64, "augment.rand_augment": None}
    crop = {"augment.crop_scale": (1.0, 1.0), "augment.crop_aspect": (1.0, 1.0), "augment.random_erasing": 0}
    data = tasks.get("classify").open(load_recipe("digits", more | crop))
    trained, tested = data.train[0, 0].image, data.val[EVALUATION, 0].image
    assert torch.allclose(trained, tested, atol=1e-5)
    assert len(tested.unique()) > 2000
