import threading
import time
from contextlib import ExitStack

import pytest

from convnext.serve.batching import Batcher, QueueFullError, UnwantedError


class Network:
    """Doubles numbers, once `go` is set; negative ones fail the batch."""

    def __init__(self):
        self.batches, self.go, self.begun = [], threading.Event(), threading.Event()

    def __call__(self, items, check):
        self.begun.set()
        assert self.go.wait(10)
        check()
        self.batches.append(list(items))
        if min(items) < 0:
            raise ValueError(min(items))
        return [2 * item for item in items]


class Requests:
    """Requests as the service makes them: each is admitted until it is answered."""

    def __init__(self, batcher):
        self.batcher = batcher

    def let_in(self, count=1):
        """So many admitted requests, each to be ended with `close`."""
        admitted = [ExitStack() for _ in range(count)]
        for request in admitted:
            request.enter_context(self.batcher.admit())
        return admitted

    def send(self, *items, **options):
        """An answer to come for each item, whose request ends when it is there."""
        return [self.submit(request, item, **options) for request, item in zip(self.let_in(len(items)), items, strict=True)]

    def submit(self, request, item, **options):
        future = self.batcher.submit(item, **options)
        future.add_done_callback(lambda _: request.close())
        return future


def _started(network, **options):
    batcher = Batcher(network, 0, **{"batch_size": 4, "max_wait": 60, "queue": 8} | options)
    batcher.start()
    return batcher


def test_batches_are_filled_in_order_and_one_alone_is_not_held_up():
    network, sizes = Network(), []
    batcher = _started(network, observe=sizes.append)
    assert not batcher.ready.is_set()
    futures = Requests(batcher).send(1, 2, 3, 4, 5, 6)
    network.go.set()
    assert [future.result(5).value for future in futures] == [2, 4, 6, 8, 10, 12]
    assert batcher.ready.is_set()
    assert network.batches == [[0], [1, 2, 3, 4], [5, 6]]
    (alone,) = Requests(batcher).send(9)
    assert alone.result(5).value == 18  # long before `max_wait`
    assert sizes == [4, 2, 1]
    batcher.close()
    assert batcher.join(5)


def test_one_that_waits_for_another_is_answered_as_soon_as_that_has_left():
    network = Network()
    batcher = _started(network)
    requests = Requests(batcher)
    network.go.set()
    (before,) = requests.let_in()  # its answer is being encoded, say
    (after,) = requests.send(7)
    time.sleep(0.1)
    assert not after.done()  # the other could still join it
    before.close()
    assert after.result(5).value == 14  # and not when `max_wait` is over
    batcher.close()


def test_one_that_is_held_up_by_the_batch_does_not_hold_up_the_batch():
    network = Network()
    network.go.set()
    batcher = _started(network)
    (waiting,) = Requests(batcher).let_in()
    (future,) = Requests(batcher).send(5)
    with batcher.deferred():  # until there is room for its many pixels, which the other has
        assert future.result(5).value == 10
    waiting.close()
    batcher.close()


def test_a_batch_waits_for_those_on_the_way_but_not_for_ever():
    network = Network()
    network.go.set()
    batcher = _started(network, max_wait=0.2)
    requests = Requests(batcher)
    (never,) = requests.let_in()
    started = time.monotonic()
    (future,) = requests.send(1)
    assert future.result(5).value == 2
    assert time.monotonic() - started >= 0.19
    never.close()
    first, second = requests.send(1, 2)
    assert (first.result(5).value, second.result(5).value) == (2, 4)
    assert network.batches == [[0], [1], [1, 2]]
    batcher.close()


def test_what_waited_behind_a_batch_waits_for_those_on_the_way_all_the_same():
    network = Network()
    batcher = _started(network, max_wait=1)
    requests = Requests(batcher)
    one, other = requests.let_in(2)
    first = requests.submit(one, 1)
    time.sleep(1.1)  # longer than `max_wait`, but the network is busy with its first item
    network.go.set()
    time.sleep(0.1)
    second = requests.submit(other, 2)
    assert (first.result(5).value, second.result(5).value) == (2, 4)
    assert network.batches == [[0], [1, 2]]
    batcher.close()


