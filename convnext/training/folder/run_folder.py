"""The run folder: everything that a run leaves behind, and how it begins and resumes."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

import torch

from convnext.errors import ConvnextError, UsageError, first_line
from convnext.models.weights.files import read_restricted, remove_temporaries, unwritable, write_atomically, write_text
from convnext.recipe import Recipe, load_recipe
from convnext.recipe.measured import to_measure, with_measured
from convnext.report.lines import read_lines
from convnext.tasks.base import Json
from convnext.training.folder.environment import environment
from convnext.training.folder.lock import locked
from convnext.training.folder.run_paths import RunPaths

Report = Callable[[str], None]  # takes a line for the user
Changed = Mapping[str, tuple[object, object]]  # key of the recipe: the value before, and now

_KEYS = {"model", "optimizer", "step", "logged"}  # that every state has
# Keys of a recipe on which no result depends but at which step a run stops: a resumed run takes their new values without being asked.
_OF_TRAIN = ("log_every", "checkpoint_every", "keep_checkpoints", "patience", "max_hours", "callbacks")
_FREE = {"imports", "data.workers", *(f"train.{key}" for key in _OF_TRAIN)}


class RunFolder(RunPaths):
    """A run folder to write to; see `RunPaths` for what lies in it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.source: str | None = None  # the address of the weights that the run starts from, by the hub's commit

    @contextmanager
    def held(self, report: Report) -> Iterator[None]:
        """Within, this process alone trains here. What a killed process left is removed or restored first.

        If the work within fails before the new run has saved a state, the replaced run is back.
        """
        with locked(self.path, report):
            self._tidy(report)
            try:
                yield
            except BaseException:
                self._put_back(report)
                raise

    def begin(self, recipe: Recipe, device: torch.device) -> None:
        """Make the folder for a new run; a run that was there is moved aside until the new one has saved its first state."""
        try:
            if not self.is_blank():
                self._set_aside()
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._write_recipe(recipe)
            ran_on = json.dumps({**environment(device), "weights": self.source}, indent=2) + "\n"
            write_text(self.environment, ran_on)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def check_same(self, recipe: Recipe, change: bool) -> Changed:
        """Return what differs between the folder's recipe and this one. Writes nothing: see `continue_with`.

        Raises UsageError if the difference can change results, unless `change` allows it.
        """
        try:
            found = load_recipe(str(self.recipe), written=True)
        except (ConvnextError, ValueError) as error:
            if change:
                return {}
            raise UsageError(
                f"{self.recipe} is empty or damaged ({first_line(error)}): add --change to resume with the recipe given here, "
                "or --overwrite to start again"
            ) from error
        changed = _changed(found, recipe)
        if (differences := _said(changed)) and not change:
            raise UsageError(
                f"{self.path} was begun with another recipe: {'; '.join(differences)}; add --change to continue with the new one"
            )
        return changed

    def differences(self, recipe: Recipe) -> list[str]:
        """Return what differs between the folder's recipe and this one, and can change results: one text per key.

        Raises ConvnextError or ValueError if the folder's recipe is damaged.
        """
        return _said(_changed(load_recipe(str(self.recipe), written=True), recipe))

    def with_measured(self, recipe: Recipe) -> Recipe:
        """Return the recipe with what the run measured in place of `auto`."""
        if not to_measure(recipe):
            return recipe
        with suppress(ConvnextError, ValueError):  # a damaged file: see `check_same`
            return with_measured(recipe, load_recipe(str(self.recipe)))
        return recipe

    def continue_with(self, recipe: Recipe | None, size: int) -> None:
        """Cut metrics.jsonl back to the `size` bytes that the resumed state knows of, and write a changed recipe."""
        self.forget_after(size)
        if recipe is not None:
            self._write_recipe(recipe)

    def _write_recipe(self, recipe: Recipe) -> None:
        write_text(self.recipe, recipe.to_yaml())

    def log(self, line: Json) -> int:
        """Append one line to metrics.jsonl; return the file's size in bytes. Raises ConvnextError if it can't be written."""
        try:
            with self.metrics.open("ab") as file:
                file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
                file.flush()
                return file.tell()
        except OSError as error:
            raise unwritable(self.metrics, error) from error

    def lines(self) -> list[Json]:
        """Return the lines of metrics.jsonl, without a last one that is cut short because the run was killed while it wrote."""
        return read_lines(self.metrics)[0] if self.metrics.exists() else []

    def evaluation_at_the_end_of(self, recipe: Recipe) -> Json | None:
        """Return the line of the evaluation with which a run by that recipe ends, None if it has not come to it."""
        evaluations = [line for line in self.lines() if line["kind"] == "eval"]
        if not evaluations:
            return None
        steps = recipe.train.steps()
        key, end = ("epoch", recipe.train.epochs) if steps is None else ("step", steps)
        return evaluations[-1] if cast(int, evaluations[-1][key]) >= end else None

    def forget_after(self, size: int) -> None:
        """Cut metrics.jsonl back to its first `size` bytes: what a resumed run does again is logged again."""
        if self.metrics.exists() and self.metrics.stat().st_size > size:
            os.truncate(self.metrics, size)

    def save_state(self, state: Mapping[str, object], step: int, keep: int) -> Path:
        """Write a whole training state, at once or not at all, and remove all but the last `keep`."""
        path = self.checkpoints / f"step-{step:08d}.pt"
        write_atomically(path, lambda file: torch.save(state, file))
        for old in self.states()[:-keep]:
            old.unlink()
        if self._replaced.exists():  # the new run is known to work
            self._replaced.rename(self._discarded)
            shutil.rmtree(self._discarded, ignore_errors=True)
        return path

    def find_state(self, report: Report) -> Path | None:
        """Return the newest intact state, None if there is none yet; damaged ones and foreign files are reported and skipped."""
        for path in reversed(self.states()):
            try:
                found = read_restricted(path)
                if isinstance(found, dict) and found.keys() >= _KEYS:
                    return path
                report(f"{path} is not a checkpoint of a run; the checkpoint before it is used")
            except ConvnextError as error:
                report(f"{error}; the checkpoint before it is used")
        return None

    def _tidy(self, report: Report) -> None:
        """Remove and restore what a killed process left."""
        shutil.rmtree(self._discarded, ignore_errors=True)
        self._put_back(report)
        remove_temporaries(self.checkpoints, "step-*.pt")
        for path in self._own():
            remove_temporaries(self.path, path.name)

    def _set_aside(self) -> None:
        self._replaced.mkdir()
        for path in self._own():
            if path.exists():
                path.rename(self._replaced / path.name)

    def _put_back(self, report: Report) -> None:
        if not self._replaced.exists():
            return
        recipe = self._replaced / self.recipe.name
        if recipe.exists():
            self._clear()
            recipe.rename(self.recipe)
        for path in self._replaced.iterdir():
            path.rename(self.path / path.name)
        self._replaced.rmdir()
        report(f"the run that was to be replaced is back in {self.path}: the new one had saved nothing yet")

    def _clear(self) -> None:
        for path in self._own():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _changed(before: Recipe, now: Recipe) -> Changed:
    """Return the keys whose values differ, those of the folder's recipe first."""
    old, new = _flat(before.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    keys = [*old, *(key for key in new if key not in old)]
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def _said(changed: Changed) -> list[str]:
    """Return a text for each change that can change results."""
    return [f"{key} was {old}, now {new}" for key, (old, new) in changed.items() if key not in _FREE]


def _flat(values: Mapping[str, object], prefix: str = "") -> Json:
    flat: Json = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
