"""`convnext.train`: from a recipe to a run folder with weights and a report."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from convnext import distributed, tasks
from convnext.checkpoints.files import read_restricted
from convnext.data.randomness import seed_everything
from convnext.evaluate import Evaluation
from convnext.models import create_model
from convnext.ops import keep_memory
from convnext.recipe import Recipe, load_recipe
from convnext.report import page, plots
from convnext.training.loop import Run
from convnext.training.progress import Display
from convnext.training.run_folder import RunFolder
from convnext.training.state import State, new_state
from convnext.training.step import WEIGHTS
from convnext.training.watch import check_watchers, open_watchers


@dataclass
class Result:
    """What came of a run."""

    folder: Path
    metrics: dict[str, float]
    best: float  # the headline metric of best.safetensors
    seconds: float


def train(
    recipe: str | Recipe,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    output: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    change: bool = False,
    watch: Sequence[str] = (),
    device: str | None = None,
    console: Console | None = None,
) -> Result:
    """Train, evaluate and report.

    Args:
        recipe: a recipe's name, a YAML file, or a `Recipe`.
        overrides: `["train.epochs=4"]` or `{"train.epochs": 4}`.
        output: the run folder to make.
        resume: go on with the run that the folder holds, in the middle of an epoch too; where it holds none yet, begin one.
        change: resume although the recipe was changed; what changed is told otherwise.
        overwrite: replace the run that the folder holds.
        watch: also send the run's lines to these: "tensorboard", "trackio", "wandb".
        device: "cpu", "cuda", "cuda:1", "mps"; by default the fastest there is.
        console: where progress is shown; by default standard error.

    Raises UsageError for what does not exist or contradicts itself, ConvnextError for work that failed.
    """
    started = time.monotonic()
    settings = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
    folder, task = RunFolder(Path(output)), tasks.get(settings.task)
    check_watchers(watch)
    with distributed.process_group(device) as place:
        console = console or Console(stderr=True, quiet=not distributed.is_main())
        display = Display(console)
        resume = resume and folder.holds_a_run()
        if resume:
            folder.check_same(settings, change)
        if place.type == "cpu":
            keep_memory()  # a step allocates and frees the same tensors again and again
        data = task.open_data(settings)
        seed_everything(settings.seed, WEIGHTS)
        model = _build(settings, len(data.classes)).to(place)
        if settings.train.sync_norm and place.type == "cuda" and distributed.world() > 1:
            model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        if not resume and distributed.is_main():
            folder.begin(settings, place, overwrite)
        distributed.from_main(None)  # nobody looks into the folder before it is made
        for remark in data.remarks:
            display.tell(remark)
        display.tell(_opening(settings, model, place, data))
        state = new_state(model, settings, place)
        if resume:
            _take_up(state, folder, display)
        watchers = open_watchers(watch, folder.path, settings.model_dump(mode="json"), state.step) if distributed.is_main() else []
        try:
            result = Run(state, task, data, settings, folder, place, display, watchers).to_the_end()
            finished = Result(folder.path, result.metrics, state.best, time.monotonic() - started)
            if distributed.is_main():
                _write_report(finished, result, settings, folder, task, data)
                display.tell(f"done: {task.headline(result.metrics)}, best {state.best:.2f} %; report: {folder.report}")
        finally:
            for watcher in watchers:
                watcher.close()
    return finished


def _opening(recipe: Recipe, model: Any, place: Any, data: Any) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    where = f"{distributed.world()} x {place.type}" if distributed.world() > 1 else str(place)
    return f"{recipe.model.name}, {parameters:.2f} M parameters, on {where}: {len(data.train)} pictures of {len(data.classes)} classes"


def _take_up(state: State, folder: RunFolder, display: Display) -> None:
    # The main process chooses the checkpoint, so that all take the same.
    path = distributed.from_main(folder.find_state(display.tell) if distributed.is_main() else None)
    if path is not None:
        state.restore(read_restricted(path))
    if distributed.is_main():
        folder.forget_after(state.logged)
    display.tell(f"resumed after step {state.step}" if path else "no checkpoint yet: begun from the start")


def _build(recipe: Recipe, num_classes: int) -> Any:
    given = recipe.model.model_dump(exclude_none=True)
    if given["head_init_scale"] == 1:  # which not every network knows
        del given["head_init_scale"]
    # Without keep_head the head is new even if the weights have one for as many classes: theirs are other classes.
    return create_model(given.pop("name"), num_classes=num_classes, new_head=not given.pop("keep_head"), **given)


def _write_report(finished: Result, result: Evaluation, recipe: Recipe, folder: RunFolder, task: Any, data: Any) -> None:
    folder.evaluation.write_text(json.dumps({"metrics": result.metrics} | result.details | {"corrupt": result.corrupt}) + "\n")
    ran_on = json.loads(folder.environment.read_text())
    hardware = ran_on["hardware"]
    minutes, seconds = divmod(round(finished.seconds), 60)
    cards = {
        f"validation {task.HEADLINE}, at the end": f"{result.metrics[task.HEADLINE]:.2f} %",
        "best": f"{finished.best:.2f} %",
        "training pictures": f"{len(data.train)}",
        **({"epochs": str(recipe.train.epochs)} if recipe.train.iterations is None else {"steps": str(recipe.train.iterations)}),
        "time": f"{minutes} min {seconds:02d} s",
    }
    machine = [{"what": key, "value": value} for part in ("hardware", "versions") for key, value in ran_on[part].items()]
    machine += [{"what": key, "value": ran_on[key]} for key in ("date", "system", "command", "commit")]
    sections = [
        page.Section("Course of the run", page.figure(plots.curves(folder.lines(), task.HEADLINE), wide=True)),
        *task.report_sections(result.details, data.classes, data.val.source),
    ]
    if result.corrupt:
        title = f"{len(result.corrupt)} pictures could not be read and were left out"
        sections.append(page.Section(title, page.preformatted("\n".join(result.corrupt))))
    sections.append(page.Section("Recipe", page.preformatted(recipe.to_yaml())))
    sections.append(page.Section("What it ran on", page.table(machine)))
    lead = f"{recipe.model.name} · {hardware['gpu'] or hardware['cpu']} · convnext {ran_on['versions']['convnext']}"
    folder.report.write_text(page.page(folder.path.name, lead, cards, sections))
