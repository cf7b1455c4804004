"""Videos for tests: each frame is of one colour, which says its number, and is known by it after any encoding."""

from fractions import Fraction

import numpy as np
from PIL import Image

CODECS = {".mp4": "libx264", ".mov": "libx264", ".mkv": "libx264", ".avi": "mpeg4", ".webm": "libvpx-vp9"}


def coloured(number, size=(96, 64)):
    """An image whose left half has a brightness that says its number, of up to 216, and whose right half is blue."""
    pixels = np.full((size[1], size[0], 3), (30, 60, 200), np.uint8)
    pixels[:, : size[0] // 2] = 20 + number
    return Image.fromarray(pixels)


def number_in(image, share=0.25):
    """The number of a frame, by the middle of the left half."""
    return round(float(np.asarray(image.convert("RGB"))[image.height // 2, int(image.width * share)].mean())) - 20


def write_video(path, count, size=(96, 64), codec=None, ticks=None, tick_seconds=Fraction(1, 25), turn=0, **options):
    """A video of so many frames, at 25 a second or at the ticks."""
    import av

    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec or CODECS[path.suffix], rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base, stream.codec_context.gop_size = tick_seconds, 12
        if turn:
            stream.set_display_rotation(turn)
        for i in range(count):
            frame = av.VideoFrame.from_image(coloured(i, size))
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
