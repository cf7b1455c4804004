"""The loop: epochs, evaluations and states, the same for every task and for any number of processes."""

import math
import time
from collections import deque
from collections.abc import Iterator
from functools import partial

import torch

from convnext import distributed
from convnext.data.loader import CorruptImages, Loader, LostWorkerError, make_loader
from convnext.data.sampling.order import EpochOrder
from convnext.errors import ConvnextError, UsageError, nearest
from convnext.evaluate import Evaluation, evaluate, evaluation_loader, without_nan
from convnext.models.freeze import eval_frozen
from convnext.models.network import Network
from convnext.recipe import Recipe
from convnext.recipe.checks import warmup_steps
from convnext.report import metrics
from convnext.tasks.base import AnyTask, Batch, Json, TaskData
from convnext.tasks.own import own_metrics
from convnext.tasks.validation import losses_of
from convnext.text import counted
from convnext.training.callbacks import CallbackGroup, Moment
from convnext.training.folder.run_folder import RunFolder
from convnext.training.folder.weights import check_finite, remedy, write_run_weights
from convnext.training.optim import scheduled_rate
from convnext.training.progress.clock import Speed
from convnext.training.progress.display import Display
from convnext.training.progress.signals import StoppedError, stop_signals
from convnext.training.sizes import batch_size_for
from convnext.training.state import State
from convnext.training.step import StepRecord, TrainStep

_MAX_SKIPPED = 10  # steps in a row: a run of nothing else learns nothing
_RESUME = "resume with the same command and --resume"


