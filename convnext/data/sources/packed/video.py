"""Videos as sources of frames, in the order in which they are shown. PyAV (FFmpeg) decodes them."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image

from convnext.data.deep import DeepImage
from convnext.data.formats.tiff import too_large
from convnext.data.images import AS_RGB, CorruptImageError, Reading, read_image
from convnext.data.orientation import turned_array
from convnext.data.sources.packed.codecs import keep_when_forked
from convnext.errors import first_line, need

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

ENDINGS = frozenset({".mp4", ".m4v", ".mov", ".3gp", ".avi", ".mkv", ".webm", ".wmv", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"})
# FFmpeg opens playlists too, whatever their ending, and these name other files and addresses: so only containers of their own content.
_OPTIONS = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,mpeg,mpegts", "protocol_whitelist": "file"}
_ONE_STAMP = ("avi", "asf")  # formats that store one time stamp a frame, which is not that of showing where frames are reordered
_MAX_FRAMES = 5_000_000  # of a video: 46 hours at 30 a second
_TOLERANCE = 0.5  # seconds that a complete video may be shorter than its header says
# EXIF's number of the orientation that a display matrix (a, b, c, d) of quarter turns and mirroring stands for.
_ORIENTATIONS = {
    (1, 0, 0, 1): 1, (-1, 0, 0, 1): 2, (-1, 0, 0, -1): 3, (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5, (0, 1, -1, 0): 6, (0, -1, -1, 0): 7, (0, -1, 1, 0): 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame of a video."""

    video: "Video"
    index: int  # in the order of showing, from 0
    tick: int  # when it is shown: ticks of `Video.tick_seconds` after the first frame

    @property
    def seconds(self) -> float:
        """When it is shown, in seconds after the first frame."""
        return round(float(self.tick * self.video.tick_seconds), 6)

    def read(self, name: str, how: Reading = AS_RGB) -> Image.Image | DeepImage:
        """Return the frame, upright, as `read_image` would. Frames that are asked for in their order are each decoded once.

        Raises CorruptImageError if it can't be decoded or is larger than allowed.
        """
        return read_image(self.video.decode(self, how.limit), name, how)


class Video:
    """A video file that is decoded from its beginning to its end. Any thread may ask for frames; pickled, it has no open file.

    Args:
        path: the file.
        tick_seconds: seconds of a tick.
        start: the time stamp of the first frame in ticks; None where frames are known by their number, because time stamps are missing
            or, as in AVI, tell the order of decoding.
    """

    def __init__(self, path: Path, tick_seconds: Fraction, start: int | None) -> None:
        self.path, self.tick_seconds, self.start = path, tick_seconds, start
        self._begin_again()

    def _begin_again(self) -> None:
        self._lock, self._last = Lock(), -1
        self._decoder: _Decoder | None = None
        self._process = os.getpid()

    def __reduce__(self) -> tuple[object, ...]:
        return _shared, (self.path, self.tick_seconds, self.start)

    def decode(self, wanted: Frame, max_pixels: float) -> Image.Image:
        """Return a frame, RGB and upright. To return one before the last that was asked for, decoding begins again.

        Raises CorruptImageError if it can't be decoded or has more than `max_pixels`.
        """
        if self._process != os.getpid():  # a fork has neither the decoder's threads nor the one that holds the lock
            self._begin_again()
        with self._lock:
            if self._decoder is None or wanted.index <= self._last:
                self._decoder = _Decoder(self.path, self.start, max_pixels)
            self._last, number = wanted.index, wanted.index if self.start is None else wanted.tick
            frame = self._decoder.find(number)
            if (frame is None or self._decoder.fault) and self._decoder.in_threads:
                # Threads that decode several frames at a time lose whole ones with a damaged one.
                self._decoder = _Decoder(self.path, self.start, max_pixels, in_threads=False)
                frame = self._decoder.find(number)
            if frame is None:
                reason = self._decoder.fault or "the stream ends"
                raise CorruptImageError(f"{self.path}: some of its frames can't be decoded ({reason})")
        if frame.width * frame.height > max_pixels:
            raise CorruptImageError(f"{self.path}: {too_large(frame.width, frame.height)}")
        return _upright(frame)


