"""Data from other machines: fetched whole or not at all, resumed, once for all processes, and kept for the next run."""

import fcntl
import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TextIO

from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

from convnext.errors import ConvnextError, UsageError

_WAITS = (1, 2, 4, 8)  # seconds before another attempt to fetch


def local(address: str) -> Path:
    """The local file of an `https://`, `http://` or `hf://datasets/…` address, fetched to the cache if it is not here yet."""
    if address.startswith("hf://"):
        return _from_hub(address)
    path = _cached(address)
    fetch(address, path)
    return path


def _cached(address: str) -> Path:
    folder, _, name = address.rpartition("/")
    cache = Path(os.environ.get("CONVNEXT_CACHE") or "~/.cache/convnext").expanduser()
    return cache / "shards" / hashlib.sha256(folder.encode()).hexdigest()[:16] / name


def local_or_none(address: str) -> Path | None:
    """The same for a file that need not exist. Raises ConvnextError where that can't be found out."""
    try:
        return local(address)
    except ConvnextError as error:
        reason = error.__cause__
        if isinstance(reason, urllib.error.HTTPError) and reason.code in (403, 404, 410):  # 403: some stores don't tell strangers
            _cached(address).touch()  # an empty file, because a later run may have no network to ask again
            return None
        if isinstance(reason, LocalEntryNotFoundError):  # no network: but the hub's cache may know
            _, owner, name, file = address.removeprefix("hf://").split("/", 3)
            if try_to_load_from_cache(f"{owner}/{name}", file, repo_type="dataset") is _CACHED_NO_EXIST:
                return None
        elif isinstance(reason, EntryNotFoundError):
            return None
        raise


def _from_hub(address: str) -> Path:
    kind, owner, name, file = [*address.removeprefix("hf://").split("/", 3), "", "", ""][:4]
    if kind != "datasets" or not file:
        raise UsageError(f"{address}: the form is hf://datasets/owner/name/file.tar")
    try:
        return Path(hf_hub_download(f"{owner}/{name}", file, repo_type="dataset"))
    except (EntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConvnextError(
            f"could not fetch {address} ({reason}). Where there is a network, download it "
            f"(hf download {owner}/{name} --repo-type dataset --local-dir DIR), copy it to this machine and give its path"
        ) from error


def fetch(address: str, path: Path) -> None:
    """Fetch an `https://` or `http://` address to `path` unless that is there, whole or not at all.

    A transfer that was cut off is resumed, by this process or a later one; of several processes one fetches, the rest wait.

    Raises ConvnextError, naming the address, if it can't be had after some attempts.
    """
    if path.exists():
        return
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(f".{path.name}.lock").open("a+") as lock:  # holds the ETag or date of what `part` is a part of
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                _download(address, part, lock)
                part.replace(path)
    except (OSError, http.client.HTTPException) as error:
        raise ConvnextError(
            f"could not fetch {address} ({error or type(error).__name__}). Where there is a network, download it and put it at {path}"
        ) from error


def _download(address: str, part: Path, lock: TextIO) -> None:
    for wait in (*_WAITS, None):
        try:
            _transfer(address, part, lock)
            return
        except (OSError, http.client.HTTPException) as error:  # urllib's errors are OSErrors
            code = error.code if isinstance(error, urllib.error.HTTPError) else 0
            if code == 416:  # the part is no part of what is there now
                part.unlink(missing_ok=True)
            elif wait is None or (400 <= code < 500 and code not in (408, 429)):
                raise
            time.sleep(wait or 0)


def _transfer(address: str, part: Path, lock: TextIO) -> None:
    start = part.stat().st_size if part.exists() else 0
    lock.seek(0)
    tag = lock.read()
    headers = {"User-Agent": "convnext"} | ({"Range": f"bytes={start}-", "If-Range": tag} if start and tag else {})
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=60) as response:  # noqa: S310 - http(s) only
        if response.status != 206:  # from the beginning: the file is another, or the server does not resume
            start = 0
        with part.open("r+b" if start else "wb") as file:
            if not start:
                lock.truncate(0)
                lock.write(response.headers.get("ETag") or response.headers.get("Last-Modified") or "")
                lock.flush()
            file.seek(start)
            shutil.copyfileobj(response, file, 1 << 20)
            size = file.tell()
    wanted = start + int(response.headers["Content-Length"] or size)
    if size < wanted:
        raise OSError(f"the connection ended after {size} of {wanted} bytes")
