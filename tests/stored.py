"""Storage in the memory of the test's process."""

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


def empty_bucket(monkeypatch, tmp_path):
    """Empties memory:// and the cache of downloads; returns a function that writes an object of memory://bucket."""
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    return lambda name, content: fsspec.filesystem("memory").pipe_file(f"/bucket/{name}", content)
