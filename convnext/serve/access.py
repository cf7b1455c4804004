"""What is noted of every request: its number, its time for the metrics, and a line of the access log."""

import json
import re
import sys
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from convnext.serve.metrics import Metrics

REQUEST_ID, TRACE = "X-Request-ID", "traceparent"
_IDS = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)
_TRACES = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")  # W3C Trace Context, 3.2


class Observe:
    """Middleware that gives each request a number, counts it and its time, and writes it to the access log.

    The number is the client's `X-Request-ID`, or else a new one; it and the client's `traceparent` are headers of the answer. Requests of
    unknown paths are counted together.

    Args:
        app: the service.
        metrics: count the requests.
        paths: those that are counted by themselves.
        write: takes a line of the access log, a JSON object; None for no log.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Callable[[], set[str]], write: Callable[[str], object] | None) -> None:
        self.app, self.metrics, self.paths, self.write = app, metrics, paths, write

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, size = time.perf_counter(), 500, 0
        given = Headers(scope=scope)
        number = given.get(REQUEST_ID, "")
        number = number if _IDS.fullmatch(number) else uuid.uuid4().hex
        trace = _TRACES.fullmatch(given.get(TRACE, ""))

        async def note(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = number
                if trace is not None:
                    headers[TRACE] = trace[0]
            size += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, note)
        finally:
            seconds = time.perf_counter() - started
            path = scope["path"] if scope["path"] in self.paths() else "other"
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(seconds)
            if self.write is not None:
                line = {
                    "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                    "request_id": number,
                    "trace_id": trace[1] if trace is not None else None,
                    "client": scope["client"][0] if scope.get("client") else None,
                    "method": scope["method"],
                    "path": scope["path"],
                    "model": scope.get("state", {}).get("model"),
                    "status": status,
                    "bytes": size,
                    "seconds": round(seconds, 4),
                }
                self.write(json.dumps(line))


def to_stderr(line: str) -> None:
    """Write a line of the access log to standard error, at once and whole."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
