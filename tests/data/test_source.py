import numpy as np
import pytest
from helpers import picture_folder, shared

from convnext.data.digits import Digits
from convnext.data.folder import ImageFolder
from convnext.data.source import hold_out, open_source
from convnext.errors import ConvnextError, UsageError


def test_digits_are_all_there_and_split_once():
    train, val = Digits("train"), Digits("val")
    assert (len(train), len(val)) == (1437, 360)
    assert set(train.indices) | set(val.indices) == set(range(1797))
    assert sorted({val.label(i) for i in range(360)}) == list(range(10))
    from sklearn.datasets import load_digits

    bunch = load_digits()
    assert val.label(5) == bunch.target[val.indices[5]]
    grey = np.asarray(val.read(5))[..., 0]
    assert np.array_equal(np.round(grey.astype(float) * 16 / 255), bunch.images[val.indices[5]])


def test_image_folder_finds_every_picture_and_tells_what_is_none(tmp_path):
    root = picture_folder(tmp_path / "photos")
    (root / "ant" / "deep" / "er").mkdir(parents=True)
    (root / "bee" / "000.jpg").rename(root / "ant" / "deep" / "er" / "x.JPG")
    (root / "bee" / "Thumbs.db").touch()
    folder = ImageFolder(root)
    assert folder.classes == ["ant", "bee", "wasp"]
    assert np.bincount([folder.label(i) for i in range(len(folder))]).tolist() == [9, 7, 8]
    assert folder.paths.index("ant/deep/er/x.JPG") < 9
    assert folder.skipped == ["bee/Thumbs.db"]
    assert folder.read(0).size == (48, 40)
    assert folder.name(0) == str(root / "ant" / "000.jpg")


def test_folder_mistakes_are_told_by_path(tmp_path):
    with pytest.raises(UsageError, match="no folder .*nowhere"):
        open_source(str(tmp_path / "nowhere"))
    with pytest.raises(ConvnextError, match="has no class folders"):
        open_source(str(tmp_path))
    root = picture_folder(tmp_path / "photos")
    with pytest.raises(ConvnextError, match="wasp is none of the classes trained on; did you mean 'wasps'"):
        ImageFolder(root, ["ant", "bee", "wasps"])
    (root / "empty").mkdir()
    with pytest.raises(ConvnextError, match="empty holds no pictures"):
        ImageFolder(root)
    with pytest.raises(UsageError, match="no data is called 'digits:vla'; did you mean 'digits:val'"):
        open_source("digits:vla")


def test_given_classes_decide_the_labels(tmp_path):
    root = picture_folder(tmp_path / "photos", classes=("bee", "wasp"))
    folder = ImageFolder(root, ["ant", "bee", "wasp"])
    assert {folder.label(i) for i in range(len(folder))} == {1, 2}


def test_hold_out_takes_its_part_of_each_class_and_depends_on_the_seed_alone(tmp_path):
    source = open_source(str(picture_folder(tmp_path / "photos", each=10)))
    train, val = hold_out(source, 0.2, seed=1)
    assert np.bincount([val.label(i) for i in range(len(val))]).tolist() == [2, 2, 2]
    names = [{part.name(i) for i in range(len(part))} for part in (train, val)]
    assert len(names[0] | names[1]) == 30
    assert not names[0] & names[1]
    again, other = hold_out(source, 0.2, seed=1)[1], hold_out(source, 0.2, seed=2)[1]
    assert [again.name(i) for i in range(6)] == [val.name(i) for i in range(6)] != [other.name(i) for i in range(6)]


def test_hymenoptera_is_read():
    folder = ImageFolder(shared("data/hymenoptera/train"))
    assert folder.classes == ["ants", "bees"]
    assert 240 <= len(folder) <= 250
    assert all(min(folder.read(i).size) <= 400 for i in range(0, len(folder), 20))
