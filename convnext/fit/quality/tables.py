"""What features show about a dataset as text: lines for a terminal, and labels.csv and duplicates.csv."""

from collections.abc import Sequence
from pathlib import Path

from convnext.fit.quality.duplicates import DataPart, DuplicatePair, Place
from convnext.fit.quality.findings import Findings
from convnext.fit.quality.growth import Growth
from convnext.fit.quality.matching import LEAST_SIDE
from convnext.models.weights.files import write_text
from convnext.report.tables import Column, comma_separated
from convnext.text import counted, printable

LABELS, DUPLICATES = "labels.csv", "duplicates.csv"
_LABEL_COLUMNS = [Column(key, key) for key in ("image", "label", "suggested", "score")]
_DUPLICATE_COLUMNS = [Column(key, key) for key in ("group", "part", "image", "other_part", "other", "relation", "similarity")]


def name_of(parts: Sequence[DataPart], place: Place) -> str:
    """Return the name of an image, printable."""
    return printable(parts[place.part].source.name(place.index))


def name_of_row(findings: Findings, row: int) -> str:
    """Return the name of an image of the first part by the row of its features."""
    return name_of(findings.parts, Place(0, int(findings.parts[0].features.indices[row])))


def crosses(pair: DuplicatePair) -> bool:
    """Return whether a pair has an image in two parts: a leak."""
    return pair.first.part != pair.second.part


def write_tables(folder: Path, findings: Findings) -> list[Path]:
    """Write labels.csv, of images with one class each, and duplicates.csv, and return their paths.

    Raises ConvnextError as `write_atomically` does.
    """
    tables = {LABELS: labels_csv(findings)} if findings.suspects is not None else {}
    tables[DUPLICATES] = duplicates_csv(findings)
    for name, text in tables.items():
        write_text(folder / name, text + "\n")
    return [folder / name for name in tables]


def labels_csv(findings: Findings) -> str:
    """Return the suspected wrong labels as CSV, the surest first."""
    classes = findings.parts[0].source.classes
    rows = [
        {
            "image": name_of_row(findings, one.row),
            "label": classes[one.label],
            "suggested": classes[one.suggested],
            "score": round(one.score, 4),
        }
        for one in findings.suspects or ()
    ]
    return comma_separated(_LABEL_COLUMNS, rows)


def duplicates_csv(findings: Findings) -> str:
    """Return the pairs of duplicates as CSV, group by group, then those of similar images, whose groups count on."""
    parts, found = findings.parts, findings.duplicates
    groups = 1 + max((pair.group for pair in found.pairs), default=-1)
    rows = [
        {
            "group": pair.group + start,
            "part": parts[pair.first.part].name,
            "image": name_of(parts, pair.first),
            "other_part": parts[pair.second.part].name,
            "other": name_of(parts, pair.second),
            "relation": pair.relation,
            "similarity": round(pair.similarity, 4),
        }
        for pairs, start in ((found.pairs, 0), (found.similar, groups))
        for pair in pairs
    ]
    return comma_separated(_DUPLICATE_COLUMNS, rows)


def lines(findings: Findings) -> list[str]:
    """Return what was found, one statement per line."""
    return [*_label_lines(findings), *_duplicate_lines(findings), *_outlier_lines(findings), *growth_lines(findings.growth)]


def _label_lines(findings: Findings) -> list[str]:
    if findings.suspects is None or findings.torn is None:
        return []
    classes, found = findings.parts[0].source.classes, []
    if findings.suspects:
        first = findings.suspects[0]
        example = f"{name_of_row(findings, first.row)} is labelled {classes[first.label]} and seems to be {classes[first.suggested]}"
        found.append(f"labels: {counted(len(findings.suspects), 'label')} may be wrong, the first: {example}")
    else:
        found.append("labels: none seems wrong")
    if findings.torn:
        found.append(f"torn: {counted(len(findings.torn), 'image')} with two classes that are about equally probable")
    return found


def _duplicate_lines(findings: Findings) -> list[str]:
    duplicates, found = findings.duplicates, []
    for pairs, what in ((duplicates.pairs, "near duplicates"), (duplicates.similar, "images of one scene from one place")):
        if not pairs:
            continue
        first = next((pair for pair in pairs if crosses(pair)), pairs[0])
        images = {place for pair in pairs for place in (pair.first, pair.second)}
        leaks = sum(map(crosses, pairs))
        across = f", {counted(leaks, 'pair')} across {' and '.join(part.name for part in findings.parts)}" if leaks else ""
        groups = counted(len({pair.group for pair in pairs}), "group")
        names = f"{name_of(findings.parts, first.first)} and {name_of(findings.parts, first.second)}"
        found.append(f"{what}: {counted(len(images), 'image')} in {groups}{across}, such as {names} ({first.relation})")
    if not found:
        found.append("near duplicates: none")
    if duplicates.too_small:
        small = counted(duplicates.too_small, "image")
        found.append(f"near duplicates: {small} with a side below {LEAST_SIDE} pixels compared for identical pixels only")
    return found


def _outlier_lines(findings: Findings) -> list[str]:
    if findings.outliers is None:
        return [f"outliers: {counted(len(findings.parts[0].features), 'image')} are too few to call any an outlier"]
    if not findings.outliers:
        return ["outliers: none"]
    first = name_of_row(findings, findings.outliers[0].row)
    return [f"outliers: {counted(len(findings.outliers), 'image')} unlike all others, the first: {first}"]


def growth_lines(growth: Growth | None) -> list[str]:
    """Return what more images would bring."""
    if growth is None:
        return []
    if growth.doubled is None:
        return [f"more images: {growth.reason}"]
    now, then = growth.points[-1], growth.doubled
    span = f"{100 * then.low:.1f} to {100 * then.high:.1f}"
    return [
        f"more images: {then.images} would give about {100 * then.accuracy:.1f} % accuracy ({span}), "
        f"{now.images} give {100 * now.accuracy:.1f} % by cross-validation"
    ]
