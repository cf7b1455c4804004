"""The loop: epochs, evaluations and states, the same for every task and for any number of processes."""

import math
from collections import deque
from collections.abc import Iterator, Sequence

import torch

from convnext import distributed
from convnext.data.loader import CorruptImages, EpochOrder, Loader, LostWorkerError, make_loader
from convnext.errors import ConvnextError, UsageError
from convnext.evaluate import Evaluation, evaluate, evaluation_loader, without_nan
from convnext.models.freeze import eval_frozen
from convnext.models.network import Network
from convnext.models.weights.files import write_weights
from convnext.recipe import Recipe
from convnext.report import metrics
from convnext.tasks.base import AnyTask, Batch, Json, TaskData
from convnext.tasks.own import own_metrics
from convnext.text import counted
from convnext.training.folder.run_folder import RunFolder
from convnext.training.optim import scheduled_rate
from convnext.training.progress import Display, Speed, stop_signals
from convnext.training.sizes import batch_size_for
from convnext.training.state import State
from convnext.training.step import StepRecord, TrainStep
from convnext.training.watch import Watcher

_MAX_SKIPPED = 10  # steps in a row: a run of nothing else learns nothing
_RESUME = "resume with the same command and --resume"


class StoppedError(ConvnextError):
    """The run was asked to stop and has saved its state."""

    exit_code = 130


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
        self.folder, self.device, self.display = folder, device, display
        self.how = data.how or task.preprocessing(recipe)
        self.watchers: Sequence[Watcher] = ()
        count, pin, workers = len(data.train), device.type == "cuda", recipe.data.workers
        size = batch_size_for(recipe, count)
        self.train_step = TrainStep(state, task.criterion(recipe, data), recipe, size, device)
        rank, world, micro_batch = distributed.rank(), distributed.world(), self.train_step.micro_batch
        self.order = EpochOrder(count, size, recipe.seed, rank, world, data.groups, micro_batch, data.balance)
        self.per_epoch = self.order.batches
        train = recipe.train
        self.total = train.iterations or train.epochs * self.per_epoch
        self.warmup = round(train.warmup_epochs * self.per_epoch) if train.warmup_steps is None else train.warmup_steps
        self.loader: Loader[Batch, EpochOrder] = make_loader(data.train, self.order, task.collate, workers, pin)
        self.val_loader = evaluation_loader(data.val, task, task.batch_size, workers, device)
        self.corrupt = CorruptImages(count, recipe.data.max_corrupt)
        self.corrupt.reasons = state.corrupt
        self.stop: list[int] = []
        self.unread: deque[StepRecord] = deque()  # steps whose numbers were not read from the device yet
        self.losses = {"loss": math.nan}  # of the last step that was read, and its named parts
        self.norm = math.nan  # of its gradient
        self.skipped_in_a_row = 0
        self._locate(count)

    def _locate(self, count: int) -> None:
        """Turn the state's position, which it keeps in samples, into batches of this recipe.

        Raises UsageError if the run has gone beyond the recipe's end.
        """
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

    def fit(self) -> Evaluation:
        """Train from `state.step` to the end; return the last evaluation.

        Raises StoppedError after SIGINT, SIGTERM or SIGHUP, with everything saved; ConvnextError if the loss is not finite.
        """
        state, settings = self.state, self.recipe.train
        result: Evaluation | None = None
        self.end = self.total + self.offset
        self.display.begin(self.end, state.step)
        with self.display, stop_signals() as self.stop:
            while True:
                epoch, done = state.epoch, state.seen // self.order.batch_size
                is_last = self.schedule_step >= self.total
                begun = epoch + bool(done)  # a run counted in iterations may end within an epoch
                if (is_last or not done) and state.evaluated < begun and (is_last or epoch % settings.eval_every == 0):
                    result = self._evaluate(begun)
                if is_last:
                    break
                try:
                    self._epoch(epoch, done)
                except LostWorkerError:
                    if distributed.world() == 1:  # other processes are in the next step
                        self._save()
                    raise
        if result is None:  # the run was over before it was resumed
            result = self._evaluate(state.epoch + bool(state.seen), log=False)
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
            if logs:
                self._log({"kind": "train", "step": state.step, "epoch": self._epochs()} | values | {"grad_norm": self.norm})
            if stop or saves:
                self._save()
            if stop:
                raise StoppedError(f"stopped at step {state.step} of {self.end}; {_RESUME}")

    def _step(self, batches: Iterator[Batch], rate: float) -> StepRecord:
        try:
            return self.train_step.run(batches, rate, lambda: bool(self.stop))
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

    def _evaluate(self, epoch: int, log: bool = True) -> Evaluation:
        """Measure the EMA weights, and the raw ones for comparison (`raw_…` in the metrics); without EMA, the raw ones."""
        state, name = self.state, self.task.headline
        self._check_finite()
        result = self._measure(state.ema_or_model)
        headline, message = result.metrics[name], self.task.summary_line(result.metrics)
        best_by = self.recipe.eval.best_by or name
        value = result.metrics.get(best_by, math.nan)
        is_best = metrics.is_better(best_by, value, state.best)
        distributed.on_main(lambda: self._write_weights(result.metrics, is_best))
        if state.ema is not None:
            raw = self._measure(state.model).metrics
            result.metrics |= {f"raw_{key}": raw[key] for key in dict.fromkeys((name, best_by, "loss")) if key in raw}
            message += f" with the EMA weights, {raw[name]:.2f} % with the raw ones"
        if log:
            state.evaluated, state.best = epoch, value if is_best else state.best
            self._log({"kind": "eval", "step": state.step, "epoch": epoch} | result.metrics)
            self.display.evaluated(epoch, message, **{name: headline})
            if not math.isfinite(value):
                self.display.report(f"{best_by} is {value}: these weights do not become the best")
            self._save()
        return result

    def _measure(self, model: Network) -> Evaluation:
        # Of the buffers, running statistics for instance, the main process's are saved.
        distributed.take_from_main(buffer for buffer in model.buffers() if buffer.is_floating_point())
        return evaluate(
            model,
            self.task,
            self.val_loader,
            self.how,
            len(self.data.classes),
            self.device,
            precision=self.recipe.train.precision,
            max_corrupt=self.recipe.data.max_corrupt,
            progress=self._stop_evaluating,
            own=own_metrics(self.recipe),
        )

    def _write_weights(self, metrics: dict[str, float], is_best: bool) -> None:
        description: Json = {
            "task": self.recipe.task,
            "model": self.state.model.spec,
            "classes": self.data.classes,
            "preprocessing": self.how.to_json(),
            "metrics": metrics,
            "step": self.state.step,
        }
        if self.data.class_ids is not None:
            description["class_ids"] = list(self.data.class_ids)
        if self.folder.source:
            description["source"] = self.folder.source
        weights = self.state.ema_or_model.state_dict()
        write_weights(self.folder.last, weights, description)
        if is_best:
            write_weights(self.folder.best, weights, description)

    def _check_finite(self) -> None:
        if not all(distributed.gather(self.state.is_finite())):
            raise ConvnextError(f"weights are not finite after step {self.state.step} and were not saved; {self._remedy()}")

    def _save(self) -> None:
        self._check_finite()
        # No process continues, or ends the job, before the state is on the disk.
        distributed.on_main(lambda: self.folder.save_state(self.state.to_save(), self.state.step, self.recipe.train.keep_checkpoints))

    def _log(self, line: Json) -> None:
        if distributed.is_main():
            line = without_nan(line)
            self.state.logged = self.folder.log(line)
            for watcher in self.watchers:
                watcher.log(line)

    def _note_corrupt(self, record: StepRecord) -> None:
        for reason in self.corrupt.add([bad for found in distributed.gather(record.corrupt) for bad in found]):
            self.display.report(f"skipped: {reason}")

    def _stop_evaluating(self, done: int, total: int) -> None:
        # The state was saved before the evaluation, and a resumed run evaluates again.
        if self.stop:
            raise StoppedError(f"stopped in the evaluation after step {self.state.step}; {_RESUME}")

    def _not_finite(self, fault: str, record: StepRecord) -> None:
        source = self.data.train.source
        files = ", ".join(source.name(index) for index in record.indices)
        message = f"{fault} at step {record.step}; the batch: {files}{' …' if record.count > len(record.indices) else ''}"
        if self.recipe.train.nonfinite == "stop":
            raise ConvnextError(f"{message}; {self._remedy()}, or look at these images")
        if self.skipped_in_a_row == _MAX_SKIPPED:
            raise ConvnextError(f"{message}; this was so in {counted(self.skipped_in_a_row, 'step')} in a row; {self._remedy()}")
        self.state.skipped += 1
        self.display.report(f"{message}; step skipped ({self.state.skipped} so far)")

    def _remedy(self) -> str:
        last = self.folder.last_state()
        return f"last good checkpoint: {last if last else 'none yet'}. Lower optim.lr or lengthen train.warmup_epochs"
