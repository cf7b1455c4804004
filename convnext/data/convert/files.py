"""Files that conversions read: XML of bounded size, and the images that annotations name by paths of another machine."""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from xml.parsers import expat

from convnext.data.annotations.json_file import MAX_BYTES, MistakeError, like_xml, read_json
from convnext.data.convert.shapes import Size, finite
from convnext.data.images import size_of
from convnext.data.walk import walk
from convnext.errors import ConvnextError, UsageError

_CHUNK = 1 << 20
_MAX_DEPTH = 64  # of XML; annotations have less than ten


@dataclass
class Element:
    """An XML element with its line, which the standard library's elements lack."""

    tag: str
    file: Path
    line: int
    attributes: dict[str, str] = field(default_factory=dict)
    text: str = ""
    children: list["Element"] = field(default_factory=list)

    @property
    def where(self) -> str:
        """The file and line."""
        return f"{self.file}, line {self.line}"

    def all(self, tag: str) -> list["Element"]:
        """Return the children of that tag."""
        return [child for child in self.children if child.tag == tag]

    def child(self, tag: str) -> "Element":
        """Return the first child of that tag. Raises MistakeError if there is none."""
        for child in self.all(tag):
            return child
        raise MistakeError(f"{self.where}: <{self.tag}> has no <{tag}>")

    def number(self, tag: str) -> float:
        """Return the number in a child. Raises MistakeError if it is missing or not finite."""
        child = self.child(tag)
        try:
            return finite(child.text.strip(), f"<{tag}>")
        except MistakeError as mistake:
            raise MistakeError(f"{child.where}: {mistake}") from mistake

    def attribute(self, key: str) -> str:
        """Return an attribute. Raises MistakeError if it is missing."""
        if (value := self.attributes.get(key)) is None:
            raise MistakeError(f"<{self.tag}> has no attribute {key}")
        return value


def read_xml(file: Path, root: str, what: str) -> Iterator[Element]:
    """Yield the children of the root of an XML file, which may be large: each is complete, and only one is in memory at a time.

    Args:
        file: the XML. Entities, which can expand to any size, are refused.
        root: the tag that its root must have.
        what: the format's name for the error.

    Raises UsageError if there is no such file or its root is another one, MistakeError, naming the line, if it is not XML.
    """
    parser = expat.ParserCreate()
    tree = [Element("", file, 0)]

    def start(tag: str, attributes: dict[str, str]) -> None:
        if len(tree) == 1 and tag != root:
            raise UsageError(f"{file} is not {what}, whose root is <{root}>: its root is <{tag}>{like_xml(tag)}")
        if len(tree) > _MAX_DEPTH:
            raise MistakeError(f"{file}, line {parser.CurrentLineNumber}: elements are nested more than {_MAX_DEPTH} deep")
        element = Element(tag, file, parser.CurrentLineNumber, attributes)
        tree[-1].children.append(element)
        tree.append(element)

    def text(data: str) -> None:
        tree[-1].text += data

    def entity(name: str, *_: object) -> None:
        raise MistakeError(f"{file}, line {parser.CurrentLineNumber}: declares the entity {name}, which annotations do not need")

    parser.StartElementHandler, parser.EndElementHandler = start, lambda _: tree.pop()
    parser.CharacterDataHandler, parser.EntityDeclHandler = text, entity
    parser.buffer_text = True
    try:
        with open(file, "rb") as stream:
            if file.stat().st_size > MAX_BYTES:
                raise ConvnextError(f"{file} has more than {MAX_BYTES >> 30} GiB: export parts of it")
            while True:
                chunk = stream.read(_CHUNK)
                parser.Parse(chunk, not chunk)
                if tree[0].children:
                    waiting = tree[0].children[0].children
                    done = len(waiting) - (len(tree) > 2)  # the last one is still open
                    yield from waiting[:done]
                    del waiting[:done]
                if not chunk:
                    return
    except OSError as error:
        raise UsageError(f"{file} can't be read: {error.strerror}") from error
    except ConvnextError:  # a UsageError of the handlers is a ValueError too
        raise
    except (LookupError, ValueError) as error:
        raise MistakeError(f"{file} has an encoding that can't be read: save it as UTF-8 ({error})") from error
    except expat.ExpatError as error:
        if not tree[0].children and (kind := _like(file)):
            raise UsageError(f"{file} is not {what}{kind}") from error
        raise MistakeError(f"{file}, line {error.lineno}: {expat.ErrorString(error.code)}") from error


