"""Files from other machines: downloaded whole or not at all, resumed, once for all processes, and kept for the next run.

The one downloader: shards, archives and weights come through `local`.
"""

import base64
import hashlib
import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import filelock
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from convnext.data import hub
from convnext.errors import ConvnextError, UsageError

REMOTE = ("https://", "http://", "hf://")
_WAITS = (1, 2, 4, 8)  # seconds before another attempt to download
_SILENCE = 60  # seconds without a byte after which a connection is given up,
_SLOWEST = 16 << 10  # or with fewer bytes than these
_PATIENCE = 400  # seconds to wait for another process whose download does not grow: longer than its own attempts take
_LONGEST_NAME = 150  # bytes: file systems take 255, and what lies beside a part has a longer name


def local(address: str, kind: str = "shards") -> Path:
    """The local file of an `https://`, `http://` or `hf://datasets/…` address, downloaded to the cache if it is not here yet.

    Args:
        address: of the file. The ending of the local file is that of the address' path, whatever its query.
        kind: the part of the cache that it belongs to.
    """
    if address.startswith("hf://"):
        return _from_hub(address)
    path = cached(address, kind)
    fetch(address, path)
    return path


def cached(address: str, kind: str = "shards") -> Path:
    """Where the file of an address lies in the cache: in a folder named by a hash of all that tells it from other addresses."""
    parts = _split(address)._replace(fragment="")
    folder, _, last = parts._replace(query="").geturl().rpartition("/")
    key, name = folder, unquote(last)
    if parts.query or name != last or not _is_file_name(name):
        key, name = parts.geturl(), name if _is_file_name(name) else f"file{Path(name).suffix}"
    return cache_folder() / kind / hashlib.sha256(key.encode()).hexdigest()[:16] / name


def _is_file_name(name: str) -> bool:
    return name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"} and len(name.encode()) <= _LONGEST_NAME


def cache_folder() -> Path:
    """The folder of what was downloaded: `$CONVNEXT_CACHE`, by default ~/.cache/convnext. Raises UsageError for who has no home."""
    try:
        return Path(os.environ.get("CONVNEXT_CACHE") or "~/.cache/convnext").expanduser()
    except RuntimeError as error:
        raise UsageError(
            "this user has no home directory: name a folder for downloads in the environment variable CONVNEXT_CACHE"
        ) from error


def shown(address: str) -> str:
    """An address as it may be printed and kept: without a user's name, a password, or a query, which may be a secret."""
    if not address.startswith(("https://", "http://")):
        return address
    parts = _split(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="…" if parts.query else "").geturl()


def without_secrets(text: str) -> str:
    """A text that may hold addresses, with each as it is `shown`."""
    return re.sub(r"https?://[^\s'\"]+", lambda match: _shown_or_hidden(match[0]), text)


def _shown_or_hidden(address: str) -> str:
    try:
        return shown(address)
    except UsageError:
        return "https://…"


def sibling(address: str, name: str) -> str:
    """The address of another file in the folder of a file's."""
    path, mark, query = address.partition("?")
    return f"{path.rpartition('/')[0]}/{name}{mark}{query}"


def local_or_none(address: str) -> Path | None:
    """The same for a file that need not exist. Raises ConvnextError where that can't be found out."""
    try:
        return local(address)
    except ConvnextError as error:
        reason = error.__cause__
        if isinstance(reason, urllib.error.HTTPError) and reason.code in (403, 404, 410):  # 403: some stores don't tell strangers
            cached(address).touch()  # an empty file, because a later run may have no network to ask again
            return None
        if isinstance(reason, LocalEntryNotFoundError):  # no network: but the hub's cache may know
            if hub.is_known_missing(hub.parse(address)):
                return None
        elif isinstance(reason, EntryNotFoundError):
            return None
        raise


def _from_hub(address: str) -> Path:
    where = hub.parse(address)
    if where.kind != "dataset" or not where.file:
        raise UsageError(f"{address}: the form is hf://datasets/owner/name/file.tar, with @revision after the name for one of its versions")
    try:
        return hub.download(where)
    except hub.ERRORS as error:
        raise ConvnextError(
            f"could not fetch {address} ({hub.reason(error, where)}). Where there is a network, download it "
            f"(hf download {where.repository} --repo-type dataset --local-dir DIR), copy it to this machine and give its path"
        ) from error


def fetch(address: str, path: Path) -> None:
    """Download an `https://` or `http://` address to `path` unless that is there, whole or not at all.

    A transfer that was cut off is resumed, by this process or a later one; of several processes one downloads, the rest wait.

    Raises ConvnextError, naming the address, if it can't be had after some attempts.
    """
    if path.exists():
        return
    _split(address)
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path.with_name(f".{path.name}.lock"), part):
            if not path.exists():
                _download(address, part)
                part.replace(path)
                _tag_of(part).unlink(missing_ok=True)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = str(error).replace(address, shown(address)) or type(error).__name__
        raise ConvnextError(
            f"could not fetch {shown(address)} ({reason}). Where there is a network, download it and put it at {path}"
        ) from error