@lru_cache(maxsize=4)
def _shared(path: Path, tick_seconds: Fraction, start: int | None) -> Video:
    """Return the same video for each batch that a process unpickles, so that its decoder continues."""
    return Video(path, tick_seconds, start)


class _Decoder:
    """Decodes a video once, forwards. Frames are known by their ticks, or by their numbers where there is no `start`."""

    def __init__(self, path: Path, start: int | None, max_pixels: float, in_threads: bool = True) -> None:
        self.start, self.in_threads, self.fault = start, in_threads, ""
        self.container, self.stream = _opened(path)
        keep_when_forked(self)
        context = self.stream.codec_context
        if context.width * context.height > max_pixels:
            raise CorruptImageError(f"{path}: {too_large(context.width, context.height)}")
        self.stream.thread_type = "AUTO" if in_threads else "NONE"
        context.options = {"max_pixels": str(int(min(2 * max_pixels, 1 << 40)))}  # FFmpeg counts its margins too
        self.frames = self._frames()
        self.ahead: tuple[int, av.VideoFrame] | None = None  # decoded while an earlier one, which is missing, was looked for

    def find(self, wanted: int) -> "av.VideoFrame | None":
        """Return a frame behind those before; None if it can't be decoded."""
        while (found := self.ahead or next(self.frames, None)) is not None:
            self.ahead = None
            if found[0] == wanted:
                return found[1]
            if found[0] > wanted:
                self.ahead = found
                break
        return None

    def _frames(self) -> "Iterator[tuple[int, av.VideoFrame]]":
        for count, frame in enumerate(self._decoded()):
            if self.start is None:
                yield count, frame
            elif frame.pts is not None:
                yield frame.pts - self.start, frame

    def _decoded(self) -> "Iterator[av.VideoFrame]":
        """Yield all frames that can be decoded, then close the file."""
        with self.container:
            for packet in _packets(self.container, self.stream):
                if packet.size:
                    yield from self._frames_of(packet)
            yield from self._frames_of(None)  # those that the decoder still holds

    def _frames_of(self, packet: "av.Packet[VideoStream] | None") -> "list[av.VideoFrame]":
        try:
            return self.stream.codec_context.decode(packet)
        except need("av", "video").error.FFmpegError as error:
            self.fault = error.strerror or first_line(error)
            return []


@dataclass(frozen=True)
class FrameList:
    """The frames of a video, and what is wrong with it."""

    frames: Sequence[Frame] = ()
    fault: str = ""  # why there are no more; "" for a complete video


def list_frames(path: Path, fps: float | None = None) -> FrameList:
    """Return the frames of a video, found without decoding it.

    Args:
        path: the file.
        fps: how many frames of a second to take, the first of each period; all of them where the video has fewer.

    Raises UsageError if PyAV is not installed.
    """
    try:
        container, stream = _opened(path)
    except CorruptImageError as error:
        return FrameList(fault=str(error))
    with container:
        count, end, stamps = 0, 0, list[_Stamps]()
        for packet in _packets(container, stream):
            count += 1
            if packet.is_discard:  # by an edit list: decoded, but not shown
                continue
            end = max(end, ((packet.dts if packet.pts is None else packet.pts) or 0) + (packet.duration or 0))
            if packet.size and not _is_hidden(packet):
                stamps.append((packet.pts, packet.dts))
        if not stamps:
            return FrameList(fault=f"{path}: it has no frames")
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        is_timed, ticks = _ticks(stamps, container.format.name)
        known = ticks[0] if is_timed else None
        video = Video(path, stream.time_base if ticks and stream.time_base else 1 / rate, known)
        frames = [Frame(video, i, ticks[i] - ticks[0] if ticks else i) for i in range(len(ticks) or len(stamps))]
        fault = f"{path}: only its first {_MAX_FRAMES} frames are read" if count >= _MAX_FRAMES else _missing(path, stream, ticks, end)
    return FrameList(frames if fps is None else list(_thinned(frames, fps)), fault)


_Stamps = tuple[int | None, int | None]  # when a packet's frame is shown, and when it is decoded