class Trainer:
    """Moves a state to the end of its run: steps, evaluations, checkpoints, lines of metrics.jsonl.

    The order of the samples, augmentation, mixing and stochastic depth are functions of (seed, step), so neither an interruption
    nor the number of workers leaves a trace in the weights.
    """

    def __init__(
        self,
        state: State,
        task: AnyTask,
        data: TaskData,
        recipe: Recipe,
        folder: RunFolder,
        device: torch.device,
        display: Display,
    ) -> None:
        self.state, self.task, self.data, self.recipe = state, task, data, recipe
        self.folder, self.device, self.display, self.callbacks = folder, device, display, CallbackGroup()
        self.how = data.how or task.preprocessing(recipe)
        self.began = time.monotonic() - state.seconds  # had the run not been interrupted
        pin, workers = device.type == "cuda", recipe.data.workers
        size = batch_size_for(recipe, count := len(data.train))
        self.train_step = TrainStep(state, task.criterion(recipe, data), recipe, size, device)
        rank, world, micro_batch = distributed.rank(), distributed.world(), self.train_step.micro_batch
        self.order = EpochOrder(count, size, recipe.seed, rank, world, data.groups, micro_batch, data.draw)
        self.per_epoch = self.order.batches
        self.total = recipe.train.steps() or recipe.train.epochs * self.per_epoch
        self.warmup = warmup_steps(recipe, self.per_epoch, self.total)
        self.loader: Loader[Batch, EpochOrder] = make_loader(data.train, self.order, task.collate, workers, pin)
        self.val_loader = evaluation_loader(data.val, task, task.batch_size, workers, device)
        self.val_losses = losses_of(task, recipe, data, self.how, self.train_step.criterion, device)
        self.corrupt = CorruptImages(count, recipe.data.max_corrupt)
        self.corrupt.reasons = state.corrupt
        self.unread: deque[StepRecord] = deque()  # steps whose numbers were not read from the device yet
        self.losses, self.norm = {"loss": math.nan}, math.nan  # of the last step that was read, with its named parts; of its gradient
        self.skipped_in_a_row, self.stop = 0, list[int]()
        self._locate(count)

    def _locate(self, count: int) -> None:
        """Find the state's position in this recipe's batches. Raises UsageError if the run has gone beyond the recipe's end."""
        state = self.state
        state.locate(count, self.per_epoch, self.order.batch_size)
        # Where another batch size or other data gave an epoch other steps, those of the schedule are not those that were made.
        self.offset = 0 if self.recipe.train.iterations else state.step - self._batches()
        if self.schedule_step > self.total:
            done, end = (state.step, self.total) if self.recipe.train.iterations else (self._epochs(), self.recipe.train.epochs)
            key = "train.iterations" if self.recipe.train.iterations else "train.epochs"
            raise UsageError(f"{key}={end} is too low: the run has already done {done:g}; give at least as many")

    @property
    def schedule_step(self) -> int:
        """The next step of the schedule: the number of steps made, unless the batch size or the data changed on the way."""
        return self.state.step - self.offset

    def _batches(self) -> int:
        return self.state.epoch * self.per_epoch + self.state.seen // self.order.batch_size

    def _epochs(self) -> float:
        return self._batches() / self.per_epoch

    def seconds(self) -> float:
        """Return how long the run has taken, with the sessions before it was resumed as far as their last checkpoints."""
        return time.monotonic() - self.began

    def moment(self, line: Json | None = None, is_best: bool = False, stopped: str | None = None) -> Moment:
        """Return where the run is, for its callbacks."""
        state = self.state
        where = (state.step, self.total + self.offset, self._epochs(), self.seconds())
        return Moment(*where, state.best, state.model, self.folder.path, line or {}, is_best, stopped)

    def fit(self) -> Evaluation:
        """Train from `state.step` to the end, or until a callback stops the run (`callbacks.stop`); return the last evaluation.

        Raises StoppedError after SIGINT, SIGTERM or SIGHUP, with everything saved; ConvnextError if the loss is not finite.
        """
        state, settings = self.state, self.recipe.train
        self.end = self.total + self.offset
        self.display.begin(self.end, state.step)
        with self.display, stop_signals() as self.stop:  # the signals that came
            self.callbacks.call("on_begin", self.moment)
            while True:
                result: Evaluation | None = None
                epoch, done = state.epoch, state.seen // self.order.batch_size
                is_last = self.schedule_step >= self.total
                begun = epoch + bool(done)  # a run counted in iterations may end within an epoch
                if (is_last or not done) and state.evaluated < begun and (is_last or epoch % settings.eval_every == 0):
                    result = self._evaluate(begun)
                if is_last:
                    self.callbacks.stop = None  # of the last step
                if is_last or self.callbacks.is_stopped():
                    break
                try:
                    self._epoch(epoch, done)
                except LostWorkerError:
                    if distributed.world() == 1:  # other processes are in the next step
                        self._save()
                    raise
            if result is None:  # the run was over before it was resumed, or is stopped here
                here = begun if is_last or not done else self._epochs()
                result = self._evaluate(here, log=state.evaluated < begun or not state.step, keep=False)
        result.corrupt = sorted({*state.corrupt.values(), *result.corrupt})
        return result

    def _epoch(self, epoch: int, done: int) -> None:
        self.order.epoch, self.order.start = epoch, done
        settings, state = self.recipe.train, self.state
        state.model.train()
        if self.recipe.model.freeze is not None:
            eval_frozen(state.model)
        batches, speed, ends = iter(self.loader), Speed(), False
        while not ends:
            rate = scheduled_rate(self.schedule_step, self.recipe.optim, self.warmup, self.total, self.per_epoch)
            self.unread.append(self._step(batches, rate))
            ends = self._advance()
            logs = state.step % settings.log_every == 0 or ends
            saves = ends or (settings.checkpoint_every is not None and state.step % settings.checkpoint_every == 0)
            if stop := self._read(everything=logs or saves):
                self._read(everything=True)
            values = self.losses | {"lr": rate, "images_per_second": speed.update(self.order.batch_size)}
            self.display.step(state.step, epoch + 1, **values)
            line: Json = {"kind": "train", "step": state.step, "epoch": self._epochs()} | values | {"grad_norm": self.norm} if logs else {}
            self._log(line)
            self.callbacks.call("on_step", partial(self.moment, line))
            if self._is_stopped_alone():
                self._read(everything=True)
            if stop or saves or self._is_stopped_alone():
                self._save()
            if stop or self._is_stopped_alone():
                if any(distributed.gather(bool(self.stop))):
                    raise StoppedError(f"stopped at step {state.step} of {self.end}; {_RESUME}")
                break

    def _is_stopped_alone(self) -> bool:
        """Return whether a callback stops the run now. Several processes learn of it in the numbers of a step instead."""
        return distributed.world() == 1 and self.callbacks.stop is not None

    def _step(self, batches: Iterator[Batch], rate: float) -> StepRecord:
        try:
            return self.train_step.run(batches, rate, lambda: bool(self.stop or self.callbacks.stop))
        except LostWorkerError:
            self._read(everything=True)  # so that no state is saved whose loss was not finite
            raise

    def _advance(self) -> bool:
        """Count a batch; return whether the epoch, or the run, ends with it."""
        state, size = self.state, self.order.batch_size
        state.seen += size
        if ends := state.seen == self.per_epoch * size:
            state.epoch, state.seen = state.epoch + 1, 0
        return ends or self.schedule_step == self.total

    def _read(self, everything: bool) -> bool:
        """Read the numbers of steps that are due; return whether to stop.

        Numbers that the device may still be working on are not due, unless `everything` is, or this process alone decides and has
        something to decide. Several processes read the same steps at the same time.
        """
        stop = False
        if distributed.world() > 1:
            waiting = 0 if everything else 1  # the step before the last has been exchanged by now
        else:
            last = self.unread[-1] if self.unread else None
            waiting = 0 if everything or self.stop or (last is not None and last.corrupt) else len(self.unread)
        while self.unread and (len(self.unread) > waiting or self.unread[0].pending is None):
            record = self.unread.popleft()
            record.read()
            parts = {name if name.startswith("loss_") else f"loss_{name}": value for name, value in record.losses.items()}
            self.losses, self.norm = {"loss": record.loss} | parts, record.norm
            stop = stop or record.stop
            if record.any_corrupt:
                self._note_corrupt(record)
            self.skipped_in_a_row = self.skipped_in_a_row + 1 if record.fault else 0
            if record.fault:
                self._not_finite(record.fault, record)
        return stop

    def _evaluate(self, epoch: float, log: bool = True, keep: bool = True) -> Evaluation:
        """Measure the EMA weights, and the raw ones for comparison (`raw_…` in the metrics); without EMA, the raw ones.

        Unless it is to `keep`, no checkpoint knows of it: a resumed run does what it would have done without.
        """
        state, name = self.state, self.task.headline
        check_finite(self.folder, self.state, self.recipe)
        result = self._measure(state.ema_or_model)
        message, best_by = self.task.summary_line(result.metrics), self.recipe.eval.best_by or name
        if best_by not in result.metrics:  # a user's metric, or data.val without objects
            raise UsageError(f"eval.best_by: the evaluation has no metric {best_by!r}{nearest(best_by, result.metrics)} ({message})")
        headline, value = result.metrics[name], result.metrics[best_by]
        is_best = metrics.is_better(best_by, value, state.best) and (keep or not math.isfinite(state.best))
        distributed.on_main(lambda: write_run_weights(self.folder, state, self.recipe, self.data, self.how, result.metrics, is_best))
        if state.ema is not None:
            raw = self._measure(state.model).metrics
            result.metrics |= {f"raw_{key}": raw[key] for key in dict.fromkeys((name, best_by, "loss")) if key in raw}
            message += f" with the EMA weights, {raw[name]:.2f} % with the raw ones"
        if log:
            state.evaluated, state.best = math.ceil(epoch), value if is_best else state.best
            line: Json = {"kind": "eval", "step": state.step, "epoch": epoch} | result.metrics
            self._log(line)
            self.display.evaluated(epoch, message, **{name: headline})
            if not math.isfinite(value):
                self.display.report(f"{best_by} is {value}: these weights do not become the best")
            self.callbacks.call("on_evaluation", partial(self.moment, line, is_best))
        if keep:
            self._save()
        return result

    def _measure(self, model: Network) -> Evaluation:
        # Of the buffers, running statistics for instance, the main process's are saved.
        distributed.take_from_main(buffer for buffer in model.buffers() if buffer.is_floating_point())
        result = evaluate(
            model,
            self.task,
            self.val_loader,
            self.how,
            len(self.data.classes),
            self.device,
            precision=self.recipe.train.precision,
            max_corrupt=self.recipe.data.max_corrupt,
            progress=self._evaluating,
            own=own_metrics(self.recipe),
        )
        result.metrics |= self.val_losses(model)
        return result

    def _save(self) -> None:
        check_finite(self.folder, self.state, self.recipe)
        # No process continues, or ends the job, before the state is on the disk.
        distributed.on_main(self._write_state)
        self.callbacks.call("on_save", self.moment)

    def _write_state(self) -> None:
        self.state.seconds, self.state.callbacks = self.seconds(), self.callbacks.state()
        self.folder.save_state(self.state.to_save(), self.state.step, self.recipe.train.keep_checkpoints)

    def _log(self, line: Json) -> None:
        if line and distributed.is_main():
            line = without_nan(line)
            self.state.logged = self.folder.log(line)

    def _note_corrupt(self, record: StepRecord) -> None:
        for reason in self.corrupt.add([bad for found in distributed.gather(record.corrupt) for bad in found]):
            self.display.report(f"skipped: {reason}")

    def _evaluating(self, done: int, total: int) -> None:
        self.display.evaluating(done, total)
        # The state was saved before the evaluation, and a resumed run evaluates again.
        if self.stop:
            raise StoppedError(f"stopped in the evaluation after step {self.state.step}; {_RESUME}")

    def _not_finite(self, fault: str, record: StepRecord) -> None:
        source = self.data.train.source
        files = ", ".join(source.name(index) for index in record.indices)
        message = f"{fault} at step {record.step}; the batch: {files}{' …' if record.count > len(record.indices) else ''}"
        cure = remedy(self.folder, self.recipe)
        if self.recipe.train.nonfinite == "stop":
            raise ConvnextError(f"{message}; {cure}, or look at these images")
        if self.skipped_in_a_row == _MAX_SKIPPED:
            raise ConvnextError(f"{message}; this was so in {counted(self.skipped_in_a_row, 'step')} in a row; {cure}")
        self.state.skipped += 1
        self.display.report(f"{message}; step skipped ({self.state.skipped} so far)")
