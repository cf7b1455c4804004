"""What predictions are written to, batch by batch, so that a call that was stopped, even killed, is gone on with by the next.

What was written is on the disk when `write` returns. Opened again, an output drops a last line that was cut off, and `done` says
what it holds: those images are not predicted again. What can't be appended to is made by `finish` of a file that can.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from convnext import tasks
from convnext.data.sources.coco_file import read_ids
from convnext.data.sources.shards import Member
from convnext.errors import UsageError, nearest, writing
from convnext.inference import coco_results, fingerprint
from convnext.inference.fingerprint import Fingerprint
from convnext.inference.inputs import Item, file_names
from convnext.inference.journal import Journal, refuse_foreign

Done = dict[str, str | None]  # image → why it could not be predicted, or None


@dataclass(frozen=True, eq=False)
class Answer:
    """What came of an image: an error, or what the outputs need."""

    item: Item
    error: str | None = None
    prediction: Any = None
    features: np.ndarray | None = None  # float32 (C,)
    image: Image.Image | None = None


class Output(Protocol):
    """Where answers go."""

    needs: frozenset[str]  # of the fields of an answer

    @property
    def done(self) -> Done | None: ...  # what it holds already; None if it keeps no account
    def write(self, answers: Sequence[Answer]) -> None: ...
    def finish(self) -> None: ...  # when all is written


class Lines:
    """JSON Lines: an object an image, `image` its name, with the prediction's own keys or an `error`."""

    needs = frozenset({"prediction"})

    def __init__(self, path: Path, top: int | None = None, overwrite: bool = False, of: Fingerprint | None = None) -> None:
        self.top, self.journal, self.done = top, Journal(path, overwrite), Done()
        end = 0
        for line, end in self.journal.records():  # noqa: B007
            row = self._parsed(line)
            self.done[row["image"]] = row.get("error")
        fingerprint.check(path, of, bool(self.done))
        self.journal.keep(end, b'{"image": ')

    def _parsed(self, line: bytes) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise self.journal.foreign(f"has a line that is no JSON ({error})") from error
        if not isinstance(row, dict) or not isinstance(row.get("image"), str):
            raise self.journal.foreign("has a line without a 'image'")
        return row

    def write(self, answers: Sequence[Answer]) -> None:
        rows = [{"image": one.item.name} | ({"error": one.error} if one.error is not None else self.row(one)) for one in answers]
        self.journal.append("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode())

    def row(self, answer: Answer) -> dict[str, Any]:
        """What a line says of an image beside its name."""
        return answer.prediction.to_json(self.top)

    def finish(self) -> None:
        """Nothing is left to do."""


class Table:
    """CSV: as many rows an image as are found in it, at least one; `row` of `rows` counts them, 0 of 0 if there are none."""

    needs = frozenset({"prediction"})

    def __init__(
        self, path: Path, columns: Sequence[str], top: int | None = None, overwrite: bool = False, of: Fingerprint | None = None
    ) -> None:
        self.columns = ["image", "row", "rows", *columns, "error"]
        self.top, self.journal, self.done = top, Journal(path, overwrite), Done()
        header, whole = self._text([dict(zip(self.columns, self.columns, strict=True))]), 0
        for line, end in self.journal.records(lambda record: record.count(b'"') % 2 == 0):  # a name may hold a newline
            if not whole and line != header:
                break
            fields = next(csv.reader(io.StringIO(line.decode(errors="surrogateescape"), newline="")))
            if len(fields) != len(self.columns):
                raise self.journal.foreign(f"has a row of {len(fields)} columns, not {len(self.columns)}")
            if line == header:
                whole = end
            elif fields[1] == fields[2]:  # all rows of an image are there
                whole, self.done[fields[0]] = end, fields[-1] or None
        fingerprint.check(path, of, bool(self.done))
        self.journal.keep(whole, b"" if whole else header)
        if not whole:
            self.journal.append(header)

    def write(self, answers: Sequence[Answer]) -> None:
        self.journal.append(self._text(row for answer in answers for row in self._rows(answer)))

    def _rows(self, answer: Answer) -> list[dict[str, Any]]:
        found = answer.prediction.rows(self.top) if answer.error is None else []
        same = {"image": answer.item.name, "rows": len(found), "error": answer.error or ""}
        return [same | {"row": i} | row for i, row in enumerate(found, 1)] or [same | {"row": 0}]

    def _text(self, rows: Iterable[Mapping[str, Any]]) -> bytes:
        text = io.StringIO()
        csv.DictWriter(text, self.columns, lineterminator="\n").writerows(rows)
        return text.getvalue().encode(errors="surrogateescape")

    def finish(self) -> None:
        """Nothing is left to do."""


class Coco(Lines):
    """COCO's results, a JSON list of objects, made of the JSON Lines beside it; without masks where the detector has none.

    Ids are those of an annotation file, or else as `coco_results` says.
    """

    def __init__(
        self,
        path: Path,
        predictor: Any,
        items: Sequence[Item],
        top: int | None = None,
        overwrite: bool = False,
        of: Fingerprint | None = None,
        annotations: Path | None = None,
    ) -> None:
        if path.suffix != ".json":
            raise UsageError(f"{path}: COCO's results go to a .json file")
        refuse_foreign(path, path.with_suffix(".jsonl"), overwrite)
        self.results, self.listed = path, read_ids(annotations) if annotations is not None else None
        self.ids = coco_results.category_ids(predictor.classes, predictor.class_ids, self.listed)
        names = [item.name for item in items]
        found = coco_results.image_ids(names, self.listed)  # raises before anything is written
        super().__init__(path.with_suffix(".jsonl"), top, overwrite, of)
        coco_results.image_ids({**dict.fromkeys(names), **self.done}, self.listed)
        coco_results.remark(path, found, self.listed)

    def finish(self) -> None:
        """Write the list of all lines' objects, at once or not at all."""
        coco_results.write_results(self.results, self._objects())

    def _objects(self) -> Iterator[dict[str, Any]]:
        names = [json.loads(line)["image"] for line, _ in self.journal.records()]
        image_ids = coco_results.image_ids(names, self.listed)
        for line, _ in self.journal.records():
            row = json.loads(line)
            for one in row.get("objects", ()):
                if one["class"] not in self.ids:
                    raise self.journal.foreign(f"has the class {one['class']!r}, which this network does not know")
                left, top, right, bottom = one["box"]
                box = [left, top, round(right - left, 2), round(bottom - top, 2)]
                found = {"image_id": image_ids[row["image"]], "category_id": self.ids[one["class"]], "bbox": box, "score": one["score"]}
                yield found | ({"segmentation": one["mask"]} if "mask" in one else {})


class Masks(Lines):
    """A folder of PNGs in the coding of the masks trained on, one an image, with predictions.jsonl that says which is of which image."""

    def __init__(
        self, folder: Path, items: Sequence[Item], top: int | None = None, overwrite: bool = False, of: Fingerprint | None = None
    ) -> None:
        self.folder, self.names = folder, file_names(items, folder, ".png")
        self.taken: dict[str, str] = {}  # by whose mask
        super().__init__(folder / "predictions.jsonl", top, overwrite, of)
        for name, path in self.names.items():
            if (other := self.taken.get(path, name)) != name:
                raise UsageError(f"{folder / path} is the mask of {other}, so none of {name} can be there: choose another folder")

    def _parsed(self, line: bytes) -> dict[str, Any]:
        row = super()._parsed(line)
        if "mask" in row:
            self.taken[row["mask"]] = row["image"]
        return row

    def row(self, answer: Answer) -> dict[str, Any]:
        return answer.prediction.shares(self.top) | {"mask": self.names[answer.item.name]}

    def write(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            if answer.error is None:
                path = self.folder / self.names[answer.item.name]
                with writing(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(answer.prediction.png())
        super().write(answers)  # a line only for a mask that is there


class Drawings:
    """A folder of images with what was found drawn over them, as JPEGs."""

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
                    answer.prediction.draw(answer.image).save(path, quality=92)

    def finish(self) -> None:
        """Nothing is left to do."""


def open_output(
    path: Path,
    kind: str | None,
    predictor: Any,
    items: Sequence[Item],
    top: int | None,
    overwrite: bool,
    of: Fingerprint | None = None,
    annotations: Path | None = None,
) -> Output:
    """The output of that file or folder.

    Args:
        path: where to.
        kind: "jsonl", "csv", "coco" or "masks"; by default by the ending: .jsonl, .csv, .json, and none for a folder of masks.
        predictor: whose predictions are written.
        items: all that are to be predicted.
        top: how many findings of an image to write.
        overwrite: begin anew, whatever there is.
        of: which network and options the answers are of; None notes and checks nothing.
        annotations: the COCO file whose ids of images and categories COCO's results bear.

    Raises UsageError if the ending or kind is unknown, is not for the network's task, or there is a file that is none of ours, or has
    answers of another network, of other options, or of images that were changed since.
    """
    kind = kind or _KINDS.get(path.suffix.lower())
    if kind is None or kind not in _KINDS.values():
        told_kind = f"no format is called {kind!r}{nearest(kind, _KINDS.values())}" if kind else f"{path} has no ending that is known"
        raise UsageError(f"{told_kind}: name a .jsonl, .csv, .json (COCO results) or a folder (masks), or add --format")
    if (task := _ONLY_FOR.get(kind, predictor.task)) != predictor.task:
        raise UsageError(f"{path}: {kind} is for networks that {task}, and this one does {predictor.task}: take .jsonl or .csv")
    if annotations is not None and kind != "coco":
        raise UsageError(f"--annotations is for COCO's results, and {path} is {kind}: name a .json file")
    if kind == "csv":
        return Table(path, tasks.get(predictor.task).COLUMNS, top, overwrite, of)
    if kind == "coco":
        return Coco(path, predictor, items, top, overwrite, of, annotations)
    return Masks(path, items, top, overwrite, of) if kind == "masks" else Lines(path, top, overwrite, of)


def refuse_changed(output: Output, items: Iterable[Item]) -> None:
    """Raise UsageError if images of which an output holds answers already were changed since: those would be stale."""
    if isinstance(output, (Lines, Table)) and output.done:
        done = [item.where for item in items if item.name in output.done]
        images = [where.shard if isinstance(where, Member) else where for where in done if where is not None]
        fingerprint.refuse_changed(output.journal.path, output.journal.written, images)


_KINDS = {".jsonl": "jsonl", ".csv": "csv", ".json": "coco", "": "masks"}
_ONLY_FOR = {"coco": "detect", "masks": "segment"}
