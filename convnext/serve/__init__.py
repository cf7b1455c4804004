"""`convnext serve`: networks behind an HTTP address, with a page to try them on."""

import math
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import PurePath
from types import FrameType
from typing import TYPE_CHECKING

from convnext.errors import ConvnextError, UsageError, need
from convnext.text import printable

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from convnext.inference.predictor import Predictor
    from convnext.serve.limits import Limits
    from convnext.tasks.base import Prediction

_MAX_IDLE = 75  # seconds that a connection may rest between requests; proxies and clients mostly close theirs after 5 to 60
_MARGIN = 4.0  # seconds to end, after all admitted requests had their time
_MAX_CONNECTIONS = 512  # at once, below the thousand files that a process may usually open


def serve(
    sources: Sequence[str],
    limits: "Limits",
    *,
    host: str,
    port: int,
    token: str | None,
    batch_size: int,
    max_wait: float,
    device: str | None,
    optimize: "Callable[[Predictor[Prediction]], Predictor[Prediction]] | None" = None,
    origins: Sequence[str] = (),
    access_log: bool = False,
) -> None:
    """Serve models until SIGTERM or SIGINT; then answer the admitted requests, and return.

    Args:
        sources: what `convnext.load` takes, or NAME=that.
        limits: of requests.
        host: the address to listen on.
        port: 0 for any free one.
        token: what clients must send; None for none.
        batch_size: the maximum number of images that go through a network at once.
        max_wait: seconds that an idle network waits for images that could share a batch.
        device: as for `convnext.load`.
        optimize: makes from a predictor a faster one that answers in its place.
        origins: of web pages from other addresses that may call the service.
        access_log: whether to write a line of JSON for each request to standard error.

    Raises UsageError for two models of one name, ConvnextError if the port can't be used.
    """
    need("uvicorn", "serve")
    from convnext.inference.predictor import load
    from convnext.serve.access import to_stderr
    from convnext.serve.app import create_app
    from convnext.serve.served import LoadedVersion
    from convnext.serve.token import VARIABLE, is_open_to_others

    if not 0 <= max_wait < math.inf:
        raise UsageError(f"--max-wait-ms {1000 * max_wait:g}: give a number of milliseconds, such as 100")
    if not host.strip():  # the system would listen on all addresses
        raise UsageError("--host is empty: use 127.0.0.1 for this machine alone, 0.0.0.0 for all of its addresses")
    models = named(sources)

    def version(name: str) -> LoadedVersion:
        predictor = load(models[name], device=device)
        predictor.require_head()
        return LoadedVersion(predictor, predictor if optimize is None else optimize(predictor))

    loaded = {name: version(name) for name in models}
    app = create_app(
        {name: one.predictor for name, one in loaded.items()},
        limits,
        fast={name: one.fast for name, one in loaded.items()},
        token=token,
        batch_size=batch_size,
        max_wait=max_wait,
        load=version,
        origins=origins,
        write=to_stderr if access_log else None,
    )
    loaded.clear()  # a version that is replaced later shall free its memory
    listening = _listen(host, port)
    server = _server(app, limits.timeout)
    shown = f"[{host}]" if ":" in host else host
    address, number = listening.getsockname()[:2]
    if app.state.is_open and is_open_to_others(address):
        remedy = f"set --token or {VARIABLE}, or listen on --host 127.0.0.1"
        print(f"warning: anyone who reaches {shown}, port {number}, can use this service: {remedy}", file=sys.stderr)
    print(f"serving {', '.join(models)} on http://{shown}:{number}", file=sys.stderr, flush=True)
    server.run(sockets=[listening])
    if not app.state.has_ended:
        _end("abandoned work that no request waits for any more", 0)


def _server(app: "FastAPI", timeout: float) -> "uvicorn.Server":
    """Return the HTTP server of the application, which shuts down gracefully on SIGTERM and SIGINT."""
    uvicorn = need("uvicorn", "serve")
    from convnext.serve.protocol import ImpatientProtocol

    grace = int(2 * timeout) + 1
    config = uvicorn.Config(
        app,
        http=partial(ImpatientProtocol, patience=timeout),
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_keep_alive=_MAX_IDLE,
        timeout_graceful_shutdown=grace,
    )
    server = uvicorn.Server(config)
    server.handle_exit = _with_a_limit(server.handle_exit, grace + _MARGIN)
    # uvicorn shuts down gracefully on SIGTERM, then sends the signal again, which would end the process as a failure.
    signal.signal(signal.SIGTERM, lambda *_: setattr(server, "should_exit", True))
    return server


def _with_a_limit(handle: Callable[..., None], seconds: float) -> Callable[..., None]:
    """Return the handler of a signal that ends the service, after which the process ends within so many seconds in any case."""
    limits: list[threading.Timer] = []

    def handler(number: int, frame: FrameType | None) -> None:
        if not limits:
            limits.append(threading.Timer(seconds, _end, (f"the service did not end within {seconds:g} seconds", 1)))
            limits[0].daemon = True
            limits[0].start()
        handle(number, frame)

    return handler


def _end(reason: str, code: int) -> None:
    """End the process now: the interpreter would wait for busy threads."""
    print(reason, file=sys.stderr, flush=True)
    os._exit(code)


def named(sources: Sequence[str]) -> dict[str, str]:
    """Return models by name: the text before "=", or else the last part of the path. Raises UsageError if two have one name."""
    found: dict[str, str] = {}
    for source in sources:
        given = re.match(r"([\w.-]+)=(.+)", source)
        name, path = given.groups() if given else (_name(source), source)
        if name in found:
            raise UsageError(f"{found[name]} and {path} would both be named {name!r}: give one another name, for instance other={path}")
        found[name] = path
    return found


def _name(source: str) -> str:
    path = PurePath(source)
    return printable(path.stem if path.suffix in (".safetensors", ".pth", ".pt", ".bin", ".onnx", ".xml") else path.name)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048)
    except OSError as error:
        raise ConvnextError(f"can't listen on {host}:{port}: {error.strerror}; take another --port") from error
