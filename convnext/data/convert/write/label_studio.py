"""Label Studio's tasks as JSON, with annotations, or the predictions of a network, and the labelling configuration that they need.

Sources: https://labelstud.io/guide/predictions and, for the masks of brushes, `brush.encode_rle` in
https://github.com/HumanSignal/label-studio-sdk (converter).
"""

import json
from collections.abc import Iterator, Mapping
from urllib.parse import quote

import numpy as np

from convnext.data.convert.common import FoundImage, FoundObject
from convnext.data.convert.write.common import OutgoingDataset, TextFile
from convnext.data.convert.write.contours import contours, run_lengths, window

_CONTROLS = {"rectanglelabels": "RectangleLabels", "polygonlabels": "PolygonLabels", "brushlabels": "BrushLabels"}
_RUN_BITS = (3, 4, 8, 16)  # of a run's length, as each run chooses; a longer run is several


def label_studio_files(dataset: OutgoingDataset) -> Iterator[TextFile]:
    """Yield one JSON of tasks, and the configuration as an XML beside it.

    Boxes are rectangles, objects of one part without holes polygons, and other masks brushes. Images are named as those of a local
    storage whose root is their folder.
    """
    yield TextFile("", _pieces(dataset))
    yield TextFile(".config.xml", _configuration(dataset))


def _pieces(dataset: OutgoingDataset) -> Iterator[str]:
    yield "["
    for i, image in enumerate(dataset.images()):
        result = [entry for number, one in enumerate(dataset.objects(image)) if (entry := _entry(f"{i}-{number}", one, image, dataset))]
        scores = [one.score for one in image.objects if one.score is not None]
        found: dict[str, object] = {"result": result}
        if dataset.is_predicted:
            found |= {"model_version": "convnext"} | ({"score": max(scores)} if scores else {})
        kind = "predictions" if dataset.is_predicted else "annotations"
        task = {"data": {"image": f"/data/local-files/?d={quote(image.file_name, errors='surrogateescape')}"}, kind: [found]}
        yield (",\n" if i else "\n") + json.dumps(task, allow_nan=False)
    yield "\n]\n"


def _configuration(dataset: OutgoingDataset) -> Iterator[str]:
    yield '<View>\n  <Image name="image" value="$image"/>\n'
    for name, control in _CONTROLS.items():
        yield f'  <{control} name="{name}" toName="image">\n'
        yield from (f"    <Label value={dataset.attribute(label)}/>\n" for label in dataset.categories)
        yield f"  </{control}>\n"
    yield "</View>\n"


def _entry(key: str, one: FoundObject, image: FoundImage, dataset: OutgoingDataset) -> dict[str, object] | None:
    kind, value = _value(one, image)
    if kind is None:
        dataset.lost["invalid object"] += 1
        return None
    entry: dict[str, object] = {"id": key, "type": kind, "from_name": kind, "to_name": "image", "image_rotation": 0}
    entry |= {"original_width": image.width, "original_height": image.height}
    entry["value"] = dict(value) | {kind: [one.class_name]}
    return entry if one.score is None else entry | {"score": one.score}


def _value(one: FoundObject, image: FoundImage) -> tuple[str | None, Mapping[str, object]]:
    width, height = image.width, image.height
    if not one.segmentation:
        left, top, w, h = one.bbox
        edges = {"x": 100 * left / width, "y": 100 * top / height, "width": 100 * w / width, "height": 100 * h / height}
        return "rectanglelabels", edges | {"rotation": 0}
    parts = contours(one.segmentation, width, height)
    if len(parts) == 1 and not parts[0].holes:
        return "polygonlabels", {"points": [[100 * x / width, 100 * y / height] for x, y in parts[0].corners()], "closed": True}
    mask, left, top = window(run_lengths(one.segmentation, width, height))
    whole = np.zeros((height, width), bool)
    whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return ("brushlabels", {"format": "rle", "rle": brush(whole)}) if mask.any() else (None, {})


def brush(mask: np.ndarray) -> list[int]:
    """Return the bytes of a mask, bool (H, W), in Label Studio's run lengths; `data.convert.label_studio` says how they are read.

    Each pixel is four numbers, red, green, blue and opacity, all 0 or all 255.
    """
    values = mask.ravel()
    edges = np.concatenate([[0], np.flatnonzero(np.diff(values)) + 1, [len(values)]])
    bits = [f"{4 * len(values):032b}", f"{8 - 1:05b}", *(f"{length - 1:04b}" for length in _RUN_BITS)]
    for start, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        value, remaining = 255 if values[start] else 0, 4 * (end - start)
        while remaining:
            length = min(remaining, 1 << _RUN_BITS[-1])
            choice = next(i for i, count in enumerate(_RUN_BITS) if length <= 1 << count)
            bits.append(f"1{choice:02b}{length - 1:0{_RUN_BITS[choice]}b}{value:08b}")
            remaining -= length
    text = "".join(bits)
    return [int(text[at : at + 8].ljust(8, "0"), 2) for at in range(0, len(text), 8)]
