"""Pascal VOC's XML: Annotations/NAME.xml for each image, and the list of them in ImageSets/Main.

Source: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html#sec:anno.
"""

import math
from collections.abc import Iterator
from pathlib import PurePosixPath

from convnext.data.convert.common import FoundImage
from convnext.data.convert.write.common import OutgoingDataset, TextFile, below
from convnext.text import printable


def voc_files(dataset: OutgoingDataset) -> Iterator[TextFile]:
    """Yield an XML for each image. Corners are whole pixels counted from 1, the last one included; crowds are marked difficult."""
    listed = []
    for image in dataset.images():
        path = below(image.file_name, ".xml")
        listed.append(printable(path.removesuffix(".xml")))
        yield TextFile(f"Annotations/{path}", _pieces(image, dataset))
    yield TextFile("ImageSets/Main/all.txt", [f"{name}\n" for name in listed])


def _pieces(image: FoundImage, dataset: OutgoingDataset) -> Iterator[str]:
    path = PurePosixPath(below(image.file_name))
    folder = "" if str(path.parent) == "." else dataset.xml(str(path.parent))
    yield f"<annotation>\n  <folder>{folder}</folder>\n  <filename>{dataset.xml(path.name)}</filename>\n"
    yield f"  <size><width>{image.width}</width><height>{image.height}</height><depth>3</depth></size>\n  <segmented>0</segmented>\n"
    for one in dataset.objects(image, crowds=True):
        dataset.lost["mask"] += bool(one.segmentation)
        dataset.lost["score"] += one.score is not None
        (left, right), (top, bottom) = (_whole(one.bbox[axis], one.bbox[axis + 2]) for axis in (0, 1))
        yield f"  <object>\n    <name>{dataset.xml(one.class_name)}</name>\n    <pose>Unspecified</pose>\n    <truncated>0</truncated>\n"
        yield f"    <difficult>{one.iscrowd}</difficult>\n    <bndbox>"
        yield f"<xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox>\n  </object>\n"
    yield "</annotation>\n"


def _whole(start: float, length: float) -> tuple[int, int]:
    """Return the first and the last pixel, counted from 1, of a side of a box: at least one pixel, within the image as the box is."""
    first = min(int(start + 0.5), math.ceil(start + length) - 1)
    return first + 1, max(int(start + length + 0.5), first + 1)
