"""What a run leaves at its end: the result, evaluation.json and the report."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from convnext import distributed, tasks
from convnext.data.download import without_secrets
from convnext.evaluate import Evaluation, disjoint, without_nan
from convnext.models.weights.files import write_text
from convnext.recipe import Recipe
from convnext.recipe.checks import is_used
from convnext.report import metrics, notebook, page
from convnext.report.page import write_page
from convnext.report.runs import read_run
from convnext.tasks.base import Json
from convnext.text import counted
from convnext.training.loop import Trainer
from convnext.training.progress.clock import duration


@dataclass
class TrainResult:
    """The result of a run."""

    folder: Path
    metrics: dict[str, float]  # at the end
    best: float  # the metric of best.safetensors that chose it: `eval.best_by`, or the task's headline
    seconds: float  # of the whole run, including the sessions before it was resumed
    step: int  # optimizer steps done
    stopped: str | None = None  # why a callback stopped the run before its last step; None if it is complete

    def to_json(self) -> Json:
        """Return the result as plain values."""
        return vars(self) | {"folder": str(self.folder)}

    def _repr_html_(self) -> str:
        from convnext.report import plots  # loads Matplotlib

        run = read_run(self.folder)
        headline = tasks.get(str(run.recipe.get("task", Recipe.model_fields["task"].default))).headline
        what = "stopped" if self.stopped else "trained"
        lead = f"{what} for {counted(self.step, 'step')} in {duration(self.seconds)} · report: {self.folder / 'report.html'}"
        return notebook.result(self.folder.name, lead, metrics.cards(self.metrics), plots.curves(run.lines, headline)[:3])


def finish(trainer: Trainer, evaluation: Evaluation) -> TrainResult:
    """Write evaluation.json and the report of a run that is complete or was stopped by a callback; report and return its result."""
    folder, task, report, stop = trainer.folder, trainer.task, trainer.display.report, trainer.callbacks.stop
    numbers = (evaluation.metrics, trainer.state.best, trainer.seconds(), trainer.state.step)
    result = TrainResult(folder.path, *numbers, trainer.callbacks.reason())
    if distributed.is_main():
        values = without_nan(disjoint({"metrics": evaluation.metrics}, evaluation.details, {"corrupt": evaluation.corrupt}))
        text = json.dumps(values, allow_nan=False) + "\n"
        write_text(folder.evaluation, text)
        written = write_page(folder.report, lambda: _page(trainer, evaluation, result), report)
        where = f"; report: {folder.report}" if written else ""
        chosen = trainer.recipe.eval.best_by
        name = chosen or task.headline
        number = f"{result.best:.2f} %" if name not in metrics.ERRORS and chosen is None else metrics.value(name, result.best)
        best = number if chosen is None else f"{metrics.label(chosen)} {number}"
        if stop is not None:
            report(f"stopped at step {trainer.state.step} of {trainer.end}: {stop.reason}; {stop.remedy}")
        report(f"{'done' if stop is None else 'so far'}: {task.summary_line(evaluation.metrics)}, best {best}{where}")
    return result


def _page(trainer: Trainer, evaluation: Evaluation, result: TrainResult) -> str:
    from convnext.report import plots  # loads Matplotlib

    folder, recipe, data, task = trainer.folder, trainer.recipe, trainer.data, trainer.task
    ran_on = json.loads(folder.environment.read_text("utf-8"))
    hardware, name, raw = ran_on["hardware"], task.headline, f"raw_{task.headline}"
    best_by = recipe.eval.best_by or name
    headline, count = evaluation.metrics[name], evaluation.metrics.get("count")
    minutes, seconds = divmod(round(result.seconds), 60)
    cards = {
        f"{metrics.described(name, headline, count)}, at the end": metrics.value(name, headline),
        **({metrics.label(raw): metrics.value(raw, evaluation.metrics[raw])} if raw in evaluation.metrics else {}),
        f"best {metrics.label(best_by)}": metrics.value(best_by, result.best),
        "validation images": f"{count}",
        "training images": f"{len(data.train)}",
        **_length(trainer, result),
        "time": f"{minutes} min {seconds:02d} s",
    }
    machine = [{"what": key, "value": value} for part in ("hardware", "versions") for key, value in ran_on[part].items()]
    machine += [{"what": key, "value": ran_on[key]} for key in ("date", "system", "command", "commit")]
    stopped = [] if result.stopped is None else [page.PageSection("Stopped", page.notice(result.stopped))]
    sections = [
        *stopped,
        page.PageSection("Course of the run", page.figures(plots.curves(folder.lines(), name))),
        *task.report(evaluation.details, data.classes, data.val.source),
    ]
    if evaluation.corrupt:
        title = f"{counted(len(evaluation.corrupt), 'unreadable image')} skipped"
        sections.append(page.PageSection(title, page.preformatted("\n".join(evaluation.corrupt))))
    sections.append(recipe_section(recipe))
    sections.append(page.PageSection("What it ran on", page.table(machine)))
    lead = f"{recipe.model.name} · {hardware['gpu'] or hardware['cpu']} · convnext {ran_on['versions']['convnext']}"
    return page.page(folder.path.name, lead, cards, sections)


def recipe_section(recipe: Recipe) -> page.PageSection:
    """Return the section of a report with the keys of a recipe that have an effect, folded."""
    keys = without_secrets(recipe.to_yaml(partial(is_used, recipe)))
    return page.PageSection("Recipe", page.details("all keys that count", page.preformatted(keys)))


def _length(trainer: Trainer, result: TrainResult) -> dict[str, str]:
    """Return how long the run was, in epochs or in steps; of one that was stopped, also how long it was to be."""
    train = trainer.recipe.train
    what, done, end = "epochs", trainer.moment().epoch, train.epochs
    if (steps := train.steps()) is not None:
        what, done, end = "steps", result.step, steps
    return {what: str(end) if result.stopped is None else f"{round(done, 1):g} of {end}"}
