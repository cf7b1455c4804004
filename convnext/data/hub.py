"""Files on the Hugging Face hub: `hf://owner/name/file` of models, `hf://datasets/owner/name/file`, with `@revision` after the name.

Its cache, resumed downloads and HF_HUB_OFFLINE are huggingface-hub's own.
"""

import json
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import huggingface_hub
from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.errors import HTTPError as NetworkError  # type: ignore[attr-defined]  # httpx's, or its successor's
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from convnext.errors import ConvnextError, UsageError, first_line

ERRORS = (EntryNotFoundError, HfHubHTTPError, NetworkError, OSError, ValueError)  # what `download` raises
_TIMEOUT = 30  # seconds for a list of files
_FORM = "the form is hf://owner/name, hf://owner/name@revision or hf://owner/name/file"
_ADDRESS = re.compile(
    r"hf://(?P<kind>datasets/|models/)?(?P<owner>[^/@]+)/(?P<name>[^/@]+)(@(?P<revision>refs/(pr|convert)/[^/@]+|[^/@]+))?(/(?P<file>[^@]*))?"
)


@dataclass(frozen=True)
class HubFile:
    """A file of a repository, or the repository where `file` is empty."""

    kind: str  # "model" or "dataset"
    repository: str  # owner/name
    revision: str | None  # a branch, tag or commit; None for the main branch
    file: str = ""

    def __str__(self) -> str:
        kind = "datasets/" if self.kind == "dataset" else ""
        return f"hf://{kind}{self.repository}" + (f"@{self.revision}" if self.revision else "") + (f"/{self.file}" if self.file else "")

    def named(self, file: str) -> "HubFile":
        """Return another file of the same revision."""
        return replace(self, file=file)


def parse(address: str) -> HubFile:
    """Return the parts of an address. Raises UsageError, with the form, if it is invalid."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise UsageError(f"{address} is not an address on the hub: {_FORM}")
    repository, file = f"{match['owner']}/{match['name']}", (match["file"] or "").rstrip("/")
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UsageError(f"{address} is not an address on the hub ({first_line(error)}): {_FORM}") from error
    if any(part in ("", ".", "..") for part in file.split("/")) and file:
        raise UsageError(f"{address}: {file!r} is not a file of a repository")
    revision = unquote(match["revision"]) if match["revision"] else None
    if revision is not None and (not re.fullmatch(r"[\w./+-]+", revision) or ".." in revision.split("/")):
        raise UsageError(f"{address}: {revision!r} is not a revision: give a branch, a tag or a commit")
    return HubFile("dataset" if match["kind"] == "datasets/" else "model", repository, revision, file)


def of_page(address: str) -> HubFile | None:
    """Return the file that an `https://` address of the hub names; None for other addresses."""
    match = re.fullmatch(r"https://huggingface\.co/([\w.-]+/[\w.-]+)/resolve/([\w.%-]+)/([^?#]+)(\?.*)?", address)
    return None if match is None else parse(f"hf://{match[1]}@{match[2]}/{unquote(match[3])}")


def download(where: HubFile) -> Path:
    """Return the file on this machine. Raises one of `ERRORS` if it can't be downloaded."""
    return Path(hf_hub_download(where.repository, where.file, repo_type=where.kind, revision=where.revision))


def dataset_files(where: HubFile) -> tuple[list[str], HubFile]:
    """Return the paths of the files of a dataset's repository, and the repository at the commit that has them.

    The list is kept in huggingface-hub's cache of that repository, for machines without a network.

    Raises ConvnextError if it can't be downloaded.
    """
    kept = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"datasets--{where.repository.replace('/', '--')}" / ".convnext-files"
    path = kept / f"{(where.revision or 'main').replace('/', '-')}.json"
    try:
        info = huggingface_hub.HfApi().dataset_info(where.repository, revision=where.revision, timeout=_TIMEOUT)
    except ERRORS as error:
        with suppress(OSError, ValueError, KeyError):
            found = json.loads(path.read_text(encoding="utf-8"))
            return list(map(str, found["files"])), replace(where, revision=str(found["commit"]), file="")
        raise ConvnextError(
            f"could not list the files of {replace(where, file='')} ({reason(error, where)}). Download them on a machine with a network "
            f"(hf download {where.repository} --repo-type dataset --local-dir DIR), copy them to this machine and give DIR"
        ) from error
    files = [file.rfilename for file in info.siblings or []]
    with suppress(OSError):
        kept.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"commit": info.sha, "files": files}), encoding="utf-8")
    return files, replace(where, revision=info.sha or where.revision, file="")


def in_cache(where: HubFile) -> Path | None:
    """Return the file if it was downloaded before, else None."""
    found = _look(where)
    return Path(found) if isinstance(found, str) else None


def is_known_missing(where: HubFile) -> bool:
    """Return whether the hub's cache records that the hub does not have the file."""
    return _look(where) is _CACHED_NO_EXIST


def _look(where: HubFile) -> object:
    return try_to_load_from_cache(where.repository, where.file, repo_type=where.kind, revision=where.revision)


def at_commit(where: HubFile, path: Path) -> HubFile:
    """Return the same file at the commit that was downloaded, which is the name of huggingface-hub's folder of it."""
    commit = path.parents[len(PurePosixPath(where.file).parts) - 1].name
    return replace(where, revision=commit) if re.fullmatch(r"[0-9a-f]{40}", commit) else where


def reason(error: BaseException | None, where: HubFile) -> str:
    """Return why a file can't be downloaded, in one line."""
    if isinstance(error, huggingface_hub.errors.GatedRepoError):
        return f"{where.repository} requires consent first: give it on its page, then log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return f"the hub has no repository {where.repository}, or it is private and this machine is not logged in"
    if isinstance(error, RevisionNotFoundError):
        return f"{where.repository} has no revision {where.revision!r}"
    return first_line(error)
