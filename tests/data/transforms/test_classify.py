"""Against timm's own factory, called as the paper's code calls it."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import sample_image
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms

from convnext.data.images import to_pixels
from convnext.data.randomness import seed_everything
from convnext.data.transforms.classify import Augmentation, ResizedCrop, batch_mixing, train_transform
from convnext.data.transforms.preprocessing import IMAGENET_MEAN, IMAGENET_STD, ClassifyPreprocessing
from convnext.errors import UsageError

PUBLISHED = Augmentation(rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.25)


def both(ours, theirs, image, seed):
    """The two transforms' results under the same draws; None for theirs where timm with Pillow 13 refuses to posterize to 0 bits."""
    results = []
    for transform in (ours, theirs):
        seed_everything(seed)
        try:
            results.append(transform(image))
        except ValueError:
            results.append(None)
    return results


def test_training_augmentation_is_the_published_one():
    # Where the crop is the whole image at its size there is nothing to resize, and all the rest is exact.
    whole = {"crop_scale": (1.0, 1.0), "crop_aspect": (1.0, 1.0)}
    theirs = create_transform(
        224, is_training=True, color_jitter=0.4, auto_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic",
        re_prob=0.25, re_mode="pixel", re_count=1, scale=(1.0, 1.0), ratio=(1.0, 1.0),
    )  # fmt: skip
    ours, image, equal = train_transform(replace(PUBLISHED, **whole)), sample_image(size=(224, 224)), 0
    for seed in range(40):
        found, wanted = both(ours, theirs, image, seed)
        if wanted is not None:
            assert torch.allclose(found, wanted, atol=1e-5)
            equal += 1
    assert equal > 30


def test_colour_jitter_is_the_published_one():
    theirs = create_transform(64, is_training=True, color_jitter=0.4, interpolation="bicubic", scale=(1.0, 1.0), ratio=(1.0, 1.0))
    ours = train_transform(Augmentation(image_size=64, color_jitter=0.4, crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0)))
    for seed in range(10):
        found, wanted = both(ours, theirs, sample_image(size=(64, 64)), seed)
        assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (40, 30), (2000, 1500)])
def test_crops_are_those_of_pillow_to_a_rounding(size, interpolation):
    ours, theirs = ResizedCrop(Augmentation(interpolation=interpolation)), RandomResizedCropAndInterpolation(224)
    rng, off = np.random.default_rng(0), []
    noise = rng.integers(-60, 60, (size[1], size[0], 3))
    image = Image.fromarray(np.clip(np.asarray(sample_image(size=size)) + noise, 0, 255).astype(np.uint8))
    method = Image.Resampling[interpolation.upper()]
    for seed in range(8):
        seed_everything(seed)
        top, left, height, width = theirs.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3))
        part = image.crop((left, top, left + width, top + height))
        # In two steps, because which pass goes first depends on Pillow's version.
        wanted = np.asarray(part.resize((224, height), method).resize((224, 224), method)).astype(int)
        seed_everything(seed)
        off.append(np.abs(ours(image).permute(1, 2, 0).numpy() - wanted))
    off = np.stack(off)  # in levels of 255
    if interpolation == "nearest":  # halfway between two pixels, either may be taken
        assert (off > 0).mean() < 0.03
    else:
        assert off.max() <= 2
        assert off.mean() < 0.01


def test_the_whole_pipeline_differs_from_timms_by_rounding():
    theirs = create_transform(224, is_training=True, color_jitter=0, interpolation="bicubic")
    ours = train_transform(Augmentation())
    levels = torch.tensor(IMAGENET_STD)[:, None, None] * 255
    for seed in range(20):
        found, wanted = both(ours, theirs, sample_image(size=(500, 375)), seed)
        off = (found - wanted).abs() * levels
        assert off.mean() < 0.2
        assert (off > 1.01).float().mean() < 1e-3


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 40), (40, 1)])
def test_images_of_a_few_pixels_can_be_cropped(size):
    ours = train_transform(Augmentation(image_size=32))
    for seed in range(50):
        seed_everything(seed)
        assert ours(sample_image(size=size)).isfinite().all()


def test_pixels_and_the_image_give_the_same():
    ours, image = train_transform(PUBLISHED), sample_image(size=(300, 200))
    before = to_pixels(image)
    for seed in range(5):
        seed_everything(seed)
        from_image = ours(image)
        seed_everything(seed)
        assert torch.equal(ours(before), from_image)
    assert torch.equal(before, to_pixels(image))  # left alone


def test_transforms_travel_to_worker_processes():
    for transform in (
        train_transform(replace(PUBLISHED, rand_augment=None)),
        ClassifyPreprocessing().transform(),
    ):
        image = sample_image(size=(300, 200))
        seed_everything(0)
        wanted = transform(image)
        seed_everything(0)
        assert torch.equal(pickle.loads(pickle.dumps(transform))(image), wanted)


def test_the_strongest_posterisation_is_black_as_published():
    transform = train_transform(Augmentation(image_size=32, rand_augment="rand-m10-n1", flip=0))
    op = next(op for step in transform.transforms for op in getattr(step, "ops", ()) if op.name.startswith("Posterize"))
    assert not np.asarray(op.aug_fn(sample_image(), 0)).any()
    assert np.array_equal(np.asarray(op.aug_fn(sample_image(), 4)), np.asarray(sample_image()) & 0xF0)


def test_an_invalid_notation_raises():
    with pytest.raises(UsageError, match="augment.rand_augment: 'strong' is not in timm's notation"):
        train_transform(Augmentation(rand_augment="strong"))


@pytest.mark.parametrize("size", [(300, 200), (64, 500)])
def test_evaluation_preprocessing_is_the_published_one(size):
    image = sample_image(size=size)
    normalise = transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)
    bicubic = transforms.InterpolationMode.BICUBIC
    steps = [transforms.Resize(256, bicubic), transforms.CenterCrop(224), transforms.ToTensor(), normalise]
    assert torch.allclose(ClassifyPreprocessing().transform()(image), transforms.Compose(steps)(image), atol=1e-6)
    warp = [transforms.Resize((384, 384), bicubic), transforms.ToTensor(), normalise]
    found = ClassifyPreprocessing(image_size=384, warp=True).transform()(image)
    assert torch.allclose(found, transforms.Compose(warp)(image), atol=1e-6)


def test_mixing_pairs_images_and_keeps_targets_a_distribution():
    mix = batch_mixing(0.8, 1.0, 0.1, 5)
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 5
    before, kinds = images.clone(), set()
    for i in range(20):
        seed_everything(i)
        mixed, targets = mix(images, labels)
        assert torch.allclose(targets.sum(1), torch.ones(8), atol=1e-5)
        assert targets.min() >= 0.1 / 5 - 1e-6
        partner = images.flip(0)
        is_cut = ((mixed - images).abs() < 1e-6).logical_or((mixed - partner).abs() < 1e-6).all().item()
        kinds.add(is_cut)
        share = (targets[0, 0] - 0.02) / 0.9  # of the first label; its partner's is 2
        if not is_cut:
            assert torch.allclose(mixed[0], share * images[0] + (1 - share) * partner[0], atol=1e-4)
    assert kinds == {True, False}
    assert torch.equal(images, before)  # the caller's batch is left alone
    assert batch_mixing(0.0, 0.0, 0.1, 5) is None
