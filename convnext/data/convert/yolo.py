"""Annotations in YOLO's text files as COCO's JSON."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from convnext.data.annotations.json_file import MistakeError
from convnext.data.annotations.names import YAML, yaml_mapping
from convnext.data.convert.common import Conversion, Converted, FoundImage, FoundObject
from convnext.data.convert.files import upright_size
from convnext.data.convert.shapes import Size, box_object, polygon_object
from convnext.data.walk import walk
from convnext.errors import ConvnextError, UsageError, nearest

_PARTS = ("train", "val", "test")


def yolo_to_coco(images: Path, labels: Path, names: Sequence[str | None]) -> Converted:
    """Return a dataset in YOLO's text files as COCO's JSON: `labels/…/NAME.txt` for `images/…/NAME.jpg`, in nested folders too.

    A line is a class, counted from 0, and a box's centre, width and height, or else a polygon's corners, as fractions of the image's
    width and height. Images without a text file have no objects.

    Args:
        images: the folder of images, whose sizes are read.
        labels: the folder of text files.
        names: the classes' names; None for a number without a class, which no line may use.

    Raises UsageError if a folder is missing or has no images, ConvnextError if there are more mistakes than objects, each by file and line.
    """
    for folder in (images, labels):
        if not folder.is_dir():
            raise UsageError(f"no folder {folder}")
    paths = sorted(images / path for path in walk(images).images)
    by_stem = {path.relative_to(images).with_suffix(""): path for path in paths}
    if not by_stem:
        raise UsageError(f"no images in {images}")
    if len(by_stem) < len(paths):
        twice = next(path for path in paths if by_stem[path.relative_to(images).with_suffix("")] != path)
        raise ConvnextError(f"{twice} and another image differ only in their ending: one label file can't be for both")
    texts = sorted(labels / path for path in walk(labels, (".txt",)).images)
    lists = {path.relative_to(labels).with_suffix(""): path for path in texts if path.name != "classes.txt"}
    found = Conversion()
    if lonely := [path for stem, path in lists.items() if stem not in by_stem]:
        known = [stem.name for stem in by_stem]
        have = "label file has" if len(lonely) == 1 else "label files have"
        lacking = f"{len(lonely)} {have} no image in {images}, the first {lonely[0]}{nearest(lonely[0].stem, known)}"
        if len(lonely) == len(lists):
            raise ConvnextError(lacking)
        found.notes.append(lacking)
    for stem, path in by_stem.items():
        with found.skipping():
            image = FoundImage(path.relative_to(images).as_posix(), *upright_size(path))
            found.images.append(image)
            for where, line in _lines(lists[stem]) if stem in lists else ():
                with found.skipping(where):
                    image.objects.append(_object(line, names, (image.width, image.height)))
    return found.converted(names)


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(file.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        if line.strip():
            yield f"{file}, line {number}", line.strip()


def _object(line: str, names: Sequence[str | None], size: Size) -> FoundObject:
    try:
        label, *values = (float(word) for word in line.split())
    except ValueError as error:
        raise MistakeError(f"not only numbers: {line!r}") from error
    if label not in range(len(names)):
        raise MistakeError(f"class {line.split()[0]}, there are {len(names)}, counted from 0")
    if (name := names[int(label)]) is None:
        raise MistakeError(f"class {line.split()[0]}, which has no name")
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise MistakeError(f"{len(values)} numbers after the class: a box has 4, a polygon 6, 8, …")
    if not all(-0.01 <= value <= 1.01 for value in values):  # rounding may exceed the border a little
        raise MistakeError(f"{max(values, key=abs):g} is not a fraction of the image's width or height, 0 to 1")
    width, height = size
    if len(values) > 4:
        return polygon_object(name, [(x * width, y * height) for x, y in zip(values[0::2], values[1::2], strict=True)], size)
    x, y, w, h = values
    return box_object(name, ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height), size)


def data_yaml(images: Path) -> Path | None:
    """Return the data.yaml beside a folder of images or above it, if there is one."""
    beside = [root / f"data{ending}" for root in (images.parent, images.parent.parent) for ending in YAML]
    return next((path for path in beside if path.is_file()), None)


def refuse_poses(file: Path) -> None:
    """Raise UsageError if a data.yaml says that the labels are poses."""
    if (shape := yaml_mapping(file).get("kpt_shape")) is not None:
        raise UsageError(
            f"{file} has kpt_shape {shape}: its label files are poses, whose lines of boxes and keypoints would be read as polygons. "
            "There is no task for keypoints; write the first five columns of each line to files of their own to train on the boxes"
        )


def yolo_part(file: Path, part: str | None) -> tuple[Path, Path]:
    """Return the folders of images and of labels that a data.yaml names for a part: train, val or test.

    A path is relative to the YAML's `path`, which is relative to the YAML. Where nothing is there, it is looked up beside the YAML:
    Roboflow writes `../train/images` for `train/images`, and `path` is often that of another machine.

    Raises UsageError if it does not name the part, or names no folder of images.
    """
    content = yaml_mapping(file)
    parts = {name: content[name] for name in _PARTS if content.get(name)}
    if part is None or part not in parts:
        raise UsageError(f"{file} has the parts {', '.join(parts) or 'none'}: choose one with --part")
    given = parts[part]
    if not isinstance(given, str) or given.lower().endswith(".txt"):
        raise UsageError(f"{file} names no folder for {part}, but a list: convert each folder of images by itself, with --names {file}")
    root, above = content.get("path"), Path(given)
    own = Path(*[step for step in above.parts if step not in ("..", above.anchor)])
    candidates = [file.parent / (root if isinstance(root, str) else "") / given, file.parent / given, file.parent / own]
    images = next((path for path in candidates if path.is_dir()), None)
    if images is None:
        raise UsageError(f"no folder {candidates[0]}, which {file} names for {part}, nor {candidates[-1]}")
    return images, labels_of(images)


def labels_of(images: Path) -> Path:
    """Return the folder of labels for a folder of images.

    The last `images` of its path becomes `labels`, as in YOLO's own tools; else it is `labels` beside the folder, or the folder itself.
    """
    parts = list(images.parts)
    at = max((i for i, part in enumerate(parts) if part == "images"), default=None)
    candidates = [] if at is None else [Path(*parts[:at], "labels", *parts[at + 1 :])]
    candidates.append(images.parent / "labels")
    if existing := [folder for folder in candidates if folder.is_dir()]:
        return existing[0]
    return images if walk(images, (".txt",)).images else candidates[0]
