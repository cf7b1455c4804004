"""`convnext roadmap`: trains every step from ResNet to ConvNeXt by one recipe, and compares their accuracies.

Each (step, seed) is a run folder of its own, which `convnext.train` makes or resumes: so an interrupted roadmap continues where it
stopped. With several devices, as many runs train at a time, each in a process of its own.
"""

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from convnext.distributed import pick_device
from convnext.errors import ConvnextError, UsageError, first_line
from convnext.models.backbones.roadmap_steps import STEPS, Regime, step_names
from convnext.models.load import cost_of
from convnext.paper import ladder, published
from convnext.paper.runs import CONTINUE, Run, train_all
from convnext.recipe import load_recipe
from convnext.text import counted
from convnext.training.folder.run_folder import Report, RunFolder
from convnext.training.folder.run_paths import refuse_within_data
from convnext.training.progress.clock import duration

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
    report: Report = print,
) -> ladder.Ladder:
    """Train the roadmap, or some of its steps; leave runs, `roadmap.json`, `.md`, `.png`, `.svg` and `report.html` in `output`.

    Args:
        overrides: changes to the recipe, `data.train=…` and `data.val=…` among them.
        output: the folder of all runs. Finished runs there are kept, others resumed.
        regime: "t" or "b".
        small: train narrow networks for small images.
        steps: positions in `STEPS`; by default 1 to 16.
        seeds: runs per step, with the seeds 0, 1, ….
        devices: each trains one run at a time, for instance ("cuda:0", "cuda:1"), or ("cpu", "cpu"); by default all CUDA devices.
        report: takes a line about each run that ends.

    Raises UsageError for an unknown step and for a recipe that differs from that of runs in `output`, ConvnextError if a run fails,
    StoppedError after a signal, when the runs in progress have saved their states.
    """
    chosen = list(range(UNTRAINED + 1, len(STEPS))) if steps is None else sorted(set(steps))
    if unknown := [step for step in chosen if not UNTRAINED < step < len(STEPS)]:
        raise UsageError(f"no step {unknown[0]} to train: they are 1 ({STEPS[1].name}) to {len(STEPS) - 1} ({STEPS[-1].name})")
    _refuse_own(overrides)
    name, names = "roadmap/small" if small else f"roadmap/regime_{regime}", step_names(regime)
    runs = [
        Run(step, load_recipe(name, [*overrides, f"model.name={names[step]}", f"seed={seed}"]), output / names[step] / f"seed{seed}")
        for seed in range(seeds)  # seed by seed, so that there is early one run of every step
        for step in chosen
    ]
    refuse_within_data(output, runs[0].recipe)
    todo = [run for run in runs if not run.is_finished()]
    report(f"{counted(len(runs), 'run')} of {counted(len(chosen), 'step')}, {len(runs) - len(todo)} of them finished")
    begun, done = time.monotonic(), 0

    def ended(run: Run) -> None:
        nonlocal done
        top1 = run.top1()
        if top1 is None:
            raise ConvnextError(f"the run {run.folder} ended without its last evaluation: {CONTINUE}")
        _write(_collect(runs, regime), output, report)
        done, elapsed = done + 1, time.monotonic() - begun
        times = f"elapsed {duration(elapsed)} · left about {duration(elapsed / done * (len(todo) - done))}"
        report(f"{run.label}: {top1:.2f} % · {done} of {counted(len(todo), 'run')} · {times}")

    train_all(todo, list(devices) or _devices(), report, ended)
    found = _collect(runs, regime)
    _write(found, output, report)
    return found


def _write(found: ladder.Ladder, output: Path, report: Report) -> None:
    try:
        ladder.write(found, output)
    except Exception as error:  # as in `write_page`: a figure must not stop the runs
        report(f"the report in {output} could not be written ({type(error).__name__}: {first_line(error)}); the runs are complete")


def _refuse_own(overrides: Sequence[str]) -> None:
    """Raise UsageError for a key that is not the user's to set here."""
    own = {
        "model.name": "each step has its own network (--steps)",
        "seed": "each run has its own (--seeds)",
        "task": "each step classifies",
        "train.patience": "all steps are compared after the same number of epochs",
        "train.max_hours": "all steps are compared after the same number of epochs",
    }
    for override in overrides:
        if (key := override.partition("=")[0].strip()) in own:
            raise UsageError(f"{override}: {own[key]}, so {key} can't be set")


def parse_steps(text: str) -> list[int]:
    """Return the positions in a text such as "1,3,9-12". Raises UsageError for another text."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not (first.strip().isdigit() and (not last or last.strip().isdigit())):
            raise UsageError(f"steps {text!r}: write them as 1,3,9-12")
        found += range(int(first), int(last or first) + 1)
    return found


def _collect(runs: Sequence[Run], regime: Regime) -> ladder.Ladder:
    group = {"t": "ResNet-50 regime", "b": "ResNet-200 regime"}[regime]
    rows = {row.label: row for row in published.read("roadmap") if row.group == group}
    rungs, first = [], runs[0].recipe
    narrow = {} if first.model.get("width") is None else {"width": first.model.get("width")}
    for step in sorted({run.step for run in runs}):
        row, cost = rows[STEPS[step].title], cost_of(step_names(regime)[step], first.data.image_size, **narrow)
        top1 = [run.top1() for run in runs if run.step == step]
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
        _hardware(run.folder for run in runs),
        rungs,
        first.train.steps(),
    )


def _hardware(folders: Iterable[Path]) -> list[str]:
    """Return the machines that the runs ran on, each kind once."""
    found: dict[str, None] = {}
    for folder in folders:
        path = RunFolder(folder).environment
        if path.exists():
            ran_on = json.loads(path.read_text("utf-8"))
            hardware = ran_on["hardware"]
            machine = hardware["gpu"] or f"{hardware['cpu']}, {hardware['threads']} of {hardware['cores']} cores"
            found[f"{machine}; torch {ran_on['versions']['torch']}, convnext {ran_on['versions']['convnext']}"] = None
    return list(found)


def _data_name(train: str) -> str:
    # "tiny-imagenet-40" of ".../tiny-imagenet-40/train-*.tar", "digits" of "digits:train".
    return train.split(":")[0] if "/" not in train else Path(train).parent.name


def _devices() -> list[str]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [f"cuda:{i}" for i in range(count)] or [str(pick_device())]
