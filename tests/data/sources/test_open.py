import numpy as np
import pytest
from helpers import image_folder, shared

from convnext.data.sources.digits import Digits
from convnext.data.sources.folder import ImageFolder
from convnext.data.sources.open import hold_out, open_source
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


def test_image_folder_finds_every_image_and_lists_other_files(tmp_path):
    root = image_folder(tmp_path / "photos")
    (root / "ant" / "deep" / "er").mkdir(parents=True)
    (root / "bee" / "000.jpg").rename(root / "ant" / "deep" / "er" / "x.JPG")
    (root / "bee" / "notes.txt").touch()
    folder = ImageFolder(root)
    assert folder.classes == ["ant", "bee", "wasp"]
    assert np.bincount([folder.label(i) for i in range(len(folder))]).tolist() == [9, 7, 8]
    assert folder.paths.index("ant/deep/er/x.JPG") < 9
    assert folder.skipped == ["bee/notes.txt"]
    assert folder.read(0).size == (48, 40)
    assert folder.name(0) == str(root / "ant" / "000.jpg")


def test_folder_mistakes_are_reported_by_path(tmp_path):
    with pytest.raises(UsageError, match="no folder .*nowhere"):
        open_source(str(tmp_path / "nowhere"))
    with pytest.raises(ConvnextError, match="has no class folders"):
        open_source(str(tmp_path))
    root = image_folder(tmp_path / "photos")
    with pytest.raises(ConvnextError, match="wasp is not one of the classes trained on; did you mean 'wasps'"):
        ImageFolder(root, ["ant", "bee", "wasps"])
    (root / "empty").mkdir()
    with pytest.raises(ConvnextError, match="empty holds no images"):
        ImageFolder(root)
    with pytest.raises(UsageError, match="unknown dataset 'digits:vla'; did you mean 'digits:val'"):
        open_source("digits:vla")


def test_given_classes_decide_the_labels(tmp_path):
    root = image_folder(tmp_path / "photos", classes=("bee", "wasp"))
    folder = ImageFolder(root, ["ant", "bee", "wasp"])
    assert {folder.label(i) for i in range(len(folder))} == {1, 2}


def names(source):
    return [source.name(i) for i in range(len(source))]


def keys(source):
    return {source.key(i) for i in range(len(source))}


def test_hold_out_takes_about_its_part_of_each_class_and_depends_on_the_seed_alone(tmp_path):
    source = open_source(str(image_folder(tmp_path / "photos", each=10)))
    train, val = hold_out(source, 0.2, seed=1)
    assert all(1 <= count <= 5 for count in np.bincount([val.label(i) for i in range(len(val))]).tolist())
    assert sorted(names(train) + names(val)) == sorted(names(source))
    again, other = hold_out(source, 0.2, seed=1)[1], hold_out(source, 0.2, seed=2)[1]
    assert names(again) == names(val) != names(other)


class Listing:
    """A source of nothing but names."""

    classes, skipped, remarks = ["ant", "bee"], (), ()

    def __init__(self, keys):
        self.keys = sorted(keys)

    def __len__(self):
        return len(self.keys)

    def key(self, index):
        return self.keys[index]

    name = key

    def label(self, index):
        return int(self.keys[index].startswith("bee"))


def test_adding_and_removing_images_moves_no_other_between_the_parts():
    everything = [f"{name}/{i}.jpg" for name in ("ant", "bee") for i in range(1000)]
    train, val = map(keys, hold_out(Listing(everything), 0.2, seed=3))
    assert [sum(key.startswith(name) for key in val) for name in ("ant", "bee")] == pytest.approx([200, 200], abs=40)
    fewer_train, fewer_val = map(keys, hold_out(Listing(everything[7::3]), 0.2, seed=3))
    assert fewer_train < train
    assert fewer_val < val
    more = Listing([*everything, *(f"ant/{i}-new.jpg" for i in range(500))])
    more_train, more_val = map(keys, hold_out(more, 0.2, seed=3))
    assert train < more_train
    assert val < more_val


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
@pytest.mark.parametrize("seed", range(5))
def test_a_class_of_two_or_more_is_in_both_parts_and_of_one_in_training(fraction, seed):
    train, val = hold_out(Listing(["ant/a.jpg", "bee/a.jpg", "bee/b.jpg"]), fraction, seed)
    assert keys(train) > {"ant/a.jpg"}
    assert len(keys(val)) == 1
    assert all(key.startswith("bee") for key in keys(val))


def test_neither_moving_the_folder_nor_its_names_unicode_form_changes_what_is_held_out(tmp_path):
    root = image_folder(tmp_path / "photos", classes=("fu\u0308r", "wider"), each=10)
    held = [key.split("/")[1] for key in sorted(keys(hold_out(open_source(str(root)), 0.3, 0)[1]))]
    moved = root.rename(tmp_path / "elsewhere")
    assert [key.split("/")[1] for key in sorted(keys(hold_out(open_source(f"{moved}/"), 0.3, 0)[1]))] == held
    (moved / "fu\u0308r").rename(moved / "f\u00fcr")
    assert [key.split("/")[1] for key in sorted(keys(hold_out(open_source(str(moved)), 0.3, 0)[1]))] == held


def test_the_held_out_part_of_one_seed_stays_the_same_for_ever():
    """Resumed runs and `convnext eval` of older ones rely on it."""
    val = hold_out(Listing([f"ant/{i}.jpg" for i in range(10)] + [f"bee/{i}.jpg" for i in range(10)]), 0.2, seed=0)[1]
    assert names(val) == [
        "ant/2.jpg",
        "ant/8.jpg",
        "ant/9.jpg",
        "bee/0.jpg",
        "bee/3.jpg",
        "bee/4.jpg",
        "bee/7.jpg",
        "bee/8.jpg",
        "bee/9.jpg",
    ]


def test_hymenoptera_is_read():
    folder = ImageFolder(shared("data/hymenoptera/train"))
    assert folder.classes == ["ants", "bees"]
    assert 240 <= len(folder) <= 250
    assert all(min(folder.read(i).size) <= 400 for i in range(0, len(folder), 20))
