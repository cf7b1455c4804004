"""`convnext.train`: from a recipe to a run folder with weights and a report."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast
from zlib import crc32

import torch
from rich.console import Console

from convnext import distributed, tasks
from convnext.data.contents import contents
from convnext.data.download import without_secrets
from convnext.data.randomness import seed_everything
from convnext.errors import ConvnextError
from convnext.evaluate import Evaluation, disjoint, without_nan
from convnext.models.load import create_model
from convnext.models.weights.files import read_restricted, write_atomically
from convnext.models.weights.open import Opened
from convnext.ops import keep_memory, slow_on_cpu
from convnext.recipe import Recipe, load_recipe
from convnext.report import page, plots
from convnext.report.written import write_page
from convnext.tasks import Data
from convnext.training.loop import Run
from convnext.training.progress import Display, Unbreakable
from convnext.training.resume import Changed, restore
from convnext.training.run_folder import RunFolder, refuse_within_data
from convnext.training.start import Start, reorder_head, start_from
from convnext.training.state import State, new_state
from convnext.training.step import WEIGHTS, batch_size_for
from convnext.training.watch import Watcher, check_watchers, open_watchers


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
        change: resume although the recipe or the data changed; by default that is refused with what changed.
        overwrite: replace the run that the folder holds.
        watch: also send the run's lines to these: "tensorboard", "trackio", "wandb".
        device: "cpu", "cuda", "cuda:1", "mps"; by default the fastest there is.
        console: where progress is shown; by default standard error.

    Raises UsageError for what does not exist or contradicts itself, ConvnextError for work that failed.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        place = stack.enter_context(distributed.process_group(device))
        settings = distributed.on_main(lambda: recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides))
        folder, task = RunFolder(Path(output)), tasks.get(settings.task)
        console = console or Console(file=cast(IO[str], Unbreakable(sys.stderr)), quiet=not distributed.is_main())
        display = Display(console)
        # What is in the folder is for the main process to see: to another it may already look otherwise.
        distributed.on_main(lambda: check_watchers(watch))
        distributed.on_main(lambda: refuse_within_data(folder.path, settings))
        distributed.on_main(lambda: stack.enter_context(folder.held(display.tell)))
        resume = distributed.on_main(lambda: folder.prepare(resume, overwrite))
        start = distributed.on_all(lambda: start_from(settings))
        settings, folder.source = start.recipe, start.source
        changed = distributed.on_main(lambda: folder.check_same(settings, change)) if resume else {}
        if place.type == "cpu":
            keep_memory()  # a step allocates and frees the same tensors again and again
        data = distributed.on_all(lambda: task.open_data(settings))
        _check_same_data(data)
        distributed.on_all(lambda: batch_size_for(settings, len(data.train)))  # refused before anything is written
        seed_everything(settings.seed, WEIGHTS)
        model = distributed.on_all(lambda: _start(start, data.classes)).to(place)
        if settings.train.sync_norm and place.type == "cuda" and distributed.world() > 1:
            model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        if not resume:
            distributed.on_main(lambda: folder.begin(settings, place))
        for remark in [*start.remarks, *data.remarks]:
            display.tell(remark)
        display.tell(_opening(settings, model, place, data))
        if place.type == "cpu" and (reason := slow_on_cpu(settings.train.precision)):
            display.tell(f"{reason}: train.precision=float32 trains faster here")
        state = new_state(model, settings, place)
        if distributed.is_main():
            state.data = contents(data.classes, data.train.source, data.val.source)
        if resume:
            _take_up(state, settings, changed, folder, change, display)
        run = Run(state, task, data, settings, folder, place, display)
        if resume:  # now that the run is known to continue
            distributed.on_main(lambda: folder.continue_with(settings if changed or change else None, state.logged))
        watchers: list[Watcher] = []
        values = settings.model_dump(mode="json")
        distributed.on_main(lambda: watchers.extend(open_watchers(watch, folder.path, values, state.step)))
        run.watchers = watchers
        try:
            result = run.to_the_end()
            finished = Result(folder.path, result.metrics, state.best, time.monotonic() - started)
            if distributed.is_main():
                _write_evaluation(result, folder)
                written = write_page(folder.report, lambda: _page(finished, result, settings, folder, task, data), display.tell)
                report = f"; report: {folder.report}" if written else ""
                display.tell(f"done: {task.headline(result.metrics)}, best {state.best:.2f} %{report}")
        finally:
            for watcher in watchers:
                watcher.close()
    return finished


def _check_same_data(data: Data) -> None:
    """Raise ConvnextError unless all processes found the same files; the path before the last two parts may differ by machine."""
    if distributed.world() == 1:
        return
    found = [data.classes]
    for samples in (data.train, data.val):
        found.append(["/".join(samples.source.name(index).split("/")[-2:]) for index in range(len(samples))])
    what = "classes, training images and validation images"
    distributed.check_agreement([len(names) for names in found], f"numbers of {what}")
    sums = [crc32("\n".join(names).encode(errors="surrogateescape")) for names in found]
    distributed.check_agreement(sums, f"checksums of the names of {what}")


def _opening(recipe: Recipe, model: Any, place: Any, data: Any) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    where = f"{distributed.world()} x {place.type}" if distributed.world() > 1 else str(place)
    return f"{recipe.model.name}, {parameters:.2f} M parameters, on {where}: {len(data.train)} images of {len(data.classes)} classes"


def _take_up(state: State, recipe: Recipe, changed: Changed, folder: RunFolder, change: bool, display: Display) -> None:
    # The main process chooses the checkpoint, so that all take the same.
    path = distributed.on_main(lambda: folder.find_state(display.tell))
    if path is not None:
        restore(state, distributed.on_all(lambda: _read_state(path)), recipe, changed, folder, change, display.tell)
    display.tell(f"resumed after step {state.step}" if path else "no checkpoint yet: begun from the start")


def _read_state(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ConvnextError(f"{path} is not on this machine: all processes need the run folder on a disk that they share")
    return read_restricted(path)


def _build(recipe: Recipe, num_classes: int, weights: Opened | None = None) -> Any:
    given = recipe.model.model_dump(exclude_none=True)
    if given["head_init_scale"] == 1:  # which not every network knows
        del given["head_init_scale"]
    if weights is not None:  # as they were read already
        given["weights"] = weights
    # Without keep_head the head is new even if the weights have one for as many classes: theirs are other classes.
    return create_model(given.pop("name"), num_classes=num_classes, new_head=not given.pop("keep_head"), **given)


def _start(start: Start, classes: list[str]) -> Any:
    order = start.head_order(classes)  # raises before the network is built
    model = _build(start.recipe, len(classes), start.weights)
    reorder_head(model, order)
    return model


def _write_evaluation(result: Evaluation, folder: RunFolder) -> None:
    found = without_nan(disjoint({"metrics": result.metrics}, result.details, {"corrupt": result.corrupt}))
    text = json.dumps(found, allow_nan=False) + "\n"
    write_atomically(folder.evaluation, lambda file: file.write_text(text, encoding="utf-8"))


def _page(finished: Result, result: Evaluation, recipe: Recipe, folder: RunFolder, task: Any, data: Any) -> str:
    ran_on = json.loads(folder.environment.read_text("utf-8"))
    hardware = ran_on["hardware"]
    raw = f"raw_{task.HEADLINE}"
    minutes, seconds = divmod(round(finished.seconds), 60)
    cards = {
        f"validation {task.HEADLINE}, at the end": f"{result.metrics[task.HEADLINE]:.2f} %",
        **({f"{task.HEADLINE} of the raw weights": f"{result.metrics[raw]:.2f} %"} if raw in result.metrics else {}),
        "best": f"{finished.best:.2f} %",
        "training images": f"{len(data.train)}",
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
        title = f"{len(result.corrupt)} images could not be read and were left out"
        sections.append(page.Section(title, page.preformatted("\n".join(result.corrupt))))
    sections.append(page.Section("Recipe", page.preformatted(without_secrets(recipe.to_yaml()))))
    sections.append(page.Section("What it ran on", page.table(machine)))
    lead = f"{recipe.model.name} · {hardware['gpu'] or hardware['cpu']} · convnext {ran_on['versions']['convnext']}"
    return page.page(folder.path.name, lead, cards, sections)
