"""Against exact formulas in fractions, and against OpenCV where it is installed."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers import sample_image
from hypothesis import given
from hypothesis import strategies as st

from convnext.data.images import to_pixels
from convnext.data.randomness import seeded
from convnext.data.transforms.photometric import PhotometricDistortion, to_hsv, to_rgb

BYTE = st.integers(0, 255)


def exact_hsv(red, green, blue):
    """Hue in units of two degrees, saturation and value, rounded as OpenCV documents its 8-bit HSV; ties upwards."""
    value, spread = max(red, green, blue), max(red, green, blue) - min(red, green, blue)
    saturation = int(Fraction(255 * spread, value) + Fraction(1, 2)) if value else 0
    if not spread:
        return 0, saturation, value
    if value == red:
        degrees = Fraction(60 * (green - blue), spread)
    elif value == green:
        degrees = 120 + Fraction(60 * (blue - red), spread)
    else:
        degrees = 240 + Fraction(60 * (red - green), spread)
    return (degrees / 2 + Fraction(1, 2)).__floor__() % 180, saturation, value


def exact_rgb(hue, saturation, value):
    """The textbook's six sectors; not rounded."""
    sector, part = divmod(Fraction(hue, 30), 1)
    strength = Fraction(saturation, 255)
    low, falling, rising = value * (1 - strength), value * (1 - strength * part), value * (1 - strength * (1 - part))
    table = [
        (value, rising, low),
        (falling, value, low),
        (low, value, rising),
        (low, falling, value),
        (rising, low, value),
        (value, low, falling),
    ]
    return table[int(sector)]


def by_pixel(pixels, function):
    """uint8 (3, H, W) through a function of three numbers; the results rounded."""
    rows = [[round(value) for value in function(*map(int, pixel))] for pixel in pixels.reshape(3, -1).T]
    return np.array(rows, np.uint8).T.reshape(pixels.shape)


def plain(pixels, brightness=32, contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=18):
    """The published distortion step by step, its draws in its order."""

    def cut(values):
        return np.clip(values, 0, 255).astype(np.uint8)

    def stretched(pixels):
        return cut(pixels.astype(np.float32) * np.random.uniform(*contrast)) if np.random.randint(2) else pixels

    if np.random.randint(2):
        pixels = cut(pixels.astype(np.float32) + np.random.uniform(-brightness, brightness))
    mode = np.random.randint(2)
    if mode == 1:
        pixels = stretched(pixels)
    if np.random.randint(2):
        hsv = by_pixel(pixels, exact_hsv)
        hsv[1] = cut(hsv[1].astype(np.float32) * np.random.uniform(*saturation))
        pixels = by_pixel(hsv, exact_rgb)
    if np.random.randint(2):
        hsv = by_pixel(pixels, exact_hsv)
        hsv[0] = (hsv[0].astype(int) + np.random.randint(-hue, hue)) % 180
        pixels = by_pixel(hsv, exact_rgb)
    return stretched(pixels) if mode == 0 else pixels


@given(BYTE, BYTE, BYTE)
def test_hsv_is_exact(red, green, blue):
    found = to_hsv(torch.tensor([red, green, blue], dtype=torch.uint8)[:, None, None])
    assert [value.item() for value in found] == list(exact_hsv(red, green, blue))


@given(st.integers(0, 179), BYTE, BYTE)
def test_rgb_is_exact_to_the_rounding(hue, saturation, value):
    found = to_rgb(*torch.tensor([hue, saturation, value], dtype=torch.float32)[:, None, None])
    for channel, wanted in zip(found.flatten().tolist(), exact_rgb(hue, saturation, value), strict=True):
        assert abs(channel - wanted) <= 0.5001  # float32 may take a half either way


@pytest.mark.parametrize("settings", [{}, {"brightness": 200, "contrast": (0.1, 0.9), "saturation": (0.1, 0.5), "hue": 1}])
def test_it_is_the_published_distortion(settings):
    off, changed = [], 0
    for seed in range(120):
        pixels = to_pixels(sample_image(seed, (9, 7)))
        with seeded(seed):
            found = PhotometricDistortion(**settings)(pixels).numpy()
        with seeded(seed):
            wanted = plain(pixels.numpy(), **settings)
        off.append(np.abs(found.astype(int) - wanted))
        changed += (found != pixels.numpy()).any()
    assert np.max(off) <= 1
    assert (np.array(off) > 0).mean() < 1e-3
    assert 102 < changed < 120  # one of sixteen is left as it was


def test_it_leaves_its_input_alone_and_takes_channels_last():
    pixels = to_pixels(sample_image(size=(30, 20)))
    before = pixels.clone()
    for seed in range(12):
        with seeded(seed):
            found = PhotometricDistortion()(pixels)
        with seeded(seed):
            assert torch.equal(PhotometricDistortion()(pixels.contiguous()), found)
        assert torch.equal(pixels, before)


def test_opencv_has_the_same_hsv():
    cv2 = pytest.importorskip("cv2")
    pixels = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV).astype(int)
    off = np.abs(torch.stack(to_hsv(torch.from_numpy(pixels).permute(2, 0, 1))).permute(1, 2, 0).numpy() - hsv)
    off[..., 0] = np.minimum(off[..., 0], 180 - off[..., 0])
    assert off.max() <= 1
    assert (off > 0).mean() < 0.01  # ties, which its table of reciprocals decides
    hsv = np.stack([pixels[..., 0] % 180, pixels[..., 1], pixels[..., 2]], -1)
    found = to_rgb(*torch.from_numpy(hsv).permute(2, 0, 1).float()).permute(1, 2, 0).numpy()
    assert np.abs(found.astype(int) - cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)).max() <= 1  # with vector instructions it cuts off
