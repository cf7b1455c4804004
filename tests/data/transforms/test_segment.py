"""Geometry against the mask itself, plain formulas, and OpenCV where it is installed; draws against the published order."""

import math
import pickle

import numpy as np
import pytest
import torch
from helpers import sample_image, shared
from hypothesis import given, settings
from hypothesis import strategies as st

from convnext.data.images import to_pixels
from convnext.data.randomness import seeded
from convnext.data.sources.masks import mask_of
from convnext.data.sources.open import open_segmentation
from convnext.data.transforms.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from convnext.data.transforms.segment import SegmentPreprocessing, TrainTransform, resize, resize_mask, scaled_size

BYTES = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255,) * 3}  # normalisation that leaves levels of 255 as they are
GEOMETRY = {"distort": False, **BYTES}


def read_pair(source, index, evaluation=False):
    image = source.read(index) if evaluation else source.pixels(index)
    return image, mask_of(source, index, image)


def blocks(height, width, seed, cell=12, labels=(0, 1, 2, 3, 255)):
    """A mask of rectangles at least `cell` pixels a side."""
    rng = np.random.default_rng(seed)
    count = max(height // cell, 1), max(width // cell, 1)
    coarse = rng.choice(np.array(labels, np.uint8), count)
    rows, columns = (np.minimum(np.arange(side) // cell, n - 1) for side, n in zip((height, width), count, strict=True))
    return torch.from_numpy(coarse[rows][:, columns])


def as_image(mask):
    """An image whose levels mean its class: 10 of class 0, 40 of class 1, …, 250 where ignored."""
    grey = torch.where(mask == 255, 250, 10 + 30 * mask.int()).to(torch.uint8)
    return torch.stack([grey, 255 - grey, grey])


def plain_bilinear(pixels, size):
    """uint8 (H, W, 3) at another size, float64: half-integer centres, no antialiasing, edges repeated."""
    for axis, new in enumerate(size):
        old = pixels.shape[axis]
        at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low, share = at.astype(int), (at % 1).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        pixels = pixels.take(low, axis) * (1 - share) + pixels.take(np.minimum(low + 1, old - 1), axis) * share
    return pixels


def plain_nearest(mask, size):
    """A mask (H, W) at another size, in OpenCV's arithmetic, which is off by one where a position falls on a pixel's very edge."""
    rows, columns = (
        [min(math.floor(i * (1 / (new / old))), old - 1) for i in range(new)] for new, old in zip(size, mask.shape, strict=True)
    )
    return mask[rows][:, columns]


def within(mask, radius):
    """Where all pixels up to `radius` away are seen and have the same class."""
    side = 2 * radius + 1
    padded = torch.nn.functional.pad(mask.float()[None, None], (radius,) * 4, value=-1)
    high = torch.nn.functional.max_pool2d(padded, side, 1)
    return (high == -torch.nn.functional.max_pool2d(-padded, side, 1))[0, 0]


@settings(max_examples=150, deadline=None)
@given(
    st.integers(20, 90), st.integers(20, 90), st.integers(0, 10**6), st.sampled_from([24, 48]), st.sampled_from([None, (160, 40), (60, 60)])
)
def test_image_and_mask_stay_aligned(height, width, seed, crop_size, scale):
    mask = blocks(height, width, seed)
    transform = TrainTransform(crop_size, scale, **GEOMETRY)
    with seeded(seed):
        image, found = transform(as_image(mask), mask)
    assert (image.dtype, image.shape) == (torch.float32, (3, crop_size, crop_size))
    assert (found.dtype, found.shape) == (torch.uint8, (crop_size, crop_size))
    inside = (image != 0).any(0)
    rows, columns = inside.any(1).sum(), inside.any(0).sum()
    assert inside[:rows, :columns].all()
    assert inside.sum() == rows * columns  # padding is to the right and below
    assert (found[~inside] == 255).all()
    clear = within(found[:rows, :columns], 3)
    wanted = as_image(found)[:, :rows, :columns]
    assert torch.allclose(image[:, :rows, :columns][:, clear], wanted[:, clear].float(), atol=0.01)


def test_it_mirrors_half_of_them_and_scales_over_the_whole_range():
    mask = blocks(40, 60, 3)
    transform = TrainTransform(256, (60, 40), flip=0.5, **GEOMETRY)
    widths, flipped = [], 0
    for seed in range(200):
        with seeded(seed):
            image, found = transform(as_image(mask), mask)
        size = tuple(int((image != 0).any(0).any(axis).sum()) for axis in (1, 0))
        widths.append(size[1])
        small = resize_mask(mask, size)
        if not torch.equal(found[: size[0], : size[1]], small):
            assert torch.equal(found[: size[0], : size[1]], small.flip(-1))
            flipped += 1
    assert 75 < flipped < 125
    assert min(widths) >= 30
    assert max(widths) <= 120
    assert np.ptp(widths) > 80
    assert 68 < np.mean(widths) < 82  # the factor is even, from a half to two


def test_no_class_covers_too_much_of_a_crop():
    mask = torch.zeros(100, 200, dtype=torch.uint8)
    mask[:, 100:] = blocks(100, 100, 1, labels=(1, 2, 3))
    shares = {}
    for limit in (0.75, 1.0):
        transform = TrainTransform(64, None, (1.0, 1.0), max_class_share=limit, **GEOMETRY)
        shares[limit] = []
        for seed in range(100):
            with seeded(seed):
                counts = torch.bincount(transform(as_image(mask), mask)[1].flatten())
            shares[limit].append((counts.max() / counts.sum()).item())
    # Three places of eight show too much of class 0, so ten draws fail once in 20,000 times.
    assert max(shares[0.75]) < 0.75
    assert np.mean(np.array(shares[1.0]) < 0.75) < 0.8


def test_ignored_pixels_do_not_count_as_a_class():
    mask = torch.full((96, 96), 255, dtype=torch.uint8)
    mask[::8, 0::2], mask[::8, 1::2] = 0, 1  # an eighth is labelled, half of it each class
    for seed in range(20):  # so that the first window drawn is taken
        with seeded(seed):
            found = TrainTransform(32, None, (1.0, 1.0), **GEOMETRY)(as_image(mask), mask)[0]
        with seeded(seed):
            assert torch.equal(TrainTransform(32, None, (1.0, 1.0), max_class_share=1, **GEOMETRY)(as_image(mask), mask)[0], found)


@pytest.mark.parametrize("label", [0, 255])
def test_a_image_of_one_class_is_cropped_after_ten_tries(label):
    mask = torch.full((50, 70), label, dtype=torch.uint8)
    with seeded(0):
        assert (TrainTransform(32, (70, 50), **GEOMETRY)(as_image(mask), mask)[1] == label).all()
        after = np.random.random()
    with seeded(0):
        published_pipeline(as_image(mask).permute(1, 2, 0).numpy(), mask.numpy(), 32, (70, 50))
        assert np.random.random() == after  # as many draws


def test_a_sample_is_a_function_of_the_seed_alone():
    transform, image, mask = TrainTransform(64, (160, 80)), to_pixels(sample_image(size=(90, 70))), blocks(70, 90, 0)
    before = image.clone(), mask.clone()
    results = []
    for seed in (1, 2, 1):
        torch.manual_seed(len(results))
        with seeded(seed, 0, 5):
            results.append(transform(image, mask))
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[2], strict=True))
    assert not torch.equal(results[0][0], results[1][0])
    with seeded(1, 0, 5):  # from a worker process, and from Pillow's image
        again = pickle.loads(pickle.dumps(transform))(sample_image(size=(90, 70)), mask)
    assert all(torch.equal(a, b) for a, b in zip(results[0], again, strict=True))
    assert torch.equal(image, before[0])
    assert torch.equal(mask, before[1])


def test_padding_is_nought_after_normalisation():
    mask = blocks(20, 30, 0)
    with seeded(0):
        image, found = TrainTransform(100, (30, 20), (1.0, 1.0), flip=0, distort=False)(as_image(mask), mask)
    assert (image[:, 20:] == 0).all()
    assert (image[:, :, 30:] == 0).all()
    wanted = (as_image(mask) / 255 - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
    assert torch.allclose(image[:, :20, :30], wanted, atol=1e-5)
    assert torch.equal(found[:20, :30], mask)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 120), st.integers(1, 120))
