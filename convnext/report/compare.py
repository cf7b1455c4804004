"""Runs side by side on one page: numbers, curves over each other, the recipe keys in which they differ."""

import statistics
from collections.abc import Sequence

import yaml

from convnext.report import metrics, page, plots
from convnext.report.runs import NONE, RunData, flat
from convnext.text import counted

_DIFFERENT_DATA = (
    "Not comparable: different validation sets. The recipes name other validation images, or their numbers differ, so no run is "
    "named the best."
)
_FOLDS = (
    "The runs are folds of one cross-validation: each was evaluated on other images. The mean and the standard deviation are over the "
    "last evaluations of the folds."
)
_INTERVAL = (
    "The 95 % interval is that of the last evaluation: how far the choice of the validation images may move it. Runs whose intervals "
    "overlap may be equally good; the differences between seeds come on top of it."
)

_SEEDS = "The runs of a line have the same recipe but for the seed, and are equally long."


def compare(runs: Sequence[RunData], headline: str) -> str:
    """Return the page as HTML.

    Args:
        runs: at least one, all of one task, with different names.
        headline: the metric of the evaluations to judge by.

    Raises ValueError if two runs have the same name.
    """
    if len({run.name for run in runs}) < len(runs):
        raise ValueError("the names of the runs must differ")
    if len(runs) == 1:
        return _page_of_one(runs[0], headline)
    rows, shared = _split(_rows(runs, headline))
    numbers = [*_notices(runs, headline), page.tight(page.table(rows))]
    if shared:
        numbers.append(page.paragraph(f"Of all runs: {' · '.join(f'{key} {value}' for key, value in shared.items())}"))
    sections = [
        page.PageSection("Runs", page.spaced(numbers)),
        *([page.PageSection("Over the seeds", seeds)] if (seeds := _over_seeds(runs, headline)) else []),
        page.PageSection("Recipe keys that differ", _recipes(runs)),
        page.PageSection("Curves", _curves(runs, headline)),
        page.PageSection("Each run", "".join(page.details(run.name, page.spaced(_course(run, headline))) for run in runs)),
    ]
    lead = " · ".join(dict.fromkeys(run.model() for run in runs))
    return page.page(f"{len(runs)} runs compared", lead, _cards(runs, headline), sections)


def comparable(runs: Sequence[RunData], headline: str) -> bool:
    """Return whether all runs were evaluated on the same images, as far as their folders say."""
    counts = {count for run in runs if (count := run.validation_count(headline)) is not None}
    return len({run.validation_set() for run in runs}) <= 1 and len(counts) <= 1


def _fold_values(runs: Sequence[RunData], headline: str) -> list[float] | None:
    """Return the value of each run's last evaluation if the runs are different folds of one cross-validation, else None."""
    folds = [run.fold() for run in runs]
    data = [{key: value for key, value in run.section("data").items() if key != "fold"} for run in runs]
    is_one = all(one == data[0] for one in data) and len({fold[1] for fold in folds if fold}) == 1
    values = [found[-1][1] for run in runs if (found := run.points("eval", headline))]
    return values if is_one and None not in folds and len(set(folds)) == len(runs) == len(values) else None


def _page_of_one(run: RunData, headline: str) -> str:
    rows = _rows([run], headline)
    name = metrics.label(headline)
    cards = {key: rows[0][key] for key in (f"best {name}", f"last {name}", "epochs", "images/s")}
    sections = [
        page.PageSection("Run", page.tight(page.table(rows))),
        page.PageSection("Course, machine and recipe", page.spaced([*_course(run, headline), page.details("Recipe", _recipe(run))])),
    ]
    return page.page(run.name, run.model(), cards, sections)


def _rows(runs: Sequence[RunData], headline: str) -> list[dict[str, str]]:
    """Return the first table, without the columns that no run has a value for."""
    rows = [_row(run, headline) for run in runs]
    empty = {key for key in ("95 % interval", "date") if all(row[key] == NONE for row in rows)}
    return [{key: value for key, value in row.items() if key not in empty} for row in rows]


def _split(rows: Sequence[dict[str, str]]) -> tuple[list[dict[str, str]], dict[str, str]]:
    """Return the rows without the columns of circumstances whose values are equal, and these values."""
    columns = list(rows[0])
    shared = {key: rows[0][key] for key in columns[columns.index("validation images") :] if len({row[key] for row in rows}) == 1}
    shared = {key: value for key, value in shared.items() if value != NONE}
    return [{key: value for key, value in row.items() if key not in shared} for row in rows], shared


def _row(run: RunData, headline: str) -> dict[str, str]:
    name, evals, best, speed = metrics.label(headline), run.points("eval", headline), run.best(headline), run.speed()
    count, end, epochs = run.validation_count(headline), run.end("epoch"), run.section("train").get("epochs")
    return {
        "run": run.name,
        f"best {name}": metrics.value(headline, best[1]) if best else NONE,
        "at epoch": f"{best[0]:g}" if best else NONE,
        f"last {name}": metrics.value(headline, evals[-1][1]) if evals else NONE,
        "95 % interval": (metrics.interval(headline, evals[-1][1], count) if evals else None) or NONE,
        "validation images": f"{count:g}" if count is not None else NONE,
        "epochs": f"{end:.3g} of {epochs}" if isinstance(epochs, int | float) and end < epochs else f"{end:g}",
        "steps": f"{run.end('step'):.0f}",
        "images/s": f"{speed:.4g}" if speed is not None else NONE,
        "model": run.model(),
        "hardware": run.hardware(),
        "date": str(run.environment.get("date", NONE)).replace("T", " ")[:16],  # to the minute
    }


