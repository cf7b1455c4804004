"""What is wrong with a dataset in COCO's format that only reading all images and masks shows."""

from convnext.data.annotations.coco_file import annotation_name
from convnext.data.annotations.objects import ImageObjects
from convnext.data.deep import Depths
from convnext.data.images import CorruptImageError
from convnext.data.run_lengths import EncodedMasks, extent
from convnext.data.sources.coco import CocoSource


def check(source: CocoSource) -> list[str]:
    """Return everything wrong with a dataset, one problem per line: what opening it found, and what reading all images and masks finds."""
    problems, depths = list(source.problems), Depths()
    if source.has_corners:
        problems.append(f"{source.file}: boxes look like corners (left, top, right, bottom), not like left, top, width and height")
    if not sum(source.objects_by_class() or ()):
        problems.append(f"{source.file} holds no object to train on or to evaluate on")
    for index in range(len(source)):
        if (source.folder / source.paths[index]).exists():  # opening has reported missing ones
            try:
                depths.add(source.pixels(index))
            except CorruptImageError as error:
                problems.append(str(error))
        try:
            objects = source.encoded_target(index)
        except CorruptImageError as error:
            problems.append(str(error))
            continue
        runs = objects.run_lengths()
        first: dict[object, int] = {}
        for at, key in enumerate(source.annotation_ids(index)):
            mask = runs[at]["counts"] if runs is not None else ""
            same = first.setdefault((int(objects.labels[at]), *objects.boxes[at].tolist(), mask), key)
            if same != key:
                problems.append(f"{source.file}: {annotation_name(key)} repeats {annotation_name(same)}: remove one")
            if not source.has_corners and (fault := _misfit(objects, at, *source.size(index))):
                problems.append(f"{source.file}: {annotation_name(key)} {fault}")
    return problems + depths.problems()


def _misfit(objects: ImageObjects, at: int, height: int, width: int) -> str | None:
    """Return what makes an object suspicious although it can be used, as a predicate; None if nothing does."""
    left, top, right, bottom = box = objects.boxes[at].tolist()
    if min(left, top) < -1 or right > width + 1 or bottom > height + 1:
        return f"has a box that reaches over the border of its image of {width} x {height}: {box}"
    if not isinstance(objects.masks, EncodedMasks):
        return None
    found = extent(objects.masks.runs[at])
    if found is None:
        return "has a mask without a pixel"
    # Masks of another scale or image miss their box by much; COCO's own boxes are within a pixel or two of their masks.
    if max(abs(a - b) for a, b in zip(box, found, strict=True)) > 2 + 0.1 * max(right - left, bottom - top):
        return f"has a mask that does not fit its box: pixels in {list(found)}, box {box} (left, top, right, bottom)"
    return None
