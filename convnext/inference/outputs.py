"""Where predictions are written, batch by batch, so that a call that was stopped, even killed, is resumed by the next.

What was written is on the disk when `write` returns. Opened again, an output drops a last line that was cut off, and `done` says
which images it holds: those are not predicted again. A format that can't be appended to is made by `finish` from a file that can.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from convnext import tasks
from convnext.data.convert.write.formats import FORMATS
from convnext.data.storage.objects import StoredObject
from convnext.errors import UsageError, nearest, writing
from convnext.inference import coco_results, fingerprint
from convnext.inference.answers import Answer, Done, MaskPrediction, Output, PredictsFor
from convnext.inference.datasets import DatasetOutput
from convnext.inference.fingerprint import Fingerprint
from convnext.inference.inputs import Item, file_names
from convnext.inference.journal import Journal, refuse_foreign
from convnext.inference.lines import Lines
from convnext.inference.video.drawn import DrawnVideo
from convnext.models.weights.files import write_text
from convnext.report.palette import mask_colours
from convnext.tasks.base import Json, MaskLook


class TableOutput:
    """CSV: a row for each class or object found in an image, at least one; `row` of `rows` counts them, 0 of 0 if nothing is found."""

    needs = frozenset({"prediction"})

    def __init__(
        self, path: Path, columns: Sequence[str], top: int | None = None, overwrite: bool = False, of: Fingerprint | None = None
    ) -> None:
        self.columns = ["image", "row", "rows", *columns, "error"]
        self.top, self.journal, self.done = top, Journal(path, overwrite), Done()
        header, complete, others = self._text([dict(zip(self.columns, self.columns, strict=True))]), 0, False
        for line, end in self.journal.records(lambda record: record.count(b'"') % 2 == 0):  # a name may hold a newline
            if not complete and line != header:  # of other options, if it is ours
                others = fingerprint.path_beside(path).exists()
                break
            fields = next(csv.reader(io.StringIO(line.decode(errors="surrogateescape"), newline="")))
            if len(fields) != len(self.columns):
                raise self.journal.foreign(f"has a row of {len(fields)} columns, not {len(self.columns)}")
            if line == header:
                complete = end
            elif fields[1] == fields[2]:  # all rows of the image are there
                complete, self.done[fields[0]] = end, fields[-1] or None
        fingerprint.check(path, of, bool(self.done) or others)
        self.journal.keep(complete, b"" if complete else header)
        if not complete:
            self.journal.append(header)

    def write(self, answers: Sequence[Answer]) -> None:
        self.journal.append(self._text(row for answer in answers for row in self._rows(answer)))

    def _rows(self, answer: Answer) -> list[Json]:
        found = answer.predicted.rows(self.top) if answer.error is None else []
        same: Json = {"image": answer.item.name, "rows": len(found), "error": answer.error or ""}
        return [same | {"row": i} | row for i, row in enumerate(found, 1)] or [same | {"row": 0}]

    def _text(self, rows: Iterable[Mapping[str, object]]) -> bytes:
        text = io.StringIO()
        csv.DictWriter(text, self.columns, lineterminator="\n").writerows(rows)
        return text.getvalue().encode(errors="surrogateescape")

    def finish(self) -> None:
        """Do nothing: every line is on the disk."""


class CocoOutput(Lines):
    """COCO's results, a JSON list of objects, made from the JSON Lines beside it; without masks if the detector has none.

    Ids are those of an annotation file, or else those that `coco_results` derives from the names.
    """

    def __init__(
        self,
        path: Path,
        predictor: PredictsFor,
        items: Sequence[Item],
        top: int | None = None,
        overwrite: bool = False,
        of: Fingerprint | None = None,
        annotations: Path | None = None,
    ) -> None:
        if path.suffix != ".json":
            raise UsageError(f"{path}: COCO's results go to a .json file")
        refuse_foreign(path, path.with_suffix(".jsonl"), overwrite)
        self.results = path
        self.listed, self.ids = coco_results.ids_of(predictor, annotations)
        names = [item.name for item in items]
        found = coco_results.image_ids(names, self.listed)  # raises before anything is written
        super().__init__(path.with_suffix(".jsonl"), top, overwrite, of)
        coco_results.image_ids({**dict.fromkeys(names), **self.done}, self.listed)
        coco_results.remark(path, found, self.listed)

    def finish(self) -> None:
        """Write the list of all lines' objects, all of it or nothing."""
        coco_results.write_results(self.results, self._objects())

    def _objects(self) -> Iterator[Json]:
        names = [json.loads(line)["image"] for line, _ in self.journal.records()]
        image_ids = coco_results.image_ids(names, self.listed)
        for line, _ in self.journal.records():
            row = json.loads(line)
            for one in row.get("objects", ()):
                if one["class"] not in self.ids:
                    raise self.journal.foreign(f"has the class {one['class']!r}, which this network does not have")
                box = coco_results.box_of(one)
                ids: Json = {"image_id": image_ids[row["image"]], "category_id": self.ids[one["class"]]}
                yield ids | {"bbox": box, "score": one["score"]} | ({"segmentation": one["mask"]} if "mask" in one else {})


