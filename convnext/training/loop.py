"""The loop: epochs, evaluations and states, the same for every task and for any number of processes."""

import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from convnext import distributed
from convnext.data.loader import STOP_SIGNALS, CorruptImages, EpochOrder, LostWorkerError, batches, make_loader
from convnext.errors import ConvnextError, UsageError
from convnext.evaluate import Evaluation, evaluate, evaluation_loader
from convnext.models.weights.files import write_weights
from convnext.recipe import Recipe
from convnext.training.optim import scheduled_rate
from convnext.training.progress import Display
from convnext.training.run_folder import RunFolder
from convnext.training.state import State
from convnext.training.step import Stepper, batch_size_for
from convnext.training.watch import Watcher

_MOST_SKIPPED = 10  # steps in a row: a run of nothing else learns nothing
_MODEST = 64  # images on a GPU at a time in an evaluation before it is known what fits


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
    ) -> None:
        self.state, self.task, self.data, self.recipe = state, task, data, recipe
        self.folder, self.device, self.display = folder, device, display
        self.watchers: Sequence[Watcher] = ()
        count, world = len(data.train), distributed.world()
        size = batch_size_for(recipe, count)
        self.order = EpochOrder(count, size, recipe.seed, distributed.rank(), world, data.groups)
        self.per_epoch = len(self.order)
        train = recipe.train
        self.total = train.iterations or train.epochs * self.per_epoch
        self.warmup = round(train.warmup_epochs * self.per_epoch) if train.warmup_steps is None else train.warmup_steps
        self.loader = make_loader(data.train, self.order, task.collate, recipe.data.workers, pin=device.type == "cuda")
        self.val_loader: Any = None  # made when it is known how large its batches may be
        self.stepper = Stepper(state, task.Trainer(recipe, data.classes), recipe, size, device)
        self.corrupt = CorruptImages(count, recipe.data.max_corrupt)
        self.corrupt.reasons = state.corrupt
        self.stop: list[int] = []
        self.in_a_row = 0  # steps that were skipped
        self._find_place(count)

    def _find_place(self, count: int) -> None:
        """Count the state's place, which it keeps in samples, in batches of this recipe. Raises UsageError if it is behind the end."""
        state, size = self.state, self.order.batch_size
        if not state.count:  # at the beginning, or saved by a version that kept steps alone
            state.epoch, batches = divmod(state.step, self.per_epoch)
            state.seen = batches * size
        elif state.count != count:
            state.seen = state.seen * count // state.count
        state.count = count
        state.seen -= state.seen % size
        if state.seen // size >= self.per_epoch:
            state.epoch, state.seen = state.epoch + 1, 0
        # Where another batch size or other data gave an epoch other steps, those of the schedule are not those that were made.
        self.offset = 0 if self.recipe.train.iterations else state.step - self._batches()
        if self.place > self.total:
            done, end = (state.step, self.total) if self.recipe.train.iterations else (self._epochs(), self.recipe.train.epochs)
            key = "train.iterations" if self.recipe.train.iterations else "train.epochs"
            raise UsageError(f"{key}={end} is behind: the run has already done {done:g}; give at least as many")

    @property
    def place(self) -> int:
        """The step of the schedule that is next: the steps made, unless the batch size or the data changed on the way."""
        return self.state.step - self.offset

    def _batches(self) -> int:
        return self.state.epoch * self.per_epoch + self.state.seen // self.order.batch_size

    def _epochs(self) -> float:
        return self._batches() / self.per_epoch

    def to_the_end(self) -> Evaluation:
        """Train from `state.step` on; returns the last evaluation.

        Raises StoppedError after SIGINT, SIGTERM or SIGHUP, with everything saved; ConvnextError if the loss is not finite.
        """
        state, settings = self.state, self.recipe.train
        result: Evaluation | None = None
        self.end = self.total + self.offset
        self.display.begin(self.end, state.step)
        with self.display, _stop_signals() as self.stop:
            while True:
                epoch, done = state.epoch, state.seen // self.order.batch_size
                is_last = self.place >= self.total
                begun = epoch + bool(done)  # a run counted in iterations may end within an epoch
                if (is_last or not done) and state.evaluated < begun and (is_last or epoch % settings.eval_every == 0):
                    result = self._evaluate(begun)
                if is_last:
                    break
                try:
                    self._epoch(epoch, done)
                except LostWorkerError:
                    if distributed.world() == 1:  # others are in the next step
                        self._save()
                    raise
        if result is None:  # the run was over before it was taken up
            result = self._evaluate(state.epoch + bool(state.seen), log=False)
        result.corrupt = sorted({*state.corrupt.values(), *result.corrupt})
        return result

    def _epoch(self, epoch: int, done: int) -> None:
        self.order.epoch, self.order.start = epoch, done
        self.state.model.train()
        settings, state, clock, speed = self.recipe.train, self.state, time.monotonic(), 0.0
        for batch in batches(self.loader):
            rate = scheduled_rate(self.place, self.recipe.optim, self.warmup, self.total, self.per_epoch)
            loss, (stop, corrupt), fault = self.stepper.step(batch, rate, bool(self.stop), bool(batch.corrupt))
            state.seen += self.order.batch_size
            if ends := state.seen == self.per_epoch * self.order.batch_size:
                state.epoch, state.seen = state.epoch + 1, 0
            ends = ends or self.place == self.total
            if corrupt:
                self._note_corrupt(batch)
            self.in_a_row = self.in_a_row + 1 if fault else 0
            if fault:
                self._not_finite(fault, batch)
            now = time.monotonic()
            this, clock = self.order.batch_size / (now - clock), now
            speed = 0.9 * speed + 0.1 * this if speed else this
            values = {"loss": loss, "lr": rate, "images_per_second": round(speed, 1)}
            self.display.step(state.step, epoch + 1, **values)
            if state.step % settings.log_every == 0 or ends:
                self._log({"kind": "train", "step": state.step, "epoch": self._epochs()} | values)
            if stop:
                self._save()
                raise StoppedError(f"stopped at step {state.step} of {self.end}; go on with the same command and --resume")
            if ends or (settings.checkpoint_every and state.step % settings.checkpoint_every == 0):
                self._save()
            if ends:
                break

    def _evaluate(self, epoch: int, log: bool = True) -> Evaluation:
        """Measure the weights that are kept, and where these are an EMA, for comparison the raw ones too (`raw_…` in the metrics)."""
        state, name = self.state, self.task.HEADLINE
        self._check_finite()
        result = self._measure(state.shipped)
        headline, told = result.metrics[name], self.task.headline(result.metrics)
        is_best = math.isfinite(headline) and headline > state.best
        distributed.on_main(lambda: self._write_weights(result.metrics, is_best))
        if state.ema is not None:
            raw = self._measure(state.model).metrics
            result.metrics |= {f"raw_{key}": raw[key] for key in (name, "loss") if key in raw}
            told += f" with the EMA weights, {raw[name]:.2f} % with the raw ones"
        if log:
            state.evaluated, state.best = epoch, headline if is_best else state.best
            self._log({"kind": "eval", "step": state.step, "epoch": epoch} | result.metrics)
            self.display.evaluated(epoch, told, **{name: headline})
            if not math.isfinite(headline):
                self.display.tell(f"{name} is {headline}: these weights are not taken as the best")
            self._save()
        return result

    def _measure(self, model: Any) -> Evaluation:
        distributed.take_from_main(buffer for buffer in model.buffers() if buffer.is_floating_point())  # its are saved
        if self.val_loader is None:
            known = self.stepper.fitted or self.device.type != "cuda"
            most = self.stepper.part if known else min(self.stepper.share, _MODEST)
            self.val_loader = evaluation_loader(self.data.val, self.task, most, self.recipe.data.workers, self.device)
        return evaluate(
            model,
            self.task,
            self.val_loader,
            len(self.data.classes),
            self.device,
            precision=self.recipe.train.precision,
            max_corrupt=self.recipe.data.max_corrupt,
            progress=self._stop_evaluating,
        )

    def _write_weights(self, metrics: dict[str, float], is_best: bool) -> None:
        description = {
            "task": self.recipe.task,
            "model": self.state.model.spec,
            "classes": self.data.classes,
            "preprocessing": self.task.preprocessing(self.recipe).to_json(),
            "metrics": metrics,
            "step": self.state.step,
        }
        if self.data.class_ids is not None:
            description["class_ids"] = list(self.data.class_ids)
        if self.folder.source:
            description["source"] = self.folder.source
        weights = self.state.shipped.state_dict()
        write_weights(self.folder.last, weights, description)
        if is_best:
            write_weights(self.folder.best, weights, description)

    def _check_finite(self) -> None:
        if not all(distributed.gather(self.state.is_finite())):
            raise ConvnextError(f"weights are not finite after step {self.state.step} and were not saved; {self._remedy()}")

    def _save(self) -> None:
        self._check_finite()
        # Nobody goes on, or ends the job, before the state is on the disk.
        distributed.on_main(lambda: self.folder.save_state(self.state.to_save(), self.state.step, self.recipe.train.keep_checkpoints))

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

    def _not_finite(self, fault: str, batch: Any) -> None:
        step, source = self.state.step - 1, self.data.train.source
        files = ", ".join(source.name(index) for index in batch.indices[:8])
        told = f"{fault} at step {step}; the batch: {files}{' …' if len(batch) > 8 else ''}"
        if self.recipe.train.nonfinite == "stop":
            raise ConvnextError(f"{told}; {self._remedy()}, or look at these images")
        if self.in_a_row == _MOST_SKIPPED:
            raise ConvnextError(f"{told}, and was so for {self.in_a_row} steps in a row; {self._remedy()}")
        self.state.skipped += 1
        self.display.tell(f"{told}; left out, the {self.state.skipped}. such step")

    def _remedy(self) -> str:
        last = self.folder.last_state()
        return f"last good checkpoint: {last if last else 'none yet'}. Lower optim.lr or lengthen train.warmup_epochs"


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that becomes non-empty when SIGINT, SIGTERM or SIGHUP arrives. A second SIGINT stops at once, as usual.

    SIGHUP stays ignored where it is, as under nohup.
    """
    caught: list[int] = []

    def note(number: int, _: Any) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)

    before = {}
    for number in (signal.SIGINT, *STOP_SIGNALS):
        if number != signal.SIGINT and signal.getsignal(number) == signal.SIG_IGN:
            continue
        try:
            before[number] = signal.signal(number, note)
        except ValueError:  # not in the main thread: signals are somebody else's business
            break
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
