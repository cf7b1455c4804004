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

from convnext.distributed import pick_device
from convnext.errors import ConvnextError, UsageError, first_line
from convnext.models.backbones.roadmap import STEPS, Regime, step_names
from convnext.models.load import cost_of
from convnext.paper import ladder, published
from convnext.recipe import Recipe, load_recipe
from convnext.training.run_folder import RunFolder, refuse_within_data

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
        small: the narrow road for small images.
        steps: positions in `STEPS`; by default 1 to 16.
        seeds: runs a step, seeds 0, 1, ….
        devices: one run at a time on each, for instance ("cuda:0", "cuda:1"), or ("cpu", "cpu"); by default all CUDA devices.
        tell: takes a line about each run that ends.

    Raises UsageError for steps that do not exist and a recipe that differs from that of runs in `output`, ConvnextError if a run fails.
    """
    chosen = list(range(UNTRAINED + 1, len(STEPS))) if steps is None else sorted(set(steps))
    if unknown := [step for step in chosen if not UNTRAINED < step < len(STEPS)]:
        raise UsageError(f"no step {unknown[0]} to train: they are 1 ({STEPS[1].name}) to {len(STEPS) - 1} ({STEPS[-1].name})")
    _refuse_own(overrides)
    name = "roadmap/small" if small else f"roadmap/regime_{regime}"
    recipes = {
        (step, seed): load_recipe(name, [*overrides, f"model.name={step_names(regime)[step]}", f"seed={seed}"])
        for seed in range(seeds)  # seed by seed, so that there is early one of every step
        for step in chosen
    }
    refuse_within_data(output, next(iter(recipes.values())))
    folders = {key: output / step_names(regime)[key[0]] / f"seed{key[1]}" for key in recipes}
    todo = [key for key, recipe in recipes.items() if _top1(folders[key], recipe) is None or not RunFolder(folders[key]).report.exists()]
    tell(f"{len(recipes)} runs of {len(chosen)} steps, {len(recipes) - len(todo)} of them finished")

    def ended(key: tuple[int, int]) -> None:
        top1 = _top1(folders[key], recipes[key])
        if top1 is None:
            raise ConvnextError(f"the run {folders[key]} ended without its last evaluation: see {folders[key].with_suffix('.log')}")
        _write(_collect(recipes, folders, regime), output, tell)
        tell(f"{folders[key].relative_to(output)}: {top1:.2f} %")

    _run_all([(key, recipes[key], folders[key]) for key in todo], list(devices) or _devices(), ended)
    found = _collect(recipes, folders, regime)
    _write(found, output, tell)
    return found


def _write(found: ladder.Ladder, output: Path, tell: Callable[[str], None]) -> None:
    try:
        ladder.write(found, output)
    except Exception as error:  # as `write_page`: a figure must not stop the runs
        tell(f"the report in {output} could not be written ({type(error).__name__}: {first_line(error)}); the runs are there")


def _refuse_own(overrides: Sequence[str]) -> None:
    """Raise UsageError for a key that is not the user's to set here."""
    own = {
        "model.name": "each step has its own network (--steps)",
        "seed": "each run has its own (--seeds)",
        "task": "each step classifies",
    }
    for override in overrides:
        if (key := override.partition("=")[0].strip()) in own:
            raise UsageError(f"{override}: {own[key]}, so that {key} can't be set")


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
    settings.write_text(recipe.to_yaml(), encoding="utf-8")
    command = [sys.executable, "-m", "convnext", "train", str(settings), "--output", str(folder), "--resume", "--device", device]
    with log.open("ab") as file:
        done = subprocess.run(
            command, stdout=file, stderr=file, env=os.environ | {"OMP_NUM_THREADS": str(threads), "COLUMNS": "140"}, check=False
        )
    if done.returncode:
        last = (log.read_text("utf-8", "replace").strip().splitlines() or ["no message"])[-1]
        raise ConvnextError(
            f"the run {folder} ended with exit code {done.returncode}: {last} (all of it in {log}); the same command goes on"
        )


def _top1(folder: Path, recipe: Recipe) -> float | None:
    """Top-1 at the end of a run, None if it has not come to its last evaluation. Raises UsageError if it was made by another recipe."""
    run = RunFolder(folder)
    if not run.holds_a_run():
        return None
    run.check_same(recipe, change=False)
    evals = [line for line in run.lines() if line["kind"] == "eval"]
    if not evals:
        return None
    epochs, iterations = recipe.train.epochs, recipe.train.iterations
    is_over = evals[-1]["epoch"] == epochs if iterations is None else evals[-1]["step"] >= iterations
    return evals[-1]["top1"] if is_over else None


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
        regime,
        _data_name(first.data.train),
        first.train.epochs,
        first.data.image_size,
        _hardware(folders.values()),
        rungs,
        first.train.iterations,
    )


def _hardware(folders: Iterable[Path]) -> list[str]:
    """What the runs ran on, each kind of machine once."""
    found: dict[str, None] = {}
    for folder in folders:
        path = RunFolder(folder).environment
        if path.exists():
            ran_on = json.loads(path.read_text("utf-8"))
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