class MasksOutput(Lines):
    """A folder of PNGs, one per image, with predictions.jsonl that lists the image of each.

    They are in the coding of the masks trained on, values with a palette of the classes' colours; or in colours, whatever those were.
    """

    def __init__(
        self,
        folder: Path,
        predictor: PredictsFor,
        items: Sequence[Item],
        top: int | None = None,
        overwrite: bool = False,
        of: Fingerprint | None = None,
        look: MaskLook = "palette",
    ) -> None:
        self.folder, self.names, self.look = folder, file_names(items, folder, ".png"), look
        self.colours = dict(zip(predictor.classes, mask_colours(len(predictor.classes), predictor.class_ids), strict=True))
        if look == "colours":
            if len({*self.colours.values()}) < len(self.colours):
                raise UsageError(f"{folder}: {len(self.colours)} classes are more than the colours of masks: write values, --format masks")
            of = None if of is None else of.under(format="colour-masks")
        self.taken: dict[str, str] = {}  # file of a mask → its image
        super().__init__(folder / "predictions.jsonl", top, overwrite, of)
        for name, path in self.names.items():
            if (other := self.taken.get(path, name)) != name:
                raise UsageError(f"{folder / path} is the mask of {other}, so that of {name} can't be written there: choose another folder")

    def _parsed(self, line: bytes) -> Json:
        row = super()._parsed(line)
        if "mask" in row:
            self.taken[str(row["mask"])] = str(row["image"])
        return row

    def row(self, answer: Answer) -> Json:
        assert isinstance(answer.prediction, MaskPrediction)
        return answer.prediction.shares(self.top) | {"mask": self.names[answer.item.name]}

    def write(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            if isinstance(answer.prediction, MaskPrediction):
                path = self.folder / self.names[answer.item.name]
                with writing(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(answer.prediction.png(self.look))
        super().write(answers)  # a line only for a mask that exists

    def finish(self) -> None:
        """Write the classes of the colours, as a dataset of such masks needs them."""
        if self.look == "colours":
            lines = (f"{name} {red} {green} {blue}\n" for name, (red, green, blue) in self.colours.items())
            write_text(self.folder / "classes.txt", "".join(lines))


class Drawings:
    """A folder of JPEGs: the images with their predictions drawn on them."""

    needs = frozenset({"prediction", "image"})
    done = None

    def __init__(self, folder: Path, items: Sequence[Item], overwrite: bool = False, of: Fingerprint | None = None) -> None:
        self.folder, self.names = folder, file_names(items, folder, ".jpg")
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        is_ours = fingerprint.path_beside(folder).exists() and any(folder.rglob("*.jpg"))
        fingerprint.check(folder, of, is_ours and not overwrite)

    def write(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            if answer.image is not None:
                path = self.folder / self.names[answer.item.name]
                with writing(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    answer.predicted.draw(answer.image).save(path, quality=92)

    def finish(self) -> None:
        """Do nothing: every line is on the disk."""


def open_output(
    path: Path,
    kind: str | None,
    predictor: PredictsFor,
    items: Sequence[Item],
    top: int | None,
    overwrite: bool,
    of: Fingerprint | None = None,
    annotations: Path | None = None,
) -> Output:
    """Return the output to a file or folder.

    Args:
        path: the file or folder.
        kind: "jsonl", "csv", "coco", "masks", "colour-masks" or one of FORMATS; by default by the ending: .jsonl, .csv, .json (coco),
            .xml (cvat), and no ending for a folder of masks.
        predictor: makes the predictions.
        items: all images to be predicted.
        top: how many classes or objects of an image to write.
        overwrite: start again if the output exists.
        of: the network and options that the answers depend on; None notes and checks nothing.
        annotations: the COCO file whose ids of images and categories COCO's results, or a COCO dataset, bear.

    Raises UsageError if the ending or kind is unknown or not for the network's task, or if there is a file that we did not write, or that
    holds answers of another network, of other options, or for images that were changed since.
    """
    kind = kind or _KINDS.get(path.suffix.lower())
    known = {*_KINDS.values(), *_OF_SOME_TASKS, *FORMATS}
    if kind is None or kind not in known:
        problem = f"unknown format {kind!r}{nearest(kind, known)}" if kind else f"{path} has no known ending"
        raise UsageError(f"{problem}: name a .jsonl, .csv, .json (COCO results) or a folder (masks), or add --format")
    task = tasks.get(predictor.task)
    if kind in {*_OF_SOME_TASKS, *FORMATS} and kind not in task.formats:
        raise UsageError(f"{path}: a network for the task {task.name!r} has no {kind} output: use .jsonl or .csv")
    if annotations is not None and kind not in ("coco", "coco-dataset"):
        raise UsageError(f"--annotations is for COCO's results, and {path} is {kind}: name a .json file")
    if kind == "csv":
        return TableOutput(path, task.columns_with(predictor.options), top, overwrite, of)
    if kind == "coco":
        return CocoOutput(path, predictor, items, top, overwrite, of, annotations)
    if kind in FORMATS:
        return DatasetOutput(path, kind, predictor, items, top, overwrite, of, annotations)
    if kind in ("masks", "colour-masks"):
        return MasksOutput(path, predictor, items, top, overwrite, of, "colours" if kind == "colour-masks" else "palette")
    return Lines(path, top, overwrite, of)


def refuse_changed(output: Output, items: Iterable[Item]) -> None:
    """Raise UsageError if images were changed after an output got their answers: those would be stale."""
    if isinstance(output, (Lines, TableOutput, DrawnVideo)) and output.done:
        done = [item for item in items if item.name in output.done]
        files = dict.fromkeys(file for item in done if (file := item.file()) is not None)
        times = {str(file): file.stat().st_mtime_ns for file in files if file.exists()}
        times |= {one.name: one.where.changed for one in done if isinstance(one.where, StoredObject) and one.where.changed is not None}
        fingerprint.refuse_changed(output.journal.path, output.journal.written, times)


_KINDS = {".jsonl": "jsonl", ".csv": "csv", ".json": "coco", ".xml": "cvat", "": "masks"}
_OF_SOME_TASKS = ("coco", "masks", "colour-masks")
