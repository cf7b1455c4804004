import random

import numpy as np
import pytest
import torch
from helpers import image_folder

from convnext.data.loader import EVALUATION, CorruptImages, EpochOrder, InOrder, Samples, make_loader
from convnext.data.randomness import seed_everything, seeded
from convnext.data.sources.open import open_source
from convnext.data.transforms.classify import train_transform
from convnext.errors import ConvnextError
from convnext.recipe import Augment, Data
from convnext.tasks.classify.task import collate


def samples(root, seed=0):
    augment = Augment(rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5)
    return Samples(open_source(str(root)), train_transform(Data(train="", image_size=32), augment, "bicubic"), seed)


def epochs(source, workers, count=2, start=0):
    order = EpochOrder(len(source), 4, seed=5)
    loader, batches = make_loader(source, order, collate, workers, pin=False), []
    for order.epoch in range(count):
        order.start = start
        batches += list(loader)
    return batches


def test_batches_do_not_depend_on_the_number_of_workers_nor_on_what_ran_before(tmp_path):
    source = samples(image_folder(tmp_path / "photos"))
    runs = []
    for workers in (0, 1, 3):
        torch.rand(workers)
        random.random()
        runs.append(epochs(source, workers))
    for a, b, c in zip(*runs, strict=True):
        assert a.indices == b.indices == c.indices
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.images, c.images)
    assert not torch.equal(runs[0][0].images, runs[0][6].images)  # another epoch


def test_an_epoch_taken_up_in_the_middle_gives_the_rest_of_it(tmp_path):
    source = samples(image_folder(tmp_path / "photos"))
    whole, rest = epochs(source, 0, count=1), epochs(source, 2, count=1, start=4)
    assert [b.indices for b in rest] == [b.indices for b in whole[4:]]
    assert torch.equal(rest[0].images, whole[4].images)


def test_every_sample_is_seen_once_an_epoch():
    order = EpochOrder(24, 4, seed=0)
    seen = [index for batch in order for _, index in batch]
    assert sorted(seen) == list(range(24)) != seen
    assert [len(batch) for batch in InOrder(10, 4)] == [4, 4, 2]


def test_unreadable_images_are_replaced_in_training_left_out_in_evaluation_and_told(tmp_path):
    root = image_folder(tmp_path / "photos")
    (root / "ant" / "003.jpg").write_bytes((root / "ant" / "003.jpg").read_bytes()[:200])
    source = samples(root)
    taken = source[(0, 3)]
    assert (taken.index, taken.label) == (4, 0)
    assert taken.corrupt[0][0] == 3
    assert "003.jpg: " in taken.corrupt[0][1]
    batch = collate([source[(EVALUATION, 3)], source[(EVALUATION, 4)]])
    assert (batch.indices, len(batch.images), batch.corrupt[0][0]) == ([4], 1, 3)
    assert collate([source[(EVALUATION, 3)]]).indices == []


def test_more_corrupt_images_than_allowed_stop_the_run():
    met = CorruptImages(200, limit=0.01)
    assert met.add([(3, "a.jpg: bad")]) == ["a.jpg: bad"]
    assert met.add([(3, "a.jpg: bad"), (4, "b.jpg: bad")]) == ["b.jpg: bad"]
    with pytest.raises(ConvnextError, match=r"3 of 200 images can't be read, more than 1.0% \(data.max_corrupt\): a.jpg: bad; b.jpg"):
        met.add([(9, "c.jpg: bad")])


def test_nothing_readable_at_all_is_told(tmp_path):
    root = image_folder(tmp_path / "photos", each=1)
    for path in root.rglob("*.jpg"):
        path.write_text("no")
    with pytest.raises(ConvnextError, match="not one of 3 images could be read"):
        samples(root)[(0, 0)]


def test_seeded_is_a_function_of_the_place_and_leaves_no_trace():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    seed_everything(1, 2)
    first = draw()
    seed_everything(1, 2)
    with seeded(7, 0, 3):
        inside = draw()
    assert draw() == first
    with seeded(7, 0, 3):
        assert draw() == inside
    with seeded(7, 0, 4):
        other = draw()
    assert len({*inside, *other, *first}) == 9


def test_batches_of_one_group_each_and_a_fresh_order_every_epoch():
    groups = [0, 1, 1, 0, 0, 0, 1, 0, 0, 1, 1, 0, 1]  # seven and six
    order = EpochOrder(13, 2, seed=3, groups=groups)
    epochs = []
    for order.epoch in (0, 1):
        batches = [[index for _, index in batch] for batch in order]
        assert len(batches) == len(order) == 6
        assert all(len({groups[index] for index in batch}) == 1 for batch in batches)
        assert len({index for batch in batches for index in batch}) == 12
        epochs.append(batches)
    assert epochs[0] != epochs[1]
    kinds = [groups[batch[0]] for batch in epochs[0]]
    assert kinds not in (sorted(kinds), sorted(kinds, reverse=True))  # the groups alternate
    order.epoch, order.start = 0, 4
    assert [[index for _, index in batch] for batch in order] == epochs[0][4:]
    parts = []
    for rank in range(2):
        half = EpochOrder(13, 2, 3, rank, 2, groups)
        parts.append([batch[0][1] for batch in half])
    assert [list(pair) for pair in zip(*parts, strict=True)] == epochs[0]