def _like(file: Path) -> str:
    """Return the end of an error message: the format that a file looks like that is not XML, or nothing."""
    with open(file, "rb") as stream:
        start = stream.read(1000).lstrip(b"\xef\xbb\xbf \t\r\n")
    if start[:1] not in (b"{", b"["):
        return ""
    try:
        return like_json(read_json(file)) or "; it looks like JSON"
    except MistakeError:
        return "; it looks like JSON"


def like_json(content: object) -> str:
    """Return the end of an error message: the format that the content of a JSON file looks like, or nothing."""
    first = content[0] if isinstance(content, list) and content else None
    kind = ""
    if isinstance(content, dict) and "shapes" in content:
        kind = "LabelMe: convnext data convert labelme FOLDER"
    elif isinstance(content, dict) and "images" in content and "categories" in content:
        kind = "COCO, which needs no conversion: data.train=coco:FILE:FOLDER"
    elif isinstance(content, dict) and (
        "_via_img_metadata" in content or any(isinstance(one, dict) and "regions" in one for one in content.values())
    ):
        kind = "VGG Image Annotator: export it as COCO there"
    elif isinstance(first, dict) and "data" in first and ("annotations" in first or "completions" in first):
        kind = "Label Studio: convnext data convert label-studio FILE"
    elif isinstance(first, dict) and {"bbox", "category_id"} <= first.keys():
        kind = "COCO's results of a detector, which are no annotations"
    return f"; it looks like {kind}" if kind else ""


class NamedImages:
    """The images of a folder, found by the paths that annotations have, which are often those of another machine.

    Raises UsageError if there is no such folder or it has no images.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UsageError(f"no folder {folder} with the images: name it with --images")
        self.folder = folder
        self._by_name: dict[str, list[PurePosixPath]] = {}
        self._by_stem: dict[str, list[PurePosixPath]] = {}
        for path in map(PurePosixPath, (Path(image).as_posix() for image in walk(folder).images)):
            self._by_name.setdefault(_folded(path.name), []).append(path)
            self._by_stem.setdefault(_folded(path.stem), []).append(path)
        if not self._by_name:
            raise UsageError(f"no images in {folder}: name their folder with --images")

    def find(self, given: str) -> str:
        r"""Return the path, below the folder, of the image that annotations call `given`, a path with / or \.

        The name decides, in capitals or not, else the name without its ending. Among several, the one whose folders agree is taken.

        Raises MistakeError if there is no such image, or more than one.
        """
        path = PurePosixPath(given.strip().replace("\\", "/"))
        name, stem = _folded(path.name), _folded(path.stem)
        candidates = self._by_name.get(name) or self._by_stem.get(name) or self._by_stem.get(stem) or []
        if not path.name or not candidates:
            raise MistakeError(f"no image {given!r} in {self.folder}")
        agreeing = [_agreeing(path, candidate) for candidate in candidates]
        best = max(agreeing)
        if agreeing.count(best) > 1:
            first, second = [str(one) for one, count in zip(candidates, agreeing, strict=True) if count == best][:2]
            raise MistakeError(f"{given!r} may be {first} or {second} in {self.folder}")
        return str(candidates[agreeing.index(best)])

    def size(self, name: str) -> Size:
        """Return width and height of an image as `read_image` returns it, from its header. Raises MistakeError if it can't be read."""
        return upright_size(self.folder / name)


def upright_size(path: Path) -> Size:
    """Return width and height of an image as `read_image` returns it, from its header. Raises MistakeError if it can't be read."""
    try:
        return size_of(path)
    except Exception as error:  # as in `read_image`: damaged headers raise anything
        raise MistakeError(f"{path}: not an image that can be read") from error


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _agreeing(a: PurePosixPath, b: PurePosixPath) -> int:
    """Return how many folders, from the last one on, two paths have in common."""
    count = 0
    for one, other in zip(reversed(a.parts[:-1]), reversed(b.parts[:-1]), strict=False):
        if _folded(one) != _folded(other):
            break
        count += 1
    return count
