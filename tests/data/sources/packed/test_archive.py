"""Archives of class folders are what their unpacked folders are; shards stay shards; hostile archives are refused."""

import gzip
import io
import pickle
import shutil
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from command import run
from helpers import image_folder
from shard_files import samples, shard, three_shards

from convnext.data.archives import members, plain
from convnext.data.contents import contents
from convnext.data.images import CorruptImageError
from convnext.data.sources.folder import ImageFolder
from convnext.data.sources.open import hold_out, open_source, train_and_val
from convnext.data.sources.packed.archive import ArchiveFolder, is_archive
from convnext.data.sources.packed.shards import Shards
from convnext.errors import ConvnextError, UsageError
from convnext.inference.inputs import find_items
from convnext.tasks.classify.task import ClassifyTask

KINDS = {"x.zip": "zip", "x.tar": "tar", "x.tar.gz": "gztar", "x.tgz": "gztar", "x.tar.bz2": "bztar", "x.tar.xz": "xztar"}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path):
    root = image_folder(tmp_path / "photos", ("ant", "bee"), each=3)
    (root / "bee" / "deep").mkdir()
    shutil.copy(root / "bee" / "000.jpg", root / "bee" / "deep" / "a.b.PNG")
    (root / "bee" / "notes.txt").touch()
    return root


def packed(root, target, base="."):
    """The folder as an archive; `base` is what the paths within begin with."""
    made = shutil.make_archive(str(target.with_name("made")), KINDS[target.name], root.parent if base != "." else root, base)
    return str(shutil.move(made, target))


@pytest.mark.parametrize("base", [".", "photos"])
@pytest.mark.parametrize("name", KINDS)
def test_an_archive_is_what_its_folder_is(photos, tmp_path, name, base):
    where, folder = packed(photos, tmp_path / name, base), ImageFolder(photos)
    source = open_source(where)
    assert contents(source.classes, source, source) == contents(folder.classes, folder, folder)
    assert source.skipped == folder.skipped == ["bee/notes.txt"]
    assert source.remarks == []
    again = pickle.loads(pickle.dumps(source))
    for index in range(len(folder)):
        assert torch.equal(again.pixels(index), folder.pixels(index))
        assert np.array_equal(source.read(index), folder.read(index))
    assert [[part.key(i) for i in range(len(part))] for part in hold_out(source, 0.3, 0)] == [
        [part.key(i) for i in range(len(part))] for part in hold_out(folder, 0.3, 0)
    ]
    assert ClassifyTask().overview(where) == ["7 images, 2 classes: ant 3, bee 4"]


