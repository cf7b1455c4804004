import threading
import time

import pytest

from convnext.deploy.serve.batching import Batcher, QueueFullError


class Network:
    """Doubles numbers, once `go` is set; negative ones fail the batch."""

    def __init__(self):
        self.batches, self.go = [], threading.Event()

    def __call__(self, items):
        assert self.go.wait(10)
        self.batches.append(list(items))
        if min(items) < 0:
            raise ValueError(min(items))
        return [2 * item for item in items]


def _started(network, **options):
    batcher = Batcher(network, 0, **{"batch_size": 4, "max_wait": 10, "queue": 8} | options)
    batcher.start()
    return batcher


def test_batches_are_filled_in_order_and_one_alone_is_not_held_up():
    network, sizes = Network(), []
    batcher = _started(network, observe=sizes.append)
    assert not batcher.ready.is_set()
    batcher.inside = 6
    futures = [batcher.submit(i) for i in range(1, 7)]
    batcher.inside = 2  # those four are through, say
    network.go.set()
    assert [future.result(5).value for future in futures] == [2, 4, 6, 8, 10, 12]
    assert batcher.ready.is_set()
    assert network.batches == [[0], [1, 2, 3, 4], [5, 6]]
    batcher.inside = 1
    assert batcher.submit(9).result(5).value == 18  # long before `max_wait`
    assert sizes == [4, 2, 1]
    batcher.close()


def test_a_batch_waits_for_those_on_the_way_but_not_for_ever():
    network = Network()
    network.go.set()
    batcher = _started(network, max_wait=0.2)
    batcher.inside = 2  # one of them never comes
    started = time.monotonic()
    assert batcher.submit(1).result(5).value == 2
    assert time.monotonic() - started >= 0.19
    first, second = batcher.submit(1), batcher.submit(2)
    assert (first.result(5).value, second.result(5).value) == (2, 4)
    assert network.batches == [[0], [1], [1, 2]]
    batcher.close()


def test_what_waited_behind_a_batch_waits_for_those_on_the_way_all_the_same():
    network = Network()
    batcher = _started(network, max_wait=1)
    batcher.inside = 2
    first = batcher.submit(1)
    time.sleep(1.1)  # longer than `max_wait`, but the network is busy with its first item
    network.go.set()
    time.sleep(0.1)
    second = batcher.submit(2)
    assert (first.result(5).value, second.result(5).value) == (2, 4)
    assert network.batches == [[0], [1, 2]]
    batcher.close()


def test_one_that_fails_does_not_take_the_others_along():
    network = Network()
    batcher = _started(network)
    batcher.inside = 3
    futures = [batcher.submit(item) for item in (1, -5, 3)]
    network.go.set()
    assert (futures[0].result(5).value, futures[2].result(5).value) == (2, 6)
    with pytest.raises(ValueError, match="-5"):
        futures[1].result(5)
    batcher.close()


def test_what_is_cancelled_is_let_go_at_once_and_what_waits_is_answered_at_the_end():
    network = Network()
    batcher = _started(network)
    futures = [batcher.submit(item) for item in (1, 2, 3)]
    futures[1].cancel()
    assert [job.item for job in batcher._jobs] == [1, 3]
    threading.Timer(0.05, network.go.set).start()
    batcher.close()
    assert [futures[0].result(0).value, futures[2].result(0).value] == [2, 6]
    assert network.batches == [[0], [1, 3]]


def test_places_are_limited_and_come_back():
    batcher = Batcher(Network(), 0, batch_size=1, max_wait=0, queue=1)
    for _ in range(2):
        with batcher.place(), batcher.place(), pytest.raises(QueueFullError), batcher.place():
            pass
    assert batcher.inside == 0
