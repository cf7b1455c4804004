"""`convnext.train`: from a recipe to a run folder with weights and a report."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from convnext import tasks
from convnext.data.randomness import seed_everything
from convnext.evaluate import Evaluation, pick_device
from convnext.models import create_model
from convnext.recipe import Recipe, load_recipe
from convnext.report import page, plots
from convnext.training.loop import WEIGHTS, new_state, run
from convnext.training.run_folder import RunFolder


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
    device: str | None = None,
    console: Console | None = None,
) -> Result:
    """Train, evaluate and report.

    Args:
        recipe: a recipe's name, a YAML file, or a `Recipe`.
        overrides: `["train.epochs=4"]` or `{"train.epochs": 4}`.
        output: the run folder to make.
        resume: go on with the run that the folder holds, in the middle of an epoch too.
        overwrite: replace the run that the folder holds.
        device: "cpu", "cuda", "cuda:1", "mps"; by default the fastest there is.
        console: where progress is shown; by default standard error.

    Raises UsageError for what does not exist or contradicts itself, ConvnextError for work that failed.
    """
    started = time.monotonic()
    console = console or Console(stderr=True)
    settings = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
    place, folder, task = pick_device(device), RunFolder(Path(output)), tasks.get(settings.task)
    if resume:
        folder.check_same(settings)
    data = task.open_data(settings)
    seed_everything(settings.seed, WEIGHTS)
    model = _build(settings, len(data.classes)).to(place)
    if not resume:
        folder.begin(settings, place, overwrite)

    def tell(message: str) -> None:
        console.print(message, markup=False, highlight=False, soft_wrap=True)

    for remark in data.remarks:
        tell(remark)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tell(
        f"{settings.model.name}, {parameters / 1e6:.2f} M parameters, on {place}: {len(data.train)} pictures of {len(data.classes)} classes"
    )
    state = new_state(model, settings)
    if resume and (saved := folder.load_state(tell)):
        state.restore(saved)
        folder.forget_after(state.step)
        tell(f"resumed after step {state.step}")
    elif resume:
        tell("no checkpoint yet: begun from the start")
        folder.forget_after(0)
    result = run(state, task, data, settings, folder, place, console)
    finished = Result(folder.path, result.metrics, state.best, time.monotonic() - started)
    _write_report(finished, result, settings, folder, task, data)
    tell(f"done: {task.headline(result.metrics)}, best {state.best:.2f} %; report: {folder.report}")
    return finished


def _build(recipe: Recipe, num_classes: int) -> Any:
    given = recipe.model.model_dump(exclude_none=True)
    # The head is new even if the weights have one for as many classes: theirs are other classes.
    return create_model(given.pop("name"), num_classes=num_classes, new_head=recipe.model.weights is not None, **given)


def _write_report(finished: Result, result: Evaluation, recipe: Recipe, folder: RunFolder, task: Any, data: Any) -> None:
    folder.evaluation.write_text(json.dumps({"metrics": result.metrics} | result.details | {"corrupt": result.corrupt}) + "\n")
    ran_on = json.loads(folder.environment.read_text())
    hardware = ran_on["hardware"]
    minutes, seconds = divmod(round(finished.seconds), 60)
    cards = {
        f"validation {task.HEADLINE}, at the end": f"{result.metrics[task.HEADLINE]:.2f} %",
        "best": f"{finished.best:.2f} %",
        "training pictures": f"{len(data.train)}",
        "epochs": str(recipe.train.epochs),
        "time": f"{minutes} min {seconds:02d} s",
    }
    machine = [{"what": key, "value": value} for part in ("hardware", "versions") for key, value in ran_on[part].items()]
    machine += [{"what": key, "value": ran_on[key]} for key in ("system", "command", "commit")]
    sections = [
        page.Section("Course of the run", page.figure(plots.curves(folder.lines(), task.HEADLINE))),
        *task.report_sections(result.details, data.classes, data.val.source),
    ]
    if result.corrupt:
        title = f"{len(result.corrupt)} pictures could not be read and were left out"
        sections.append(page.Section(title, page.preformatted("\n".join(result.corrupt))))
    sections.append(page.Section("Recipe", page.preformatted(recipe.to_yaml())))
    sections.append(page.Section("What it ran on", page.table(machine)))
    lead = f"{recipe.model.name} · {hardware['gpu'] or hardware['cpu']} · convnext {ran_on['versions']['convnext']}"
    folder.report.write_text(page.page(folder.path.name, lead, cards, sections))
