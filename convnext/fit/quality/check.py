"""The deep check of a dataset: what features show about it, without a run folder."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from convnext.distributed import pick_device
from convnext.errors import UsageError
from convnext.fit.data import open_data, recipe_of
from convnext.fit.features import Progress
from convnext.fit.fit import fit_head
from convnext.fit.kinds import KINDS
from convnext.fit.network import default_model, open_start
from convnext.fit.quality.findings import Findings, examine, parts_of_fit
from convnext.fit.quality.sections import sections
from convnext.fit.quality.tables import write_tables
from convnext.report.page import page, write_page
from convnext.text import counted
from convnext.training.folder.run_paths import RunPaths


def deep_check(
    where: str,
    *,
    task: str,
    val: str | None = None,
    output: Path | None = None,
    model: str | None = None,
    weights: str | None = None,
    max_pixels: int | None = None,
    device: str | None = None,
    progress: tuple[Progress, Progress] | None = None,
    report: Callable[[str], None] | None = None,
) -> Findings:
    """Return what the features of a dataset show about it, by heads that are not kept.

    Args:
        where: the images, as for `data.train`.
        task: classify, multilabel or regress.
        val: the images of the validation part, to find leaks.
        output: a folder for labels.csv, duplicates.csv, report.html and the features, which a second call does not compute again.
        model: a name, a run folder, a weight file or an address; by default that of `convnext fit`.
        weights: of a name; by default the most accurate of a free licence.
        max_pixels: of an image; larger ones are not opened.
        device: "cpu", "cuda" and so on; by default the fastest there is.
        progress: called with the numbers of images done and in all, the first for features, the second for duplicates.
        report: takes lines for the user.

    Raises UsageError for a task without labels of images, and as `convnext.fit` does.
    """
    if task not in KINDS:
        raise UsageError(f"--deep needs labels of whole images, and the task {task!r} has others: give one of {', '.join(KINDS)}")
    say = report or (lambda line: None)
    of_features, of_duplicates = progress or (None, None)
    start = open_start(model or default_model(where), weights)
    data = open_data(recipe_of(where, val, start, task, {}, max_corrupt=1.0, max_pixels=max_pixels))
    for line in start.remarks:
        say(line)
    kept: AbstractContextManager[str] = TemporaryDirectory() if output is None else nullcontext(str(output))
    with kept as folder:
        fitted = fit_head(data, start, RunPaths(Path(folder)), pick_device(device), of_features, say)
        parts = parts_of_fit(data.train, fitted.features, data.val, fitted.val_features)
        found = examine(parts, fitted.targets, fitted.fold, fitted.chosen, of_duplicates)
    if output is not None:
        for path in write_tables(output, found):
            say(f"wrote {path}")
        path, images = output / "report.html", counted(sum(len(part.features) for part in parts), "image")
        write_page(path, lambda: page(f"Deep check of {where}", f"{images}, features of {start.opened.name}", {}, sections(found)), say)
    return found
