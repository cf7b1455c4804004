"""The one walk through folders of images, for training, evaluation and prediction. It skips and counts the files of operating systems."""

import fnmatch
import glob
import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from convnext.data.formats import arrays
from convnext.data.images import ENDINGS
from convnext.errors import ConvnextError
from convnext.text import counted, printable

# Files and folders that operating systems create, in lower case; those whose names begin with a dot are clutter too.
_CLUTTER = {
    "__macosx": "macOS", "icon\r": "macOS", "network trash folder": "macOS", "temporary items": "macOS",
    "@eadir": "Synology", "@tmp": "Synology", "#recycle": "Synology", "#snapshot": "Synology", "@sharebin": "Synology",
    "@recycle": "QNAP", "@recently-snapshot": "QNAP", "@__thumb": "QNAP",
    "$recycle.bin": "Windows", "system volume information": "Windows", "thumbs.db": "Windows", "ehthumbs.db": "Windows",
    "ehthumbs_vista.db": "Windows", "desktop.ini": "Windows", "found.000": "Windows",
    "lost+found": "Linux", "lost.dir": "Android", "picasa.ini": "Picasa", "__pycache__": "Python",
}  # fmt: skip


def is_clutter(name: str) -> bool:
    """Return whether a file or folder of that name is hidden or an operating system's: neither a class nor an image."""
    return name.startswith(".") or name.casefold() in _CLUTTER


@dataclass
class Walk:
    """The content of a folder. Paths are relative to it, in the file system's spelling."""

    images: list[str] = field(default_factory=list)  # files with an image's ending; a folder's own, sorted, before those of its folders
    others: list[str] = field(default_factory=list)  # files with other endings
    skipped: Counter[str] = field(default_factory=Counter)  # the number of files and folders of each kind of clutter
    loops: list[str] = field(default_factory=list)  # links to a folder above, which are not followed
    twice: list[str] = field(default_factory=list)  # folders that links reach a second time

    def remarks(self) -> list[str]:
        """Return what to report to the user, one remark per line: counts, and an example of each."""
        found = []
        if self.skipped:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.skipped.items()))
            found.append(f"skipped files of operating systems: {kinds}")
        if self.loops:
            found.append(f"skipped {counted(len(self.loops), 'link')} to a folder above, the first {printable(self.loops[0])}")
        if self.twice:
            folders = f"links reach {counted(len(self.twice), 'folder')} a second time"
            found.append(f"{folders}, the first {printable(self.twice[0])}: the images there count twice")
        return found


def walk(root: str | Path, endings: Collection[str] = ENDINGS) -> Walk:
    """Return every image below a folder. The walk follows links, but never in a circle, and skips clutter.

    Args:
        root: the folder.
        endings: endings of an image's name, in lower case, with the dot. By default also those of NumPy's files, where there are no
            other images.

    Raises ConvnextError if a folder can't be listed.
    """
    found = Walk()
    for folder, files in _folders(os.fspath(root), "", (os.path.realpath(root),), found, set()):
        for entry in files:
            is_image = os.path.splitext(entry.name)[1].lower() in endings and (entry.is_file() or entry.is_symlink())
            (found.images if is_image else found.others).append(os.path.join(folder, entry.name))  # others: pipes too, which would hang
    if not found.images and endings is ENDINGS:
        # Beside images, NumPy files hold what was computed from them; alone they are the images.
        found.images = [path for path in found.others if path.lower().endswith(arrays.ENDINGS)]
        found.others = [path for path in found.others if not path.lower().endswith(arrays.ENDINGS)]
    return found


_Files = list[os.DirEntry[str]]


def _folders(root: str, below: str, chain: tuple[str, ...], found: Walk, seen: set[str]) -> Iterator[tuple[str, _Files]]:
    """Yield `below` and all folders in it, each as its path below `root` with its files. `chain` has the real paths of its parents."""
    if chain[-1] in seen:
        found.twice.append(below)
    seen.add(chain[-1])
    files: _Files = []
    folders: _Files = []
    for entry in entries(os.path.join(root, below) if below else root):
        if is_clutter(entry.name):
            found.skipped[_kind(entry.name)] += 1
        else:
            (folders if entry.is_dir() else files).append(entry)
    yield below, files
    for entry in folders:
        path, is_link = os.path.join(below, entry.name), entry.is_symlink()
        real = os.path.realpath(entry.path) if is_link else os.path.join(chain[-1], entry.name)
        if is_link and any(_contains(real, folder) for folder in chain):
            found.loops.append(path)
        else:
            yield from _folders(root, path, (*chain, real), found, seen)


def folders_in(root: str | Path) -> list[str]:
    """Return the names of the folders in a folder, links too, sorted, without clutter. Raises ConvnextError if it can't be listed."""
    return [entry.name for entry in entries(root) if entry.is_dir() and not is_clutter(entry.name)]


def matching(pattern: str) -> list[str]:
    """Return the paths that a shell pattern matches, sorted. `**` matches any folders. Links are followed as `walk` follows them.

    The pattern matches clutter only if it names it in full, or begins with a dot as the clutter's name does.
    """
    drive, rest = os.path.splitdrive(pattern.replace("/", os.sep))  # a drive of Windows, which takes both separators
    anchor = drive + (os.sep if rest.startswith(os.sep) else "")
    return sorted(set(_matching(anchor, [part for part in rest.split(os.sep) if part])))


def _matching(folder: str, parts: list[str]) -> Iterator[str]:
    if not parts:
        yield folder
        return
    part, *rest = parts
    if part == "**":
        if os.path.isdir(folder or "."):
            for below, _ in _folders(folder, "", (os.path.realpath(folder),), Walk(), set()):
                yield from _matching(os.path.join(folder, below) if below else folder, rest or ["*"])
    elif not glob.has_magic(part):
        if os.path.lexists(path := os.path.join(folder, part)):
            yield from _matching(path, rest)
    elif os.path.isdir(folder or "."):
        for entry in entries(folder):
            is_wanted = not is_clutter(entry.name) or (part.startswith(".") and entry.name.startswith("."))
            if is_wanted and fnmatch.fnmatchcase(entry.name, part):
                yield from _matching(os.path.join(folder, entry.name), rest)


def entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, sorted by name. Raises ConvnextError, naming the folder, if it can't be listed."""
    try:
        with os.scandir(folder or ".") as listed:
            return sorted(listed, key=lambda entry: entry.name)
    except OSError as error:
        raise ConvnextError(f"folder {folder} can't be read: {error.strerror}") from error


def _contains(folder: str, path: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))


def _kind(name: str) -> str:
    if (maker := _CLUTTER.get(name.casefold())) is not None:
        return f"{printable(name)} ({maker})"
    if name.startswith("._"):
        return "._* (macOS)"
    return f"{name} (Jupyter)" if name == ".ipynb_checkpoints" else "hidden (.*)"
