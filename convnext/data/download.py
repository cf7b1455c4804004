"""Download of files: whole or not at all, resumed, once for all processes, and kept for the next run.

All downloads go through `local` (shards, weights) or `download` (archives).
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
from http.client import HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO, BinaryIO
from urllib.parse import SplitResult, unquote, urlsplit

import filelock

from convnext.errors import ConvnextError, UsageError, disk_full, is_disk_full

REMOTE = ("https://", "http://", "hf://")
_WAITS = (1, 2, 4, 8)  # seconds before another attempt
_SILENCE = 60  # seconds after which a connection fails if it has sent nothing,
_MIN_BYTES = 16 << 10  # or less than this
_PATIENCE = 400  # seconds to wait for another process whose download does not grow: longer than all its attempts take
_LONGEST_NAME = 150  # bytes: file systems take 255, and the names of partial files are longer

_REFUSED = frozenset('\0/\\<>:"|?*')  # that Windows refuses in names, where not every system does


def local(address: str, kind: str = "shards") -> Path:
    """Return the local file of an `https://`, `http://` or `hf://datasets/…` address, downloaded to the cache if it is not there yet.

    Args:
        address: of the file. The local file gets the ending of the address' path, whatever its query.
        kind: the folder of the cache to put it in.

    Raises UsageError for an invalid address, and ConvnextError if the file can't be downloaded.
    """
    if address.startswith("hf://"):
        return _from_hub(address)
    path = cached(address, kind)
    download(address, path)
    return path


def cached(address: str, kind: str = "shards") -> Path:
    """Return the path in the cache of the file of an address. The name of its folder is a hash of the rest of the address."""
    parts = _split(address)._replace(fragment="")
    folder, _, last = parts._replace(query="").geturl().rpartition("/")
    key, name = folder, unquote(last)
    if parts.query or name != last or not is_file_name(name):
        key, name = parts.geturl(), name if is_file_name(name) else f"file{Path(name).suffix}"
    return cache_folder() / kind / hashlib.sha256(key.encode()).hexdigest()[:16] / name


def is_file_name(name: str) -> bool:
    """Return whether every file system takes a name, with what is put around it for a partial file."""
    return name not in ("", ".", "..") and not set(name) & _REFUSED and len(name.encode()) <= _LONGEST_NAME


def cache_folder() -> Path:
    """Return the folder of downloads: `$CONVNEXT_CACHE`, by default ~/.cache/convnext. Raises UsageError if there is no home directory."""
    try:
        return Path(os.environ.get("CONVNEXT_CACHE") or "~/.cache/convnext").expanduser()
    except RuntimeError as error:
        raise UsageError(
            "this user has no home directory: name a folder for downloads in the environment variable CONVNEXT_CACHE"
        ) from error


def shown(address: str) -> str:
    """Return an address as it may be printed and kept: without a user's name, a password, or a query, which may be a secret."""
    if not address.startswith(("https://", "http://")):
        return address
    parts = _split(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="…" if parts.query else "").geturl()


def without_secrets(text: str) -> str:
    """Return a text with each address in it as `shown` returns it."""
    return re.sub(r"https?://[^\s'\"]+", lambda match: _shown_or_hidden(match[0]), text)


def _shown_or_hidden(address: str) -> str:
    try:
        return shown(address)
    except UsageError:
        return "https://…"


def sibling(address: str, name: str) -> str:
    """Return the address of another file in the same folder."""
    path, mark, query = address.partition("?")
    return f"{path.rpartition('/')[0]}/{name}{mark}{query}"


def local_or_none(address: str) -> Path | None:
    """Return the local file of an address as `local` does, or None if there is no such file. Raises ConvnextError if that stays unknown."""
    try:
        return local(address)
    except ConvnextError as error:
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        from convnext.data import hub

        reason = error.__cause__
        if isinstance(reason, urllib.error.HTTPError) and reason.code in (403, 404, 410):  # some stores answer 403 for missing files
            cached(address).touch()  # an empty file, because a later run may have no network to ask again
            return None
        if isinstance(reason, LocalEntryNotFoundError):  # no network, but the hub's cache may have the answer
            if hub.is_known_missing(hub.parse(address)):
                return None
        elif isinstance(reason, EntryNotFoundError):
            return None
        raise


def _from_hub(address: str) -> Path:
    from convnext.data import hub

    where = hub.parse(address)
    if where.kind != "dataset" or not where.file:
        raise UsageError(f"{address}: the form is hf://datasets/owner/name/file.tar, with @revision after the name for another version")
    try:
        return hub.download(where)
    except hub.ERRORS as error:
        raise ConvnextError(
            f"could not download {address} ({hub.reason(error, where)}). Download it on a machine with a network "
            f"(hf download {where.repository} --repo-type dataset --local-dir DIR), copy it to this machine and give its path"
        ) from error


