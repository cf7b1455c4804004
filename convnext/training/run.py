"""`convnext.train`: from a recipe to a run folder with weights and a report."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, cast
from zlib import crc32

import torch
from rich.console import Console

from convnext import distributed, tasks
from convnext.data.contents import contents
from convnext.data.randomness import generators_kept, seed_everything
from convnext.errors import ConvnextError
from convnext.models.load import create_model
from convnext.models.network import Network
from convnext.models.weights.files import read_restricted
from convnext.models.weights.open import Opened
from convnext.ops import keep_memory, slow_on_cpu
from convnext.recipe import Recipe, load_recipe
from convnext.tasks.base import TaskData
from convnext.text import counted
from convnext.training.folder.run_folder import Changed, RunFolder
from convnext.training.folder.run_paths import refuse_within_data
from convnext.training.loop import Trainer
from convnext.training.progress import Display, Unbreakable
from convnext.training.result import TrainResult, finish
from convnext.training.resume import restore
from convnext.training.start import Start, reorder_head, start_from
from convnext.training.state import Saved, State, new_state
from convnext.training.step import WEIGHTS, batch_size_for
from convnext.training.watch import Watcher, check_watchers, open_watchers


def train(
    recipe: str | Recipe,
    overrides: Sequence[str] | Mapping[str, object] = (),
    *,
    output: str | Path,
    resume: bool = False,
    change: bool = False,
    overwrite: bool = False,
    watch: Sequence[str] = (),
    device: str | None = None,
    console: Console | None = None,
) -> TrainResult:
    """Train, evaluate and report; return the metrics at the end.

    Args:
        recipe: a recipe's name, a YAML file, or a `Recipe`.
        overrides: `["train.epochs=4"]` or `{"train.epochs": 4}`.
        output: the run folder to make.
        resume: continue the run in the folder, in the middle of an epoch too; start one if there is none yet.
        change: resume although the recipe or the data changed; by default that is refused, saying what changed.
        overwrite: replace the run in the folder.
        watch: also send the run's lines to these: "tensorboard", "trackio", "wandb".
        device: "cpu", "cuda", "cuda:1", "mps"; by default the fastest there is.
        console: where progress is shown; by default standard error.

    The random generators of Python, NumPy and PyTorch are afterwards as they were. Two things stay changed in the process: on a
    CPU under Linux it keeps the memory that it frees (`mallopt`), and under torchrun the current CUDA device is that of the rank.

    Raises UsageError for what does not exist or contradicts itself, ConvnextError for work that failed.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(generators_kept())
        chosen = stack.enter_context(distributed.process_group(device))
        settings = distributed.on_main(lambda: recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides))
        folder = RunFolder(Path(output))
        console = console or Console(file=cast(IO[str], Unbreakable(sys.stderr)), quiet=not distributed.is_main())
        display = Display(console)
        # The main process alone looks into the folder: to another it may already look different.
        distributed.on_main(lambda: check_watchers(watch))
        distributed.on_main(lambda: refuse_within_data(folder.path, settings))
        distributed.on_main(lambda: stack.enter_context(folder.held(display.report)))
        resume = distributed.on_main(lambda: folder.prepare(resume, overwrite))
        trainer = _prepare(settings, folder, chosen, display, resume, change)
        watchers: list[Watcher] = []
        values = trainer.recipe.model_dump(mode="json")
        distributed.on_main(lambda: watchers.extend(open_watchers(watch, folder.path, values, trainer.state.step)))
        trainer.watchers = watchers
        try:
            evaluation = trainer.fit()
            return finish(trainer, evaluation, time.monotonic() - started)
        finally:
            for watcher in watchers:
                watcher.close()


def _prepare(recipe: Recipe, folder: RunFolder, device: torch.device, display: Display, resume: bool, change: bool) -> Trainer:
    """Return a trainer at the run's first step, or at the one after which it resumes, with the folder ready to be written to."""
    task = tasks.get(recipe.task)
    start = distributed.on_all(lambda: start_from(recipe))
    recipe, folder.source = start.recipe, start.source
    if resume:
        recipe = distributed.on_main(lambda: folder.with_measured(recipe))
    changed = distributed.on_main(lambda: folder.check_same(recipe, change)) if resume else {}
    if device.type == "cpu":
        keep_memory()  # a step allocates and frees the same tensors again and again
    data = distributed.on_all(lambda: task.open(recipe))
    recipe = data.recipe or recipe
    start.recipe = recipe
    _check_same_data(data)
    distributed.on_all(lambda: batch_size_for(recipe, len(data.train)))  # refused before anything is written
    seed_everything(recipe.seed, WEIGHTS)
    model = distributed.on_all(lambda: _build_started(start, data.classes)).to(device)
    if recipe.train.sync_norm and device.type == "cuda" and distributed.world() > 1:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    if not resume:
        distributed.on_main(lambda: folder.begin(recipe, device))
    for remark in [*start.remarks, *data.remarks, _opening(recipe, model, device, data)]:
        display.report(remark)
    if device.type == "cpu" and (reason := slow_on_cpu(recipe.train.precision)):
        display.report(f"{reason}: train.precision=float32 trains faster here")
    state = new_state(model, recipe, device)
    if distributed.is_main():
        state.data = contents(data.classes, data.train.source, data.val.source)
    if resume:
        _restore(state, recipe, changed, folder, change, display)
    trainer = Trainer(state, task, data, recipe, folder, device, display)
    if resume:  # now that the run is known to continue
        distributed.on_main(lambda: folder.continue_with(recipe if changed or change else None, state.logged))
    return trainer


def _check_same_data(data: TaskData) -> None:
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


def _opening(recipe: Recipe, model: Network, device: torch.device, data: TaskData) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    where = f"{distributed.world()} x {device.type}" if distributed.world() > 1 else str(device)
    images = f"{counted(len(data.train), 'image')} of {counted(len(data.classes), 'class')}"
    return f"{recipe.model.name}, {parameters:.2f} M parameters, on {where}: {images}"


def _restore(state: State, recipe: Recipe, changed: Changed, folder: RunFolder, change: bool, display: Display) -> None:
    # The main process chooses the checkpoint, so that all restore the same one.
    path = distributed.on_main(lambda: folder.find_state(display.report))
    if path is not None:
        restore(state, distributed.on_all(lambda: _read_state(path)), recipe, changed, folder, change, display.report)
    display.report(f"resumed after step {state.step}" if path else "no checkpoint yet: started at the first step")


def _read_state(path: Path) -> Saved:
    if not path.exists():
        raise ConvnextError(f"{path} is not on this machine: all processes need the run folder on a disk that they share")
    return cast(Saved, read_restricted(path))


def _build_started(start: Start, classes: list[str]) -> Network:
    order = start.head_order(classes)  # raises before the network is built
    model = _build(start.recipe, len(classes), start.weights)
    reorder_head(model, order)
    return model


def _build(recipe: Recipe, num_classes: int, weights: Opened | None = None) -> Network:
    given = recipe.model.arguments()
    if weights is not None:  # as they were read already
        given["weights"] = weights
    # Without keep_head the head is new even if the weights have one for as many classes: theirs are other classes.
    create = cast(Callable[..., Network], create_model)
    channels = {} if recipe.data.channels == 3 else {"in_channels": recipe.data.channels}
    return create(recipe.model.name, num_classes=num_classes, **channels, new_head=not recipe.model.keep_head, **given)
