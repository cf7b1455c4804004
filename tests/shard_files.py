"""Small shards whose images are known by their numbers."""

import io
import tarfile

import numpy as np
from helpers import sample_image

from convnext.data.images import read_image


def jpeg(seed):
    file = io.BytesIO()
    sample_image(seed, (24, 20)).save(file, "JPEG", quality=92)
    return file.getvalue()


def shard(path, files, format=tarfile.USTAR_FORMAT):
    """A tar of (name, content) pairs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def samples(first, count, label=lambda i: i % 3):
    """The files of some samples whose image is known by their number."""
    return [file for i in range(first, first + count) for file in ((f"{i:04d}.jpg", jpeg(i)), (f"{i:04d}.cls", str(label(i)).encode()))]


def three_shards(folder):
    for i, count in enumerate((5, 2, 6)):
        shard(folder / f"train-{i:03d}.tar", samples(10 * i, count))
    return folder


def pixels(source, index):
    return np.asarray(source.read(index)).tobytes()


def decoded(seed):
    return np.asarray(read_image(jpeg(seed))).tobytes()


NUMBERS = [*range(5), 10, 11, *range(20, 26)]  # of the samples of three_shards, in their order
