"""Images inside tables: the Parquet and Arrow files of Hugging Face's `datasets`, written once as shards, which are read at random."""

import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

from convnext.data.download import cache_folder
from convnext.data.images import ENDINGS
from convnext.data.tables.rows import open_parquet
from convnext.errors import ConvnextError, UsageError, first_line, nearest, need, writing
from convnext.text import class_name, printable

FILES = (".parquet", ".arrow")
_IMAGES = ("image", "img", "picture", "photo", "pixels")
_LABELS = ("label", "labels", "class", "category", "target")
_AT_ONCE = 64  # rows in memory
_MAX_CLASSES = 1_000_000
_MAX_GROUP = 16 << 30  # bytes of a row group: more than any writer makes


@dataclass(frozen=True)
class EmbeddedImages:
    """Files of one schema, and which of their columns are the image and the class."""

    files: Sequence[Path]
    image: str
    label: str
    names: list[str] | None  # of the classes, where the schema has them


def schema_of(path: Path) -> Any:
    """Return the Arrow schema of a file. Raises UsageError if pyarrow is missing, and ConvnextError if the file can't be read."""
    if path.suffix == ".parquet":
        return open_parquet(path).schema_arrow
    with _arrow(path) as reader:
        return reader.schema


def has_images(schema: Any) -> bool:
    """Return whether a schema has a column of images: bytes, or bytes with a path."""
    return any(_is_image(field.type) for field in schema)


def embedded(files: Sequence[Path], where: str, options: Mapping[str, str], features: Mapping[str, Any]) -> EmbeddedImages:
    """Return which columns of some files are the image and its class.

    Args:
        files: at least one, all of one schema.
        where: their name, for messages.
        options: the columns that the user names, `image` and `label`.
        features: Hugging Face's description of the columns, where the schema has none.

    Raises UsageError if there are no such columns, or several.
    """
    schema = schema_of(files[0])
    described = _described(schema) or features
    images = [field.name for field in schema if _is_image(field.type)]
    classes = [name for name in schema.names if _type(described, name) == "ClassLabel"]
    plain = [name for name in _LABELS if name in schema.names and name not in images]
    image = _choose("image", options, schema.names, images, [name for name in _IMAGES if name in images], where)
    label = _choose(
        "label", options, schema.names, classes or plain, [name for name in ("label", *plain) if name in (classes or plain)], where
    )
    own = described.get(label, {}) if _type(described, label) == "ClassLabel" else {}
    if import_module("pyarrow").types.is_nested(schema.field(label).type):
        raise UsageError(f"{where}: the column {label} has any number of classes for each image, and a classifier learns one")
    names = [class_name(str(name).strip()) or f"class {place}" for place, name in enumerate(own.get("names") or [])] or None
    return EmbeddedImages(files, image, label, names)


def _described(schema: Any) -> Mapping[str, Any]:
    """Return the features that `datasets` notes in a schema: for each column its kind, and the names of classes."""
    with suppress(ValueError, KeyError, TypeError):
        return dict(json.loads(schema.metadata[b"huggingface"])["info"]["features"])
    return {}


def _type(features: Mapping[str, Any], name: str) -> str:
    found = features.get(name)
    return str(found.get("_type", "")) if isinstance(found, dict) else ""


def _is_image(kind: Any) -> bool:
    types = import_module("pyarrow").types
    if types.is_struct(kind):
        inner = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
        return "bytes" in inner and _is_binary(inner["bytes"])
    return _is_binary(kind)


def _is_binary(kind: Any) -> bool:
    types = import_module("pyarrow").types
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _choose(what: str, options: Mapping[str, str], names: Sequence[str], found: Sequence[str], preferred: Sequence[str], where: str) -> str:
    if (given := options.get(what)) is not None:
        if given not in names:
            raise UsageError(f"{where} has no column {given!r}{nearest(given, names)}")
        return given
    if len(found) == 1 or preferred:
        return found[0] if len(found) == 1 else preferred[0]
    some = (
        f"several columns that may be the {what}: {', '.join(found)}" if found else f"no column of the {what} (it has {', '.join(names)})"
    )
    raise UsageError(f"{where} has {some}; say which, with data.{what}_column=NAME, or {where}:{what}=NAME")


