"""Annotations in Pascal VOC's XML as COCO's JSON."""

from collections.abc import Iterable
from contextlib import suppress
from itertools import count, takewhile
from pathlib import Path, PurePosixPath

from convnext.data.annotations.json_file import MistakeError
from convnext.data.convert.common import Conversion, Converted, FoundImage, FoundObject
from convnext.data.convert.files import Element, NamedImages, read_xml
from convnext.data.convert.shapes import Point, Size, box_object, polygon_object
from convnext.data.walk import folders_in, is_clutter, walk
from convnext.errors import UsageError, nearest
from convnext.text import class_name, counted, lines_of, read_text


def voc_images(folder: Path) -> Path:
    """Return the folder of the images of a dataset: `JPEGImages`, or the folder itself where the XML files are beside the images."""
    return folder / "JPEGImages" if (folder / "Annotations").is_dir() else folder


def voc_to_coco(folder: Path, part: str | None = None) -> Converted:
    """Return a dataset in Pascal VOC's XML as COCO's JSON: `Annotations/…/*.xml` for `JPEGImages/…`, or XML files beside their images.

    Classes are the objects' names, sorted; difficult objects become crowds, which count neither as found nor as missed. Corners are
    read as VOC defines them: whole pixels counted from 1, the last one included. A <polygon>, which Roboflow adds, becomes a mask.

    The image of an XML is its <filename>, or else the one with the name of the XML. Where the folder of images is missing, the names are
    kept as they are. Sizes that an XML lacks are read from the images.

    Args:
        folder: the dataset, or one of the folders train/, valid/ and test/ of Roboflow.
        part: what to convert of it: the images that `ImageSets/Main/PART.txt` lists, or the folder PART. By default all.

    Raises UsageError if there are no annotations, ConvnextError if there are more mistakes than objects, each by file and line.
    """
    found = Conversion()
    files = list(_files(folder, part, found))
    images = None
    with suppress(UsageError):  # the images need not be there
        images = NamedImages(voc_images(folder))
    annotations = folder / "Annotations"
    for path in files:
        with found.skipping():
            _read_voc(path, path.parent.relative_to(annotations) if annotations.is_dir() else Path(), images, found)
    return found.converted(found.names())


def voc_part(folder: Path, part: str | None) -> tuple[Path, str | None]:
    """Return the folder to convert, and the list of it: Roboflow's parts are folders, others lists of `ImageSets/Main`."""
    if part is not None and not (folder / "Annotations").is_dir() and (folder / part).is_dir():
        return folder / part, None
    return folder, part


def _files(folder: Path, part: str | None, found: Conversion) -> Iterable[Path]:
    annotations = folder / "Annotations" if (folder / "Annotations").is_dir() else folder
    files = (
        [annotations / path for path in sorted(walk(annotations, (".xml",)).images)] if annotations != folder else _beside_images(folder)
    )
    parts = [name for name in (folders_in(folder) if folder.is_dir() else []) if any((folder / name).glob("*.xml"))]
    if not files and parts and annotations == folder:
        raise UsageError(f"{folder} has the parts {', '.join(parts)}: convert each by itself, with --part {parts[0]}")
    if not files:
        layouts = "the layout is Annotations/NAME.xml and JPEGImages/NAME.jpg, or NAME.xml beside NAME.jpg"
        raise UsageError(f"no annotations {annotations}/*.xml: {layouts}")
    lists = {path.stem: path for path in sorted((folder / "ImageSets" / "Main").glob("*.txt")) if not is_clutter(path.name)}
    parts = [name for name in lists if "_" not in name]  # cat_train.txt lists by class
    if part is None:
        if parts:
            found.notes.append(f"ImageSets/Main lists the parts {', '.join(parts)}: all images are converted, --part takes one of them")
        return files
    if part not in lists:
        raise UsageError(f"no list {folder / 'ImageSets' / 'Main' / part}.txt{nearest(part, parts)}")
    stems = {path: path.relative_to(annotations).with_suffix("").as_posix() for path in files}
    known = set(stems.values())
    # Names may have spaces; a list by class has 1 or -1 behind each.
    wanted = {line if line in known else line.split()[0] for line in map(str.strip, lines_of(read_text(lists[part]))) if line}
    missing = sorted(wanted - known)
    if missing:
        found.mistakes.append(f"{lists[part]}: {counted(len(missing), 'image')} without annotations, the first {missing[0]}")
    return [path for path, stem in stems.items() if stem in wanted]


def _beside_images(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.xml")) if not is_clutter(path.name)]


def _read_voc(file: Path, below: Path, images: NamedImages | None, found: Conversion) -> None:
    root = Element("annotation", file, 1)
    try:
        root.children = list(read_xml(file, "annotation", "Pascal VOC's XML"))
    except UsageError as error:  # another kind of XML among the others
        raise MistakeError(str(error)) from error
    name = _image_of(file, below, root, images)
    width, height = _size(root, name, images)
    image = FoundImage(name, width, height)
    with found.skipping(str(file)):
        found.add(image, str(file))
        for element in root.all("object"):
            with found.skipping():
                image.objects.append(_object(element, (width, height)))


def _image_of(file: Path, below: Path, root: Element, images: NamedImages | None) -> str:
    """Return the image of an XML, which is in the folder `below` the images as the XML is below the annotations."""
    given = next((child.text.strip() for child in root.all("filename")), "")
    if images is None:
        return (below / (PurePosixPath(given.replace("\\", "/")).name or f"{file.stem}.jpg")).as_posix()
    for name in (given, file.stem):
        with suppress(MistakeError):
            return images.find(name if below == Path() else f"{below.as_posix()}/{name}")
    raise MistakeError(f"{file}: no image {given or file.stem!r} in {images.folder}")


def _size(root: Element, name: str, images: NamedImages | None) -> Size:
    try:
        size = root.child("size")
        width, height = int(size.number("width")), int(size.number("height"))
        if min(width, height) < 1:
            raise MistakeError(f"{size.where}: the image's size is {width} x {height}")
    except MistakeError:
        if images is None:
            raise
        return images.size(name)
    return width, height


def _object(element: Element, image: Size) -> FoundObject:
    box = element.child("bndbox")
    left, top, right, bottom = (box.number(key) for key in ("xmin", "ymin", "xmax", "ymax"))
    width, height = image
    if right < left or bottom < top or left > width or top > height or right < 1 or bottom < 1:
        corners = f"{left:g}, {top:g} to {right:g}, {bottom:g}"
        raise MistakeError(f"{box.where}: box from {corners} has no area in an image of {width} x {height}")
    if not (name := class_name(element.child("name").text.strip())):
        raise MistakeError(f"{element.where}: <name> is empty")
    difficult = any(child.text.strip() == "1" for child in element.all("difficult"))
    if not difficult and (contour := element.all("polygon")):
        return polygon_object(name, _points(contour[0]), image)
    return box_object(name, (left - 1, top - 1, right, bottom), image, iscrowd=int(difficult))


def _points(polygon: Element) -> list[Point]:
    """Return the corners of Roboflow's <polygon>, whose children are <x1>, <y1>, <x2>, …, counted from 1 as those of boxes."""
    tags = {child.tag for child in polygon.children}
    numbers = takewhile(lambda number: f"x{number}" in tags, count(1))
    return [(polygon.number(f"x{number}") - 1, polygon.number(f"y{number}") - 1) for number in numbers]
