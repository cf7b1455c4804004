"""What features show about a dataset as sections of a report, with images."""

from collections.abc import Sequence

from convnext.data.deep import shown
from convnext.fit.quality.duplicates import DuplicatePair, Place
from convnext.fit.quality.findings import Findings
from convnext.fit.quality.growth import Growth
from convnext.fit.quality.tables import DUPLICATES, LABELS, crosses, growth_lines, name_of, name_of_row
from convnext.report import page, plots
from convnext.text import counted

_SHOWN = 24  # images of a section
_PAIRS = 12
_LABELS_EXPLAINED = (
    "By heads that were not fitted on the image, and by the labels of its nearest neighbours. The percentage is the evidence for the class "
    "shown as a share of that for both."
)
_DUPLICATES_EXPLAINED = (
    "Images made from the same pixels. The fine structure of each pair agrees after cropping, scaling and mirroring. Such images in both "
    "training and validation data make the validation accuracy too high."
)
_SIMILAR_EXPLAINED = "One scene from one place, as in a burst or a film. Keep such images in one part of the data (`data.group`)."
_OUTLIERS_EXPLAINED = "The cosine distance of the embedding to its ten nearest others, and what is typical of the set."
_TORN_EXPLAINED = "The two most probable classes, by heads that were not fitted on the image, differ by less than 20 points."


def sections(findings: Findings) -> list[page.PageSection]:
    """Return what was found as sections. Unreadable images are not in it: they have no features."""
    found = []
    if findings.suspects is not None:
        found.append(page.PageSection("Suspected wrong labels", _suspects(findings)))
    pairs, similar = findings.duplicates.pairs, findings.duplicates.similar
    found.append(page.PageSection("Near duplicates", _pairs(findings, pairs, _DUPLICATES_EXPLAINED)))
    if similar:
        found.append(page.PageSection("Images of one scene", _pairs(findings, similar, _SIMILAR_EXPLAINED)))
    found.append(page.PageSection("Images unlike all others", _outliers(findings)))
    if findings.torn:
        found.append(page.PageSection("Torn between two classes", _torn(findings)))
    if findings.growth is not None:
        found.append(page.PageSection("What more images would bring", _growth(findings.growth)))
    return found


def _tile(findings: Findings, row: int, title: str, caption: str) -> str:
    part = findings.parts[0]
    image = part.source.read(int(part.features.indices[row]))
    return page.tile(shown(image), title, f"{caption} · {name_of_row(findings, row)}")


def _with_rest(tiles: Sequence[str], explained: str, total: int, table: str) -> str:
    """Return tiles under what they mean, and above how many more there are."""
    if not tiles:
        return page.paragraph("None.")
    rest = f"{total - len(tiles)} more: see {table}." if table else f"{total - len(tiles)} more."
    return page.paragraph(explained) + page.tiles(tiles, "") + (page.paragraph(rest) if total > len(tiles) else "")


def _suspects(findings: Findings) -> str:
    classes, found = findings.parts[0].source.classes, findings.suspects or []
    tiles = [_tile(findings, one.row, f"{classes[one.suggested]} {one.score:.0%}", f"is {classes[one.label]}") for one in found[:_SHOWN]]
    return _with_rest(tiles, _LABELS_EXPLAINED, len(found), LABELS)


def _torn(findings: Findings) -> str:
    classes, found = findings.parts[0].source.classes, findings.torn or []
    tiles = [
        _tile(findings, one.row, f"{classes[one.first]} or {classes[one.second]}", f"is {classes[one.label]}") for one in found[:_SHOWN]
    ]
    return _with_rest(tiles, _TORN_EXPLAINED, len(found), "")


def _outliers(findings: Findings) -> str:
    if findings.outliers is None:
        return page.paragraph(f"{counted(len(findings.parts[0].features), 'image')} are too few to call any an outlier.")
    tiles = [_tile(findings, one.row, f"{one.distance:.2f}", f"typical {one.typical:.2f}") for one in findings.outliers[:_SHOWN]]
    return _with_rest(tiles, _OUTLIERS_EXPLAINED, len(findings.outliers), "")


def _pairs(findings: Findings, pairs: Sequence[DuplicatePair], explained: str) -> str:
    ordered = sorted(pairs, key=lambda pair: not crosses(pair))  # leaks first
    rows = [page.beside([_of_pair(findings, pair, place) for place in (pair.first, pair.second)]) for pair in ordered[:_PAIRS]]
    return _with_rest(rows, explained, len(pairs), DUPLICATES)


def _of_pair(findings: Findings, pair: DuplicatePair, place: Place) -> str:
    part = findings.parts[place.part]
    title = pair.relation if place == pair.second else part.name
    return page.tile(shown(part.source.read(place.index)), title, f"{part.name} · {name_of(findings.parts, place)}")


def _growth(growth: Growth) -> str:
    text = page.paragraph("\n".join(growth_lines(growth)))
    if not growth.points:
        return text
    measured = [(point.images, 100 * point.accuracy, 100 * point.error) for point in growth.points]
    then = growth.doubled
    law = [(size, 100 * accuracy) for size, accuracy in then.curve] if then else []
    ahead = (then.images, 100 * then.accuracy, 100 * then.low, 100 * then.high) if then else (0.0, 0.0, 0.0, 0.0)
    return page.figure(plots.growth(measured, law, ahead)) + text