def test_resizing_is_opencvs(height, width, new_height, new_width):
    cv2 = pytest.importorskip("cv2")
    size, pixels = (new_height, new_width), to_pixels(sample_image(7, (width, height)))
    wanted = cv2.resize(pixels.permute(1, 2, 0).numpy(), size[::-1], interpolation=cv2.INTER_LINEAR)
    assert np.abs(resize(pixels, size).permute(1, 2, 0).numpy().astype(int) - wanted).max() <= 1
    mask = blocks(height, width, 5, cell=1)
    assert np.array_equal(resize_mask(mask, size), cv2.resize(mask.numpy(), size[::-1], interpolation=cv2.INTER_NEAREST))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 120), st.integers(1, 120))
def test_resizing_is_bilinear_and_nearest(height, width, new_height, new_width):
    size, pixels, mask = (new_height, new_width), to_pixels(sample_image(7, (width, height))), blocks(height, width, 5, cell=1)
    found = resize(pixels, size)
    assert found.dtype == torch.uint8
    assert np.abs(found.permute(1, 2, 0).numpy() - plain_bilinear(pixels.permute(1, 2, 0).numpy(), size)).max() <= 1.01
    assert np.array_equal(resize_mask(mask, size), plain_nearest(mask.numpy(), size))


def published_pipeline(pixels, mask, crop_size, scale):
    """The published pipeline up to the colours: its draws in its order."""
    ratio = np.random.random_sample() * 1.5 + 0.5
    long, short = int(scale[0] * ratio), int(scale[1] * ratio)
    height, width = mask.shape
    factor = min(long / max(height, width), short / min(height, width))
    new = int(width * factor + 0.5), int(height * factor + 0.5)
    pixels, mask = plain_bilinear(pixels, new[::-1]), plain_nearest(mask, new[::-1])

    def window():
        top = np.random.randint(0, max(new[1] - crop_size, 0) + 1)
        left = np.random.randint(0, max(new[0] - crop_size, 0) + 1)
        return slice(top, top + crop_size), slice(left, left + crop_size)

    crop = window()
    for _ in range(10):
        labels, counts = np.unique(mask[crop], return_counts=True)
        counts = counts[labels != 255]
        if len(counts) > 1 and np.max(counts) / np.sum(counts) < 0.75:
            break
        crop = window()
    pixels, mask = pixels[crop], mask[crop]
    if np.random.rand() < 0.5:
        pixels, mask = np.flip(pixels, 1), np.flip(mask, 1)
    border = (0, crop_size - mask.shape[0]), (0, crop_size - mask.shape[1])
    return np.pad(pixels, (*border, (0, 0))), np.pad(mask, border, constant_values=255)


