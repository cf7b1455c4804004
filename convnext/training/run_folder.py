"""The run folder: everything that a run leaves behind, and how it is begun and taken up again."""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from convnext import distributed
from convnext.checkpoints.files import read_restricted, write_atomically
from convnext.errors import ConvnextError, UsageError
from convnext.recipe import Recipe, load_recipe
from convnext.training.watch import ID_FILE

_KEYS = {"model", "optimizer", "step", "logged"}  # that every state has


class RunFolder:
    """A folder with recipe.yaml, environment.json, metrics.jsonl, checkpoints/, weights and a report."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe, self.environment, self.metrics = path / "recipe.yaml", path / "environment.json", path / "metrics.jsonl"
        self.evaluation, self.report = path / "evaluation.json", path / "report.html"
        self.best, self.last, self.checkpoints = path / "best.safetensors", path / "last.safetensors", path / "checkpoints"

    def begin(self, recipe: Recipe, device: torch.device, overwrite: bool) -> None:
        """Make the folder. Raises UsageError if it already holds a run and `overwrite` is not said."""
        if self.recipe.exists():
            if not overwrite:
                raise UsageError(f"{self.path} already holds a run: add --resume to go on with it or --overwrite to replace it")
            self._clear()
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise UsageError(f"{self.path} is not empty and holds no run: choose another folder for --output")
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self.environment.write_text(json.dumps(environment(device), indent=2) + "\n")
            self.recipe.write_text(recipe.to_yaml())
        except OSError as error:
            raise ConvnextError(f"could not write the run folder {self.path}: {error}") from error

    def holds_a_run(self) -> bool:
        """Whether a run was begun here."""
        return self.recipe.exists()

    def check_same(self, recipe: Recipe, change: bool) -> None:
        """Raise UsageError, saying what differs, if the folder's run was begun with another recipe; with `change`, take the new one."""
        before, now = _flat(load_recipe(str(self.recipe)).model_dump(mode="json")), _flat(recipe.model_dump(mode="json"))
        changed = [f"{key} was {before[key]}, now {now[key]}" for key in before if before[key] != now[key]]
        if changed and not change:
            raise UsageError(
                f"{self.path} was begun with another recipe: {'; '.join(changed)}; add --change to go on with the new one all the same"
            )
        if changed and distributed.is_main():
            self.recipe.write_text(recipe.to_yaml())

    def log(self, line: dict[str, Any]) -> int:
        """Append one line to metrics.jsonl; returns its size in bytes."""
        with self.metrics.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            return file.tell()

    def lines(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        if not self.metrics.exists():
            return []
        return [json.loads(line) for line in self.metrics.read_text().splitlines()]

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

    def _clear(self) -> None:
        for path in (self.recipe, self.metrics, self.evaluation, self.report, self.best, self.last, *self._states()):
            path.unlink(missing_ok=True)
        (self.path / ID_FILE).unlink(missing_ok=True)
        shutil.rmtree(self.path / "tensorboard", ignore_errors=True)


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
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    found = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions, "hardware": hardware}
    return found | {"system": platform.platform(), "command": command, "commit": _commit()}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
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
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
