"""Where a run's files lie, and whether a folder can take a run. Imports no PyTorch, so that a refusal takes no time."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from convnext.data.archives.names import archive_in, is_archive_name
from convnext.errors import ConvnextError, UsageError
from convnext.extend import SOURCES, is_marker, module_of
from convnext.recipe import Recipe, load_recipe
from convnext.recipe.load import FITTED
from convnext.training.given import refuse_markers

LOCK, HOLDER = ".lock", ".lock-holder"
ID_FILE = "watch-id"  # the run's id for watchers


class RunPaths:
    """The paths of recipe.yaml, environment.json, metrics.jsonl, checkpoints/, weights and report, and what is there.

    A run that is replaced is moved aside into `.replaced`, its recipe last, and comes back unless the new one saves a state: where
    `.replaced` has a recipe, the whole old run is in it, and the files outside are the new one's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe, self.environment, self.metrics = path / "recipe.yaml", path / "environment.json", path / "metrics.jsonl"
        self.evaluation, self.report = path / "evaluation.json", path / "report.html"
        self.best, self.last, self.checkpoints = path / "best.safetensors", path / "last.safetensors", path / "checkpoints"
        self.fitted, self.features = path / FITTED, path / "features"
        self._replaced, self._discarded = path / ".replaced", path / ".discarded"

    def prepare(self, resume: bool, overwrite: bool) -> bool:
        """Return whether there is a run to resume; otherwise a new one can begin. Writes nothing.

        Raises UsageError if the folder can't be used: it holds a run and nothing says what to do with it, or other files.
        """
        if self.is_blank():
            return False
        if not self.recipe.exists():
            raise UsageError(f"{self.path} is not empty and holds no run: choose another folder for --output")
        if resume and not (overwrite and self._recipe_is_damaged()):
            return True
        if not overwrite:
            raise UsageError(f"{self.path} already holds a run: add --resume to continue it or --overwrite to replace it")
        return False

    def is_being_replaced(self) -> bool:
        """Return whether a process was killed while it replaced a run, which the next one that trains here repairs."""
        return self._replaced.exists() or self._discarded.exists()

    def holds_a_run(self) -> bool:
        """Return whether a run was begun here and came to its first step."""
        return self.recipe.exists() and not self.is_blank()

    def states(self) -> list[Path]:
        """Return the checkpoints, oldest first."""
        return sorted(self.checkpoints.glob("step-*.pt"))

    def last_state(self) -> Path | None:
        """Return the newest checkpoint."""
        states = self.states()
        return states[-1] if states else None

    def is_blank(self) -> bool:
        """Return whether nothing was trained here: no folder, an empty one, or the files of a start that ended before its first step."""
        names = {item.name for item in self.path.iterdir()} if self.path.is_dir() else set()
        begun = self.checkpoints.is_dir()  # which a start makes first
        if any(path.exists() for path in (self.best, self.last, self.evaluation, self.report)) or (
            begun and any(self.checkpoints.iterdir())
        ):
            return False
        if self.metrics.exists() and self.metrics.stat().st_size:
            return False
        if self.recipe.name in names:
            return self._recipe_was_written_by_a_start() or (begun and self._recipe_is_damaged())
        started = {self.checkpoints.name, self.environment.name} if begun else set()
        return names <= started | {LOCK, HOLDER}

    def _own(self) -> list[Path]:
        """Return every path that a run may leave here, its recipe last."""
        more = [self.path / ID_FILE, self.path / "tensorboard", self.fitted, self.features, self.environment]
        return [self.metrics, self.evaluation, self.report, self.best, self.last, self.checkpoints, *more, self.recipe]

    def _recipe_was_written_by_a_start(self) -> bool:
        """Return whether recipe.yaml is what a start wrote: a person's own, with comments, must not be overwritten."""
        text = self.recipe.read_bytes()
        return not text or (not self._recipe_is_damaged() and load_recipe(str(self.recipe), written=True).to_yaml().encode() == text)

    def _recipe_is_damaged(self) -> bool:
        try:
            load_recipe(str(self.recipe), written=True)
        except (ConvnextError, ValueError):
            return True
        return False


def refuse_within_data(output: Path, recipe: Recipe) -> None:
    """Raise UsageError if a run folder would lie inside the data, where its files would be taken for images and classes."""
    path = output.resolve()
    for key, where, folder in data_folders(recipe):
        if not folder.is_dir():
            continue
        inside = [folder, *(item for item in folder.iterdir() if item.is_symlink() and item.is_dir())]
        if any(path.is_relative_to(item.resolve()) for item in inside):
            raise UsageError(f"--output {output} lies inside the data ({key}={where}): choose a folder outside it")


def data_folders(recipe: Recipe) -> Iterator[tuple[str, str, Path]]:
    """Yield each key of the recipe that names a folder of data, with its value and the folder."""
    for key, where in (("data.train", recipe.data.train), ("data.val", recipe.data.val)):
        if where is not None and (folder := _data_folder(where)) is not None:
            yield key, where, folder


def _data_folder(where: str) -> Path | None:
    """Return the folder in a value of `data.train`, None if it names none."""
    kind, _, rest = where.partition(":")
    if kind in ("digits", "scenes") or is_marker(where) or module_of(where) is not None or kind in SOURCES.entries:
        return None
    if kind == "coco":
        rest = rest.rpartition(":")[2]
    elif kind in ("cifar10", "cifar100", "ade20k"):
        rest = rest.rpartition(":")[0]
    else:
        rest = where if Path(where).expanduser().is_dir() else kind  # FOLDER:train has masks
    return Path(rest).expanduser() if rest else None


def check_start(
    recipe: str, overrides: Sequence[str], *, output: Path, resume: bool = False, overwrite: bool = False, device: str | None = None
) -> None:
    """Raise UsageError for an unknown recipe, key, value, model or device, for missing data, and for an output folder in use.

    Under torchrun it does nothing: there one process checks for all.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return
    settings = load_recipe(recipe, overrides)
    refuse_markers(settings)
    check_device(device)
    check_data(settings)
    refuse_within_data(output, settings)
    paths = RunPaths(output)
    if not paths.is_being_replaced():
        paths.prepare(resume, overwrite)


def check_device(device: str | None) -> None:
    """Raise UsageError for a text that names no kind of device. Whether this machine has the device, only PyTorch knows."""
    if device is not None and not re.fullmatch(r"(cpu|cuda|mps|xpu)(:\d+)?", device):
        raise UsageError(f"unknown device {device!r}; known: cpu, cuda, cuda:1 and the like, mps")


def is_missing(where: str) -> bool:
    """Return whether a value of `data.train` is plainly the name of a folder or table that does not exist."""
    return not re.search(r"[*?{\[:]|\.tar$", where) and not Path(where).expanduser().exists() and archive_in(where) is None


def missing_data(where: str, folder: str | Path) -> str:
    """Return what is wrong with the name of data that are missing, and what may be given."""
    if re.search(r"\.(csv|tsv|parquet)$", where, re.IGNORECASE):
        return f"no table {folder}; give a file whose columns name the images and their labels"
    if is_archive_name(where):
        return f"no archive {folder}; give a zip or tar of one folder of images per class"
    return f"no folder {folder}; give a folder with one folder of images per class, or digits:train"


def check_data(recipe: Recipe) -> None:
    """Raise UsageError if a folder of data is missing."""
    for key, where, folder in data_folders(recipe):
        if is_missing(where):
            raise UsageError(f"{key}={where}: {missing_data(where, folder)}")
