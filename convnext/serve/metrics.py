"""The service's metrics for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one service; memory and processor time are those of the process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        registry, by_path = self.registry, ["path", "status"]
        self.requests = Counter(
            "convnext_requests", "Requests by path and HTTP status; 499: the client disconnected.", by_path, registry=registry
        )
        self.seconds = Histogram(
            "convnext_request_seconds", "From a request's head to its answer.", ["path"], buckets=_SECONDS, registry=registry
        )
        self.queue = Gauge("convnext_queue_length", "Requests admitted and not yet answered.", ["model"], registry=registry)
        self.batches = Histogram(
            "convnext_batch_size", "Images that went through a network at once.", ["model"], buckets=_SIZES, registry=registry
        )

    def watch(self, model: str, queue_length: Callable[[], int]) -> None:
        """Observe the queue of a model."""
        self.queue.labels(model).set_function(queue_length)
