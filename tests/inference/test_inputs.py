import io
import tarfile
from types import SimpleNamespace

import pytest
from helpers import sample_image
from shard_files import jpeg, samples, shard

from convnext.data.images import CorruptImageError
from convnext.errors import ConvnextError, UsageError
from convnext.inference.inputs import file_names, find_items


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """The current folder, with images at two depths and a text."""
    monkeypatch.chdir(tmp_path)
    for name in ("a/1.png", "a/2.jpg", "a/sub/1.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        sample_image().save(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    return tmp_path


def names(*sources):
    return [item.name for item in find_items(sources)]


def test_images_folders_and_patterns_give_each_image_once(photos):
    assert names("b/1.png", "a", "./b/1.png") == ["b/1.png", "a/1.png", "a/2.jpg", "a/sub/1.png"]
    assert names("a/*.png") == ["a/1.png"]
    assert names("**/*.png") == ["a/1.png", "a/sub/1.png", "b/1.png"]
    assert names("a/*") == ["a/1.png", "a/2.jpg"]  # by its ending the text is no image
    (photos / "[1].png").write_bytes((photos / "b" / "1.png").read_bytes())
    assert names("[1].png") == ["[1].png"]  # a file before a pattern
    for nothing in ("c", "c/*.png", "c/1.png"):
        with pytest.raises(UsageError, match=f"c{nothing[1:]}".replace("*", r"\*")):
            find_items([nothing])
    (photos / "empty").mkdir()
    with pytest.raises(ConvnextError, match="folder empty holds no images"):
        find_items(["empty"])


def listed(monkeypatch, content):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))


def test_a_list_on_standard_input_may_name_what_is_not_there_or_no_text(photos, monkeypatch):
    (photos / "caf\udce9.png").write_bytes((photos / "b" / "1.png").read_bytes())  # Latin-1
    listed(monkeypatch, b"a/1.png\r\ngone.png\n\ncaf\xe9.png\n")
    items = find_items(["-"])
    assert [item.name for item in items] == ["a/1.png", "gone.png", "caf\udce9.png"]
    assert items[2].read().size == items[0].read().size == (48, 40)
    with pytest.raises(CorruptImageError, match=r"gone\.png"):
        items[1].read()
    listed(monkeypatch, b"\n")
    with pytest.raises(ConvnextError, match="standard input names no images"):
        find_items(["-"])


def test_shards_need_no_labels_and_what_is_whole_of_a_damaged_one_is_read(tmp_path):
    first = shard(tmp_path / "s" / "x-000.tar", [*samples(0, 2), ("sub/3.JPG", jpeg(3)), ("../../4.png", b"no image")])
    whole = shard(tmp_path / "s" / "x-001.tar", [(f"{i}.jpg", jpeg(i)) for i in range(3)])
    whole.write_bytes(whole.read_bytes()[: 2 * 512 + len(jpeg(0)) + 700])
    items = find_items([str(tmp_path / "s")])
    assert [item.name for item in items[:4]] == [f"{first}/{name}" for name in ("0000.jpg", "0001.jpg", "sub/3.JPG", "../../4.png")]
    assert items[0].read().size == (24, 20)
    with pytest.raises(CorruptImageError, match=r"x-000\.tar/\.\./\.\./4\.png: not an image"):
        items[3].read()
    assert set(file_names(items, tmp_path / "out", ".png").values()) >= {"0000.png", "sub/3.png", "4.png"}  # none outside
    assert items[4].name == f"{whole}/0.jpg"
    assert items[-1].name == str(whole)
    with pytest.raises(CorruptImageError, match=r"x-001\.tar has \d+ of the \d+ bytes"):
        items[-1].read()
    with tarfile.open(tmp_path / "packed.tar.gz", "w:gz") as packed:
        packed.add(first)
    (item,) = find_items([str(tmp_path / "packed.tar.gz")])
    with pytest.raises(CorruptImageError, match="compressed"):
        item.read()


def test_files_made_of_images_have_names_of_their_own(photos):
    assert file_names(find_items(["a"]), photos / "out", ".png") == {
        "a/1.png": "1.png",
        "a/2.jpg": "2.png",
        "a/sub/1.png": "sub/1.png",
    }
    sample_image().save(photos / "a" / "2.png")
    assert file_names(find_items(["a"]), photos / "out", ".png")["a/2.jpg"] == "2.jpg.png"
    with pytest.raises(UsageError, match="a/1.png and b/1.png would both become"):
        file_names(find_items(["a", "b"]), photos / "out", ".png")
    with pytest.raises(UsageError, match="is one of the images, and would be overwritten"):
        file_names(find_items(["b"]), photos / "b", ".png")
    assert file_names(find_items(["**/1.png"]), photos / "out", ".jpg")["a/sub/1.png"] == "a/sub/1.jpg"
