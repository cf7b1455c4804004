"""The report of a fit: the heads that were compared, what cross-validation measured, and what the features show about the images."""

import json
from collections.abc import Callable

from convnext import tasks
from convnext.fit.fitted import Fitted
from convnext.fit.quality import sections as quality
from convnext.report import metrics, page
from convnext.report.page import write_page
from convnext.training.folder.run_paths import RunPaths
from convnext.training.result import recipe_section


def write_report(folder: RunPaths, fitted: Fitted, report: Callable[[str], None]) -> bool:
    """Write report.html; return whether that worked. A report that can't be drawn is reported, and loses no weights."""
    return write_page(folder.report, lambda: _page(folder, fitted), report)


def _page(folder: RunPaths, fitted: Fitted) -> str:
    task, evaluation, chosen = tasks.get(fitted.recipe.task), fitted.evaluation, fitted.chosen
    ran_on = json.loads(folder.environment.read_text("utf-8"))
    headline = evaluation.metrics[task.headline]
    cards = {
        f"{metrics.described(task.headline, headline, evaluation.metrics.get('count'))}, {fitted.measured_by}": metrics.value(
            task.headline, headline
        ),
        "training images": str(len(fitted.features)),
        "time": f"{fitted.seconds:.0f} s",
    }
    if fitted.held_out is not None:
        found = fitted.held_out.metrics
        name = f"{metrics.described(task.headline, found[task.headline], found.get('count'))}, on the validation images"
        cards = {name: metrics.value(task.headline, found[task.headline]), **cards}
    tried = [
        {
            "head": one.name,
            metrics.label(task.headline): f"{one.score:.1f} %",
            "loss": f"{one.loss:.4f}",
            "": "chosen" if one.chosen else "",
        }
        for one in chosen.tried
    ]
    folds = fitted.folds
    text = (
        f"Each head was fitted {folds} times, each time without one of {folds} parts of the images, which it then predicted. The head with "
        "the lowest loss was fitted on all images, and is in the weights. Nearest neighbours are no linear head: they are for comparison."
    )
    sections = [
        page.PageSection("Heads compared", page.spaced([page.table(tried), page.paragraph(text)])),
        *(quality.sections(fitted.findings) if fitted.findings is not None else []),
        *task.report(evaluation.details, fitted.data.train.classes, fitted.data.train),
    ]
    if evaluation.corrupt:
        sections.append(page.PageSection("Unreadable images", page.preformatted("\n".join(evaluation.corrupt))))
    if fitted.data.remarks:
        sections.append(page.PageSection("Remarks", page.preformatted("\n".join(fitted.data.remarks))))
    sections.append(recipe_section(fitted.recipe))
    hardware = ran_on["hardware"]
    lead = f"{fitted.recipe.model.name}, {chosen.name} · {hardware['gpu'] or hardware['cpu']} · convnext {ran_on['versions']['convnext']}"
    return page.page(folder.path.name, lead, cards, sections)
