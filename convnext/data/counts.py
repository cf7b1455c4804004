"""The size of a dataset in one line, which shows a superfluous class, an imbalance or a missing folder at a glance."""

from collections.abc import Sequence

from convnext.text import counted, shortened

_ALL, _FIRST = 20, 5  # up to the first number of classes, all are listed; of more, the second number and the extremes
_LONGEST = 40  # characters of a name


def described(images: int, classes: Sequence[str], counts: Sequence[int] | None = None, objects: bool = False) -> str:
    """Return for instance "16 images, 2 classes: ants 8, bees 8"; of many classes the first few, the smallest and the largest.

    Args:
        images: the number of images.
        classes: their names.
        counts: images, or with `objects` objects, of each class; without them, only the names are listed.
        objects: whether `counts` are of objects.
    """
    parts = [counted(images, "image"), *([counted(sum(counts), "object")] if objects and counts is not None else [])]
    names = [shortened(name, _LONGEST) for name in classes]
    listed = [f"{name} {count}" for name, count in zip(names, counts, strict=True)] if counts is not None else names
    some = ", ".join(listed if len(listed) <= _ALL else [*listed[:_FIRST], "…"])
    if len(listed) > _ALL and counts is not None:
        fewest, most = (listed[choose(range(len(listed)), key=counts.__getitem__)] for choose in (min, max))
        some += f"; fewest {fewest}, most {most}"
    return f"{', '.join(parts)}, {counted(len(classes), 'class')}: {some}"
