"""Datasets whose tables hold the images: `hf://datasets/owner/name/train`, a folder of Parquet or of `save_to_disk`, a Parquet file."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from convnext.data.download import local
from convnext.data.sources.packed.shards import Shards, open_shards
from convnext.data.tables.embedded import FILES, as_shards, embedded, has_images, schema_of
from convnext.data.walk import folders_in, is_clutter
from convnext.errors import UsageError, nearest
from convnext.text import counted, read_text

_DATASET = "hf://datasets/"
_CONVERTED = "refs/convert/parquet"  # the hub's own copy, as Parquet, of a dataset in another format
_NUMBERED = re.compile(r"(?P<part>.*?)[-_.]?\d+(-of-\d+)?(-[0-9a-f]{16})?")  # train-00000-of-00002, 0000, data-00000-of-00001
_SHOWN = 12


def is_embedded(where: str) -> bool:
    """Return whether `where` names a dataset whose tables hold images, and not shards, class folders or a table of paths."""
    base, _ = _options(where)
    if base.startswith(_DATASET):
        return ".tar" not in base
    path, _ = _local(base)
    if path.is_dir():
        files = _files_in(path)
        return bool(files) and _holds_images(files[0])
    return path.suffix in FILES and path.is_file() and _holds_images(path)


def open_embedded(where: str, classes: Sequence[str] | None = None) -> Shards:
    """Return the images and classes of a dataset whose tables hold the images, written once as shards into the cache.

    Args:
        where: `hf://datasets/owner/name`, with `@revision` after the name and `/part` or `/configuration/part` behind it; a folder of
            `.parquet` files or one of `datasets.save_to_disk`, with `:part` behind it; or one such file. Options at the end name the
            columns: `:image=photo:label=fine_label`.
        classes: the class names in the order of their labels; by default those of the dataset.

    Raises UsageError if there is no such dataset, part or column, and ConvnextError if it can't be downloaded or used.
    """
    base, options = _options(where)
    files, features = _remote(base) if base.startswith(_DATASET) else _on_disk(base)
    name, unlabelled = as_shards(embedded(files, base, options, features), base)
    source = open_shards(name, classes)
    if unlabelled:
        source.remarks.append(f"skipped {counted(unlabelled, 'image')} without a label")
    return source


def _options(where: str) -> tuple[str, dict[str, str]]:
    match = re.fullmatch(r"(?P<base>.*?)(?P<options>(:(image|label)=[^:]+)*)", where, re.DOTALL)
    text = match["options"] if match else ""
    return where[: len(where) - len(text)], dict(re.findall(r":(image|label)=([^:]+)", text))


def _remote(base: str) -> tuple[list[Path], Mapping[str, Any]]:
    """Return the downloaded files of a part of a dataset on the hub, and the features that its page describes."""
    from convnext.data import hub

    where = hub.parse(base)
    names, at = hub.dataset_files(where)
    if not any(name.endswith(".parquet") for name in names) and where.revision is None:
        names, at = hub.dataset_files(hub.HubFile("dataset", where.repository, _CONVERTED))
    chosen = _part_of([name for name in names if name.endswith(".parquet")], where.file, base, "/")
    files = [local(str(at.named(name))) for name in chosen]
    return files, _features(local(str(at.named("README.md")))) if "README.md" in names else {}


def _local(base: str) -> tuple[Path, str]:
    """Return the path and the part of a name on this machine: `folder:train`."""
    path, colon, part = base.rpartition(":")
    if colon and len(path) > 1 and not Path(base).expanduser().exists():
        return Path(path).expanduser(), part
    return Path(base).expanduser(), ""


def _on_disk(base: str) -> tuple[list[Path], Mapping[str, Any]]:
    path, part = _local(base)
    if path.is_file():
        return [path], {}
    files = _files_in(path)
    chosen = _part_of([file.relative_to(path).as_posix() for file in files], part, base.removesuffix(f":{part}"), ":")
    return [path / name for name in chosen], _features(path / "README.md") if (path / "README.md").is_file() else {}


def _files_in(folder: Path) -> list[Path]:
    """Return the tables in a folder without others, or with `data` alone, or of a `datasets.DatasetDict`; a folder of classes has none."""
    below = folders_in(folder)
    if (folder / "dataset_dict.json").is_file():
        inside = [folder / name for name in below]
    else:
        inside = [folder, *(folder / name for name in below)] if below in ([], ["data"]) else []
    found = [path for one in inside for ending in FILES for path in one.glob(f"*{ending}") if not is_clutter(path.name)]
    return sorted(found)


def _holds_images(path: Path) -> bool:
    try:
        return has_images(schema_of(path))
    except UsageError:  # pyarrow is missing: opening it as a table of paths says so, and folders may hold other Parquet files
        return False


def _part_of(names: Sequence[str], wanted: str, base: str, separator: str) -> list[str]:
    """Return the files of the part of a dataset that is wanted, or of its only one. Raises UsageError if there is no such part."""
    if not names:
        raise UsageError(f"{base} has no Parquet files: give a dataset with them, or its shards, {_DATASET}owner/name/file.tar")
    if wanted in names:
        return [wanted]
    parts: dict[str, list[str]] = {}
    for name in sorted(names):
        parts.setdefault(_part_name(name), []).append(name)
    shown = base.removesuffix(f"/{wanted}") if wanted else base
    some = ", ".join(f"{shown}{separator}{name}" for name in list(parts)[:_SHOWN] if name) or "none"
    if not wanted and len(parts) == 1:
        return next(iter(parts.values()))
    fitting = [name for name in parts if wanted and wanted in (name, name.rpartition("/")[2])]
    if len(fitting) == 1:
        return parts[fitting[0]]
    what = f"several parts {wanted!r}" if fitting else f"no part {wanted!r}{nearest(wanted, parts)}" if wanted else "several parts"
    raise UsageError(f"{shown} has {what}: name one of {some}")


def _part_name(file: str) -> str:
    """Return the part, with the configuration before it, that the path of a file means: `data/train-00000-of-00002.parquet` is train."""
    path = PurePosixPath(file)
    folders = [folder.removeprefix("partial-") for folder in path.parts[:-1] if folder not in ("data", "default")]
    match = _NUMBERED.fullmatch(path.stem)
    name = match["part"] if match else path.stem
    return "/".join([*folders, *([name] if name and not (folders and name == "data") else [])])


def _features(page: Path) -> Mapping[str, Any]:
    """Return the features that the head of a dataset's page describes, as a schema's metadata has them: class names above all."""
    match = re.match(r"---\n(.*?)\n---", read_text(page), re.DOTALL)
    try:
        head = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError:
        return {}
    infos = head.get("dataset_info") if isinstance(head, dict) else None
    found: dict[str, Any] = {}
    for info in infos if isinstance(infos, list) else [infos]:
        for feature in (info.get("features") if isinstance(info, dict) else None) or []:
            kind = feature.get("dtype") if isinstance(feature, dict) else None
            names = kind.get("class_label", {}).get("names") if isinstance(kind, dict) else None
            if isinstance(names, dict):
                ordered = [names[key] for key in sorted(names, key=int)]
                found.setdefault(str(feature.get("name")), {"_type": "ClassLabel", "names": ordered})
    return found
