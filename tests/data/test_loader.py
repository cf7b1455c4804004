import os
import random
import signal
import time
from multiprocessing import active_children, get_context

import numpy as np
import pytest
import torch
from helpers import image_folder

from convnext.data.loader import (
    PREFETCH,
    CorruptImages,
    Loader,
    LostWorkerError,
    Sample,
    Samples,
    make_loader,
)
from convnext.data.randomness import generators_kept, seed_everything, seeded
from convnext.data.sampling.draws import balanced
from convnext.data.sampling.order import EVALUATION, EpochOrder, InOrder
from convnext.data.sources.open import open_source
from convnext.data.transforms.classify import Augmentation, train_transform
from convnext.errors import ConvnextError
from convnext.tasks.classify.batch import ClassifyBatch


def samples(root, seed=0):
    augmentation = Augmentation(image_size=32, rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5)
    return Samples(open_source(str(root)), train_transform(augmentation), seed)


def epochs(source, workers, count=2, start=0, micro_batch=None):
    order = EpochOrder(len(source), 4, seed=5, micro_batch=micro_batch)
    loader, batches = make_loader(source, order, ClassifyBatch.collate, workers, pin=False), []
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


def test_an_epoch_resumed_in_the_middle_gives_the_rest_of_it(tmp_path):
    source = samples(image_folder(tmp_path / "photos"))
    whole, rest = epochs(source, 0, count=1), epochs(source, 2, count=1, start=4)
    assert [b.indices for b in rest] == [b.indices for b in whole[4:]]
    assert torch.equal(rest[0].images, whole[4].images)


def test_every_sample_is_seen_once_an_epoch():
    order = EpochOrder(24, 4, seed=0)
    seen = [index for batch in order for _, index in batch]
    assert sorted(seen) == list(range(24)) != seen
    assert [len(batch) for batch in InOrder(10, 4)] == [4, 4, 2]


def test_unreadable_images_are_replaced_in_training_skipped_in_evaluation_and_reported(tmp_path):
    root = image_folder(tmp_path / "photos")
    (root / "ant" / "003.jpg").write_bytes((root / "ant" / "003.jpg").read_bytes()[:200])
    source = samples(root)
    taken = source[(0, 3)]
    assert (taken.index, taken.label) == (4, 0)
    assert taken.corrupt[0][0] == 3
    assert "003.jpg: " in taken.corrupt[0][1]
    batch = ClassifyBatch.collate([source[(EVALUATION, 3)], source[(EVALUATION, 4)]])
    assert (batch.indices, len(batch.images), batch.corrupt[0][0]) == ([4], 1, 3)
    assert ClassifyBatch.collate([source[(EVALUATION, 3)]]).indices == []


def test_more_corrupt_images_than_allowed_stop_the_run():
    met = CorruptImages(200, limit=0.01)
    assert met.add([(3, "a.jpg: bad")]) == ["a.jpg: bad"]
    assert met.add([(3, "a.jpg: bad"), (4, "b.jpg: bad")]) == ["b.jpg: bad"]
    with pytest.raises(
        ConvnextError,
        match=r"3 of 200 images can't be read, more than 1.0% \(data.max_corrupt\): a.jpg: bad; b.jpg",
    ):
        met.add([(9, "c.jpg: bad")])
    with pytest.raises(
        ConvnextError,
        match=r"c.jpg: bad. Correct or remove them \(`convnext data check` lists all\), or accept their loss with data.max_corrupt=0.02 or more$",
    ):
        met.add([])


def test_a_source_without_a_readable_image_is_reported(tmp_path):
    root = image_folder(tmp_path / "photos", each=1)
    for path in root.rglob("*.jpg"):
        path.write_text("no")
    with pytest.raises(ConvnextError, match="none of the 3 images could be read"):
        samples(root)[(0, 0)]


def test_seeded_is_a_function_of_the_position_and_leaves_no_trace():
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
        assert len(batches) == len(order) == order.batches == 6
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


# Micro-batches


def test_micro_batches_are_the_batch_in_pieces(tmp_path):
    source = samples(image_folder(tmp_path / "photos"))
    whole = epochs(source, 0)
    for workers in (0, 2):
        pieces = epochs(source, workers, micro_batch=3)
        assert [len(batch) for batch in pieces] == [3, 1] * len(whole)
        for batch, first, second in zip(whole, pieces[::2], pieces[1::2], strict=True):
            assert batch.indices == first.indices + second.indices
            assert torch.equal(batch.images, torch.cat([first.images, second.images]))
            assert torch.equal(batch.labels, torch.cat([first.labels, second.labels]))
    rest = epochs(source, 2, count=1, start=4, micro_batch=3)
    assert [batch.indices for batch in rest] == [batch.indices for batch in pieces[8:12]]


def test_every_process_takes_its_part_of_every_batch_in_micro_batches():
    whole = [[index for _, index in batch] for batch in EpochOrder(40, 20, 3)]
    for world, micro_batch, lengths in ((2, 4, [4, 4, 2]), (2, 100, [10]), (4, None, [5])):
        parts = []
        for rank in range(world):
            order = EpochOrder(40, 20, 3, rank, world, micro_batch=micro_batch)
            pieces = [[index for _, index in piece] for piece in order]
            assert len(pieces) == len(order) == 2 * len(lengths)
            assert order.batches == 2
            assert [len(piece) for piece in pieces] == 2 * lengths
            parts += [index for piece in pieces[: len(lengths)] for index in piece]
        assert parts == whole[0]


