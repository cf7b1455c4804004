"""Storage in the memory of this process, and in folders, through fsspec."""

import os
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations
from stored import empty_bucket

from convnext.data.sources.open import open_detection, open_source
from convnext.data.storage import connection, objects
from convnext.data.storage.connection import StorageError, is_stored
from convnext.data.storage.objects import find, local, matching
from convnext.data.storage.upload import upload
from convnext.errors import CorruptImageError, UsageError


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    return empty_bucket(monkeypatch, tmp_path)


def test_what_is_an_address_in_storage():
    assert all(map(is_stored, ("s3://bucket/x.jpg", "memory://a", "file:///x", "unknown://x")))
    assert not any(map(is_stored, ("https://host/x.tar", "hf://owner/name", "photos/x.jpg", "digits:train", "C:/x", "c://x", "-")))


def test_objects_are_found_by_name_folder_and_pattern_without_clutter(bucket):
    for name in ("b/1.png", "a/2.jpg", "1.png", ".DS_Store", "__MACOSX/1.png", "a/notes.txt"):
        bucket(name, b"12345")
    names = lambda where: [(below, one.address) for below, one in matching(where)]  # noqa: E731
    everything = ["1.png", "a/2.jpg", "a/notes.txt", "b/1.png"]
    assert names("memory://bucket") == names("memory://bucket/") == [(name, f"memory://bucket/{name}") for name in everything]
    assert names("memory://bucket/a/2.jpg") == [("2.jpg", "memory://bucket/a/2.jpg")]
    assert names("memory://bucket/*/*.*g") == [(name, f"memory://bucket/{name}") for name in ("a/2.jpg", "b/1.png")]
    assert len(names("memory://bucket/**/*.png")) == 2
    found = find("memory://bucket/1.png")
    assert found.size == 5
    assert found.content() == b"12345"
    assert find("memory://bucket/a") is None
    for nothing in ("memory://bucket/c", "memory://bucket/c/*.png", "memory://other"):
        with pytest.raises(UsageError, match=nothing.replace("*", r"\*")):
            matching(nothing)


def test_a_download_is_kept_until_the_object_changes(bucket, monkeypatch):
    monkeypatch.setattr(objects, "PIECE", 4)
    bucket("weights.bin", b"0123456789")
    first = local("memory://bucket/weights.bin", "weights")
    assert first.read_bytes() == b"0123456789"
    assert first.stat().st_mtime_ns == pytest.approx(find("memory://bucket/weights.bin").changed, abs=1000)
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "cat_file", None)  # is not called again
        assert local("memory://bucket/weights.bin", "weights") == first
    bucket("weights.bin", b"9876543210")
    second = local("memory://bucket/weights.bin", "weights")
    assert second.read_bytes() == b"9876543210"
    assert first.read_bytes() == b"0123456789"
    with pytest.raises(UsageError, match="no object memory://bucket/none.bin"):
        local("memory://bucket/none.bin")


def test_a_transfer_that_was_cut_off_is_resumed_and_one_of_a_changed_object_is_refused(bucket, monkeypatch):
    monkeypatch.setattr(objects, "PIECE", 4)
    bucket("weights.bin", b"0123456789")
    read, asked = MemoryFileSystem.cat_file, []

    def cut_off(self, path, start=None, end=None):
        asked.append(start)
        if len(asked) == 2:
            raise ConnectionError("reset by peer")
        if len(asked) == 4:
            bucket("weights.bin", b"other bytes")
        return read(self, path, start, end)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cut_off)
    with pytest.raises(StorageError, match=r"could not read memory://bucket/weights\.bin \(reset by peer\)"):
        local("memory://bucket/weights.bin")
    with pytest.raises(StorageError, match="changed while it was downloaded"):
        local("memory://bucket/weights.bin")
    assert asked == [0, 4, 4, 8]
    assert local("memory://bucket/weights.bin").read_bytes() == b"other bytes"


def test_an_image_that_is_gone_or_too_large_is_corrupt_and_storage_that_fails_is_not(bucket, monkeypatch):
    bucket("1.png", b"12345")
    found = find("memory://bucket/1.png")
    with pytest.raises(CorruptImageError, match=r"memory://bucket/1\.png: it has .* more than an image may have"):
        found._replace(size=2 << 30).content()
    with pytest.raises(StorageError, match="5 bytes, not 6"):
        found._replace(size=6).content()
    fsspec.filesystem("memory").rm("/bucket/1.png")
    with pytest.raises(CorruptImageError, match="deleted"):
        found.content()
    for error, message in (
        (PermissionError("403"), r"no permission to read memory://bucket/1\.png \(403\): check the credentials"),
        (TimeoutError(), "did not answer in time"),
        (RuntimeError("what a driver raises\nand more"), r"\(what a driver raises\)"),
    ):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(MemoryFileSystem, "cat_file", fail)
        with pytest.raises(StorageError, match=message):
            found.content()


def test_addresses_that_can_not_be_opened_say_what_to_do(monkeypatch):
    with pytest.raises(UsageError, match="no storage memry://; did you mean .memory"):
        find("memry://bucket/x.png")
    with pytest.raises(UsageError, match="holds a password") as caught:
        find("sftp://me:secret@host/x.png")
    assert "secret" not in str(caught.value)
    with pytest.raises(UsageError, match="chained"):
        find("zip://x.png::s3://bucket/x.zip")
    monkeypatch.setitem(known_implementations, "nowhere", {"class": "nowherefs.Files", "err": "Install nowherefs"})
    with pytest.raises(UsageError, match="nowhere:// needs another package: run pip install nowherefs"):
        find("nowhere://bucket/x.png")


def test_an_upload_is_never_visible_in_part(bucket, tmp_path, monkeypatch):
    file = tmp_path / "made.jsonl"
    file.write_bytes(b"lines\n")
    there = f"file://{tmp_path}/there/found.jsonl"
    assert upload(file, there).size == 6
    assert os.listdir(tmp_path / "there") == ["found.jsonl"]
    target = tmp_path / "there" / "found.jsonl"
    put, seen = fsspec.get_filesystem_class("file").put_file, []

    def put_and_fail(self, path, to, **how):
        put(self, path, to, **how)
        Path(to).write_bytes(b"li")
        seen.append(target.read_bytes())
        raise OSError("connection lost")

    monkeypatch.setattr(fsspec.get_filesystem_class("file"), "put_file", put_and_fail)
    with pytest.raises(StorageError, match="could not write"):
        upload(file, there)
    assert seen == [b"lines\n"]
    assert os.listdir(tmp_path / "there") == ["found.jsonl"]
    assert upload(file, "memory://bucket/new/found.jsonl") == find("memory://bucket/new/found.jsonl")


def test_calls_of_asynchronous_drivers_have_a_time_limit(monkeypatch):
    asked = {}

    class Slow:
        async_impl = True

        async def _info(self, path): ...

        def info(self, path, **how):
            asked.update(how)
            return {"type": "directory"}

        def invalidate_cache(self, path): ...

    monkeypatch.setattr("fsspec.core.url_to_fs", lambda address: (Slow(), "bucket/x"))
    assert find("s3://bucket/x") is None
    assert asked == {"timeout": connection.SILENCE}


def test_data_in_storage_that_can_not_be_trained_on_is_refused(bucket):
    for opened in (open_source, open_detection):
        with pytest.raises(UsageError, match=r"memory://bucket/photos: of data in storage, only \.tar shards .* download it"):
            opened("memory://bucket/photos")