def _split(address: str) -> SplitResult:
    """The parts of an address. Raises UsageError if it is none."""
    try:
        parts = urlsplit(address)
        parts.port  # noqa: B018 - looks at it
    except ValueError as error:
        raise UsageError("an address that starts with http has no valid host and port") from error  # the address may hold a password
    if not parts.hostname:
        raise UsageError(f"{parts._replace(netloc='', query='').geturl()} names no host: the form is https://host/folder/file")
    return parts


@contextmanager
def _alone(lock: Path, part: Path) -> Iterator[None]:
    """Wait until no other process downloads, for as long as its part grows."""
    seen, since = -1, time.monotonic()
    guard = filelock.FileLock(lock)
    while True:
        try:
            guard.acquire(timeout=1)
            break
        except filelock.Timeout as error:
            size = part.stat().st_size if part.exists() else 0
            if size != seen:
                seen, since = size, time.monotonic()
            elif time.monotonic() - since > _PATIENCE:
                raise OSError(f"another process holds {lock}, and its download has not grown for {_PATIENCE} seconds") from error
    try:
        yield
    finally:
        guard.release()


def _download(address: str, part: Path) -> None:
    for wait in (*_WAITS, None):
        try:
            _transfer(address, part)
            return
        except (OSError, http.client.HTTPException) as error:  # urllib's errors are OSErrors
            code = error.code if isinstance(error, urllib.error.HTTPError) else 0
            if code == 416:  # the part is no part of what is there now
                part.unlink(missing_ok=True)
            elif wait is None or isinstance(error, _NotAFileError) or (400 <= code < 500 and code not in (408, 429)):
                raise
            time.sleep(wait or 0)


class _NotAFileError(OSError):
    """What another attempt would not change."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from an encrypted connection to a plain one."""

    def redirect_request(self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not newurl.startswith("https://" if req.full_url.startswith("https://") else ("https://", "http://")):
            raise _NotAFileError(f"it redirects to {shown(newurl)}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _request(address: str, start: int, tag: str) -> urllib.request.Request:
    parts = _split(address)
    login, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=host, fragment="").geturl(), headers={"User-Agent": "convnext"})  # noqa: S310
    if login:  # not sent on to where the address may redirect
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(unquote(login).encode()).decode()}")
    if start and tag:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", tag)
    return request


def _tag_of(part: Path) -> Path:
    return part.with_suffix(".tag")  # holds the ETag or date of what `part` is a part of


def _transfer(address: str, part: Path) -> None:
    start, tag_file = part.stat().st_size if part.exists() else 0, _tag_of(part)
    tag = tag_file.read_text("utf-8") if tag_file.exists() else ""
    with urllib.request.build_opener(_Redirects).open(_request(address, start, tag), timeout=_SILENCE) as response:
        _refuse_pages(response, address)
        wanted = response.headers["Content-Range"] or f"bytes {start}-"
        if response.status != 206 or not wanted.startswith(f"bytes {start}-"):
            start = 0  # from the beginning: the file is another, or the server does not resume
        if response.status == 206 and not wanted.startswith(f"bytes {start}-"):
            part.unlink(missing_ok=True)
            raise OSError(f"the server sent {wanted} instead of what was asked for")
        with part.open("r+b" if start else "wb") as file:
            if not start:
                tag_file.write_text(response.headers.get("ETag") or response.headers.get("Last-Modified") or "", "utf-8")
            file.seek(start)
            whole = start + int(response.headers["Content-Length"] or 0)
            size = _copy(response, file, start, whole, Path(urlsplit(address).path).name)
    if size < whole:
        raise OSError(f"the connection ended after {size} of {whole} bytes")


def _refuse_pages(response: Any, address: str) -> None:
    # A page to log in on, or a hub's page about the file, kept as the file would be taken for it ever after.
    if response.headers.get_content_type() == "text/html":
        hint = "; the address of the file itself has /resolve/ in place of /blob/" if "/blob/" in address else ""
        raise _NotAFileError(f"it gives a web page, not a file{hint}")


def _copy(response: Any, file: Any, done: int, whole: int, name: str) -> int:
    """Copy what comes to the file; returns its size then. Raises OSError where next to nothing comes."""
    since, before, told = time.monotonic(), done, 0.0
    while chunk := response.read1(1 << 20):
        file.write(chunk)
        done, now = done + len(chunk), time.monotonic()
        if now - since > _SILENCE:
            if done - before < _SLOWEST:
                raise OSError(f"only {done - before} bytes came in {_SILENCE} seconds")
            since, before = now, done
        if sys.stderr.isatty() and (now - told > 0.5 or done == whole):
            share = f" {100 * done // whole} % of {whole / 1e6:.0f} MB" if whole else f" {done / 1e6:.0f} MB"
            print(f"\rdownloading {name}{share}", end="\n" if done == whole else "", file=sys.stderr, flush=True)
            told = now
    return done
