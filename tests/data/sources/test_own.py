"""Datasets of other libraries as sources: their labels, class names and images, and what is refused."""

import random

import numpy as np
import pytest
import torch
from helpers import sample_image

from convnext.data.deep import DeepImage
from convnext.data.loader import Samples
from convnext.data.sampling.order import EVALUATION
from convnext.data.sources import own
from convnext.data.sources.open import open_detection, open_segmentation, open_source
from convnext.data.sources.own import OwnDataset
from convnext.errors import ConvnextError, CorruptImageError, UsageError
from convnext.extend import SOURCES, giving, marker
from convnext.tasks.register import register_source


class Listed:
    """Items from a list, with attributes as torchvision's datasets have them; it counts how often an item is asked for."""

    def __init__(self, items, **attributes):
        self.items, self.asked = items, 0
        self.__dict__ |= attributes

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        self.asked += 1
        return self.items[index]


class Column(list):
    """A column of Hugging Face's datasets, which gives its values for a slice."""


class Hugging(Listed):
    """As a dataset of Hugging Face: dicts, `features` with the names, columns by name."""

    def __init__(self, images, labels, names):
        super().__init__([{"image": image, "label": label} for image, label in zip(images, labels, strict=True)])
        self.features = {"label": type("ClassLabel", (), {"names": names})(), "image": None}
        self.column_names = ["image", "label"]
        self.labels_column = labels

    def __getitem__(self, key):
        return Column(self.labels_column) if key == "label" else super().__getitem__(key)


IMAGES = [sample_image(i, (10, 8)) for i in range(4)]


def labels(source):
    return [source.label(i) for i in range(len(source))]


@pytest.mark.parametrize("wrap", [int, np.int64, torch.tensor, lambda label: torch.tensor([label])[0]])
def test_labels_are_numbers_of_any_kind(wrap):
    source = OwnDataset(Listed([(image, wrap(i % 3)) for i, image in enumerate(IMAGES)]), "mine")
    assert (source.classes, labels(source)) == (["0", "1", "2"], [0, 1, 2, 0])


def test_labels_as_text_are_the_classes():
    source = OwnDataset(Listed([{"image": image, "label": name} for image, name in zip(IMAGES, "baab", strict=True)]), "mine")
    assert (source.classes, labels(source)) == (["a", "b"], [1, 0, 0, 1])


def test_torchvisions_attributes_name_classes_and_labels_without_opening_images():
    items = Listed([(image, i % 2) for i, image in enumerate(IMAGES)], classes=["ant", "bee"], targets=torch.tensor([0, 1, 0, 1]))
    source = OwnDataset(items, "mine")
    assert (source.classes, labels(source), items.asked) == (["ant", "bee"], [0, 1, 0, 1], 1)
    part = OwnDataset(torch.utils.data.Subset(items, [3, 0]), "mine")
    assert (part.classes, labels(part), items.asked) == (["ant", "bee"], [1, 0], 2)


@pytest.mark.parametrize(
    "more", [{"targets": [5, 5, 5, 5]}, {"targets": [0, 1], "x": 1}, {"target_transform": str, "targets": [0, 0, 0, 0]}]
)
def test_a_list_of_other_labels_than_the_items_is_not_used(more):
    assert labels(OwnDataset(Listed([(image, i % 2) for i, image in enumerate(IMAGES)], **more), "mine")) == [0, 1, 0, 1]


def test_hugging_faces_columns():
    items = Hugging(IMAGES, [1, 0, 1, 0], ["ant", "bee"])
    source = OwnDataset(items, "mine")
    assert (source.classes, labels(source), items.asked) == (["ant", "bee"], [1, 0, 1, 0], 1)


def test_labels_are_put_in_a_networks_order():
    items = Listed([(image, i % 2) for i, image in enumerate(IMAGES)], classes=["ant", "bee"])
    source = OwnDataset(items, "mine", ["wasp", "bee", "ant"])
    assert (source.classes, labels(source)) == (["wasp", "bee", "ant"], [2, 1, 2, 1])
    plain = OwnDataset(Listed([(image, i % 2) for i, image in enumerate(IMAGES)]), "mine", ["wasp", "bee", "ant"])
    assert (plain.classes, labels(plain)) == (["wasp", "bee", "ant"], [0, 1, 0, 1])  # numbers without names count the network's classes
    with pytest.raises(ConvnextError, match="the classes of mine are not the network's: it has no bee"):
        OwnDataset(items, "mine", ["ant", "wasp"])


PIXELS = np.asarray(IMAGES[0])


@pytest.mark.parametrize(
    "image",
    [IMAGES[0], PIXELS, torch.from_numpy(PIXELS.copy()).permute(2, 0, 1), torch.from_numpy(PIXELS.copy()).permute(2, 0, 1).float() / 255],
    ids=["PIL", "NumPy", "uint8 tensor", "float tensor"],
)
def test_images_of_every_kind_are_the_same_pixels(image):
    source = OwnDataset(Listed([(image, 0)]), "mine")
    pixels = source.pixels(0)
    pixels = pixels.pixels(None) if isinstance(pixels, DeepImage) else pixels.float()
    assert torch.allclose(pixels, torch.from_numpy(PIXELS.copy()).permute(2, 0, 1).float(), atol=1e-3)


