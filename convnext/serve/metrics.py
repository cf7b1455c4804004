"""The service's metrics for Prometheus."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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

    def watch(self, model: str, queue_length: Callable[[], int]) -> Callable[[int], None]:
        """Observe a model's queue. Returns the function to call with the size of each batch."""
        self.queue.labels(model).set_function(queue_length)
        return self.batches.labels(model).observe


class CountRequests:
    """Middleware that counts every request and its time; requests of unknown paths are counted together."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Callable[[], set[str]]) -> None:
        self.app, self.metrics, self.paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), "500"

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, note)
        finally:
            path = scope["path"] if scope["path"] in self.paths() else "other"
            self.metrics.requests.labels(path, status).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - started)
