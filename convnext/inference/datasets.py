"""Detections as a dataset in the format of a labelling tool, and the one function that writes such a dataset to the disk."""

import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from convnext.data.annotations.coco_file import CocoContent
from convnext.data.convert.common import FoundImage, FoundObject
from convnext.data.convert.write.common import OutgoingDataset, below, refuse_clashes
from convnext.data.convert.write.formats import FORMATS, outgoing
from convnext.data.run_lengths import RunLengths, lengths
from convnext.errors import UsageError, writing
from convnext.inference import coco_results
from convnext.inference.answers import Answer, PredictsFor
from convnext.inference.fingerprint import Fingerprint
from convnext.inference.inputs import Item
from convnext.inference.journal import refuse_foreign
from convnext.inference.lines import Lines
from convnext.models.weights.files import write_atomically
from convnext.tasks.base import Json

log = logging.getLogger("convnext")

_REPORTED = 5  # mistakes that are listed
_COARSE = 2_000_000_000  # nanoseconds to which file systems round times


class DatasetOutput(Lines):
    """A dataset in one of FORMATS, made from the JSON Lines beside its file, or in its folder, when all images are predicted.

    Args:
        path: the file or folder.
        kind: the format.
        predictor, items, top, overwrite, of: as for `open_output`.
        annotations: for a COCO dataset, the file whose file names and ids of images and categories it bears.

    Raises UsageError if the path is not one for the format, if two images would be described by one file, and as `CocoOutput` does.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        predictor: PredictsFor,
        items: Sequence[Item],
        top: int | None = None,
        overwrite: bool = False,
        of: Fingerprint | None = None,
        annotations: Path | None = None,
    ) -> None:
        self.output, self.kind, self.how = path, kind, FORMATS[kind]
        self.how.check(path)
        is_file = self.how.ending is not None
        journal = path.with_suffix(".jsonl") if is_file else path / "predictions.jsonl"
        made = path if is_file else path / self.how.annotations
        refuse_foreign(made, journal, overwrite)
        self.listed, of_network = coco_results.ids_of(predictor, annotations)
        self.categories = of_network if self.listed is None else self.listed.categories
        self.classes = set(of_network)
        self.files = {item.name: item.below for item in items}
        self._refuse(self.files)  # raises before anything is written
        _refuse_folder(path, self.how.images, [(file, item.below) for item in items if (file := item.file()) is not None])
        super().__init__(journal, top, overwrite, of)
        self._refuse(dict(self._rows("file_name")) | self.files)
        if not overwrite:
            _refuse_edited(made, self.journal.written)

    def _refuse(self, files: dict[str, str]) -> None:
        if self.listed is not None:
            coco_results.image_ids(files, self.listed)
        else:
            refuse_clashes(files.items(), self.how.per_image)

    def _parsed(self, line: bytes) -> Json:
        row = super()._parsed(line)
        if "error" not in row and not {"file_name", "size", "objects"} <= row.keys():
            raise self.journal.foreign("has lines without the sizes of images, as of another format")
        return row

    def row(self, answer: Answer) -> Json:
        """Return what a line holds beside the image's name."""
        return {"file_name": self.files[answer.item.name], "size": answer.size} | super().row(answer)

    def finish(self) -> None:
        """Write the dataset, and report what its format can't hold."""
        dataset = OutgoingDataset(self._images, self.categories, is_predicted=True)
        for remark in save_dataset(dataset, self.kind, self.output, self.journal.path.stat().st_mtime_ns):
            log.warning("%s: %s", self.output, remark)

    def _rows(self, key: str) -> Iterator[tuple[str, str]]:
        rows = (json.loads(line) for line, _ in self.journal.records())
        return ((row["image"], row[key]) for row in rows if "error" not in row)

    def _images(self) -> Iterator[FoundImage]:
        names = {} if self.listed is None else {key: name for name, key in self.listed.images}
        keys = {} if self.listed is None else coco_results.image_ids([name for name, _ in self._rows("image")], self.listed)
        for line, _ in self.journal.records():
            row = json.loads(line)
            if "error" not in row:
                height, width = row["size"]
                key = keys.get(row["image"])
                assert not isinstance(key, str)  # a file's ids are whole numbers
                objects = [found for one in row["objects"] if (found := self._object(one)) is not None]
                yield FoundImage(row["file_name"] if key is None else names[key], width, height, objects, key, Path(row["image"]))

    def _object(self, one: Json) -> FoundObject | None:
        name = str(one["class"])
        if name not in self.classes:
            raise self.journal.foreign(f"has the class {name!r}, which this network does not have")
        box = coco_results.box_of(one)
        if min(box[2:]) <= 0:
            return None
        runs = cast(RunLengths | None, one.get("mask"))
        pixels = 0 if runs is None else int(lengths(runs)[1::2].sum())
        return FoundObject(name, box, pixels or box[2] * box[3], segmentation=runs if pixels else None, score=cast(float, one["score"]))


