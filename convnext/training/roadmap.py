"""`convnext roadmap`: every step from ResNet to ConvNeXt trained by one recipe, and what came of it side by side.

Each (step, seed) is a run folder of its own, made by `convnext train --resume` in a process of its own: so the whole walk goes on
where it stopped, and as many runs go at a time as there are devices.
"""

import json
import os
import queue
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from convnext.backbones.roadmap import STEPS, Regime, step_names
from convnext.distributed import pick_device
from convnext.errors import ConvnextError, UsageError
from convnext.metrics import published
from convnext.models import cost_of
from convnext.recipe import Recipe, load_recipe
from convnext.report import ladder
from convnext.training.run_folder import RunFolder

UNTRAINED = 0  # 'original ResNet' is the network of the next step under the recipe of 2015, which is not this one


def walk(
    overrides: Sequence[str] = (),
    *,
    output: Path,
    regime: Regime = "t",
    small: bool = False,
    steps: Sequence[int] | None = None,
    seeds: int = 3,
    devices: Sequence[str] = (),
    tell: Callable[[str], None] = print,
) -> ladder.Ladder:
    """Train the road, or some steps of it; leaves runs, `roadmap.json`, `.md`, `.png`, `.svg` and `report.html` in `output`.

    Args:
        overrides: changes to the recipe, `data.train=…` and `data.val=…` among them.
        output: the folder of all runs. Runs that are finished there are kept, others taken up.
        regime: "t" or "b".
        small: the narrow road for small pictures.
        steps: positions in `STEPS`; by default 1 to 16.
        seeds: runs a step, seeds 0, 1, ….
        devices: one run at a time on each, for instance ("cuda:0", "cuda:1"), or ("cpu", "cpu"); by default all CUDA devices.
        tell: takes a line about each run that ends.

    Raises UsageError for steps that do not exist and a recipe that differs from that of runs in `output`, ConvnextError if a run fails.
    """
    chosen = list(range(UNTRAINED + 1, len(STEPS))) if steps is None else sorted(set(steps))
    if unknown := [step for step in chosen if not UNTRAINED < step < len(STEPS)]:
        raise UsageError(f"no step {unknown[0]} to train: they are 1 ({STEPS[1].name}) to {len(STEPS) - 1} ({STEPS[-1].name})")
    name = "roadmap/small" if small else f"roadmap/regime_{regime}"
    recipes = {
        (step, seed): load_recipe(name, [*overrides, f"model.name={step_names(regime)[step]}", f"seed={seed}"])
        for seed in range(seeds)  # seed by seed, so that there is early one of every step
        for step in chosen
    }
    folders = {key: output / step_names(regime)[key[0]] / f"seed{key[1]}" for key in recipes}
    todo = [key for key, recipe in recipes.items() if _top1(folders[key], recipe) is None]
    tell(f"{len(recipes)} runs of {len(chosen)} steps, {len(recipes) - len(todo)} of them finished")

    def ended(key: tuple[int, int]) -> None:
        found = _collect(recipes, folders, regime)
        ladder.write(found, output)
        tell(f"{folders[key].relative_to(output)}: {_top1(folders[key], recipes[key]):.2f} %")

    _run_all([(key, recipes[key], folders[key]) for key in todo], list(devices) or _devices(), ended)
    found = _collect(recipes, folders, regime)
    ladder.write(found, output)
    return found


