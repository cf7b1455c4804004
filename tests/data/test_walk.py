"""The one walk through folders: the files of operating systems are no images, and links lead in no circle."""

import os

import pytest

from convnext.data.sources.folder import ImageFolder
from convnext.data.walk import matching, walk
from convnext.errors import ConvnextError
from convnext.inference.inputs import find_items

CLUTTER = [
    "@eaDir", "@EADIR", "__MACOSX", "$RECYCLE.BIN", "$Recycle.Bin", "System Volume Information", "lost+found", ".thumbnails",
    ".ipynb_checkpoints", "#recycle", "@Recycle", ".@__thumb", ".git", "@tmp", ".Trashes",
]  # fmt: skip


def files(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")
    return root


@pytest.mark.parametrize("name", CLUTTER)
def test_what_systems_leave_is_skipped_at_every_depth_and_counted(tmp_path, name):
    root = files(tmp_path, "ants/1.jpg", "bees/deep/2.jpg", f"{name}/a.jpg", f"ants/{name}/b/c.jpg", f"bees/deep/{name}/d.jpg")
    found = walk(root)
    assert found.images == ["ants/1.jpg", "bees/deep/2.jpg"]
    assert found.others == []
    assert sum(found.skipped.values()) == 3
    assert "3 " in found.remarks()[0]
    assert ImageFolder(root).classes == ["ants", "bees"]
    assert [item.below for item in find_items([str(root)])] == found.images
    assert matching(f"{root}/**/*.jpg") == [f"{root}/{path}" for path in found.images]
    assert matching(f"{root}/*/{name}/*/*.jpg") == [f"{root}/ants/{name}/b/c.jpg"]  # named, it is what is asked for


def test_files_that_systems_leave_are_skipped_by_kind(tmp_path):
    names = ("._1.jpg", "._2.jpg", ".hidden.png", "Thumbs.db", "desktop.ini", ".DS_Store", "Icon\r")
    root = files(tmp_path, "ants/1.jpg", "ants/notes.txt", *(f"ants/{name}" for name in names))
    found = walk(root)
    assert (found.images, found.others) == (["ants/1.jpg"], ["ants/notes.txt"])
    assert found.remarks() == [
        "skipped files of operating systems: "
        "2 ._* (macOS), 1 Icon\\r (macOS), 1 Thumbs.db (Windows), 1 desktop.ini (Windows), 2 hidden (.*)"
    ]


@pytest.mark.parametrize("where", ["ants/up", "up", "ants/deep/er/up"])
@pytest.mark.parametrize("target", ["root", "above", "/"])
def test_links_that_lead_back_up_are_not_followed(tmp_path, where, target):
    root = files(tmp_path / "set", "ants/1.jpg", "ants/deep/er/2.jpg", "bees/3.jpg")
    files(tmp_path, "other/4.jpg")
    os.symlink({"root": root, "above": tmp_path, "/": "/"}[target], root / where)
    found = walk(root)
    assert found.images == ["ants/1.jpg", "ants/deep/er/2.jpg", "bees/3.jpg"]
    assert found.loops == [where]
    assert f"to a folder above, the first {where}" in found.remarks()[0]
    assert ImageFolder(root).classes == ["ants", "bees"]
    assert len(find_items([str(root)])) == len(find_items([f"{root}/**/*.jpg"])) == 3


def test_links_are_followed_once_through_each_other(tmp_path):
    files(tmp_path, "real/ants/1.jpg", "real/bees/2.jpg", "set/wasps/3.jpg")
    for name in ("ants", "bees"):
        os.symlink(f"../real/{name}", tmp_path / "set" / name)
        os.symlink("..", tmp_path / "real" / name / "all")  # above where it lies, though not above where it was reached
    os.symlink("../ants", tmp_path / "set" / "wasps" / "ants")
    found = walk(tmp_path / "set")
    assert found.images == ["ants/1.jpg", "bees/2.jpg", "wasps/3.jpg", "wasps/ants/1.jpg"]
    assert found.loops == ["ants/all", "bees/all", "wasps/ants/all"]
    assert found.twice == ["wasps/ants"]
    assert "the images there count twice" in found.remarks()[1]


def test_a_folder_that_cannot_be_listed_is_named_and_a_pipe_is_no_image(tmp_path):
    root = files(tmp_path, "ants/1.jpg")
    os.mkfifo(root / "ants" / "2.jpg")
    os.symlink("nowhere.jpg", root / "ants" / "3.jpg")
    assert walk(root).images == ["ants/1.jpg", "ants/3.jpg"]  # reading the link reports that its file is missing
    assert walk(root).others == ["ants/2.jpg"]
    with pytest.raises(ConvnextError, match="folder .*nowhere can't be read: No such file"):
        walk(root / "nowhere")
