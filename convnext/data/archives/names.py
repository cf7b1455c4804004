"""The names of archives, as `photos.zip` or `photos.zip/train`. Loads no PyTorch."""

import re
from pathlib import Path

_ENDING = re.compile(r"\.(zip|tar|tgz|tbz2?|txz|tar\.(gz|bz2|xz))$", re.IGNORECASE)
_DEEPEST = 8  # folders within an archive that a name may have


def archive_in(where: str) -> tuple[Path, str] | None:
    """Return the file of an archive and the folder within it, "" for the whole, that a name means; None if there is no such file."""
    path = Path(where).expanduser()
    for archive in (path, *list(path.parents)[:_DEEPEST]):
        if _ENDING.search(archive.name):
            return (archive, path.relative_to(archive).as_posix().removeprefix(".")) if archive.is_file() else None
    return None


def is_archive_name(where: str) -> bool:
    """Return whether a name is that of an archive, which may not be there."""
    return _ENDING.search(where) is not None


def is_zip_name(where: str) -> bool:
    """Return whether a name is that of a zip file, which may not be there."""
    return where.lower().endswith(".zip")
