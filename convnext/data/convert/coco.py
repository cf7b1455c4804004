"""COCO's own annotations, read to be written in another format."""

from pathlib import Path

from convnext.data.annotations.coco_file import CocoContent, read_coco
from convnext.data.convert.common import Converted
from convnext.errors import UsageError
from convnext.text import counted

_REPORTED = 5  # invalid annotations that are listed


def read_for_writing(file: Path, images: Path) -> Converted:
    """Return the valid content of a COCO file, ids unchanged.

    Raises UsageError if the file or folder is missing, ConvnextError as `read_coco` does.
    """
    if not images.is_dir():
        raise UsageError(f"no folder {images} with the images: name it with --images")
    found = read_coco(file)
    ids = {label: key for key, label in found.labels.items()}
    content: CocoContent = {
        "images": list(found.images.values()),
        "annotations": found.annotations,
        "categories": [{"id": ids[label], "name": name} for label, name in enumerate(found.classes) if label in ids],
    }
    remarks = [f"skipped {problem}" for problem in found.invalid[:_REPORTED]]
    if len(found.invalid) > _REPORTED:
        remarks.append(f"… {counted(len(found.invalid), 'invalid annotation')} in all")
    return Converted(content, remarks)
