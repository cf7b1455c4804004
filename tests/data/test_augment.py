"""Against timm's own factory, called as the paper's code calls it."""

import numpy as np
import pytest
import torch
from helpers import picture
from timm.data import create_transform
from torchvision import transforms

from convnext.data.augment import batch_mixing, train_transform
from convnext.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from convnext.data.randomness import seed_everything
from convnext.errors import UsageError
from convnext.recipe import Augment, Data

PUBLISHED = Augment(rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.25)


def test_training_augmentation_is_the_published_one():
    theirs = create_transform(
        224, is_training=True, color_jitter=0.4, auto_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic",
        re_prob=0.25, re_mode="pixel", re_count=1,
    )  # fmt: skip
    ours, image, equal = train_transform(Data(train=""), PUBLISHED, "bicubic"), picture(size=(300, 260)), 0
    for i in range(40):
        seed_everything(i)
        found = ours(image)
        seed_everything(i)
        try:
            wanted = theirs(image)
        except ValueError:  # timm with Pillow 13 refuses to posterize to 0 bits
            continue
        assert torch.allclose(found, wanted, atol=1e-5)
        equal += 1
    assert equal > 30


def test_the_strongest_posterisation_is_black_as_published():
    transform = train_transform(Data(train="", image_size=32), Augment(rand_augment="rand-m10-n1", flip=0), "bicubic")
    op = next(op for op in transform.transforms[1].ops if op.name.startswith("Posterize"))
    assert not np.asarray(op.aug_fn(picture(), 0)).any()
    assert np.array_equal(np.asarray(op.aug_fn(picture(), 4)), np.asarray(picture()) & 0xF0)


def test_a_wrong_notation_is_told():
    with pytest.raises(UsageError, match="augment.rand_augment: 'strong' is not in timm's notation"):
        train_transform(Data(train=""), Augment(rand_augment="strong"), "bicubic")


@pytest.mark.parametrize("size", [(300, 200), (64, 500)])
def test_evaluation_preprocessing_is_the_published_one(size):
    image = picture(size=size)
    normalise = transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)
    bicubic = transforms.InterpolationMode.BICUBIC
    steps = [transforms.Resize(256, bicubic), transforms.CenterCrop(224), transforms.ToTensor(), normalise]
    assert torch.allclose(Preprocessing().transform()(image), transforms.Compose(steps)(image), atol=1e-6)
    warp = [transforms.Resize((384, 384), bicubic), transforms.ToTensor(), normalise]
    found = Preprocessing(image_size=384, warp=True).transform()(image)
    assert torch.allclose(found, transforms.Compose(warp)(image), atol=1e-6)


def test_mixing_pairs_pictures_and_keeps_targets_a_distribution():
    mix = batch_mixing(Augment(mixup=0.8, cutmix=1.0), 0.1, 5)
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
    assert batch_mixing(Augment(), 0.1, 5) is None