def as_shards(images: EmbeddedImages, where: str) -> tuple[str, int]:
    """Return the name of shards in the cache with the images, which are written if they are not there yet, and how many rows lack a label.

    A row without a label (none, or -1) is left away.

    Raises ConvnextError if a file is damaged, a label has no name, or no row has a label.
    """
    labels = [label for path in images.files for batch in _batches(path, [images.label]) for label in batch[images.label]]
    present = [label for label in labels if label is not None and label != -1]
    if not present:
        raise ConvnextError(f"the {len(labels)} images of {where} have no labels: take another part")
    names = images.names or _names(present)
    places: Mapping[object, int] = {name: place for place, name in enumerate(names)}
    numbered = isinstance(present[0], int) and not isinstance(present[0], bool)
    if numbered and not 0 <= min(present) <= max(present) < len(names):
        raise ConvnextError(f"{where} has the label {max(present)}, and {len(names)} classes")
    if unknown := [] if numbered else [label for label in present if _name(label) not in places]:
        raise ConvnextError(f"{where}: {printable(str(unknown[0]))} is not one of its classes")
    folder = _folder(images, names)
    pattern = f"{folder}/part-{{00000..{len(images.files) - 1:05d}}}.tar"
    if not folder.exists():
        part = folder.with_name(f".{folder.name}.{os.getpid()}")
        with writing(folder):
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            try:
                for number, path in enumerate(images.files):
                    rows = _rows(path, images, lambda label: label if numbered else places[_name(label)])
                    _write(part / f"part-{number:05d}.tar", f"{number:05d}", rows)
                (part / "classes.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
                try:
                    part.rename(folder)
                except OSError:
                    if not folder.exists():  # otherwise another process was quicker
                        raise
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return pattern, len(labels) - len(present)


def _names(present: Sequence[Any]) -> list[str]:
    if isinstance(present[0], int) and not isinstance(present[0], bool):
        if max(present) >= _MAX_CLASSES:
            raise ConvnextError(f"{max(present)} is a number of an image, and not of a class: name another column of labels")
        return [str(number) for number in range(max(present) + 1)]
    return sorted({_name(label) for label in present})


def _name(label: object) -> str:
    return class_name(str(label).strip())


def _folder(images: EmbeddedImages, names: Sequence[str]) -> Path:
    states = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in images.files]
    text = json.dumps([states, images.image, images.label, names])
    return cache_folder() / "tables" / hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _rows(path: Path, images: EmbeddedImages, place: Any) -> Iterator[tuple[int, bytes, str, int]]:
    """Yield number, content, ending and class of each image with a label."""
    row = 0
    for batch in _batches(path, [images.image, images.label]):
        for cell, label in zip(batch[images.image], batch[images.label], strict=True):
            content, name = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
            if label is not None and label != -1:
                ending = os.path.splitext(str(name))[1].lower()
                yield row, content or b"", ending if ending in ENDINGS else ".jpg", place(label)  # the content decides how it is read
            row += 1


def _write(path: Path, prefix: str, rows: Iterator[tuple[int, bytes, str, int]]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as shard:
        for row, content, ending, label in rows:
            for suffix, data in ((ending, content), (".cls", b"%d" % label)):
                info = tarfile.TarInfo(f"{prefix}-{row:08d}{suffix}")
                info.size = len(data)
                shard.addfile(info, BytesIO(data))


def _batches(path: Path, columns: Sequence[str]) -> Iterator[dict[str, list[Any]]]:
    try:
        if path.suffix == ".parquet":
            file = open_parquet(path)
            groups = [file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)]
            if max(groups, default=0) > _MAX_GROUP:
                raise ConvnextError(f"{path} has a row group of {max(groups):,} bytes: write it again with smaller ones")
            for batch in file.iter_batches(_AT_ONCE, columns=list(columns)):
                yield batch.to_pydict()
        else:
            with _arrow(path) as reader:
                for batch in reader:
                    for start in range(0, batch.num_rows, _AT_ONCE):
                        yield batch.select(list(columns)).slice(start, _AT_ONCE).to_pydict()
    except (OSError, ValueError) as error:  # pyarrow's errors are both
        raise ConvnextError(f"{path} is damaged ({first_line(error)}): write or download it again") from error


def _arrow(path: Path) -> Any:
    need("pyarrow", "tables")
    module = import_module("pyarrow")
    try:
        return module.ipc.open_stream(module.memory_map(str(path)))
    except (OSError, ValueError) as error:
        raise ConvnextError(f"{path} is not an Arrow file of `datasets`, or is damaged ({first_line(error)})") from error
