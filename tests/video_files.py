"""Videos for tests: each frame shows its number in binary, as eight black or white columns, which survive any encoding."""

from fractions import Fraction

import numpy as np
from PIL import Image

CODECS = {".mp4": "libx264", ".mov": "libx264", ".mkv": "libx264", ".avi": "mpeg4", ".webm": "libvpx-vp9"}
CODECS |= {".wmv": "wmv2", ".mpg": "mpeg1video", ".mpeg": "mpeg2video", ".ts": "libx264", ".mts": "libx264", ".m2ts": "libx264"}


def numbered(number, size=(96, 64)):
    """An image that shows a number below 256."""
    columns = np.array([255 * (number >> bit & 1) for bit in range(8)], np.uint8)
    pixels = columns[np.arange(size[0]) * 8 // size[0]]
    return Image.fromarray(np.broadcast_to(pixels[None, :, None], (size[1], size[0], 3)).copy())


def number_in(image):
    """The number that an image shows, near its upper edge."""
    row = np.asarray(image.convert("L"))[10]
    return sum(int(row[(2 * bit + 1) * len(row) // 16] > 127) << bit for bit in range(8))


def write_video(path, count, size=(96, 64), codec=None, ticks=None, tick_seconds=Fraction(1, 25), options=None):
    """A video of so many frames, at 25 a second or at the ticks; `options` are of its container."""
    import av

    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec or CODECS[path.suffix], rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base, stream.codec_context.gop_size = tick_seconds, 12
        for i in range(count):
            frame = av.VideoFrame.from_image(numbered(i, size))
            frame.pts, frame.time_base = (ticks[i] if ticks else i), tick_seconds
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def frames_of(path):
    """The numbers and times in seconds of a video's frames, its size and its rate."""
    import av

    with av.open(str(path)) as container:
        (stream,) = container.streams.video
        found = [(number_in(frame.to_image()), round(frame.time, 3)) for frame in container.decode(stream)]
        return found, (stream.width, stream.height), stream.average_rate