def _ticks(stamps: Sequence[_Stamps], container: str) -> tuple[bool, list[int]]:
    """Return whether time stamps tell frames apart, and when the frames are shown, in order; [] if unknown."""
    shown = {pts for pts, _ in stamps if pts is not None}
    known = [dts for _, dts in stamps if dts is not None]
    if any(later < earlier for earlier, later in pairwise(known)):  # recordings of MPEG that were joined: each has its own clock
        return False, []
    if container not in _ONE_STAMP and all(pts is not None for pts, _ in stamps) and 2 * len(shown) > len(stamps):
        return True, sorted(shown)
    decoded = {*known}
    return False, sorted(decoded) if len(decoded) == len(stamps) else []


def _opened(path: Path) -> "tuple[InputContainer, VideoStream]":
    """Open a video's best stream. Raises CorruptImageError if it can't be opened or has none, UsageError if PyAV is not installed."""
    av = need("av", "video")
    try:
        # An absolute path is never an address, as "http:clip.mp4" could be.
        container: InputContainer = av.open(str(path.absolute()), options=dict(_OPTIONS), metadata_errors="replace")
    except (av.error.FFmpegError, OSError) as error:
        raise CorruptImageError(f"{path}: {error.strerror or first_line(error)}: it is not a video, or a part of it is missing") from error
    stream = container.streams.best("video")
    if stream is None:
        container.close()
        raise CorruptImageError(f"{path}: it has no video stream")
    return container, cast("VideoStream", stream)


def _packets(container: "InputContainer", stream: "VideoStream") -> "Iterator[av.Packet[VideoStream]]":
    """Yield the stream's packets, up to where the file can be read. Those without content repeat a frame."""
    errors, packets = need("av", "video").error, container.demux(stream)
    for _ in range(_MAX_FRAMES):
        try:
            packet = next(packets)
        except (StopIteration, errors.FFmpegError):
            return
        if packet.size or packet.dts is not None:  # not PyAV's last one, which ends a decoder
            yield packet


def _is_hidden(packet: "av.Packet[VideoStream]") -> bool:
    """Return whether a packet is one of VP8's that only later frames refer to (RFC 6386, 9.1: show_frame)."""
    return packet.stream.codec_context.name == "vp8" and not bytes(packet)[0] >> 4 & 1


def _missing(path: Path, stream: "VideoStream", ticks: Sequence[int], end: int) -> str:
    """Return the fault of a file that was cut off: `end` is where its frames end, long before where its header says."""
    if not ticks or stream.time_base is None:
        return ""
    tick = float(stream.time_base)
    first = ticks[0] * tick
    length = stream.frames if path.suffix.lower() == ".avi" else stream.duration  # of AVI, FFmpeg takes it from what there is
    announced = length * tick if length else _seconds(stream.metadata.get("DURATION", "")) - first
    longest = max((later - earlier for earlier, later in pairwise(ticks)), default=0) * tick
    if announced - (end * tick - first) <= max(_TOLERANCE, 2 * longest):  # at a variable rate, the last frame may last as long as others
        return ""
    return f"{path}: it ends after {end * tick - first:.1f} of {announced:.1f} seconds: the rest of the file is missing or damaged"


def _seconds(clock: str) -> float:
    """Return the seconds of a Matroska duration, "00:00:12.04"; 0 for other text."""
    try:
        hours, minutes, seconds = clock.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError:
        return 0.0


def _thinned(frames: Sequence[Frame], fps: float) -> Iterator[Frame]:
    last = -1
    for frame in frames:
        # Rounded, so that the frames of 25 a second are at 0.04 seconds, and not just before.
        if (period := int(round(frame.seconds * fps, 3))) > last:
            last = period
            yield frame


def _upright(frame: "av.VideoFrame") -> Image.Image:
    pixels = frame.to_ndarray(format="rgb24")
    side_data: Any = frame.side_data  # PyAV's stub knows one key only
    if "DISPLAYMATRIX" in side_data:
        matrix = np.frombuffer(bytes(side_data["DISPLAYMATRIX"]), np.int32)[[0, 1, 3, 4]]
        orientation = _ORIENTATIONS.get(tuple(np.round(matrix / (1 << 16)).astype(int).tolist()), 1)
        pixels = np.moveaxis(turned_array(np.moveaxis(pixels, -1, 0), orientation), 0, -1)
    return Image.fromarray(np.ascontiguousarray(pixels))