class Counting(Samples):
    """Counts the samples that were prepared, in all processes."""

    def __init__(self, count):
        self.source, self.prepared = range(count), get_context().Value("i", 0)

    def __getitem__(self, key):
        with self.prepared.get_lock():
            self.prepared.value += 1
        return Sample(torch.zeros(3, 2, 2), 0, key[1], [])


@pytest.mark.parametrize("workers", [1, 3])
def test_the_samples_in_flight_are_bounded_by_the_micro_batch_whatever_the_batch(workers):
    """A batch of 4096 on one device, in micro-batches of 16: of the first batch, only what workers may prefetch is decoded."""
    counted = Counting(3 * 4096)
    loader = make_loader(counted, EpochOrder(3 * 4096, 4096, seed=0, micro_batch=16), ClassifyBatch.collate, workers, pin=False)
    most = 16 * PREFETCH * workers
    given = 0
    for batch in loader:
        given += len(batch)
        deadline = time.monotonic() + 60
        while counted.prepared.value < given + most and time.monotonic() < deadline:  # until the workers wait
            time.sleep(0.005)
        time.sleep(0.05)
        assert given < counted.prepared.value <= given + most
        if given == 5 * 16:
            break


class Pinned:
    """A batch of a task of its own: not a type that PyTorch can pin by itself."""

    def __init__(self, indices, pinned=False):
        self.indices, self.pinned = indices, pinned

    def pin_memory(self):
        return Pinned(self.indices, pinned=True)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch pins only where there is a GPU")
def test_a_loader_that_pins_does_so_by_the_batchs_own_method(workers):
    loader = make_loader(Counting(8), InOrder(8, 4), lambda found: Pinned([sample.index for sample in found]), workers, pin=True)
    assert [(batch.indices, batch.pinned) for batch in loader] == [([0, 1, 2, 3], True), ([4, 5, 6, 7], True)]


def test_a_worker_that_dies_is_met_where_a_batch_is_asked_for_and_nowhere_else():
    before = signal.getsignal(signal.SIGCHLD)
    batches = iter(make_loader(Counting(64), InOrder(64, 4), ClassifyBatch.collate, 1, pin=False))
    next(batches)
    assert signal.getsignal(signal.SIGCHLD) == before
    for worker in active_children():
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
    time.sleep(0.1)  # a step, in which nothing is raised
    with pytest.raises(LostWorkerError, match="a process that decodes images died"):
        list(batches)


class Broken:
    """What PyTorch's loader is when its worker died while it handed over a batch."""

    def __init__(self, workers, error):
        self.num_workers, self.error = workers, error

    def __iter__(self):
        raise self.error


def test_a_broken_connection_is_that_of_a_lost_worker_and_what_a_worker_raised_is_not():
    loader = make_loader(Counting(8), InOrder(8, 4), ClassifyBatch.collate, 1, pin=False)
    for workers, error, found in (
        (1, ConnectionResetError(104, "Connection reset by peer"), LostWorkerError),
        (1, EOFError(), LostWorkerError),
        (0, EOFError("of a source"), EOFError),
        (1, RuntimeError("Caught RuntimeError in DataLoader worker process 0."), RuntimeError),
    ):
        loader._loader = Broken(workers, error)
        with pytest.raises(found):
            list(loader)


def test_pytorch_pins_a_batch_by_its_own_method():
    """What a loader with `pin=True` calls for each batch, also on a machine without a GPU."""
    from torch.utils.data._utils.pin_memory import pin_memory

    batch = pin_memory(Pinned([0, 1]))
    assert batch.pinned
    loader = make_loader(Counting(8), InOrder(8, 4), lambda found: Pinned([sample.index for sample in found]), 0, pin=True)
    assert isinstance(loader, Loader)
    assert loader._loader.pin_memory


# Generators


def test_the_callers_generators_are_left_as_they_were_after_an_error_too():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    seed_everything(3)
    expected = [draw(), draw()]
    seed_everything(3)
    first = draw()
    with pytest.raises(KeyError), generators_kept():
        seed_everything(1, int(draw()[0]), {}["broken"])
    assert [first, draw()] == expected


def by_class(labels):
    return balanced([[label] for label in labels])


def test_a_balanced_epoch_draws_every_class_equally_often_and_repeats_rare_images_augmented_anew(tmp_path):
    labels = [0] * 70 + [1] * 25 + [2] * 5
    order = EpochOrder(100, 10, seed=2, draw=by_class(labels))
    keys = [key for batch in order for key in batch]
    assert len(keys) == len(set(keys)) == 100  # a repeat has an index of its own
    positions = [index % 100 for _, index in keys]
    assert sorted(np.bincount([labels[at] for at in positions])) == [33, 33, 34]
    times = np.bincount(positions, minlength=100)
    assert set(times[:70]) == {0, 1}
    assert set(times[70:95]) == {1, 2}
    assert set(times[95:]) <= {6, 7}
    source = samples(image_folder(tmp_path / "photos"))
    once, again = source[0, 3], source[0, 3 + len(source)]
    assert (once.index, once.label) == (again.index, again.label) == (3, source.source.label(3))
    assert not torch.equal(once.image, again.image)


def test_a_balanced_order_is_a_function_of_seed_and_epoch_for_any_processes_and_any_start():
    labels = [0] * 30 + [1] * 10
    order = EpochOrder(40, 8, seed=2, draw=by_class(labels))
    whole, shares = list(order), [list(EpochOrder(40, 8, 2, rank, 2, draw=by_class(labels))) for rank in range(2)]
    assert [first + second for first, second in zip(*shares, strict=True)] == whole
    order.start = 3
    assert list(order) == whole[3:]
    order.epoch, order.start = 1, 0
    assert [key[1] for batch in order for key in batch] != [key[1] for batch in whole for key in batch]
