"""Samples made of several images of their source: a function of (seed, epoch, index), whatever reads them, and damaged images noted."""

import numpy as np
import pytest
import torch

from convnext import tasks
from convnext.data.images import CorruptImageError
from convnext.data.loader import make_loader
from convnext.data.sampling.order import EpochOrder
from convnext.data.sources import scenes
from convnext.data.sources.masks import Semantic
from convnext.data.sources.scenes import Scenes
from convnext.data.transforms.detect import DetectAugmentation, train_transform
from convnext.data.transforms.segment import TrainTransform
from convnext.errors import UsageError
from convnext.extend import giving
from convnext.recipe import load_recipe
from convnext.tasks.detect.batch import DetectBatch, DetectTrainingSamples
from convnext.tasks.own import check_own
from convnext.tasks.segment.batch import SegmentBatch, SegmentTrainingSamples
from convnext.tasks.shared import plain_from
from convnext.training.given import recipe_with

SIZES = {"short": (64,), "longest": 64, "crop_short": (72,), "crop": (48, 64)}


class Damaged(Scenes):
    """Scenes of which the fourth and fifth can't be read, and a note of what was."""

    def __init__(self):
        super().__init__("train", 6, size=64)
        self.opened = []

    def pixels(self, index):
        self.opened.append(index)
        if index in (3, 4):
            raise CorruptImageError(f"scene {index} is damaged")
        return super().pixels(index)


def detection(source, **keys):
    return DetectTrainingSamples(source, train_transform(DetectAugmentation(**SIZES, **keys)), seed=7)


def segmentation(source, **keys):
    return SegmentTrainingSamples(Semantic(source), TrainTransform((48, 64), None, distort=False, **keys), seed=7)


def loaded(samples, collate, workers, epoch=0):
    order = EpochOrder(len(samples), 3, seed=1)
    order.epoch = epoch
    return list(make_loader(samples, order, collate, workers, pin=False))


@pytest.mark.parametrize("make", [detection, segmentation])
def test_combined_images_depend_neither_on_workers_nor_on_what_was_read_before(make):
    collate = DetectBatch.collate if make is detection else SegmentBatch.collate
    keys = {"mosaic": 0.7} | ({"copy_paste": 0.7} if make is detection else {})
    found = [loaded(make(Damaged(), **keys), collate, workers) for workers in (0, 2)]
    other = loaded(make(Damaged(), **keys), collate, 0, epoch=1)
    for one, two in zip(*found, strict=True):
        assert (one.indices, one.corrupt) == (two.indices, two.corrupt)
        assert all(torch.equal(a, b) for a, b in zip(one.images, two.images, strict=True))
    assert not all(torch.equal(a.images[0], b.images[0]) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("make", [detection, segmentation])
def test_a_partner_that_cannot_be_read_is_replaced_by_the_next_and_noted(make):
    noted = {}
    for epoch in range(6):
        source = Damaged()
        sample = make(source, mosaic=1.0)[epoch, 0]
        read = [index for index in source.opened if index not in (3, 4)]
        assert len(read) == 4
        assert read[0] == sample.index == 0
        assert [index for index, _ in sample.corrupt] == [index for index in source.opened if index in (3, 4)]
        for at, index in enumerate(source.opened[:-1]):
            assert index not in (3, 4) or source.opened[at + 1] == index + 1
        noted |= dict(sample.corrupt)
    assert noted == {3: "scene 3 is damaged", 4: "scene 4 is damaged"}


def test_without_the_keys_an_image_is_read_alone():
    for make in (detection, segmentation):
        source = Damaged()
        make(source)[0, 0]
        assert source.opened == [0]


def test_the_last_epochs_may_do_without():
    samples = DetectTrainingSamples(Damaged(), train_transform(DetectAugmentation(**SIZES, mosaic=1.0, copy_paste=1.0)), 7, plain_from=5)
    for epoch, images in ((4, 5), (5, 1), (6, 1)):
        samples.source.opened.clear()
        samples[epoch, 0]
        assert len([index for index in samples.source.opened if index not in (3, 4)]) == images
    keys = ["augment.mosaic=0.5", "train.epochs=9", "augment.plain_epochs=2"]
    assert plain_from(load_recipe("detect_digits", keys)) == 7
    assert plain_from(load_recipe("detect_digits", keys[:2])) is None
    for wrong, why in ((keys[1:], "no images are combined"), ([keys[0], keys[2]], r"the run counts iterations; set train\.epochs")):
        with pytest.raises(UsageError, match=f"augment.plain_epochs=2 has no effect: {why}"):
            load_recipe("detect_digits", wrong)
    with pytest.raises(UsageError, match=r"augment\.plain_epochs=9 leaves none of train\.epochs=9 for images that are combined"):
        load_recipe("detect_digits", [*keys[:2], "augment.plain_epochs=9"])


def test_partners_are_drawn_from_the_whole_source():
    source = Scenes("train", 40, size=64)
    drawn = []
    samples = detection(source, copy_paste=1.0)
    samples.labelled = lambda index: drawn.append(index) or (source.pixels(index), source.encoded_target(index))
    for index in range(40):
        samples[0, index]
    assert len(drawn) == 40
    assert len(set(drawn)) > 15
    assert np.mean(drawn) == pytest.approx(19.5, abs=6)


def test_tasks_that_do_not_combine_images_refuse_the_keys():
    with pytest.raises(UsageError, match=r"augment\.copy_paste=0\.5 has no effect: task segment does not use it, only detect"):
        load_recipe("segment_digits", ["augment.copy_paste=0.5"])
    with pytest.raises(UsageError, match=r"augment\.mosaic=0\.5 has no effect: task classify does not use it, only detect, segment"):
        load_recipe("digits", ["augment.mosaic=0.5"])


@pytest.mark.parametrize(("recipe", "kind"), [("detect_digits", dict), ("segment_digits", torch.Tensor)])
def test_an_augmentation_of_ones_own_gets_objects_or_masks(recipe, kind, monkeypatch):
    monkeypatch.setitem(scenes.PARTS, "train", 4)
    monkeypatch.setitem(scenes.PARTS, "val", 2)
    seen = []

    def inverted(image, second):
        seen.append(second)
        return 255 - image, second

    with giving(transform=inverted):
        named = recipe_with(recipe, [], {"transform": inverted})
        task = tasks.get(named.task)
        check_own(task, named)
        samples = [task.open(one).train[0, 0].image for one in (named, load_recipe(recipe))]
    assert isinstance(seen[0], kind)
    mean, std = (torch.tensor(values)[:, None, None] for values in named.data.normalisation())
    levels = [255 * (image * std + mean) for image in samples]
    assert torch.allclose(levels[0] + levels[1], torch.tensor(255.0), atol=0.01)
