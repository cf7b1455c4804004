"""Outputs in storage: made on this machine, where a stopped call resumes, and uploaded when all images are predicted."""

import os
import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from convnext.data.storage.connection import is_stored
from convnext.data.storage.objects import StoredObject, find, local, place
from convnext.data.storage.upload import upload
from convnext.errors import UsageError
from convnext.inference.answers import Answer
from convnext.models.weights.files import write_text

_OF_ONE_FILE = (None, "jsonl", "csv", "coco", "coco-dataset", "cvat")  # values of `kind`
_SHORTENED = re.compile(r"[a-z][a-z0-9+.-]+:/(?!/)")
_UNKNOWN = "unknown"  # version of the object while it is uploaded


class Upload:
    """Uploads a file that another output makes, when that is complete. It holds no answers itself.

    Args:
        path: the file on this machine, from `staged`.
        address: of the object to write.
        overwrite: whether to replace an object that this machine did not write.

    Raises UsageError if there is such an object.
    """

    needs = frozenset[str]()
    done = None

    def __init__(self, path: Path, address: str, overwrite: bool) -> None:
        self.path, self.address, self.overwrite = path, address, overwrite
        self._version = path.with_name(f".{path.name}.uploaded")  # holds that of the object that was written last
        self._refuse(find(address))

    def _refuse(self, found: StoredObject | None) -> None:
        written = self._version.read_text(encoding="utf-8") if self._version.exists() else None
        if found is not None and not self.overwrite and written not in (found.version, _UNKNOWN):
            raise UsageError(f"{self.address} exists already, and this machine did not write it: choose another name, or add --overwrite")

    def write(self, answers: Sequence[Answer]) -> None:
        """Do nothing: the other output writes them."""

    def finish(self) -> None:
        """Upload the file. Raises StorageError if that fails; the next call tries again."""
        self._refuse(find(self.address))
        write_text(self._version, _UNKNOWN)
        write_text(self._version, upload(self.path, self.address).version)


def local_file(source: str | PathLike[str]) -> Path:
    """Return the path on this machine of a file that is read, downloaded if it is in storage. Raises as `objects.local`."""
    return local(str(source)) if is_stored(str(source)) else Path(source)


def staged(output: str | PathLike[str] | None, option: str, kind: str | None = None) -> Path | None:
    """Return the path on this machine of an output: that in the cache where an output in storage is made.

    Outputs of one folder in storage are made in one folder, so that they can share lines of answers as elsewhere.

    Raises UsageError for an address of a format that has several files.
    """
    if output is None:
        return None
    if not isinstance(output, str) or not is_stored(output):
        if _SHORTENED.match(os.fspath(output)):
            raise UsageError(f"{output} has one slash behind its scheme, as pathlib makes of an address: give the address as text")
        return Path(output)
    folder, _, name = output.rpartition("/")
    if not Path(name).suffix or kind not in _OF_ONE_FILE or option == "draw":
        raise UsageError(f"--{option} {output}: only formats of one file are written to storage: write to a folder here, and copy that")
    return place("outputs", folder, name)
