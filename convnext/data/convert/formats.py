"""The one function that converts annotations of a named format."""

from pathlib import Path

from convnext.data.annotations.names import YAML, read_names
from convnext.data.convert.coco import read_for_writing
from convnext.data.convert.common import Converted
from convnext.data.convert.cvat import cvat_to_coco
from convnext.data.convert.label_studio import label_studio_to_coco
from convnext.data.convert.labelme import labelme_to_coco
from convnext.data.convert.voc import voc_images, voc_part, voc_to_coco
from convnext.data.convert.yolo import data_yaml, labels_of, refuse_poses, yolo_part, yolo_to_coco
from convnext.data.walk import walk
from convnext.errors import UsageError

_TOOLS = {"coco": read_for_writing, "cvat": cvat_to_coco, "labelme": labelme_to_coco, "label-studio": label_studio_to_coco}
OPTIONS = {**dict.fromkeys(_TOOLS, ("--images",)), "voc": ("--part",), "yolo": ("--part", "--labels", "--names")}


def convert(
    kind: str,
    source: Path,
    images: Path | None = None,
    part: str | None = None,
    labels: Path | None = None,
    names: Path | None = None,
) -> tuple[Converted, Path]:
    """Return what a conversion gives, and the folder that the file names start from.

    Args:
        kind: coco, cvat, label-studio, labelme, voc or yolo.
        source: the file or folder of annotations; of YOLO the folder of images, or data.yaml.
        images, part, labels, names: as the options of `convnext data convert`; see OPTIONS for the formats that take them.

    Raises UsageError for a missing file or one of another format, ConvnextError for annotations that are damaged.
    """
    if kind == "voc":
        if source.is_file():
            raise UsageError(f"{source} is a file: name the folder of the dataset, with Annotations/ and JPEGImages/")
        folder, part = voc_part(source, part)
        return voc_to_coco(folder, part), voc_images(folder)
    if kind == "yolo":
        return _yolo(source, part, labels, names)
    if not source.exists():
        raise UsageError(f"no file {source}")
    if kind != "labelme" and source.is_dir():
        raise UsageError(f"{source} is a folder: name the {'XML' if kind == 'cvat' else 'JSON'} file that the tool exported")
    if source.suffix.lower() in (".zip", ".tar", ".gz", ".tgz"):
        raise UsageError(f"{source} is an archive: unpack it, and name the file of annotations in it")
    folder = images or _beside(source)
    return _TOOLS[kind](source, folder), folder


def _beside(source: Path) -> Path:
    """Return the folder of images that belongs to a file or folder of annotations."""
    root = source if source.is_dir() else source.parent
    if (root / "images").is_dir():
        return root / "images"
    beside = source.parent / "images"
    return beside if beside.is_dir() and not walk(root).images else root


def _yolo(source: Path, part: str | None, labels: Path | None, names: Path | None) -> tuple[Converted, Path]:
    data: Path | None
    if source.is_file():
        if source.suffix.lower() not in YAML:
            raise UsageError(f"{source} is neither a folder of images nor a data.yaml")
        images, of_images = yolo_part(source, part)
        data = source
        names = names or source
    else:
        if part is not None:
            raise UsageError(f"--part chooses a part of data.yaml, and {source} is a folder of images: name data.yaml instead")
        images, of_images = source, labels_of(source)
        beside = data_yaml(source)
        names = names or beside
        data = names if names is not None and names.suffix.lower() in YAML else beside
    if data is not None:
        refuse_poses(data)
    if names is None:
        raise UsageError("YOLO's files do not name the classes: name data.yaml, or a text file of class names, with --names")
    return yolo_to_coco(images, labels or of_images, read_names(names)), images
