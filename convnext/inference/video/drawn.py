"""A video of images with their predictions drawn on them, which a call that was stopped, even killed, continues.

It is encoded in parts of some seconds. A part counts once a journal in the hidden folder beside the video says that it is complete; a part
that was cut off is drawn again. In the end the parts are joined, without encoding them again, and removed.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from convnext.data.sources.packed.video import ENDINGS, Frame
from convnext.errors import UsageError, writing
from convnext.inference import fingerprint
from convnext.inference.answers import Answer, Done
from convnext.inference.fingerprint import Fingerprint
from convnext.inference.inputs import Item
from convnext.inference.journal import Journal, refuse_foreign
from convnext.inference.video.encoding import FORMATS, PartEncoder, join
from convnext.models.weights.files import write_atomically
from convnext.tasks.base import Json

_PART = 100  # frames of a part
_FPS = 25  # frames a second of a video made of images


@dataclass
class _Part:
    """A part of the video, as the journal has it."""

    begin: int  # its items, by their positions
    end: int
    tick: int | None = None  # when its first frame is shown; None for a part without frames
    size: Sequence[int] = ()  # width and height of the video
    image_size: Sequence[int] = ()  # those of the first image, without what is drawn beside it
    errors: dict[str, str] = field(default_factory=dict)  # why an image has no frame, by its name


class DrawnVideo:
    """A video of the items, shown at their times in the video that they are from, or at a constant rate.

    It is as large as the first image with what is drawn on it and beside it. What is longer, as a legend may be, is cut off.

    Args:
        path: the file.
        items: all frames of one video, or images, in the order of showing.
        fps: of images, how many are shown in a second; by default 25.
        overwrite: start again if the file exists.
        of: the network and options that the drawings depend on.

    Raises UsageError if the items are not of one video, PyAV is not installed, or the file is not one of ours, of these items and network.
    """

    needs = frozenset({"prediction", "image"})

    def __init__(self, path: Path, items: Sequence[Item], fps: float | None, overwrite: bool, of: Fingerprint | None) -> None:
        self.path, self.items, self.folder = path, items, path.with_name(f".{path.name}.parts")
        self.tick_seconds, self.ticks = _times(path, items, fps)
        seconds = (self.ticks[-1] - self.ticks[0]) * self.tick_seconds
        self.rate = ((len(self.ticks) - 1) / seconds if seconds else Fraction(_FPS)).limit_denominator(1001)
        refuse_foreign(path, self.folder / "parts.jsonl", overwrite)
        self.journal = Journal(self.folder / "parts.jsonl", overwrite)
        self.is_joined, self.parts, kept = self._resume()
        fingerprint.check(path, of, bool(self.parts))
        self.journal.keep(kept, b'{"')
        if not kept:
            self._note({"items": self._digest()})
        self.done: Done = {item.name: None for part in self.parts for item in items[part.begin : part.end]}
        self.done |= {name: error for part in self.parts for name, error in part.errors.items()}
        self.part = self._next_part()
        self.encoder: PartEncoder | None = None

    def _resume(self) -> tuple[bool, list[_Part], int]:
        """Return whether the parts are joined, the complete ones, and the bytes of the journal that say so."""
        rows = [(self._parsed(line), end) for line, end in self.journal.records()]
        if any(row.get("items", self._digest()) != self._digest() for row, _ in rows):
            raise UsageError(f"{self.path} was started with other images: choose another file, or add --overwrite to start again")
        is_joined = any("joined" in row for row, _ in rows)
        parts, kept = list[_Part](), 0
        if is_joined and not self.path.exists():
            return False, parts, kept
        for row, end in rows:
            if "begin" in row:
                part = _Part(**row)
                if part.tick is not None and not is_joined and not self._file(part).exists():
                    break
                parts.append(part)
            kept = end
        return is_joined, parts, kept

    def _parsed(self, line: bytes) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise self.journal.foreign(f"has a line that is not JSON ({error})") from error
        known = {one.name for one in fields(_Part)}
        if not isinstance(row, dict) or row.keys() not in (known, {"items"}, {"joined"}):
            raise self.journal.foreign("has a line that `convnext predict` did not write")
        parsed: dict[str, Any] = row
        return parsed

    def _digest(self) -> str:
        shown = "\n".join(f"{tick} {item.name}" for tick, item in zip(self.ticks, self.items, strict=True))
        return hashlib.sha256(f"{self.tick_seconds}\n{shown}".encode(errors="surrogateescape")).hexdigest()

    def _note(self, row: Json) -> None:
        self.journal.append(json.dumps(row).encode() + b"\n")

    def _file(self, part: _Part) -> Path:
        return self.folder / f"{part.begin:09d}.mp4"

    def _next_part(self) -> _Part:
        last = self.parts[-1] if self.parts else _Part(0, 0)
        return _Part(last.end, last.end, None, last.size, last.image_size)

    def write(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            assert self.items[self.part.end].name == answer.item.name
            if answer.image is None:
                self.part.errors[answer.item.name] = answer.error or ""
            else:
                self._draw(answer.predicted.draw(answer.image), answer.image.size)
            self.part.end += 1
            if self.part.end == self.part.begin + _PART:
                self._close()

    def _draw(self, drawn: Image.Image, image_size: tuple[int, int]) -> None:
        part, tick = self.part, self.ticks[self.part.end]
        if not part.size:
            part.size, part.image_size = [drawn.width + drawn.width % 2, drawn.height + drawn.height % 2], image_size
        size = (part.size[0], part.size[1])
        if self.encoder is None:
            part.tick, self.encoder = tick, PartEncoder(self._file(part), size, self.tick_seconds, self.rate)
        if [*image_size] != [*part.image_size]:
            drawn = ImageOps.contain(drawn, size)
        self.encoder.add(_filled(drawn, size), tick)

    def _close(self) -> None:
        """Complete a part: first its file, then the journal says so."""
        if self.encoder is not None:
            self.encoder.close()
            with writing(self.encoder.path), self.encoder.path.open("r+b") as file:
                os.fsync(file.fileno())
        self._note(asdict(self.part))
        self.parts.append(self.part)
        self.part, self.encoder = self._next_part(), None

    def finish(self) -> None:
        """Join the parts."""
        if self.part.end > self.part.begin:
            self._close()
        shown = [(self._file(part), part.tick) for part in self.parts if part.tick is not None]
        if shown and not self.is_joined:
            kind = FORMATS[self.path.suffix.lower()]
            write_atomically(self.path, lambda file: join(shown, file, kind, self.tick_seconds, self.rate))
            self._note({"joined": len(shown)})
            self.is_joined = True
        for file, _ in shown:
            file.unlink(missing_ok=True)


def is_video_file(path: Path) -> bool:
    """Return whether drawings go to a video of that name, not into a folder. Raises UsageError for a format that can't be written."""
    ending = path.suffix.lower()
    if ending in ENDINGS and ending not in FORMATS:
        raise UsageError(f"{path}: no {ending} can be written: name a .mp4, .mov or .mkv file, or a folder")
    return ending in FORMATS