def download(address: str, path: Path) -> None:
    """Download an `https://` or `http://` address to `path` unless that exists, whole or not at all.

    This process or a later one resumes a transfer that was cut off. If several processes call this, one downloads and the rest wait.

    Raises UsageError for an invalid address, and ConvnextError, naming the address, if it can't be downloaded after some attempts.
    """
    if path.exists():
        return
    _split(address)
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f".{path.name}.lock"), part):
            if not path.exists():
                _transfer_with_retries(address, part)
                part.replace(path)
                _tag_of(part).unlink(missing_ok=True)
    except (OSError, ValueError, http.client.HTTPException) as error:
        if is_disk_full(error):
            raise disk_full(part) from error
        reason = str(error).replace(address, shown(address)) or type(error).__name__
        raise ConvnextError(
            f"could not download {shown(address)} ({reason}). Download it on a machine with a network and put it at {path}"
        ) from error


def _split(address: str) -> SplitResult:
    """Return the parts of an address. Raises UsageError if it is invalid."""
    try:
        parts = urlsplit(address)
        parts.port  # noqa: B018 - reading it validates it
    except ValueError as error:
        raise UsageError("an address that starts with http has no valid host and port") from error  # the address may hold a password
    if not parts.hostname:
        raise UsageError(f"{parts._replace(netloc='', query='').geturl()} names no host: the form is https://host/folder/file")
    return parts


@contextmanager
def locked(lock: Path, part: Path) -> Iterator[None]:
    """Hold the lock of a download. While another process holds it, wait as long as `part`, its partial file, grows; then OSError."""
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


def _transfer_with_retries(address: str, part: Path) -> None:
    for wait in (*_WAITS, None):
        try:
            _transfer(address, part)
            return
        except (OSError, http.client.HTTPException) as error:  # urllib's errors are OSErrors
            code = error.code if isinstance(error, urllib.error.HTTPError) else 0
            if code == 416:  # the partial file is not of the version that is there now
                part.unlink(missing_ok=True)
            elif wait is None or is_disk_full(error) or isinstance(error, _NotAFileError) or (400 <= code < 500 and code not in (408, 429)):
                raise
            time.sleep(wait or 0)


class _NotAFileError(OSError):
    """The server's answer is not the file, and another attempt would not change that."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from an encrypted connection to a plain one."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if not newurl.startswith("https://" if req.full_url.startswith("https://") else ("https://", "http://")):
            raise _NotAFileError(f"it redirects to {shown(newurl)}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _request(address: str, start: int, tag: str) -> urllib.request.Request:
    parts = _split(address)
    login, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=host, fragment="").geturl(), headers={"User-Agent": "convnext"})  # noqa: S310
    if login:  # unredirected: a redirect must not send it to another server
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(unquote(login).encode()).decode()}")
    if start and tag:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", tag)
    return request


def _tag_of(part: Path) -> Path:
    return part.with_suffix(".tag")  # holds the ETag or date of the version that the partial file is of


def _transfer(address: str, part: Path) -> None:
    start, tag_file = part.stat().st_size if part.exists() else 0, _tag_of(part)
    tag = tag_file.read_text("utf-8") if tag_file.exists() else ""
    with urllib.request.build_opener(_Redirects).open(_request(address, start, tag), timeout=_SILENCE) as response:
        _refuse_pages(response, address)
        sent = response.headers["Content-Range"] or f"bytes {start}-"
        if response.status != 206 or not sent.startswith(f"bytes {start}-"):
            start = 0  # from the beginning: the file has changed, or the server does not resume
        if response.status == 206 and not sent.startswith(f"bytes {start}-"):
            part.unlink(missing_ok=True)
            raise OSError(f"the server sent {sent} instead of the requested bytes")
        with part.open("r+b" if start else "wb") as file:
            if not start:
                tag_file.write_text(response.headers.get("ETag") or response.headers.get("Last-Modified") or "", "utf-8")
            file.seek(start)
            whole = start + int(response.headers["Content-Length"] or 0)
            size = _copy(response, file, start, whole, Path(urlsplit(address).path).name)
    if size < whole:
        raise OSError(f"the connection ended after {size} of {whole} bytes")


def _refuse_pages(response: HTTPResponse, address: str) -> None:
    # A login page, or a hub's page about the file, would stay in the cache as if it were the file.
    if response.headers.get_content_type() == "text/html":
        hint = "; the address of the file itself has /resolve/ in place of /blob/" if "/blob/" in address else ""
        raise _NotAFileError(f"it gives a web page, not a file{hint}")


def _copy(response: HTTPResponse, file: BinaryIO, done: int, whole: int, name: str) -> int:
    """Copy the response to the file; return the file's size then. Raises OSError if the transfer is almost at a standstill."""
    since, before, reported = time.monotonic(), done, 0.0
    while chunk := response.read1(1 << 20):
        file.write(chunk)
        done, now = done + len(chunk), time.monotonic()
        if now - since > _SILENCE:
            if done - before < _MIN_BYTES:
                raise OSError(f"only {done - before} bytes came in {_SILENCE} seconds")
            since, before = now, done
        if sys.stderr.isatty() and (now - reported > 0.5 or done == whole):
            share = f" {100 * done // whole} % of {whole / 1e6:.0f} MB" if whole else f" {done / 1e6:.0f} MB"
            print(f"\rdownloading {name}{share}", end="\n" if done == whole else "", file=sys.stderr, flush=True)
            reported = now
    return done