def save_dataset(dataset: OutgoingDataset, kind: str, output: Path, when: int | None = None) -> list[str]:
    """Write a dataset in one of FORMATS, each file whole or not at all, and return what its format can't hold, one remark per kind.

    The folder with the files per image is replaced by a new one when that is complete: files of an earlier dataset do not remain. `when`
    is the time to give the files, in nanoseconds; by default it is now.

    Raises UsageError if the folder holds other images where the format expects its own, ConvnextError if it can't be written.
    """
    how = FORMATS[kind]
    if how.ending is not None:
        for ending, pieces in how.files(dataset):
            _write(output.with_suffix(ending) if ending else output, pieces, when)
        return dataset.remarks(how.title)
    _link_images(dataset, output, how.images)
    with _replaced(output / how.annotations) as folder:
        for path, pieces in how.files(dataset):
            place, _, rest = path.partition("/")
            if place == how.annotations and rest:
                file = folder / rest
                with writing(file):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    _fill(file, pieces, when)
            else:
                _write(output / path, pieces, when)
    return dataset.remarks(how.title)


def save_content(content: CocoContent, folder: Path, kind: str, output: Path) -> list[str]:
    """Write the valid content of a COCO file, whose images are in `folder`, in one of FORMATS; return and raise as `save_dataset`."""
    mistakes: list[str] = []
    dataset = outgoing(content, folder, mistakes)
    refuse_clashes(((image.file_name, image.file_name) for image in dataset.images()), FORMATS[kind].per_image)
    remarks = [f"skipped {mistake}" for mistake in mistakes[:_REPORTED]]
    if len(mistakes) > _REPORTED:
        remarks.append(f"… {len(mistakes)} mistakes in all")
    return remarks + save_dataset(dataset, kind, output)


def refuse_output(kind: str, source: Path, output: Path, to: str, overwrite: bool) -> None:
    """Raise UsageError for the output of a conversion from `kind` to `to` that changes nothing, or would replace what is there."""
    if kind == to == "coco":
        raise UsageError(f"{source} is COCO already: name another format with --to")
    if output.exists() and source.exists() and output.samefile(source):
        raise UsageError(f"{output} is what is converted: name another output")
    if to == "coco":
        return
    how = FORMATS[to]
    how.check(output)
    made = output if how.ending is not None else output / how.annotations
    if made.exists() and not overwrite:
        raise UsageError(f"{made} exists already: choose another output, or add --overwrite to replace it")


def _write(path: Path, pieces: Iterable[str], when: int | None) -> None:
    write_atomically(path, lambda file: _fill(file, pieces, when))


def _fill(path: Path, pieces: Iterable[str], when: int | None) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(pieces)
    if when is not None:
        os.utime(path, ns=(when, when))


def _refuse_edited(made: Path, when: int) -> None:
    """Raise UsageError if files that bear the time of the last prediction were changed since, as annotators do: they are not replaced."""
    files = [made] if made.is_file() else [file for file in made.rglob("*") if file.is_file()] if made.is_dir() else []
    if edited := [file for file in files if file.stat().st_mtime_ns > when + _COARSE]:
        others = f" and {len(edited) - 1} more were" if len(edited) > 1 else " was"
        raise UsageError(
            f"{edited[0]}{others} changed after `convnext predict` wrote it: choose another output, or add --overwrite to predict again"
        )


@contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """Yield a new folder, which takes the place of `folder` at the end. One that a killed process left is removed."""
    new, old = (folder.with_name(f".{folder.name}.{word}.tmp") for word in ("new", "old"))
    with writing(folder):
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
        new.mkdir(parents=True)
    try:
        yield new
        with writing(folder):
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
    finally:
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)


def _link_images(dataset: OutgoingDataset, output: Path, name: str) -> None:
    """Link each image where the format expects it, unless they are there.

    The links are not one to the whole folder: Ultralytics would follow it, and look for the labels beside the folder it leads to.
    """
    place = output / name
    known = [(image.path, image.file_name) for image in dataset.images() if image.path is not None and os.path.isfile(image.path)]
    dataset.lost["image"] = sum(1 for _ in dataset.images()) - len(known)
    _refuse_folder(output, name, known)
    if known and known[0][0].resolve().is_relative_to(place.resolve()):
        return
    with _replaced(place) as folder:
        for path, file_name in known:
            link = folder / below(file_name)
            with writing(link):
                link.parent.mkdir(parents=True, exist_ok=True)
                try:
                    link.symlink_to(path.resolve())
                except OSError:  # Windows allows symbolic links to some users only, and hard links on one disk
                    try:
                        link.hardlink_to(path.resolve())
                    except OSError:
                        shutil.copy2(path, link)


def _refuse_folder(output: Path, name: str, images: Sequence[tuple[Path, str]]) -> None:
    """Raise UsageError if links to images can't have the folder `name` of an output: it holds others, or the output holds the images."""
    if not name or not images:
        return
    path, file_name = images[0]
    root = Path(str(path).removesuffix(file_name) or ".")
    if str(path).endswith(file_name) and output.exists() and root.exists() and output.samefile(root):
        raise UsageError(f"{output} is the folder of the images: choose another output folder")
    place = output / name
    if not place.exists() or path.resolve().is_relative_to(place.resolve()):
        return
    files = (file for file in place.rglob("*") if file.is_symlink() or not file.is_dir())
    if any(not file.is_symlink() and file.stat().st_nlink < 2 for file in files):  # not our links: they may be the only copy
        raise UsageError(f"{place} exists, and its images are not those of the dataset: choose another output folder")