def test_an_item_that_fails_is_an_unreadable_image():
    class Broken(Listed):
        def __getitem__(self, index):
            if index == 2 and self.asked > 3:
                raise OSError("disk gone")
            return super().__getitem__(index)

    source = OwnDataset(Broken([(image, 0) for image in IMAGES]), "mine")
    with pytest.raises(CorruptImageError, match=r"mine\[2\]: OSError: disk gone"):
        source.read(2)
    negative = OwnDataset(Listed([(torch.full((3, 4, 4), -2.0), 0)]), "mine")
    with pytest.raises(ConvnextError, match="values from -2 to -2: set data.range"):
        Samples(negative, lambda image: image.pixels(None), 0)[(0, 0)]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (iter([1]), "mine is no map-style dataset"),
        (Listed([IMAGES[0]]), "an item is a Image, and must be"),
        (Listed([(IMAGES[0], 1, 2)]), "an item is a tuple of 3"),
        (Listed([{"img": IMAGES[0], "name": 1}]), "an item has the keys img, name"),
        (Listed([(IMAGES[0], [0, 1])]), r"the label \[0, 1\]: a label is a whole number or a class name"),
        (Listed([(IMAGES[0], 1.5)]), "the label 1.5"),
        (Listed([(IMAGES[0], -1)]), "labels count from 0"),
        (Listed([(IMAGES[0], 2)], classes=["ant", "bee"]), "the label 2, and 2 classes"),
        (Listed([(IMAGES[0], "cat")], classes=["ant", "bee"]), "the label 'cat'"),
    ],
)
def test_what_is_no_labelled_dataset_is_refused(items, message):
    with pytest.raises(ConvnextError, match=message):
        OwnDataset(items, "mine")


def test_what_an_item_draws_depends_on_seed_epoch_and_index_alone():
    class Noisy(Listed):
        def __getitem__(self, index):
            noise = np.random.randint(256), random.randrange(256), int(torch.randint(256, ()))
            return np.full((2, 2, 3), noise, np.uint8), 0

    samples = Samples(OwnDataset(Noisy(range(5)), "mine"), lambda image: torch.tensor(np.asarray(image)).float(), seed=3)
    first = [samples[(1, i)].image for i in range(5)]
    np.random.seed(9)
    torch.manual_seed(9)
    again = [samples[(1, i)].image for i in reversed(range(5))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], samples[(2, 0)].image)
    assert torch.equal(samples[(EVALUATION, 4)].image, samples[(EVALUATION, 4)].image)


def test_a_label_that_changes_is_an_error():
    items = Listed([(image, 0) for image in IMAGES])
    source = OwnDataset(items, "mine")
    items.items[1] = (IMAGES[1], 1)
    with pytest.raises(ConvnextError, match=r"mine\[1\] has the label 1 now, and had 0"):
        source.read(1)


# By name


def pairs():
    return Listed([(image, i % 2) for i, image in enumerate(IMAGES)])


def test_names_of_data_from_outside(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(SOURCES, "entries", dict(SOURCES.entries))
    register_source("things")(lambda where, classes: Listed(pairs().items[: int(where)]))
    assert labels(open_source("things:3")) == [0, 1, 0]
    assert labels(open_source(f"{__name__}:pairs")) == [0, 1, 0, 1]  # a function is called
    with giving(train_data=pairs()):
        assert len(open_source(marker("train_data", pairs()))) == 4
    with pytest.raises(UsageError, match="unknown dataset 'thing:3'; did you mean 'things:'"):
        open_source("thing:3")
    with pytest.raises(UsageError, match="it again, as train_data="):
        open_source(marker("train_data", pairs()))
    with pytest.raises(
        UsageError, match=r"no_such_module.data:train needs the module no_such_module.data; add --import no_such_module.data"
    ):
        open_source("no_such_module.data:train")
    (tmp_path / "things:3").mkdir()  # a folder of that name is data
    assert not own.is_own("things:3")


def test_a_source_for_detectors_and_segmenters(monkeypatch):
    monkeypatch.setattr(SOURCES, "entries", dict(SOURCES.entries))
    register_source("objects")(lambda where, classes: open_detection(f"scenes:{where}"))
    register_source("areas")(lambda where, classes: open_segmentation(f"scenes:{where}"))
    assert open_detection("objects:val").name(0) == open_detection("scenes:val").name(0)
    assert torch.equal(open_segmentation("areas:val").mask(0), open_segmentation("scenes:val").mask(0))
    with pytest.raises(UsageError, match="this task needs a SegmentSource"):
        open_segmentation("objects:val")