@pytest.mark.parametrize(("crop_size", "scale"), [(512, (2048, 512)), (640, (2560, 640))])
def test_samples_of_ade20k_are_the_published_ones(crop_size, scale):
    source = open_segmentation(f"ade20k:{shared('data/ade20k')}:val")
    transform = TrainTransform(crop_size, scale, **GEOMETRY)
    for seed in range(12):
        pixels, mask = read_pair(source, seed % 3)
        with seeded(seed):
            image, found = transform(pixels, mask)
        with seeded(seed):
            wanted, wanted_mask = published_pipeline(pixels.permute(1, 2, 0).numpy(), mask.numpy(), crop_size, scale)
        assert np.array_equal(found, wanted_mask)
        assert np.abs(image.permute(1, 2, 0).numpy() - wanted).max() < 1.01


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((512, 683), (512, 683)), ((364, 500), (512, 703)), ((500, 364), (703, 512)), ((500, 2500), (410, 2048)), ((1, 5000), (1, 2048))],
)
def test_sizes_within_the_published_scale(size, wanted):
    assert scaled_size(*size, (2048, 512)) == scaled_size(*size, (512, 2048)) == wanted


def test_evaluation_at_the_own_size_only_normalises():
    image = sample_image(size=(48, 36))
    found = SegmentPreprocessing((2048, 512), **BYTES).transform()(image)  # what predicts resizes it
    assert torch.allclose(found, to_pixels(image).float(), atol=1e-4)
    for how in (SegmentPreprocessing(), SegmentPreprocessing((2048, 512), 512, 341, **BYTES)):
        assert SegmentPreprocessing.from_json(how.to_json()) == how
        assert torch.equal(pickle.loads(pickle.dumps(how.transform()))(image), how.transform()(image))
