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
from torch import nn

from convnext import distributed, tasks
from convnext.data.contents import contents
from convnext.data.randomness import generators_kept, seed_everything
from convnext.data.tables.columns import VALUE
from convnext.errors import ConvnextError
from convnext.extend import giving, is_marker
from convnext.models.freeze import count_trained, freeze
from convnext.models.load import create_model
from convnext.models.network import Network
from convnext.models.weights.files import read_restricted
from convnext.models.weights.open import Opened
from convnext.ops import keep_memory, slow_on_cpu
from convnext.recipe import Recipe
from convnext.recipe.load import load_modules
from convnext.tasks.base import TaskData
from convnext.tasks.own import check_own
from convnext.text import counted
from convnext.training.callbacks import Callback, CallbackGroup, built_in, check_callbacks, named
from convnext.training.folder.run_folder import Changed, RunFolder
from convnext.training.folder.run_paths import refuse_within_data
from convnext.training.given import recipe_with, refuse_lost
from convnext.training.loop import Trainer
from convnext.training.progress.display import Display, Unbreakable
from convnext.training.progress.notebook import open_display
from convnext.training.result import TrainResult, finish
from convnext.training.resume import restore
from convnext.training.sizes import batch_size_for, check_batch_norm, check_length
from convnext.training.start import Start, reorder_head, start_from
from convnext.training.state import Saved, State, new_state
from convnext.training.step import WEIGHTS
from convnext.training.watch import check_watchers, open_watchers


def train(
    recipe: str | Recipe,
    overrides: Sequence[str] | Mapping[str, object] = (),
    *,
    output: str | Path,
    resume: bool = False,
    change: bool = False,
    overwrite: bool = False,
    watch: Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
    device: str | None = None,
    console: Console | None = None,
    model: nn.Module | None = None,
    train_data: object = None,
    val_data: object = None,
    transform: Callable[..., object] | None = None,
    loss: Callable[..., object] | None = None,
    metrics: Callable[..., object] | Sequence[Callable[..., object]] = (),
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
        callbacks: called at steps, evaluations and checkpoints; they may stop the run.
        device: "cpu", "cuda", "cuda:1", "mps"; by default the fastest there is.
        console: where progress is shown; by default standard error.
        model: a network of your own in place of the recipe's. It is trained in place, from the weights that it has; the EMA weights are
            in the run folder alone.
        train_data: a map-style dataset of your own in place of `data.train`: its items are (image, label), or dicts with image and label.
        val_data: likewise in place of `data.val`; without it a part of `train_data` is held out.
        transform: as for `convnext.register_transform`.
        loss: as for `convnext.register_loss`.
        metrics: one or several, as for `convnext.register_metric`.

    What is given as an object is named in recipe.yaml. Resuming the run takes the same objects again.

    The random generators of Python, NumPy and PyTorch are afterwards as they were. Two things stay changed in the process: on a
    CPU under Linux it keeps the memory that it frees (`mallopt`), and under torchrun the current CUDA device is that of the rank.

    Raises UsageError for what does not exist or contradicts itself, ConvnextError for work that failed.
    """
    started = time.monotonic()
    objects = {"model": model, "train_data": train_data, "val_data": val_data, "transform": transform, "loss": loss}
    objects |= {"metrics": ([metrics] if callable(metrics) else list(metrics)) or None}
    with ExitStack() as stack:
        stack.enter_context(giving(**objects))
        stack.enter_context(generators_kept())
        chosen = stack.enter_context(distributed.process_group(device))
        settings = distributed.on_main(lambda: recipe_with(recipe, overrides, objects))
        if not distributed.is_main():
            load_modules(settings)
        folder = RunFolder(Path(output))
        console = console or Console(file=cast(IO[str], Unbreakable(sys.stderr)), quiet=not distributed.is_main())
        display = open_display(console, folder.path.name, tasks.get(settings.task).headline, folder.lines)
        # The main process alone looks into the folder: to another it may already look different.
        distributed.on_main(lambda: check_watchers(watch))
        distributed.on_all(lambda: check_callbacks(callbacks))
        by_name = distributed.on_all(lambda: named(settings))
        distributed.on_main(lambda: refuse_within_data(folder.path, settings))
        distributed.on_main(lambda: stack.enter_context(folder.held(display.report)))
        resume = distributed.on_main(lambda: folder.prepare(resume, overwrite))
        trainer = _prepare(settings, folder, chosen, display, resume, change)
        trainer.began = started - trainer.state.seconds
        values = trainer.recipe.model_dump(mode="json")
        watchers: list[Callback] = []
        distributed.on_main(lambda: watchers.extend(open_watchers(watch, folder.path, values, trainer.state.step)))
        trainer.callbacks = CallbackGroup([*built_in(trainer.recipe), *watchers, *by_name, *callbacks])
        with trainer.callbacks.ended(lambda why: trainer.moment(stopped=why)):
            distributed.on_main(lambda: trainer.callbacks.load(trainer.state.callbacks, display.report))
            return finish(trainer, trainer.fit())


def _prepare(recipe: Recipe, folder: RunFolder, device: torch.device, display: Display, resume: bool, change: bool) -> Trainer:
    """Return a trainer at the run's first step, or at the one after which it resumes, with the folder ready to be written to."""
    task = tasks.get(recipe.task)
    distributed.on_all(lambda: check_own(task, recipe))
    if resume and not change:
        distributed.on_main(lambda: refuse_lost(folder.recipe, recipe))
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
    # What can't be trained is refused before anything is written.
    distributed.on_all(lambda: batch_size_for(recipe, len(data.train)))
    length: list[str] = []
    if changed or not resume:  # a run of an earlier version may continue as it is
        length = distributed.on_all(lambda: check_length(recipe, data))
    seed_everything(recipe.seed, WEIGHTS)
    model = distributed.on_all(lambda: _build_started(start, data.classes)).to(device)
    if is_marker(recipe.model.name):  # each process made its own
        distributed.take_from_main([*model.parameters(), *model.buffers()])
    if recipe.train.sync_norm and device.type == "cuda" and distributed.world() > 1:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    if recipe.model.freeze is not None:
        what = recipe.model.freeze
        distributed.on_all(lambda: freeze(model, what))
    if changed or not resume:
        distributed.on_all(lambda: check_batch_norm(model, recipe, len(data.train), device))
    if not resume:
        distributed.on_main(lambda: folder.begin(recipe, device))
    for remark in [*start.remarks, *data.remarks, *length, _opening(recipe, model, device, data)]:
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
    parameters, trained = sum(parameter.numel() for parameter in model.parameters()), count_trained(model)
    frozen = "" if trained == parameters else f" ({trained:,} of them trained, the others frozen)"
    where = f"{distributed.world()} x {device.type}" if distributed.world() > 1 else str(device)
    of_classes = "" if data.classes in ([], [VALUE]) else f" of {counted(len(data.classes), 'class')}"
    return f"{recipe.model.name}, {parameters / 1e6:.2f} M parameters{frozen}, on {where}: {counted(len(data.train), 'image')}{of_classes}"


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
