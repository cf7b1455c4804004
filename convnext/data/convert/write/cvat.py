"""CVAT's XML "CVAT for images 1.1", which CVAT uploads into a task that has the images and the labels.

Source: https://docs.cvat.ai/docs/manual/advanced/formats/format-cvat/.
"""

from collections.abc import Iterator

import numpy as np

from convnext.data.convert.common import FoundImage, FoundObject
from convnext.data.convert.write.common import OutgoingDataset, TextFile
from convnext.data.convert.write.contours import contours, run_lengths, window

_COMMON = 'source="{source}" occluded="0" z_order="0"'
_SCORE = "<attribute><name>score</name><mutable>False</mutable><input_type>text</input_type><default_value></default_value></attribute>"


def cvat_files(dataset: OutgoingDataset) -> Iterator[TextFile]:
    """Yield one XML: boxes, polygons, and masks of objects of several parts or with holes, which a polygon of CVAT can't be.

    A score is the attribute `score`, which CVAT keeps if the label has it.
    """
    yield TextFile("", _pieces(dataset))


def _pieces(dataset: OutgoingDataset) -> Iterator[str]:
    attributes = _SCORE if dataset.is_predicted else ""
    yield '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n<meta><task><name>convnext</name><labels>\n'
    for name in dataset.categories:
        yield f"<label><name>{dataset.xml(name)}</name><type>any</type><attributes>{attributes}</attributes></label>\n"
    yield "</labels></task></meta>\n"
    for i, image in enumerate(dataset.images()):
        size = f'width="{image.width}" height="{image.height}"'
        yield f'<image id="{i}" name={dataset.attribute(image.file_name)} {size}>\n'
        for one in dataset.objects(image):
            yield _shape(one, image, dataset)
        yield "</image>\n"
    yield "</annotations>\n"


def _shape(one: FoundObject, image: FoundImage, dataset: OutgoingDataset) -> str:
    common = f"label={dataset.attribute(one.class_name)} {_COMMON.format(source='manual' if one.score is None else 'auto')}"
    score = "" if one.score is None else f'<attribute name="score">{one.score:g}</attribute>'
    if not one.segmentation:
        left, top, width, height = one.bbox
        edges = f'xtl="{left:.2f}" ytl="{top:.2f}" xbr="{left + width:.2f}" ybr="{top + height:.2f}"'
        return f"<box {common} {edges}>{score}</box>\n"
    parts = contours(one.segmentation, image.width, image.height)
    if len(parts) == 1 and not parts[0].holes:
        points = ";".join(f"{x:.2f},{y:.2f}" for x, y in parts[0].corners())
        return f'<polygon {common} points="{points}">{score}</polygon>\n'
    mask, left, top = window(run_lengths(one.segmentation, image.width, image.height))
    if not mask.size:
        dataset.lost["invalid object"] += 1
        return ""
    where = f'left="{left}" top="{top}" width="{mask.shape[1]}" height="{mask.shape[0]}"'
    return f'<mask {common} rle="{", ".join(map(str, _runs(mask)))}" {where}>{score}</mask>\n'


def _runs(mask: np.ndarray) -> list[int]:
    """Return the lengths of a mask's runs, row by row, the first one of background."""
    values = np.concatenate([[False], mask.ravel()])
    edges = np.flatnonzero(np.diff(values))
    runs: list[int] = np.diff(edges, prepend=0, append=mask.size).tolist()
    return runs
