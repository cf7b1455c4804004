"""Runs side by side on one page: numbers, curves over each other, the recipe keys in which they differ.

Knows nothing of training: a run is the plain values of its folder's files.
"""

import html
import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from convnext.errors import ConvnextError, UsageError
from convnext.report import page, plots

NONE = "–"  # where a run has no such value


@dataclass(frozen=True)
class RunData:
    """A run, as its folder tells it."""

    name: str
    recipe: dict[str, Any]
    environment: dict[str, Any]
    lines: list[dict[str, Any]]  # of metrics.jsonl
    remarks: list[str] = field(default_factory=list)  # what the reader should know of them


def read_runs(paths: Sequence[Path]) -> list[RunData]:
    """The runs of these folders, each once, in this order, with names that differ: folders of one name get their parent's too."""
    folders = list(dict.fromkeys(path.resolve() for path in paths))
    depth = dict.fromkeys(folders, 1)
    while True:
        names = {folder: "/".join(folder.parts[-depth[folder] :]) for folder in folders}
        shared = [folder for folder in folders if Counter(names.values())[names[folder]] > 1]
        if not shared:
            return [replace(read_run(folder), name=names[folder]) for folder in folders]
        for folder in shared:
            depth[folder] += 1


def read_run(path: Path) -> RunData:
    """The run of a folder, named after it.

    A last line of metrics.jsonl that is cut short, as of a run killed while it wrote, is left out and told in `remarks`.

    Raises UsageError if there is no such run, ConvnextError that names the file if one is missing or damaged.
    """
    path = path.resolve()
    if not (path / "recipe.yaml").is_file():
        raise UsageError(f"{path} holds no run: it has no recipe.yaml")
    try:
        recipe = yaml.safe_load(_text(path / "recipe.yaml"))
    except yaml.YAMLError as error:
        raise ConvnextError(f"{path / 'recipe.yaml'} is damaged: {error}") from error
    try:
        environment = json.loads(_text(path / "environment.json"))
    except ValueError as error:
        raise ConvnextError(f"{path / 'environment.json'} is damaged: {error}") from error
    for name, values in (("recipe.yaml", recipe), ("environment.json", environment)):
        if not isinstance(values, dict):
            raise ConvnextError(f"{path / name} is damaged: it holds no table of keys")
    lines, remarks = read_lines(path / "metrics.jsonl")
    return RunData(path.name, recipe, environment, lines, remarks)


def compare(runs: Sequence[RunData], headline: str) -> str:
    """The page as HTML.

    Args:
        runs: at least one, of one task, with different names.
        headline: the metric of the evaluations to judge by, in percent, higher is better.
    """
    if len({run.name for run in runs}) < len(runs):
        raise ValueError("the names of the runs must differ")
    rows = [_row(run, headline) for run in runs]
    if not any("date" in run.environment for run in runs):
        rows = [{key: value for key, value in row.items() if key != "date"} for row in rows]
    if len(runs) == 1:
        cards = {key: rows[0][key] for key in (f"best {headline}", f"last {headline}", "epochs", "images/s")}
        sections = [page.Section("Run", page.tight(page.table(rows))), page.Section("Course, machine and recipe", _told(runs[0], headline))]
        return page.page(runs[0].name, _model(runs[0]), cards, sections)
    sections = [
        page.Section("Runs", page.tight(page.table(rows))),
        page.Section("Curves", _curves(runs, headline)),
        page.Section("Recipe keys that differ", _differences(runs)),
        page.Section("Each run", "".join(page.details(run.name, _told(run, headline)) for run in runs)),
    ]
    lead = " · ".join(dict.fromkeys(_model(run) for run in runs))
    return page.page(f"{len(runs)} runs compared", lead, _cards(runs, headline), sections)


def _row(run: RunData, headline: str) -> dict[str, str]:
    """What the first table says of a run."""
    evals = _evals(run, headline)
    best, end, speed = _best(run, headline), max((line["epoch"] for line in run.lines), default=0), _speed(run)
    epochs = run.recipe.get("train", {}).get("epochs")
    return {
        "run": run.name,
        f"best {headline}": _percent(best[headline]) if best else NONE,
        "at epoch": f"{best['epoch']:g}" if best else NONE,
        f"last {headline}": _percent(evals[-1][headline]) if evals else NONE,
        "epochs": f"{end:.3g} of {epochs}" if epochs is not None and end < epochs else f"{end:g}",
        "steps": str(max((line["step"] for line in run.lines), default=0)),
        "images/s": f"{speed:.4g}" if speed is not None else NONE,
        "model": _model(run),
        "hardware": _hardware(run),
        "date": str(run.environment.get("date", NONE)).replace("T", " ")[:16],  # to the minute
    }


