"""`convnext serve`: networks behind an address, with a page to try them on."""

import re
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from convnext.deploy.predict import load
from convnext.errors import ConvnextError, UsageError, need

if TYPE_CHECKING:
    from convnext.deploy.serve.limits import Limits

_IDLE = 75  # seconds that a connection may rest between requests; proxies and clients close theirs before, mostly after 5 to 60
_CONNECTIONS = 512  # at once, below the thousand files that a process may usually open


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
    optimize: Callable[[Any], Any] | None = None,
) -> None:
    """Serve models until SIGTERM or SIGINT; then answer what was taken in, and return.

    Args:
        sources: what `convnext.load` takes, or NAME=that.
        port: 0 for any that is free.
        max_wait: seconds that a free network waits for pictures that could share a batch.
        optimize: makes a predictor the faster one that answers in its place.

    Raises UsageError for models of one name, ConvnextError if the port is not to be had.
    """
    uvicorn = need("uvicorn", "serve")
    from convnext.deploy.serve.app import create_app
    from convnext.deploy.serve.protocol import ImpatientProtocol

    predictors = {name: load(source, device=device) for name, source in named(sources).items()}
    fast = {} if optimize is None else {name: optimize(predictor) for name, predictor in predictors.items()}
    app = create_app(predictors, limits, fast=fast, token=token, batch_size=batch_size, max_wait=max_wait)
    config = uvicorn.Config(
        app,
        http=partial(ImpatientProtocol, patience=limits.timeout),
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=int(2 * limits.timeout) + 1,
    )
    listening = _listen(host, port)
    server = uvicorn.Server(config)
    # uvicorn stops in peace at SIGTERM, then sends it again to end the process by it: the work is done, and that is no failure.
    signal.signal(signal.SIGTERM, lambda *_: setattr(server, "should_exit", True))
    shown = f"[{host}]" if ":" in host else host
    print(f"serving {', '.join(predictors)} on http://{shown}:{listening.getsockname()[1]}", file=sys.stderr, flush=True)
    server.run(sockets=[listening])


def named(sources: Sequence[str]) -> dict[str, str]:
    """Names for models: what stands before "=", or else the last part of the path. Raises UsageError if two have one name."""
    found: dict[str, str] = {}
    for source in sources:
        given = re.match(r"([\w.-]+)=(.+)", source)
        name, path = given.groups() if given else (_name(source), source)
        if name in found:
            raise UsageError(f"{found[name]} and {path} would both be called {name!r}: give one another name, as in other={path}")
        found[name] = path
    return found


def _name(source: str) -> str:
    path = PurePath(source)
    return path.stem if path.suffix in (".safetensors", ".pth", ".pt", ".bin", ".onnx", ".xml") else path.name


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048)
    except OSError as error:
        raise ConvnextError(f"can't listen on {host}:{port}: {error.strerror}; take another --port") from error
