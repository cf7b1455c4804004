"""Small datasets in the formats of sources."""

import dataclasses
import hashlib
import io
import tarfile

import numpy as np
from helpers import sample_image
from PIL import Image

from convnext.data.sources.cifar import VERSIONS

EACH = 7  # records a file


def archive(folder, version, monkeypatch):
    """An archive in the published form with random records. Returns the records of each file by its name."""
    about, rng = VERSIONS[version], np.random.default_rng(0)
    count = 10 if version == "cifar10" else 100
    files, records = {about.names: "".join(f"class_{i}\n" for i in range(count)).encode() + b"\n"}, {}
    for name in reversed([name for part in about.parts.values() for name in part]):  # the order in the archive means nothing
        records[name] = rng.integers(0, 256, (EACH, about.label_bytes + 3072), dtype=np.uint8)
        records[name][:, about.label_bytes - 1] = rng.integers(0, count, EACH)
        files[name] = records[name].tobytes()
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / about.archive, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"{about.folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    md5 = hashlib.md5((folder / about.archive).read_bytes()).hexdigest()
    monkeypatch.setitem(VERSIONS, version, dataclasses.replace(about, md5=md5))
    return records


def mask_folder(root, count=4, part="", classes="ground\nthing\n", size=(48, 40)):
    """Images with masks of two classes, the lower half the second."""
    for kind in ("images", "masks"):
        (root / kind / part).mkdir(parents=True, exist_ok=True)
    values = np.zeros((size[1], size[0]), np.uint8)
    values[size[1] // 2 :] = 1
    for i in range(count):
        sample_image(i, size).save(root / "images" / part / f"{i:02d}.jpg")
        Image.fromarray(values).save(root / "masks" / part / f"{i:02d}.png")
    (root / "classes.txt").write_text(classes)
    return root


def cityscapes(root, values=(0, 7, 24, 33), kind="labelIds"):
    """Two images of Cityscapes' layout, whose masks have these values in columns."""
    for folder in ("leftImg8bit/val/ulm", "gtFine/val/ulm"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    mask = Image.fromarray(np.repeat(np.array([values], np.uint8), 40, 0).repeat(12, 1))
    for i in range(2):
        name = f"ulm_00000{i}_000019"
        sample_image(i, mask.size).save(root / f"leftImg8bit/val/ulm/{name}_leftImg8bit.png")
        for other in (kind, "color", "instanceIds"):
            mask.save(root / f"gtFine/val/ulm/{name}_gtFine_{other}.png")
    return root
