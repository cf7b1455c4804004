"""How much a data set holds, in one line: what shows at a glance a class too many, an imbalance, a folder that was not found."""

from collections.abc import Sequence

from convnext.text import counted, shortened

_ALL, _FIRST = 20, 5  # classes: so many are all listed; of more, so many, and the extremes
_LONGEST = 40  # characters of a name


def described(images: int, classes: Sequence[str], counts: Sequence[int] | None = None, objects: bool = False) -> str:
    """For instance "16 images, 2 classes: ants 8, bees 8"; of many classes the first, the one with the fewest and that with the most.

    Args:
        images: how many there are.
        classes: their names.
        counts: images, or with `objects` objects, of each class; without, the names alone are listed.
    """
    parts = [counted(images, "image"), *([counted(sum(counts), "object")] if objects and counts is not None else [])]
    names = [shortened(name, _LONGEST) for name in classes]
    listed = [f"{name} {count}" for name, count in zip(names, counts, strict=True)] if counts is not None else names
    some = ", ".join(listed if len(listed) <= _ALL else [*listed[:_FIRST], "…"])
    if len(listed) > _ALL and counts is not None:
        fewest, most = (listed[choose(range(len(listed)), key=counts.__getitem__)] for choose in (min, max))
        some += f"; fewest {fewest}, most {most}"
    return f"{', '.join(parts)}, {counted(len(classes), 'class')}: {some}"
