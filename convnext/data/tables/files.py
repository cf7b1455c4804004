"""The files of the images that a table names: each folder is listed once, and no image is opened."""

import os
import unicodedata
from pathlib import Path

from convnext.data.images import ENDINGS
from convnext.data.walk import folders_in
from convnext.errors import ConvnextError, UsageError
from convnext.text import printable

_TRIED = 50  # images by which the folder that they are in is found


class ImageFiles:
    """Finds images below a folder by the names that a table has for them.

    A name is a path below the folder, with slashes or backslashes, or an absolute path. It may lack the ending, and have any Unicode form.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders: dict[str, tuple[dict[str, str], dict[str, list[str]]]] = {}

    def find(self, name: str) -> str | None:
        """Return the path below the folder (or the absolute one) of an image; None if it is missing.

        Raises ConvnextError if the name has no ending and several images fit it.
        """
        return self._find(name) or (self._find(name.replace("\\", "/")) if "\\" in name else None)

    def _find(self, name: str) -> str | None:
        folder, base = os.path.split(os.path.normpath(name))
        files, stems = self._listed(folder)
        base = unicodedata.normalize("NFC", base)
        if (found := files.get(base)) is not None:
            return os.path.join(folder, found)
        fitting = stems.get(base, [])
        if len(fitting) > 1:
            raise ConvnextError(f"{printable(name)} may be {' or '.join(fitting[:3])} in {self.root / folder}: name it with its ending")
        return os.path.join(folder, fitting[0]) if fitting else None

    def _listed(self, folder: str) -> tuple[dict[str, str], dict[str, list[str]]]:
        """Return the files of a folder by their names, and its images by their names without the ending."""
        if folder not in self._folders:
            try:
                found = sorted(os.listdir(self.root / folder))
            except (OSError, ValueError):  # no such folder, or a name with a null character
                found = []
            stems: dict[str, list[str]] = {}
            for name in found:
                stem, ending = os.path.splitext(name)
                if ending.lower() in ENDINGS:
                    stems.setdefault(unicodedata.normalize("NFC", stem), []).append(name)
            self._folders[folder] = {unicodedata.normalize("NFC", name): name for name in found}, stems
        return self._folders[folder]


def root_of(names: list[str], table: Path, key: str) -> Path:
    """Return the folder that the names of a table's images start from.

    It is the table's own, or else the one folder beside the table that holds images of these names: Kaggle's `train.csv` and `train/`.

    Raises UsageError, with the recipe's `key`, if several folders do, and none has the table's name.
    """
    parent, tried = table.parent, names[:: max(1, len(names) // _TRIED)]
    beside = [parent / name for name in folders_in(parent)]
    holding = [folder for folder in (parent, *beside) if _holds_any(folder, tried)]
    if not holding or holding[0] == parent or len(holding) == 1:
        return holding[0] if holding else parent
    if (named := parent / table.stem) in holding:
        return named
    raise UsageError(f"the images of {table} may be in {' or '.join(map(str, holding[:3]))}: set {key} to one of them")


def _holds_any(folder: Path, names: list[str]) -> bool:
    files = ImageFiles(folder)
    try:
        return any(map(files.find, names))
    except ConvnextError:  # several fit
        return True
