"""The run folder: everything that a run leaves behind, and how it is begun and taken up again."""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from convnext.data.download import without_secrets
from convnext.errors import ConvnextError, UsageError, first_line
from convnext.models.weights.files import read_restricted, remove_temporaries, unwritable, write_atomically
from convnext.recipe import Recipe, load_recipe
from convnext.report.compare import read_lines
from convnext.training.lock import HOLDER, LOCK, locked
from convnext.training.watch import ID_FILE

_KEYS = {"model", "optimizer", "step", "logged"}  # that every state has
# Keys of a recipe on which no result depends: a resumed run takes their new values without being asked.
_FREE = {"data.workers", "train.log_every", "train.checkpoint_every", "train.keep_checkpoints"}


class RunFolder:
    """A folder with recipe.yaml, environment.json, metrics.jsonl, checkpoints/, weights and a report.

    A run that is replaced is moved aside into `.replaced`, its recipe last, and comes back unless the new one saves a state: where
    `.replaced` has a recipe, the whole old run is in it, and what lies outside is the new one's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe, self.environment, self.metrics = path / "recipe.yaml", path / "environment.json", path / "metrics.jsonl"
        self.evaluation, self.report = path / "evaluation.json", path / "report.html"
        self.best, self.last, self.checkpoints = path / "best.safetensors", path / "last.safetensors", path / "checkpoints"
        self._replaced, self._discarded = path / ".replaced", path / ".discarded"
        self.source: str | None = None  # the address of the weights that the run starts from, by the hub's commit

    @contextmanager
    def held(self, tell: Callable[[str], None]) -> Iterator[None]:
        """Within, this process alone trains here. A replaced run is back when that fails, and when an earlier process was killed."""
        with locked(self.path, tell):
            self._tidy(tell)
            try:
                yield
            except BaseException:
                self._put_back(tell)
                raise

    def prepare(self, resume: bool, overwrite: bool) -> bool:
        """Whether there is a run to resume; otherwise `begin` can make one. Writes nothing.

        Raises UsageError if the folder can't be taken: it holds a run and nothing says what to do with it, or something else.
        """
        if self._is_blank():
            return False
        if not self.recipe.exists():
            raise UsageError(f"{self.path} is not empty and holds no run: choose another folder for --output")
        if resume and not (overwrite and self._recipe_is_damaged()):
            return True
        if not overwrite:
            raise UsageError(f"{self.path} already holds a run: add --resume to go on with it or --overwrite to replace it")
        return False

    def begin(self, recipe: Recipe, device: torch.device) -> None:
        """Make the folder for a new run; what was there is moved aside until the new one has saved its first state."""
        try:
            if not self._is_blank():
                self._set_aside()
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._write_recipe(recipe)
            ran_on = json.dumps(environment(device) | {"weights": self.source}, indent=2) + "\n"
            write_atomically(self.environment, lambda file: file.write_text(ran_on, encoding="utf-8"))
        except OSError as error:
            raise ConvnextError(f"could not write the run folder {self.path}: {error}") from error

    def holds_a_run(self) -> bool:
        """Whether a run was begun here and came to its first step."""
        return self.recipe.exists() and not self._is_blank()

    def check_same(self, recipe: Recipe, change: bool) -> dict[str, tuple[Any, Any]]:
        """What differs between the folder's recipe and this one: the values before and now, by key.

        Raises UsageError if that can change results, unless `change` is said. Writes nothing: see `continue_with`.
        """
        try:
            found = load_recipe(str(self.recipe))
        except (ConvnextError, ValueError) as error:
            if change:
                return {}
            raise UsageError(
                f"{self.recipe} is empty or damaged ({first_line(error)}): add --change to resume with the recipe given here, "
                "or --overwrite to begin anew"
            ) from error
        before, now = _flat(found.model_dump(mode="json")), _flat(recipe.model_dump(mode="json"))
        changed = {key: (before[key], now[key]) for key in before if before[key] != now[key]}
        told = [f"{key} was {old}, now {new}" for key, (old, new) in changed.items() if key not in _FREE]
        if told and not change:
            raise UsageError(
                f"{self.path} was begun with another recipe: {'; '.join(told)}; add --change to go on with the new one all the same"
            )
        return changed

    def continue_with(self, recipe: Recipe | None, size: int) -> None:
        """Cut metrics.jsonl back to its first `size` bytes, which is what the resumed state knows of, and take a changed recipe."""
        self.forget_after(size)
        if recipe is not None:
            self._write_recipe(recipe)

    def _write_recipe(self, recipe: Recipe) -> None:
        write_atomically(self.recipe, lambda file: file.write_text(recipe.to_yaml(), encoding="utf-8"))

    def log(self, line: dict[str, Any]) -> int:
        """Append one line to metrics.jsonl; returns its size in bytes. Raises ConvnextError if it can't be written."""
        try:
            with self.metrics.open("ab") as file:
                file.write(json.dumps(line).encode() + b"\n")
                file.flush()
                return file.tell()
        except OSError as error:
            raise unwritable(self.metrics, error) from error

    def lines(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, but for a last one that is cut short: the run was stopped while it wrote."""
        return read_lines(self.metrics)[0] if self.metrics.exists() else []

    def forget_after(self, size: int) -> None:
        """Cut metrics.jsonl back to its first `size` bytes: what a resumed run will do again is logged again."""
        if self.metrics.exists() and self.metrics.stat().st_size > size:
            os.truncate(self.metrics, size)

    def save_state(self, state: dict[str, Any], step: int, keep: int) -> Path:
        """Write a whole training state, at once or not at all, and remove all but the last `keep`."""
        path = self.checkpoints / f"step-{step:08d}.pt"
        write_atomically(path, lambda file: torch.save(state, file))
        for old in self._states()[:-keep]:
            old.unlink()
        if self._replaced.exists():  # the new run is known to work
            self._replaced.rename(self._discarded)
            shutil.rmtree(self._discarded, ignore_errors=True)
        return path

    def find_state(self, tell: Callable[[str], None]) -> Path | None:
        """The newest whole state, None if there is none yet; damaged ones and foreign files are told through `tell` and passed over."""
        for path in reversed(self._states()):
            try:
                if read_restricted(path).keys() >= _KEYS:
                    return path
                tell(f"{path} is no checkpoint of a run; the checkpoint before it is taken")
            except ConvnextError as error:
                tell(f"{error}; the checkpoint before it is taken")
        return None

    def last_state(self) -> Path | None:
        """The newest checkpoint's path."""
        states = self._states()
        return states[-1] if states else None

    def _states(self) -> list[Path]:
        return sorted(self.checkpoints.glob("step-*.pt"))

    def _own(self) -> list[Path]:
        """Everything that a run may leave here, its recipe last."""
        more = [self.path / ID_FILE, self.path / "tensorboard", self.environment]
        return [self.metrics, self.evaluation, self.report, self.best, self.last, self.checkpoints, *more, self.recipe]

    def _is_blank(self) -> bool:
        """Whether nothing was trained here: no folder, an empty one, or what a start leaves that ended before its first step."""
        names = {item.name for item in self.path.iterdir()} if self.path.is_dir() else set()
        begun = self.checkpoints.is_dir()  # which a start makes first
        if any(path.exists() for path in (self.best, self.last, self.evaluation, self.report)) or (
            begun and any(self.checkpoints.iterdir())
        ):
            return False
        if self.metrics.exists() and self.metrics.stat().st_size:
            return False
        if self.recipe.name in names:
            return self._recipe_is_dumped() or (begun and self._recipe_is_damaged())
        started = {self.checkpoints.name, self.environment.name} if begun else set()
        return names <= started | {LOCK, HOLDER}

    def _recipe_is_dumped(self) -> bool:
        """Whether recipe.yaml is what a start wrote: a person's own, with comments, is not to be written over."""
        text = self.recipe.read_bytes()
        return not text or (not self._recipe_is_damaged() and load_recipe(str(self.recipe)).to_yaml().encode() == text)

    def _recipe_is_damaged(self) -> bool:
        try:
            load_recipe(str(self.recipe))
        except (ConvnextError, ValueError):
            return True
        return False

    def _tidy(self, tell: Callable[[str], None]) -> None:
        """Remove and restore what a killed process left."""
        shutil.rmtree(self._discarded, ignore_errors=True)
        self._put_back(tell)
        remove_temporaries(self.checkpoints, "step-*.pt")
        for path in self._own():
            remove_temporaries(self.path, path.name)

    def _set_aside(self) -> None:
        self._replaced.mkdir()
        for path in self._own():
            if path.exists():
                path.rename(self._replaced / path.name)

    def _put_back(self, tell: Callable[[str], None]) -> None:
        if not self._replaced.exists():
            return
        recipe = self._replaced / self.recipe.name
        if recipe.exists():
            self._clear()
            recipe.rename(self.recipe)
        for path in self._replaced.iterdir():
            path.rename(self.path / path.name)
        self._replaced.rmdir()
        tell(f"the run that was to be replaced is back in {self.path}: the new one had saved nothing yet")

    def _clear(self) -> None:
        for path in self._own():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def refuse_within_data(output: Path, recipe: Recipe) -> None:
    """Raise UsageError if a folder for runs would lie inside the data, where its files would be taken for images and classes."""
    place = output.resolve()
    for key, where in (("data.train", recipe.data.train), ("data.val", recipe.data.val)):
        folder = _data_folder(where) if where is not None else None
        if folder is None or not folder.is_dir():
            continue
        inside = [folder, *(item for item in folder.iterdir() if item.is_symlink() and item.is_dir())]
        if any(place.is_relative_to(item.resolve()) for item in inside):
            raise UsageError(f"--output {output} lies inside the data ({key}={where}): choose a folder outside it")


def _data_folder(where: str) -> Path | None:
    """The folder that a text of `data.train` names, None where it names none."""
    kind, _, rest = where.partition(":")
    if kind in ("digits", "scenes"):
        return None
    if kind == "coco":
        rest = rest.rpartition(":")[2]
    elif kind in ("cifar10", "cifar100", "ade20k"):
        rest = rest.rpartition(":")[0]
    else:
        rest = where if Path(where).expanduser().is_dir() else kind  # FOLDER:train has masks
    return Path(rest).expanduser() if rest else None


def environment(device: torch.device) -> dict[str, Any]:
    """What a run ran on: versions, hardware, command line and commit."""
    versions = {"convnext": version("convnext"), "python": platform.python_version(), "torch": torch.__version__}
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    memory = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    hardware: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    hardware |= {"memory_gib": memory, "gpu": gpu, "device": str(device), "threads": torch.get_num_threads()}
    command = without_secrets(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))
    found = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions, "hardware": hardware}
    return found | {"system": platform.platform(), "command": command, "commit": _commit()}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str | None:
    # Of this package where it runs from a checkout; an installed one is told by its version.
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        tracked = subprocess.run([*command[:3], "ls-files", "--error-unmatch", __file__], capture_output=True, check=False)
        if tracked.returncode:
            return None
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