def zipped(path, files, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return str(path)


def jpeg(root):
    return next(root.rglob("*.jpg")).read_bytes()


def test_clutter_is_skipped_and_names_are_decoded(photos, tmp_path):
    image = jpeg(photos)
    names = ["__MACOSX/ant/._1.jpg", "ant/._1.jpg", "ant/.DS_Store", "./ant/1.jpg", "bee\\2.jpg", "stray.jpg", "ant/read.me"]
    where = zipped(tmp_path / "x.zip", [*((name, image) for name in names), ("fu\u0308r/3.jpg", image)])
    raw = (tmp_path / "x.zip").read_bytes()
    source = open_source(where)
    assert source.paths == ["ant/1.jpg", "bee/2.jpg", "fu\u0308r/3.jpg"]
    assert source.classes == ["ant", "bee", "f\u00fcr"]
    assert source.remarks == [
        "skipped 3 files that operating systems leave in archives",
        "skipped 1 image outside the class folders, the first stray.jpg",
    ]
    assert source.skipped == ["ant/read.me"]
    header, flag = b"PK\1\2\x14\3\x14\0", struct.pack("<H", 0x800)
    assert header + flag in raw
    (tmp_path / "y.zip").write_bytes(raw.replace(header + flag, header + b"\0\0"))  # as macOS writes them
    assert open_source(str(tmp_path / "y.zip")).classes == source.classes


def test_parts_within_an_archive_are_named_as_folders_are(tmp_path):
    for part in ("train", "val"):
        image_folder(tmp_path / "set" / part, ("ant", "bee"), each=2)
    where = packed(tmp_path / "set", tmp_path / "x.zip", "set")
    with pytest.raises(
        ConvnextError, match=rf"x.zip/set holds train, val: these are parts .* data.train={where}/set/train data.val={where}/set/val"
    ):
        open_source(where)
    for name in ("train", "set/train"):
        assert open_source(f"{where}/{name}").paths == ["ant/000.jpg", "ant/001.jpg", "bee/000.jpg", "bee/001.jpg"]
    assert train_and_val(where) == (f"{where}/set/train", f"{where}/set/val")
    with pytest.raises(UsageError, match="no images in trian; did you mean 'train'"):
        open_source(f"{where}/trian")
    with pytest.raises(ConvnextError, match="val/ant is not one of the classes trained on; did you mean 'ants'"):
        open_source(f"{where}/val", ["ants", "bees"])
    checked = run("data", "check", f"{where}/val").stdout.splitlines()
    assert checked == ["4 images, 2 classes: ant 2, bee 2", f"nothing wrong with {where}/val"]
    assert "no archive nowhere.zip" in run("data", "check", "nowhere.zip", code=2).stderr


def test_shards_stay_shards(photos, tmp_path):
    root = three_shards(tmp_path / "shards")
    assert isinstance(open_source(str(root / "train-000.tar")), Shards)
    assert isinstance(open_source(str(root / "train-{000..002}.tar")), Shards)
    inside = shard(tmp_path / "in.tar", [(f"deep/{name}", content) for name, content in samples(0, 3)])
    assert isinstance(open_source(str(inside)), Shards)
    assert isinstance(open_source(packed(photos, tmp_path / "x.tar")), ArchiveFolder)
    (tmp_path / "s.tar.gz").write_bytes(gzip.compress(inside.read_bytes()))
    with pytest.raises(ConvnextError, match="s.tar.gz is compressed, and can't be read at random"):
        open_source(str(tmp_path / "s.tar.gz"))
    assert not is_archive(str(tmp_path / "nowhere.tar"))


def test_damage_is_reported(photos, tmp_path):
    where = packed(photos, tmp_path / "x.zip")
    whole = (tmp_path / "x.zip").read_bytes()
    at = whole.index(b"\xff\xd8\xff") if b"\xff\xd8\xff" in whole else len(whole) // 3
    (tmp_path / "x.zip").write_bytes(whole[: at + 40] + b"????" + whole[at + 44 :])
    assert [problem for problem in ClassifyTask().check(where) if "the zip is damaged" in problem]
    (tmp_path / "x.zip").write_bytes(whole[:-30])
    with pytest.raises(ConvnextError, match="x.zip is cut off, or not a zip"):
        open_source(where)
    tar = packed(photos, tmp_path / "x.tar.gz")
    (tmp_path / "x.tar.gz").write_bytes((tmp_path / "x.tar.gz").read_bytes()[:-50])
    with pytest.raises(ConvnextError, match="x.tar.gz is damaged or ends early"):
        ArchiveFolder(tar)
    assert not list((tmp_path / "cache").rglob("*.tar*"))
    (tmp_path / "y.zip").write_bytes(b"")
    with pytest.raises(ConvnextError, match="y.zip is cut off, or not a zip"):
        open_source(str(tmp_path / "y.zip"))


def test_hostile_archives_are_refused(photos, tmp_path, monkeypatch):
    image = jpeg(photos)
    for name in ("../a.jpg", "ant/../../b.jpg", "ant\\..\\c.jpg"):
        with pytest.raises(ConvnextError, match="a path that leads out of it"):
            open_source(zipped(tmp_path / "x.zip", [("ant/1.jpg", image), (name, image)]))
    shard(tmp_path / "x.tar", [("ant/1.jpg", image), ("../b.jpg", image)])
    with pytest.raises(ConvnextError, match="a path that leads out of it"):
        open_source(str(tmp_path / "x.tar"))
    link = io.BytesIO()
    with tarfile.open(fileobj=link, mode="w") as archive:
        for name, kind in (("ant/1.jpg", tarfile.REGTYPE), ("bee/2.jpg", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, "/etc/passwd", len(image) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(image))
    (tmp_path / "link.tar").write_bytes(link.getvalue())
    assert open_source(str(tmp_path / "link.tar")).skipped == ["bee/2.jpg"]

    monkeypatch.setattr(members, "_MAX_IMAGE", 100_000)
    bomb = open_source(zipped(tmp_path / "bomb.zip", [("ant/1.jpg", image), ("bee/2.jpg", bytes(200_000))]))
    with pytest.raises(CorruptImageError, match=r"2.jpg: it has 200,000 bytes"):
        bomb.pixels(1)
    raw = bytearray((tmp_path / "bomb.zip").read_bytes())
    last = raw.rindex(b"PK\1\2")
    raw[last + 24 : last + 28] = struct.pack("<I", 50)  # it says that it is small
    (tmp_path / "bomb.zip").write_bytes(raw)
    with pytest.raises(CorruptImageError, match="size or checksum differ"):
        open_source(str(tmp_path / "bomb.zip")).pixels(1)

    monkeypatch.setattr(members, "_MAX_MEMBERS", 2)
    with pytest.raises(ConvnextError, match="more than 2 files"):
        open_source(zipped(tmp_path / "many.zip", [(f"ant/{i}.jpg", b"") for i in range(3)]))
    monkeypatch.setattr(plain, "_FREE", 1000)
    (tmp_path / "big.tar.gz").write_bytes(gzip.compress(shard(tmp_path / "big.tar", [("ant/1.jpg", bytes(1_000_000))]).read_bytes()))
    with pytest.raises(ConvnextError, match="unpacks to more than .* bytes, far more than images do"):
        open_source(str(tmp_path / "big.tar.gz"))


def test_an_encrypted_zip_and_another_method_are_named(photos, tmp_path):
    zipped(tmp_path / "x.zip", [("ant/1.jpg", jpeg(photos))])
    raw = bytearray((tmp_path / "x.zip").read_bytes())
    at = raw.rindex(b"PK\1\2")
    raw[at + 8] |= 1
    (tmp_path / "x.zip").write_bytes(raw)
    with pytest.raises(ConvnextError, match="x.zip is encrypted"):
        open_source(str(tmp_path / "x.zip"))
    other = open_source(zipped(tmp_path / "y.zip", [("ant/1.jpg", jpeg(photos)), ("bee/1.jpg", b"")], zipfile.ZIP_LZMA))
    with pytest.raises(CorruptImageError, match="compressed by method 14"):
        other.read(0)


def test_images_of_archives_and_tables_are_predicted(photos, tmp_path):
    where = packed(photos, tmp_path / "x.zip", "photos")
    items = find_items([where])
    assert [item.name for item in items][:2] == [f"{where}/photos/ant/000.jpg", f"{where}/photos/ant/001.jpg"]
    assert len(items) == 7
    assert items[0].read().size == (48, 40)
    assert str(items[0].file()) == where
    assert [item.below for item in find_items([f"{where}/ant"])] == ["000.jpg", "001.jpg", "002.jpg"]
    (tmp_path / "list.csv").write_text("id,other\nphotos/ant/000,1\n./photos/ant/001.jpg,2\nphotos/ant/000.jpg,3\n")
    assert [(item.name, item.below) for item in find_items([str(tmp_path / "list.csv")])] == [
        (f"{photos}/ant/000.jpg", "photos/ant/000.jpg"),
        (f"{photos}/ant/001.jpg", "photos/ant/001.jpg"),
    ]