def test_images_of_many_pixels_go_in_batches_of_their_own():
    network = Network()
    batcher = _started(network, batch_size=8, pixels=100)
    requests = Requests(batcher)
    admitted = requests.let_in(5)
    pixels = (60, 40, 60, 1000, 1)
    futures = [requests.submit(request, i, pixels=size) for i, (request, size) in enumerate(zip(admitted, pixels, strict=True), 1)]
    network.go.set()
    assert [future.result(5).value for future in futures] == [2, 4, 6, 8, 10]
    assert network.batches == [[0], [1, 2], [3], [4], [5]]
    batcher.close()


def test_one_that_fails_does_not_take_the_others_along():
    network = Network()
    batcher = _started(network)
    futures = Requests(batcher).send(1, -5, 3)
    network.go.set()
    assert (futures[0].result(5).value, futures[2].result(5).value) == (2, 6)
    with pytest.raises(ValueError, match="-5"):
        futures[1].result(5)
    batcher.close()


def test_those_that_fail_in_a_batch_are_tried_again_and_the_others_are_not():
    batches = []

    def odd_fail(items, check):
        batches.append(items)
        return [ValueError("odd") if (item % 2 and len(items) > 1) or item == 5 else 2 * item for item in items]

    batcher = Batcher(odd_fail, 0, batch_size=4, max_wait=60, queue=8)
    futures = Requests(batcher).send(1, 2, 4, 5)
    batcher.start()
    assert [future.result(5).value for future in futures[:3]] == [2, 4, 8]
    with pytest.raises(ValueError, match="odd"):
        futures[3].result(5)
    assert batches == [[0], [1, 2, 4, 5], [1], [5]]
    batcher.close()


def test_what_is_cancelled_is_let_go_at_once_and_what_waits_is_answered_at_the_end():
    network = Network()
    batcher = _started(network)
    futures = [batcher.submit(item) for item in (1, 2, 3)]
    futures[1].cancel()
    assert [job.item for job in batcher._jobs] == [1, 3]
    network.go.set()
    assert batcher.ready.wait(5)
    batcher.close()
    assert batcher.join(5)
    assert [futures[0].result(0).value, futures[2].result(0).value] == [2, 6]
    assert network.batches == [[0], [1, 3]]


def test_a_batch_is_given_up_when_nobody_waits_for_it_any_more_and_not_before():
    network = Network()
    network.go.set()
    batcher = _started(network)
    assert batcher.ready.wait(5)
    for gone, wanted in (((0,), [[1, 2]]), ((0, 1), [])):
        network.batches.clear()
        network.go.clear()
        network.begun.clear()
        futures = Requests(batcher).send(1, 2)
        assert network.begun.wait(5)
        for i in gone:
            assert not futures[i].cancel()  # it is in the batch
        network.go.set()
        if len(gone) == 2:
            with pytest.raises(UnwantedError):
                futures[0].result(5)
        else:
            assert futures[1].result(5).value == 4
        assert network.batches == wanted
    batcher.close()


def test_a_network_that_is_stuck_is_not_waited_for():
    network = Network()
    batcher = _started(network)
    assert network.begun.wait(5)
    batcher.close()
    assert not batcher.join(0.05)
    network.go.set()
    assert batcher.join(5)
    assert network.batches == []  # closed meanwhile, it gave up its first item
    assert not batcher.ready.is_set()


def test_places_are_limited_and_come_back():
    batcher = Batcher(Network(), 0, batch_size=1, max_wait=0, queue=1)
    for _ in range(2):
        with batcher.admit(), batcher.admit(), pytest.raises(QueueFullError), batcher.admit():
            pass
    assert batcher.admitted == 0