def _over_seeds(runs: Sequence[RunData], headline: str) -> str:
    """Return mean and spread of the last evaluations for runs that differ by their seeds alone, "" if no two runs do."""
    groups: dict[tuple[object, ...], list[RunData]] = {}
    for run in runs:
        if run.points("eval", headline):
            recipe = flat(run.recipe)
            recipe.pop("seed", None)
            groups.setdefault((run.end("step"), *sorted(recipe.items())), []).append(run)
    found = [group for group in groups.values() if len({str(run.recipe.get("seed")) for run in group}) == len(group)]
    if all(len(group) < 2 for group in found):
        return ""
    rows = []
    for group in found:
        values, name = [run.points("eval", headline)[-1][1] for run in group], metrics.label(headline)
        rows.append(
            {
                "runs": ", ".join(run.name for run in group),
                "model": group[0].model(),
                f"mean of the last {name}": metrics.value(headline, statistics.mean(values)),
                "standard deviation": metrics.value(headline, statistics.stdev(values)) if len(values) > 1 else NONE,
                "lowest": metrics.value(headline, min(values)),
                "highest": metrics.value(headline, max(values)),
            }
        )
    return page.spaced([page.paragraph(_SEEDS), page.tight(page.table(rows))])


def _notices(runs: Sequence[RunData], headline: str) -> list[str]:
    """Return what the reader must know before comparing the numbers."""
    if _fold_values(runs, headline) is not None:
        return [page.paragraph(_FOLDS)]
    if not comparable(runs, headline):
        return [page.notice(_DIFFERENT_DATA)]
    return [page.paragraph(_INTERVAL)] if any("95 % interval" in row for row in _rows(runs, headline)) else []


def _cards(runs: Sequence[RunData], headline: str) -> dict[str, str]:
    """Return the best value and the highest speed, each with the names of the runs that reached it."""
    bests = {run.name: best[1] for run in runs if (best := run.best(headline))}
    speeds = {run.name: speed for run in runs if (speed := run.speed()) is not None}
    cards = {}
    if (values := _fold_values(runs, headline)) is not None:
        count = (runs[0].fold() or ("", ""))[1]
        spread = " ± ".join(metrics.value(headline, of(values)) for of in (statistics.mean, statistics.stdev))
        cards[f"mean {metrics.label(headline)} of {len(values)} of {count} folds"] = spread
    elif bests and not comparable(runs, headline):
        cards[f"best {metrics.label(headline)}"] = "not comparable"
    elif bests:
        best_of_all = metrics.best(headline, bests.values())
        cards[f"best {metrics.label(headline)}: {_names_of(best_of_all, bests)}"] = metrics.value(headline, best_of_all)
    if speeds:
        highest = max(speeds.values())
        cards[f"most images/s: {_names_of(highest, speeds)}"] = f"{highest:.4g}"
    return cards


def _names_of(wanted: float, values: dict[str, float]) -> str:
    return ", ".join(name for name, value in values.items() if value == wanted)


def _curves(runs: Sequence[RunData], headline: str) -> str:
    losses, values = [run.points("train", "loss") for run in runs], [run.points("eval", headline) for run in runs]
    drawn = [
        (losses, "Training loss", "No training step is logged yet."),
        (values, f"Validation {metrics.axis(headline)}", "No evaluation yet."),
    ]
    svgs = [plots.overlay(series, title) for series, title, _ in drawn if any(series)]
    missing = [page.paragraph(remark) for series, _, remark in drawn if not any(series)]
    legend = page.legend([(run.name, *plots.style(index)) for index, run in enumerate(runs)])
    return "".join([legend, page.figures(svgs), *missing])


def _recipes(runs: Sequence[RunData]) -> str:
    """Return the keys with different values, a column for each run, and below them, folded, the others."""
    recipes = [flat(run.recipe) for run in runs]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    values = {key: [recipe.get(key, NONE) for recipe in recipes] for key in keys}
    different = {key: found for key, found in values.items() if len(set(found)) > 1}
    names = [run.name for run in runs]
    parts = [page.table([{"key": key} | dict(zip(names, found, strict=True)) for key, found in different.items()])]
    if not different:
        parts = [page.paragraph("None: the recipes are the same.")]
    if equal := [{"key of all runs": key, "value": found[0]} for key, found in values.items() if key not in different]:
        parts.append(page.details(f"{counted(len(equal), 'key')} with one value in all runs", page.table(equal)))
    return page.spaced(parts)


def _course(run: RunData, headline: str) -> list[str]:
    """Return what is known of one run beside its recipe, as parts of a page: remarks, curves and machine."""
    remarks = run.remarks if run.points("eval", headline) else [*run.remarks, "No evaluation yet."]
    parts = [page.paragraph(remark) for remark in remarks]
    if run.lines:
        parts.append(page.figures(plots.curves(run.lines, headline)))
    parts.append(page.table([{"what": key, "value": value} for key, value in flat(run.environment).items() if value != "null"]))
    return parts


def _recipe(run: RunData) -> str:
    recipe = dict(run.recipe)
    return page.preformatted(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100))