def parse_steps(text: str) -> list[int]:
    """Positions from a text such as "1,3,9-12". Raises UsageError if it is none."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not (first.strip().isdigit() and (not last or last.strip().isdigit())):
            raise UsageError(f"steps {text!r}: write them as 1,3,9-12")
        found += range(int(first), int(last or first) + 1)
    return found


def _run_all(jobs: list[tuple[Any, Recipe, Path]], devices: list[str], ended: Callable[[Any], None]) -> None:
    """Each job in a process, one at a time on each device. The first that fails stops those that have not begun."""
    free: queue.SimpleQueue[str] = queue.SimpleQueue()
    for device in devices:
        free.put(device)
    threads = max((os.cpu_count() or 1) // len(devices), 1)

    def run(recipe: Recipe, folder: Path) -> None:
        device = free.get()
        try:
            _train(recipe, folder, device, threads)
        finally:
            free.put(device)

    with ThreadPoolExecutor(len(devices)) as pool:
        futures = {pool.submit(run, recipe, folder): key for key, recipe, folder in jobs}
        try:
            for future in as_completed(futures):
                future.result()
                ended(futures[future])
        except BaseException:
            # What runs is waited for: Ctrl-C has reached those processes too, and they save and end.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _train(recipe: Recipe, folder: Path, device: str, threads: int) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    settings, log = folder.with_suffix(".yaml"), folder.with_suffix(".log")
    settings.write_text(recipe.to_yaml())
    command = [sys.executable, "-m", "convnext", "train", str(settings), "--output", str(folder), "--resume", "--device", device]
    with log.open("a") as file:
        done = subprocess.run(
            command, stdout=file, stderr=file, env=os.environ | {"OMP_NUM_THREADS": str(threads), "COLUMNS": "140"}, check=False
        )
    if done.returncode:
        last = (log.read_text().strip().splitlines() or ["no message"])[-1]
        raise ConvnextError(
            f"the run {folder} ended with exit code {done.returncode}: {last} (all of it in {log}); the same command goes on"
        )


def _top1(folder: Path, recipe: Recipe) -> float | None:
    """Top-1 at the end of a finished run, None if it is not finished. Raises UsageError if it was made by another recipe."""
    run = RunFolder(folder)
    if not run.holds_a_run():
        return None
    run.check_same(recipe, change=False)
    last = [line for line in run.lines() if line["kind"] == "eval"][-1:]
    return last[0]["top1"] if last and last[0]["epoch"] == recipe.train.epochs and run.report.exists() else None


def _collect(recipes: dict[tuple[int, int], Recipe], folders: dict[tuple[int, int], Path], regime: Regime) -> ladder.Ladder:
    group = {"t": "ResNet-50 regime", "b": "ResNet-200 regime"}[regime]
    rows = {row.label: row for row in published.read("roadmap") if row.group == group}
    rungs, first = [], next(iter(recipes.values()))
    narrow = {} if first.model.width is None else {"width": first.model.width}
    for step in sorted({step for step, _ in recipes}):
        row, cost = rows[STEPS[step].title], cost_of(step_names(regime)[step], first.data.image_size, **narrow)
        top1 = [_top1(folders[key], recipe) for key, recipe in recipes.items() if key[0] == step]
        rungs.append(
            ladder.Rung(
                step=STEPS[step].title,
                why=STEPS[step].why,
                published_top1=row.values["top1"] or 0.0,
                published_macs=row.values["gmacs"] or 0.0,
                parameters=cost.parameters,
                macs=cost.macs,
                top1=[value for value in top1 if value is not None],
            )
        )
    return ladder.Ladder(
        regime, _data_name(first.data.train), first.train.epochs, first.data.image_size, _hardware(folders.values()), rungs
    )


def _hardware(folders: Iterable[Path]) -> list[str]:
    """What the runs ran on, each kind of machine once."""
    found: dict[str, None] = {}
    for folder in folders:
        path = RunFolder(folder).environment
        if path.exists():
            ran_on = json.loads(path.read_text())
            hardware = ran_on["hardware"]
            place = hardware["gpu"] or f"{hardware['cpu']}, {hardware['threads']} of {hardware['cores']} cores"
            found[f"{place}; torch {ran_on['versions']['torch']}, convnext {ran_on['versions']['convnext']}"] = None
    return list(found)


def _data_name(train: str) -> str:
    # "tiny-imagenet-40" of ".../tiny-imagenet-40/train-*.tar", "digits" of "digits:train".
    return train.split(":")[0] if "/" not in train else Path(train).parent.name


def _devices() -> list[str]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [f"cuda:{i}" for i in range(count)] or [str(pick_device())]
