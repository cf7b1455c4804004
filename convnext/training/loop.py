"""The loop: steps, evaluations and states, the same for every task."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from convnext.checkpoints.files import write_weights
from convnext.data.loader import CorruptPictures, EpochOrder, make_loader
from convnext.data.randomness import seed_everything
from convnext.errors import ConvnextError
from convnext.evaluate import Evaluation, autocast, evaluate, evaluation_loader
from convnext.recipe import Recipe
from convnext.training.optim import build_optimizer, learning_rate, set_learning_rate
from convnext.training.progress import Display
from convnext.training.run_folder import RunFolder

# The second word of the places that `seed_everything` is given, so that no two uses share a stream.
WEIGHTS, STEP = 1, 2


class StoppedError(ConvnextError):
    """The run was asked to stop and has saved its state."""

    exit_code = 130


@dataclass
class State:
    """Everything that a run needs to go on as if it had never stopped."""

    model: Any
    optimizer: torch.optim.Optimizer
    ema: AveragedModel | None
    step: int = 0  # optimizer steps done
    best: float = -math.inf
    corrupt: dict[int, str] = field(default_factory=dict)

    def to_save(self) -> dict[str, Any]:
        """As plain containers of tensors and numbers."""
        ema = self.ema.state_dict() if self.ema is not None else None
        values = {"step": self.step, "best": self.best, "corrupt": self.corrupt}
        return values | {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "ema": ema}

    def restore(self, saved: dict[str, Any]) -> None:
        """The inverse of `to_save`."""
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(saved["ema"])
        self.step, self.best, self.corrupt = saved["step"], saved["best"], saved["corrupt"]

    @property
    def evaluated(self) -> Any:
        """The network that is evaluated and shipped: the moving average where there is one."""
        return self.ema.module if self.ema is not None else self.model


def new_state(model: Any, recipe: Recipe) -> State:
    """The state before the first step."""
    ema = None
    if recipe.train.ema:
        ema = AveragedModel(
            model,
            multi_avg_fn=get_ema_multi_avg_fn(recipe.train.ema),  # type: ignore[no-untyped-call]
            use_buffers=True,
        )
        ema.n_averaged.fill_(1)  # the published average starts from the initial weights, not from those after step one
    return State(model, build_optimizer(model, recipe.optim), ema)


def run(state: State, task: Any, data: Any, recipe: Recipe, folder: RunFolder, device: torch.device, console: Any) -> Evaluation:
    """Train from `state.step` to the end; returns the last evaluation.

    The order, augmentation and mixing of a step and its stochastic depth are functions of (seed, step), so where the run
    began and how many workers feed it leave no trace in the weights.

    Raises StoppedError after SIGINT or SIGTERM, with everything saved; ConvnextError if the loss is not finite.
    """
    settings = recipe.train
    count, batch_size = len(data.train), _batch_size(recipe, len(data.train))
    order = EpochOrder(count, batch_size, recipe.seed)
    per_epoch = len(order)
    total, warmup = settings.epochs * per_epoch, round(settings.warmup_epochs * per_epoch)
    pin = device.type == "cuda"
    loader = make_loader(data.train, order, task.collate, recipe.data.workers, pin)
    val_loader = evaluation_loader(data.val, task, batch_size, recipe.data.workers, device)
    trainer = task.Trainer(recipe, data.classes)
    corrupt = CorruptPictures(count, recipe.data.max_corrupt)
    corrupt.reasons = state.corrupt
    result: Evaluation | None = None

    with Display(total, state.step, console) as display, _stop_signals() as stop:
        for epoch in range(state.step // per_epoch, settings.epochs):
            order.epoch, order.start = epoch, state.step % per_epoch
            state.model.train()
            clock = time.monotonic()
            speed = 0.0
            for batch in loader:
                for reason in corrupt.add(batch.corrupt):
                    display.tell(f"left out: {reason}")
                rate = learning_rate(state.step, warmup, total, recipe.optim.lr, recipe.optim.min_lr)
                loss = _step(state, trainer, batch.to(device), rate, recipe, device)
                if not math.isfinite(loss):
                    raise ConvnextError(_not_finite(loss, state.step, batch, data.train.source, folder))
                state.step += 1
                now = time.monotonic()
                this, clock = len(batch) / (now - clock), now
                speed = 0.9 * speed + 0.1 * this if speed else this
                values = {"loss": loss, "lr": rate, "images_per_second": round(speed, 1)}
                display.step(state.step, epoch + 1, **values)
                if state.step % settings.log_every == 0 or state.step % per_epoch == 0:
                    folder.log({"kind": "train", "step": state.step, "epoch": state.step / per_epoch} | values)
                if stop:
                    _save(state, folder, recipe)
                    raise StoppedError(f"stopped at step {state.step} of {total}; go on with the same command and --resume")
            if (epoch + 1) % settings.eval_every == 0 or epoch + 1 == settings.epochs:
                result = _evaluate(state, task, data, val_loader, recipe, folder, device, epoch + 1)
                display.evaluated(epoch + 1, task.headline(result.metrics), **{task.HEADLINE: result.metrics[task.HEADLINE]})
            _save(state, folder, recipe)
    if result is None:  # the run was over before it was resumed
        result = _evaluate(state, task, data, val_loader, recipe, folder, device, settings.epochs, log=False)
    result.corrupt = sorted({*state.corrupt.values(), *result.corrupt})
    return result


def _step(state: State, trainer: Any, batch: Any, rate: float, recipe: Recipe, device: torch.device) -> float:
    set_learning_rate(state.optimizer, rate)
    seed_everything(recipe.seed, STEP, state.step)
    with autocast(device, recipe.train.precision):
        loss = trainer.loss(state.model, batch)
    value: float = loss.item()
    if math.isfinite(value):  # else leave the weights as they were
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        state.optimizer.step()
        if state.ema is not None:
            state.ema.update_parameters(state.model)
    return value


def _evaluate(
    state: State, task: Any, data: Any, loader: Any, recipe: Recipe, folder: RunFolder, device: torch.device, epoch: int, log: bool = True
) -> Evaluation:
    classes, settings = data.classes, recipe.train
    result = evaluate(
        state.evaluated, task, loader, len(classes), device, precision=settings.precision, max_corrupt=recipe.data.max_corrupt
    )
    if log:
        folder.log({"kind": "eval", "step": state.step, "epoch": epoch} | result.metrics)
    description = {
        "task": recipe.task,
        "model": state.model.spec,
        "classes": classes,
        "preprocessing": task.preprocessing(recipe).to_json(),
        "metrics": result.metrics,
        "step": state.step,
    }
    weights = state.evaluated.state_dict()
    write_weights(folder.last, weights, description)
    if result.metrics[task.HEADLINE] > state.best:
        state.best = result.metrics[task.HEADLINE]
        write_weights(folder.best, weights, description)
    return result


def _save(state: State, folder: RunFolder, recipe: Recipe) -> Path:
    return folder.save_state(state.to_save(), state.step, recipe.train.keep_checkpoints)


def _batch_size(recipe: Recipe, count: int) -> int:
    # A set smaller than the batch is one batch; mixing needs it even.
    wanted = min(recipe.train.batch_size, count)
    return wanted - wanted % 2 if recipe.augment.mixup or recipe.augment.cutmix else wanted


def _not_finite(loss: float, step: int, batch: Any, source: Any, folder: RunFolder) -> str:
    files = ", ".join(source.name(index) for index in batch.indices[:8])
    last = folder.last_state()
    return (
        f"the loss is {loss} at step {step}; the batch: {files}{' …' if len(batch) > 8 else ''}; "
        f"last good checkpoint: {last if last else 'none yet'}. Lower optim.lr, lengthen train.warmup_epochs, or look at these pictures"
    )


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that becomes non-empty when SIGINT or SIGTERM arrives. A second SIGINT stops at once, as usual."""
    caught: list[int] = []

    def note(number: int, _: Any) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            before[number] = signal.signal(number, note)
        except ValueError:  # not in the main thread: signals are somebody else's business
            break
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
