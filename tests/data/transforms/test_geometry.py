"""Shapes other than squares, whole images in place of crops, and the augmentations that all tasks share."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import sample_image
from timm.data.transforms import ResizeKeepRatio
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from convnext.data.annotations.objects import ImageObjects
from convnext.data.images import to_pixels
from convnext.data.randomness import seeded
from convnext.data.run_lengths import EncodedMasks, encode
from convnext.data.transforms.classify import Augmentation, train_transform
from convnext.data.transforms.detect import DetectAugmentation, upside_down
from convnext.data.transforms.detect import train_transform as detect_transform
from convnext.data.transforms.geometry import blurred, rotated
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.data.transforms.segment import TrainTransform

LEVELS = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}  # normalisation that leaves levels of 255 as they are
BICUBIC = v2.InterpolationMode.BICUBIC


@pytest.mark.parametrize("size", [(300, 200), (64, 500), (31, 30)])
def test_a_rectangle_is_the_centre_of_the_covering_image_as_in_timm(size):
    image, how = sample_image(size=size), ClassifyPreprocessing((96, 160), 0.8, **LEVELS)
    wanted = v2.Compose([ResizeKeepRatio((120, 200), longest=0, interpolation="bicubic"), v2.CenterCrop((96, 160))])(image)
    assert torch.equal(how.transform()(image), to_pixels(wanted).float())


def test_warp_and_letterbox_show_the_whole_image():
    image = sample_image(size=(100, 50))
    warped = ClassifyPreprocessing((40, 60), warp=True, **LEVELS).transform()(image)
    assert torch.equal(warped, to_pixels(v2.functional.resize(image, [40, 60], BICUBIC)).float())
    boxed = ClassifyPreprocessing((40, 60), letterbox=True, mean=(0.5, 0.25, 1.0), std=(1.0,) * 3).transform()(image)
    assert boxed.shape == (3, 40, 60)
    assert boxed[:, :5].abs().max() < 0.5 / 255 + 1e-6  # the ground is the mean, to a level
    assert boxed[:, 35:].abs().max() < 0.5 / 255 + 1e-6
    inner = to_pixels(v2.functional.resize(image, [30, 60], BICUBIC)) / 255 - torch.tensor([0.5, 0.25, 1.0])[:, None, None]
    assert torch.allclose(boxed[:, 5:35], inner, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (40, 60), (60, 40)])
@pytest.mark.parametrize("how", [{}, {"warp": True}, {"letterbox": True}])
def test_every_image_gets_the_size_of_the_network(size, how):
    assert ClassifyPreprocessing((40, 60), **how).transform()(sample_image(size=size)).shape == (3, 40, 60)


@pytest.mark.parametrize("how", [{}, {"warp": True}, {"letterbox": True}, {"image_size": 48}])
def test_training_without_a_crop_shows_what_evaluation_shows(how):
    how, image = ClassifyPreprocessing(**{"image_size": (40, 60)} | how | LEVELS), sample_image(size=(120, 90))
    with seeded(0):
        found = train_transform(Augmentation(whole=how, flip=0, **LEVELS))(to_pixels(image))
    off = (found - how.transform()(image)).abs()
    assert off.mean() < 0.1  # levels: PyTorch and Pillow round differently
    assert off.max() <= 3


def test_a_rectangular_crop_is_distorted_as_little_as_a_square_one():
    transform = train_transform(Augmentation(image_size=(40, 120), crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0), flip=0, **LEVELS))
    image = sample_image(size=(120, 40))
    with seeded(0):
        assert torch.equal(transform(image), to_pixels(image).float())


def test_trivial_augment_is_torchvisions():
    image = sample_image(size=(48, 48))
    settings = Augmentation(image_size=48, crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0), flip=0, trivial_augment=True, **LEVELS)
    transform, reference = train_transform(settings), v2.TrivialAugmentWide(fill=[0, 0, 0])
    changed = 0
    for seed in range(30):
        with seeded(seed):
            found = transform(image)
        with seeded(seed):
            train_transform(Augmentation(image_size=48, crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0), flip=0, **LEVELS))(image)
            wanted = to_pixels(reference(image)).float()
        assert torch.equal(found, wanted)
        changed += not torch.equal(found, to_pixels(image).float())
    assert changed > 15


def test_an_augmentation_that_is_off_draws_nothing():
    image, plain = sample_image(size=(70, 60)), Augmentation(image_size=32)
    for change in ({"vflip": 1.0}, {"rotate": 20.0}, {"blur": 1.0}):
        results = []
        for settings in (plain, replace(plain, **change)):
            with seeded(3):
                before = np.random.get_state()[2]
                pixels = train_transform(settings)(image)
                results.append((pixels, np.random.get_state()[2] != before))
        assert [drew for _, drew in results] == [False, True]
        assert not torch.equal(results[0][0], results[1][0])


def mask():
    found = torch.zeros(60, 70, dtype=torch.uint8)
    found[5:30, 10:50] = 1
    return found


def objects():
    boxes = torch.tensor([[10.0, 5.0, 50.0, 30.0]])
    return ImageObjects(boxes, torch.tensor([1]), mask()[None], torch.tensor([False]), torch.tensor([1000.0]), 0)


def test_boxes_and_masks_go_upside_down_together():
    pixels = to_pixels(sample_image(size=(70, 60)))
    turned, found = upside_down(pixels, objects())
    assert torch.equal(turned, pixels.flip(1))
    assert found.boxes.tolist() == [[10.0, 30.0, 50.0, 55.0]]
    assert found.masks[0, 30:55, 10:50].all()
    assert found.masks.sum() == 1000
    encoded = EncodedMasks.whole([encode(mask())], 60, 70).upside_down()
    assert torch.equal(encoded.to_tensor(), found.masks)


def test_a_detectors_images_are_turned_upside_down_only_with_the_key():
    settings = {"short": (60,), "longest": 70, "crop_short": (60,), "crop": (60, 70), "flip": 0.0}
    seen = {False: 0, True: 0}
    for seed in range(20):
        with seeded(seed):
            _, found = detect_transform(DetectAugmentation(**settings, vflip=0.5))(sample_image(size=(70, 60)), objects())
        seen[bool(found.boxes[0, 1] > 20)] += 1
    assert min(seen.values()) >= 3


def test_masks_turn_with_their_image_and_corners_are_ignored():
    image = torch.stack([mask() * 200] * 3)
    transform = TrainTransform((60, 70), None, (1.0, 1.0), 1.0, 0.0, False, **LEVELS, rotate=40.0, vflip=0.5)
    with seeded(1):
        pixels, found = transform(image, mask())
    assert (found == 255).any()
    assert {0, 1, 255} == set(found.unique().tolist())
    inside, outside = pixels[0][found == 1], pixels[0][found == 0]
    assert (inside > 100).float().mean() > 0.95  # but for the border, where the image is interpolated
    assert (outside < 100).float().mean() > 0.95


def test_a_rotation_is_torchvisions_with_the_mean_in_the_corners():
    pixels = to_pixels(sample_image())
    found = rotated(pixels, 30.0, [10.0, 20.0, 30.0])
    assert torch.equal(found, functional.rotate(pixels, 30.0, v2.InterpolationMode.BILINEAR, fill=[10, 20, 30]))
    assert found[:, 0, 0].tolist() == [10, 20, 30]
    assert rotated(pixels, 0.0, [0.0]) is pixels


@pytest.mark.parametrize("shape", [(3, 1, 1), (5, 2, 40), (1, 40, 40)])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_images_of_any_shape_and_number_of_channels_are_blurred(shape, kind):
    pixels = torch.randint(0, 256, shape).to(kind)
    with seeded(2):
        found = blurred(pixels, 1.0)
    assert found.shape == pixels.shape
    assert found.dtype == kind
    if shape[-1] == shape[-2] == 40:
        assert found.float().std() < pixels.float().std()


@pytest.mark.parametrize("crop", [(40, 60), (60, 40)])
def test_a_segmenters_crop_may_be_a_rectangle(crop):
    with seeded(0):
        pixels, found = TrainTransform(crop, None, (0.5, 0.5), **LEVELS)(sample_image(size=(70, 60)), mask())
    assert (pixels.shape, found.shape) == ((3, *crop), crop)
