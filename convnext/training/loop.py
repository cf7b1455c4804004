"""The loop: epochs, evaluations and states, the same for every task and for any number of processes."""

import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from convnext import distributed
from convnext.checkpoints.files import write_weights
from convnext.data.loader import CorruptPictures, EpochOrder, make_loader
from convnext.errors import ConvnextError
from convnext.evaluate import Evaluation, evaluate, evaluation_loader
from convnext.recipe import Recipe
from convnext.training.optim import scheduled_rate
from convnext.training.progress import Display
from convnext.training.run_folder import RunFolder
from convnext.training.state import State
from convnext.training.step import Stepper, batch_size_for
from convnext.training.watch import Watcher

_MOST_SKIPPED = 10  # steps in a row: a run of nothing else learns nothing


class StoppedError(ConvnextError):
    """The run was asked to stop and has saved its state."""

    exit_code = 130


class Run:
    """A run in progress: a state, and all that moves it on.

    The order, augmentation and mixing of a step and its stochastic depth are functions of (seed, step), so where the run was
    interrupted and how many workers feed it leave no trace in the weights.
    """

    def __init__(
        self,
        state: State,
        task: Any,
        data: Any,
        recipe: Recipe,
        folder: RunFolder,
        device: torch.device,
        display: Display,
        watchers: Sequence[Watcher] = (),
    ) -> None:
        self.state, self.task, self.data, self.recipe = state, task, data, recipe
        self.folder, self.device, self.display, self.watchers = folder, device, display, watchers
        count, world = len(data.train), distributed.world()
        size = batch_size_for(recipe, count)
        self.order = EpochOrder(count, size, recipe.seed, distributed.rank(), world, data.groups)
        self.per_epoch = len(self.order)
        train = recipe.train
        self.total = train.iterations or train.epochs * self.per_epoch
        self.warmup = round(train.warmup_epochs * self.per_epoch) if train.warmup_steps is None else train.warmup_steps
        self.loader = make_loader(data.train, self.order, task.collate, recipe.data.workers, pin=device.type == "cuda")
        self.val_loader = evaluation_loader(data.val, task, size // world, recipe.data.workers, device)
        self.stepper = Stepper(state, task.Trainer(recipe, data.classes), recipe, size, device)
        self.corrupt = CorruptPictures(count, recipe.data.max_corrupt)
        self.corrupt.reasons = state.corrupt
        self.stop: list[int] = []
        self.in_a_row = 0  # steps whose loss was not finite

    def to_the_end(self) -> Evaluation:
        """Train from `state.step` on; returns the last evaluation.

        Raises StoppedError after SIGINT or SIGTERM, with everything saved; ConvnextError if the loss is not finite.
        """
        state, settings = self.state, self.recipe.train
        result: Evaluation | None = None
        self.display.begin(self.total, state.step)
        with self.display, _stop_signals() as self.stop:
            while True:
                epoch, done = divmod(state.step, self.per_epoch)
                is_last = state.step >= self.total
                begun = epoch + bool(done)  # a run counted in iterations may end within an epoch
                if (is_last or not done) and state.evaluated < begun and (is_last or epoch % settings.eval_every == 0):
                    result = self._evaluate(begun)
                if is_last:
                    break
                self._epoch(epoch, done)
        if result is None:  # the run was over before it was taken up
            result = self._evaluate(-(-self.total // self.per_epoch), log=False)
        result.corrupt = sorted({*state.corrupt.values(), *result.corrupt})
        return result

    def _epoch(self, epoch: int, done: int) -> None:
        self.order.epoch, self.order.start = epoch, done
        self.state.model.train()
        settings, state, clock, speed = self.recipe.train, self.state, time.monotonic(), 0.0
        for batch in self.loader:
            rate = scheduled_rate(state.step, self.recipe.optim, self.warmup, self.total, self.per_epoch)
            loss, (stop, corrupt) = self.stepper.step(batch, rate, bool(self.stop), bool(batch.corrupt))
            if corrupt:
                self._note_corrupt(batch)
            self.in_a_row = 0 if math.isfinite(loss) else self.in_a_row + 1
            if self.in_a_row:
                self._not_finite(loss, batch)
            now = time.monotonic()
            this, clock = self.order.batch_size / (now - clock), now
            speed = 0.9 * speed + 0.1 * this if speed else this
            values = {"loss": loss, "lr": rate, "images_per_second": round(speed, 1)}
            self.display.step(state.step, epoch + 1, **values)
            ends = state.step % self.per_epoch == 0 or state.step == self.total
            if state.step % settings.log_every == 0 or ends:
                self._log({"kind": "train", "step": state.step, "epoch": state.step / self.per_epoch} | values)
            if stop:
                self._save()
                raise StoppedError(f"stopped at step {state.step} of {self.total}; go on with the same command and --resume")
            if ends or (settings.checkpoint_every and state.step % settings.checkpoint_every == 0):
                self._save()
            if ends:
                break

    def _evaluate(self, epoch: int, log: bool = True) -> Evaluation:
        state, recipe = self.state, self.recipe
        result = evaluate(
            state.shipped,
            self.task,
            self.val_loader,
            len(self.data.classes),
            self.device,
            precision=recipe.train.precision,
            max_corrupt=recipe.data.max_corrupt,
            progress=self._stop_evaluating,
        )
        headline = result.metrics[self.task.HEADLINE]
        if distributed.is_main():
            self._write_weights(result.metrics, is_best=headline > state.best)
        if log:
            state.evaluated, state.best = epoch, max(state.best, headline)
            self._log({"kind": "eval", "step": state.step, "epoch": epoch} | result.metrics)
            self.display.evaluated(epoch, self.task.headline(result.metrics), **{self.task.HEADLINE: headline})
            self._save()
        return result

    def _write_weights(self, metrics: dict[str, float], is_best: bool) -> None:
        description = {
            "task": self.recipe.task,
            "model": self.state.model.spec,
            "classes": self.data.classes,
            "preprocessing": self.task.preprocessing(self.recipe).to_json(),
            "metrics": metrics,
            "step": self.state.step,
        }
        weights = self.state.shipped.state_dict()
        write_weights(self.folder.last, weights, description)
        if is_best:
            write_weights(self.folder.best, weights, description)

    def _save(self) -> None:
        if not self.state.is_finite():
            raise ConvnextError(f"weights are not finite after step {self.state.step} and were not saved; {self._remedy()}")
        if distributed.is_main():
            self.folder.save_state(self.state.to_save(), self.state.step, self.recipe.train.keep_checkpoints)
        distributed.from_main(None)  # nobody goes on, or ends the job, before the state is on the disk

    def _log(self, line: dict[str, Any]) -> None:
        if distributed.is_main():
            self.state.logged = self.folder.log(line)
            for watcher in self.watchers:
                watcher.log(line)

    def _note_corrupt(self, batch: Any) -> None:
        for reason in self.corrupt.add([bad for part in distributed.gather(batch.corrupt) for bad in part]):
            self.display.tell(f"left out: {reason}")

    def _stop_evaluating(self, done: int, total: int) -> None:
        # The state was saved before the evaluation, and taking it up again evaluates again.
        if self.stop:
            raise StoppedError(f"stopped in the evaluation after step {self.state.step}; go on with the same command and --resume")

    def _not_finite(self, loss: float, batch: Any) -> None:
        step, source = self.state.step - 1, self.data.train.source
        files = ", ".join(source.name(index) for index in batch.indices[:8])
        told = f"the loss is {loss} at step {step}; the batch: {files}{' …' if len(batch) > 8 else ''}"
        if self.recipe.train.nonfinite == "stop":
            raise ConvnextError(f"{told}; {self._remedy()}, or look at these pictures")
        if self.in_a_row == _MOST_SKIPPED:
            raise ConvnextError(f"{told}, and was so for {self.in_a_row} steps in a row; {self._remedy()}")
        self.state.skipped += 1
        self.display.tell(f"{told}; left out, the {self.state.skipped}. such step")

    def _remedy(self) -> str:
        last = self.folder.last_state()
        return f"last good checkpoint: {last if last else 'none yet'}. Lower optim.lr or lengthen train.warmup_epochs"


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