def in_order(items: list[Item], draw: Path | None) -> list[Item]:
    """Return the items in the order in which a video to draw shows them: images by their names, frame_2 before frame_10."""
    if draw is None or not is_video_file(draw) or any(isinstance(item.where, Frame) for item in items):
        return items
    return sorted(items, key=lambda item: [int(part) if i % 2 else part for i, part in enumerate(re.split("([0-9]+)", item.name))])


def check_fps(fps: float | None, items: Sequence[Item], draw: Path | None) -> None:
    """Raise UsageError for a rate that is none or of nothing: no video is read or made of images."""
    if fps is None:
        return
    if not 0 < fps <= 1000:
        raise UsageError(f"--fps {fps:g} is no number of frames a second: give one of up to 1000")
    if not any(isinstance(item.where, Frame) for item in items) and (draw is None or not is_video_file(draw)):
        raise UsageError("--fps is of videos, and of images drawn to a video: omit it, or add --draw FILE.mp4")


def _times(path: Path, items: Sequence[Item], fps: float | None) -> tuple[Fraction, list[int]]:
    """Return the seconds of a tick, and the tick at which each item is shown."""
    videos = list({id(item.where.video): item.where.video for item in items if isinstance(item.where, Frame)}.values())
    if len(videos) > 1 or (videos and any(item.file() not in (None, videos[0].path) for item in items)):
        raise UsageError(f"--draw {path} is a video of the frames of one source: give one video or images, or draw into a folder")
    if not videos:
        return 1 / Fraction(fps or _FPS).limit_denominator(1001), list(range(len(items)))
    if path.exists() and path.samefile(videos[0].path):
        raise UsageError(f"--draw {path} would overwrite the video that is read: name another file")
    ticks = list[int]()
    for item in items:  # that of what is missing at the end is never shown
        ticks.append(item.where.tick if isinstance(item.where, Frame) else ticks[-1] if ticks else 0)
    return videos[0].tick_seconds, ticks


def _filled(drawn: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return a drawing on white in another size, from the upper left corner; the last pixels of an odd side are there twice."""
    canvas = Image.new("RGB", size, "white")
    canvas.paste(drawn, ((size[0] - drawn.width) % 2, (size[1] - drawn.height) % 2))
    canvas.paste(drawn, (0, 0))
    return canvas
