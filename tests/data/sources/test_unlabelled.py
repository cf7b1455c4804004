"""Images without labels: all below a folder, and those of labelled data."""

import shutil

import pytest
from helpers import image_folder

from convnext.data.sources.base import target_kind_of
from convnext.data.sources.open import hold_out, open_source, open_unlabelled
from convnext.errors import ConvnextError, UsageError


def test_a_folder_gives_the_images_beside_and_below_its_folders(tmp_path):
    root = image_folder(tmp_path / "images", classes=("a", "b/c"), each=2)
    shutil.copy(root / "a" / "000.jpg", root / "beside.jpg")
    (root / "empty").mkdir()
    source = open_unlabelled(str(root))
    assert [source.key(index) for index in range(len(source))] == ["beside.jpg", "a/000.jpg", "a/001.jpg", "b/c/000.jpg", "b/c/001.jpg"]
    assert source.read(0).size == source.read(1).size == (48, 40)
    assert (source.classes, source.label(4), source.label_bytes(4), target_kind_of(source)) == ([], 0, b"", "value")


def test_archives_and_embedded_data_are_taken_without_their_labels(tmp_path):
    image_folder(tmp_path / "photos", each=2)
    shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path / "photos")
    for where, count in ((str(tmp_path / "photos.zip"), 6), ("digits:val", 360)):
        source, labelled = open_unlabelled(where), open_source(where)
        assert (len(source), source.classes, source.label(5)) == (count, [], 0)
        assert source.name(5) == labelled.name(5)
        assert source.pixels(5).equal(labelled.pixels(5))


def test_a_part_is_held_out_by_name(tmp_path):
    source = open_unlabelled("digits:val")
    rest, held = hold_out(source, 0.2, 0)
    names = [{part.key(index) for index in range(len(part))} for part in (rest, held)]
    assert not names[0] & names[1]
    assert len(rest) + len(held) == 360
    assert 40 < len(held) < 110


def test_nothing_to_read_is_refused(tmp_path):
    with pytest.raises(ConvnextError, match="holds no images"):
        open_unlabelled(str(tmp_path))
    with pytest.raises(UsageError, match="no folder"):
        open_unlabelled(str(tmp_path / "nowhere"))
