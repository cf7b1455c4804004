"""Writing a video piece by piece: parts are encoded, H.264 in MP4, and joined without encoding them again."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from PIL import Image

from convnext.data.sources.packed.codecs import keep_when_forked
from convnext.errors import ConvnextError, UsageError, first_line, need, writing

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}  # by the endings of their files
_OPTIONS = {"crf": "20", "preset": "veryfast"}
_BT709 = 1  # FFmpeg's number of the colours that players assume


class PartEncoder:
    """Encodes the frames of one part, whose times begin with its first frame.

    Args:
        path: the file.
        size: width and height, even numbers.
        tick_seconds: seconds of a tick.
        rate: frames a second, on average.

    Raises UsageError if PyAV or its encoder is not installed, ConvnextError if the file can't be written, as `add` and `close` do.
    """

    def __init__(self, path: Path, size: tuple[int, int], tick_seconds: Fraction, rate: Fraction) -> None:
        self.path, self._av, self._first = path, _library(), -1
        keep_when_forked(self)
        with _encoding(path):
            self.container: OutputContainer = self._av.open(str(path.absolute()), "w", format="mp4")
            self.stream: VideoStream = self.container.add_stream("libx264", rate=rate, options=dict(_OPTIONS))
            context = self.stream.codec_context
            context.width, context.height = size
            context.pix_fmt, context.time_base = "yuv420p", tick_seconds
            context.max_b_frames = 0  # so that frames are in the order of showing, and parts can follow each other
            context.colorspace = context.color_primaries = context.color_trc = context.color_range = _BT709

    def add(self, image: Image.Image, tick: int) -> None:
        """Add an RGB image of the part's size that is shown at a tick."""
        self._first = tick if self._first < 0 else self._first
        with _encoding(self.path):
            frame = self._av.VideoFrame.from_image(image).reformat(format="yuv420p", dst_colorspace="ITU709")
            frame.pts, frame.time_base = tick - self._first, self.stream.codec_context.time_base
            self.container.mux(self.stream.encode(frame))

    def close(self) -> None:
        """Complete the file."""
        with _encoding(self.path):
            self.container.mux(self.stream.encode(None))
            self.container.close()


def join(parts: Iterable[tuple[Path, int]], path: Path, kind: str, tick_seconds: Fraction, rate: Fraction) -> None:
    """Write a video that shows parts one after the other.

    Args:
        parts: of the same size, at least one: each with the tick at which it begins.
        path: the file to write.
        kind: its format, of `FORMATS`.
        tick_seconds: seconds of a tick.
        rate: frames a second, on average: how long the last frame is shown.

    Raises ConvnextError if a part can't be read.
    """
    av = _library()
    with _encoding(path), av.open(str(path.absolute()), "w", format=kind) as joined:
        target: VideoStream | None = None
        for part, tick in parts:
            with av.open(str(part.absolute()), format="mp4") as container:
                (stream,) = container.streams.video
                target = target or joined.add_stream_from_template(stream)
                for packet in container.demux(stream):
                    if packet.size:
                        packet.pts = packet.dts = packet.pts + int(tick * tick_seconds / packet.time_base)
                        packet.duration = round(1 / rate / packet.time_base)
                        packet.stream = target
                        joined.mux(packet)


def _library() -> ModuleType:
    av = need("av", "video")
    if "libx264" not in av.codecs_available:
        raise UsageError("this PyAV has no encoder for H.264: install that of PyPI (pip install av), or draw into a folder")
    return av


@contextmanager
def _encoding(path: Path) -> Iterator[None]:
    try:
        with writing(path):
            yield
    except need("av", "video").error.FFmpegError as error:
        raise ConvnextError(f"{path} can't be written: {error.strerror or first_line(error)}: draw into a folder") from error
