"""A client of the service, which needs nothing beside Python and this module's few imports."""

import json
import time
import uuid
from http.client import HTTPException
from pathlib import Path
from typing import Any, cast
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from convnext.errors import ConvnextError, UsageError, first_line

_MAX_ANSWER = 256 * 2**20  # bytes
_BUSY = {502, 503}  # the service, or a proxy before it, asks to try again
Answer = dict[str, Any]  # as the service's /docs describes it, by task


class ServiceError(ConvnextError):
    """The service refused a request, or can't be reached. `status` is that of HTTP, or None."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """Asks a service that `convnext serve` started.

    >>> Client("http://127.0.0.1:8000").predict("photo.jpg", top=3)["top"]

    A request that the service is too busy for, or that a restart interrupts, is sent again: predictions change nothing, so that none
    is lost or counted twice.

    Args:
        url: the service's address.
        token: what the service was started with.
        timeout: seconds that each try may take.
        patience: seconds in all, after which a service that is busy or away is an error.

    Raises UsageError for an address that is not of HTTP.
    """

    def __init__(
        self, url: str = "http://127.0.0.1:8000", token: str | None = None, *, timeout: float = 30.0, patience: float = 60.0
    ) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise UsageError(f"{url} is no address of a service: give one such as http://127.0.0.1:8000")
        self.url, self.timeout, self.patience = url.rstrip("/"), timeout, patience
        self._headers = {} if token is None else {"Authorization": b"Bearer " + token.strip().encode("utf-8", "surrogateescape")}
        self._open = build_opener(_NoRedirects).open

    def models(self) -> list[Answer]:
        """Return the models with their names, tasks, classes, options and weights."""
        return cast(list[Answer], json.loads(self._ask("GET", "models")))

    def predict(self, image: str | Path | bytes, model: str | None = None, **options: object) -> Answer:
        """Return the prediction for an image.

        Args:
            image: a file, or its content.
            model: one of `models`; by default the first.
            options: parameters of /v1/predict, such as top=3, threshold=0.5, masks=False, classes=["car", "bus"], coverage=0.95.

        Raises ServiceError for a refusal, OSError for a file that can't be read.
        """
        return cast(Answer, json.loads(self._ask("POST", "predict", {"model": model, **options}, _content(image))))

    def explain(self, image: str | Path | bytes, model: str | None = None, of: str | None = None) -> bytes:
        """Return the activation map of a class, by default the likeliest, as an RGBA PNG. Raises as `predict` does."""
        return self._ask("POST", "explain", {"model": model, "class": of}, _content(image))

    def reload(self, model: str) -> Answer:
        """Load a model again, and return what `models` says of it. Raises ServiceError; the present version then stays."""
        return cast(Answer, json.loads(self._ask("POST", f"models/{quote(model, safe='')}", content=b"")))

    def _ask(self, method: str, path: str, parameters: Answer | None = None, content: bytes | None = None) -> bytes:
        given = {name: _written(value) for name, value in (parameters or {}).items() if value is not None}
        address = f"{self.url}/v1/{path}" + (f"?{urlencode(given, doseq=False)}" if given else "")
        headers = cast(dict[str, str], self._headers) | {"Content-Type": "application/octet-stream", "X-Request-ID": uuid.uuid4().hex}
        until, wait = time.monotonic() + self.patience, 0.1
        while True:
            try:
                with self._open(Request(address, content, headers, method=method), timeout=self.timeout) as answer:  # noqa: S310  # HTTP only
                    found = cast(bytes, answer.read(_MAX_ANSWER + 1))
                if len(found) > _MAX_ANSWER:
                    raise ServiceError(f"{self.url} answered with more than {_MAX_ANSWER} bytes")
                return found
            except HTTPError as error:
                failure = ServiceError(f"{self.url}: {_detail(error)}", error.code)
                if error.code not in _BUSY:
                    raise failure from error
            except (URLError, HTTPException, OSError) as error:
                failure = ServiceError(f"{self.url} can't be reached: {first_line(getattr(error, 'reason', error))}")
            if time.monotonic() + wait > until:
                raise failure
            time.sleep(wait)
            wait = min(2 * wait, 2.0)


class _NoRedirects(HTTPRedirectHandler):
    """The token goes to the service alone."""

    def redirect_request(self, *_: object) -> None:
        return None


def _written(value: object) -> object:
    """Return the value of a parameter as an address has it: 0 or 1 for a bool, names with commas for a list."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return int(value) if isinstance(value, bool) else value


def _content(image: str | Path | bytes) -> bytes:
    return image if isinstance(image, bytes) else Path(image).read_bytes()


def _detail(error: HTTPError) -> str:
    """Return the reason that a refusal gives, else its status."""
    try:
        detail = json.loads(error.read(65536))["detail"]
        return detail if isinstance(detail, str) else json.dumps(detail)
    except (ValueError, KeyError, TypeError, OSError):
        return f"{error.code} {error.reason}"