def _cards(runs: Sequence[RunData], headline: str) -> dict[str, str]:
    """The best and the fastest, with the names of the runs that are it."""
    bests = {run.name: best[headline] for run in runs if (best := _best(run, headline))}
    speeds = {run.name: speed for run in runs if (speed := _speed(run)) is not None}
    cards = {}
    for what, values, told in ((f"best {headline}", bests, _percent), ("most images/s", speeds, "{:.4g}".format)):
        if values:
            most = max(values.values())
            cards[f"{what}: {', '.join(name for name, value in values.items() if value == most)}"] = told(most)
    return cards


def _curves(runs: Sequence[RunData], headline: str) -> str:
    losses = [[(line["epoch"], line["loss"]) for line in run.lines if line["kind"] == "train" and "loss" in line] for run in runs]
    metrics = [[(line["epoch"], line[headline]) for line in _evals(run, headline)] for run in runs]
    drawn = [(losses, "Training loss", "No training step is logged yet."), (metrics, f"Validation {headline} (%)", "No evaluation yet.")]
    svgs = [plots.overlay(series, title) for series, title, _ in drawn if any(series)]
    missing = "".join(f"<p>{remark}</p>" for series, _, remark in drawn if not any(series))
    return page.legend([(run.name, *plots.style(index)) for index, run in enumerate(runs)]) + page.figures(svgs) + missing


def _differences(runs: Sequence[RunData]) -> str:
    recipes = [_flat(run.recipe) for run in runs]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    values = {key: [recipe.get(key, NONE) for recipe in recipes] for key in keys}
    differ = {key: told for key, told in values.items() if len(set(told)) > 1}
    if not differ:
        return "<p>None: the recipes are the same.</p>"
    names = [run.name for run in runs]
    return page.table([{"key": key} | dict(zip(names, told, strict=True)) for key, told in differ.items()])


def _told(run: RunData, headline: str) -> str:
    """All that is known of one run."""
    remarks = run.remarks if _evals(run, headline) else [*run.remarks, "No evaluation yet."]
    parts = [f"<p>{html.escape(remark)}</p>" for remark in remarks]
    if run.lines:
        parts.append(page.figure(plots.curves(run.lines, headline), wide=True))
    ran_on = [{"what": key, "value": value} for key, value in _flat(run.environment).items() if value != "null"]
    parts.append(page.table(ran_on))
    parts.append(page.preformatted(yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)))
    return page.spaced(parts)


def _evals(run: RunData, headline: str) -> list[dict[str, Any]]:
    return [line for line in run.lines if line["kind"] == "eval" and headline in line]


def _best(run: RunData, headline: str) -> dict[str, Any] | None:
    return max(_evals(run, headline), key=lambda line: line[headline], default=None)


def _speed(run: RunData) -> float | None:
    speeds = [line["images_per_second"] for line in run.lines if line["kind"] == "train" and "images_per_second" in line]
    return statistics.median(speeds) if speeds else None


def _percent(value: float) -> str:
    return f"{value:.2f}\N{NO-BREAK SPACE}%"


def _model(run: RunData) -> str:
    return str(run.recipe.get("model", {}).get("name", NONE))


def _hardware(run: RunData) -> str:
    hardware = run.environment.get("hardware", {})
    return str(hardware.get("gpu") or hardware.get("cpu") or NONE)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys and their values as a recipe writes them."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return flat


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError as error:
        raise ConvnextError(f"{path} is missing") from error
    except OSError as error:
        raise ConvnextError(f"{path} can't be read: {error}") from error


def read_lines(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The lines of a metrics.jsonl, and remarks on them: one that is cut short at the end is left out. Raises ConvnextError if damaged."""
    text = _text(path)
    texts = text.removesuffix("\n").split("\n") if text else []
    lines: list[dict[str, Any]] = []
    for number, written in enumerate(texts, start=1):
        try:
            line = json.loads(written)
            if not (isinstance(line["kind"], str) and isinstance(line["step"], int) and isinstance(line["epoch"], int | float)):
                raise TypeError("kind, step and epoch must be a word and two numbers")
        except (ValueError, KeyError, TypeError) as error:
            if number == len(texts) and not text.endswith("\n"):
                return lines, [f"The last line of {path.name} is cut short and left out: the run was stopped while it wrote."]
            raise ConvnextError(f"{path} is damaged in line {number}: {error}") from error
        lines.append(line)
    return lines, []
