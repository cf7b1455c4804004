"""What every source offers, for each registered format and each class that wraps sources."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from helpers import image_folder, sample_image, shared
from PIL import Image
from shard_files import samples, three_shards
from source_files import archive, cityscapes, mask_folder

from convnext.data import imagenet
from convnext.data.annotations.objects import ImageObjects
from convnext.data.contents import contents, differences
from convnext.data.images import to_pixels
from convnext.data.sources import cifar, masks
from convnext.data.sources import open as table
from convnext.data.sources.base import DetectSubset, SegmentSubset
from convnext.data.sources.corruptions import CORRUPTIONS, SEVERITIES
from convnext.data.sources.digits import Digits
from convnext.data.sources.evaluation_sets import open_evaluation_set
from convnext.data.sources.open import (
    SourceFormat,
    formats,
    open_detection,
    open_multilabel,
    open_segmentation,
    open_source,
    open_values,
    register_format,
)
from convnext.errors import ConvnextError
from convnext.extend import SOURCES
from convnext.tasks.register import register_source


def coco(root):
    """Two images in COCO's own layout, one of them with an object."""
    for folder in ("val2017", "annotations"):
        (root / folder).mkdir(parents=True)
    for key in (1, 2):
        sample_image(key).save(root / "val2017" / f"{key}.png")
    square = [10, 10, 30, 10, 30, 25, 10, 25]
    content = {
        "images": [{"id": key, "file_name": f"{key}.png", "height": 40, "width": 48} for key in (1, 2)],
        "categories": [{"id": 3, "name": "ant"}, {"id": 7, "name": "bee"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [10, 10, 20, 15], "area": 300, "segmentation": [square]}],
    }
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return root


def cifar10(root, monkeypatch):
    cifar._content.cache_clear()
    archive(root, "cifar10", monkeypatch)
    return f"cifar10:{root}:val"


def csv_table(root):
    image_folder(root / "photos", each=3)
    rows = [f"{path.relative_to(root)},{path.parent.name}" for path in sorted((root / "photos").rglob("*.jpg"))]
    (root / "labels.csv").write_text("\n".join(["image,label", *rows]))
    return str(root / "labels.csv")


def embedded_table(root, monkeypatch):
    pyarrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    monkeypatch.setenv("CONVNEXT_CACHE", str(root / "cache"))
    files = samples(0, 4)
    columns = {"image": [content for _, content in files[::2]], "label": [int(content) for _, content in files[1::2]]}
    root.mkdir(exist_ok=True)
    parquet.write_table(pyarrow.table(columns), root / "x.parquet")
    return str(root / "x.parquet")


class Pairs:
    """A map-style dataset as another library has it."""

    classes = ("ant", "bee")

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return sample_image(index), index % 2


def from_outside():
    if "pairs" not in SOURCES.entries:
        register_source("pairs")(lambda where, classes: Pairs())
    return "pairs:"


# The name of a small dataset of each format.
EXAMPLES = {
    "digits": lambda root, _: "digits:val",
    "facts about digits": lambda root, _: "digit-facts:val",
    "digits as numbers": lambda root, _: "digit-values:val",
    "CIFAR": cifar10,
    "scenes": lambda root, _: "scenes:val",
    "COCO file": lambda root, _: f"coco:{coco(root)}/annotations/instances_val2017.json:{root}/val2017",
    "ADE20K": lambda root, _: f"ade20k:{shared('data/ade20k')}:val",
    "Cityscapes": lambda root, _: f"cityscapes:{cityscapes(root)}:val",
    "tables of images": embedded_table,
    "tables": lambda root, _: csv_table(root),
    "archives": lambda root, _: shutil.make_archive(str(root / "made"), "zip", image_folder(root / "photos", each=3)),
    "shards": lambda root, _: str(three_shards(root)),
    "from outside": lambda root, _: from_outside(),
    "folders of classes": lambda root, _: str(image_folder(root / "photos", each=3)),
    "COCO's layout": lambda root, _: str(coco(root) / "val2017"),
    "images and masks": lambda root, _: str(mask_folder(root)),
}


def names_of(kind):
    own = {"from outside"} if kind != "classify" else set()  # of other tasks in test_own.py: a program gives a source as ours
    return [entry.name for entry in formats() if getattr(entry, kind) is not None and entry.name not in own]


def test_every_registered_format_has_an_example():
    assert list(EXAMPLES) == [entry.name for entry in formats()]
    assert all(entry.classify or entry.multilabel or entry.values or entry.detect or entry.segment for entry in formats())


def check_images(source):
    """What sources of all kinds have in common. Looks at the first, a middle and the last image."""
    assert len(source) > 0
    assert all(isinstance(text, str) for text in (*source.classes, *source.skipped, *source.remarks))
    assert all(type(values) is list for values in (source.classes, source.skipped, source.remarks))
    places = sorted({0, len(source) // 2, len(source) - 1})
    for index in places:
        image, pixels = source.read(index), source.pixels(index)
        assert isinstance(image, Image.Image)
        assert image.mode == "RGB"
        assert pixels.dtype == torch.uint8
        assert torch.equal(pixels, to_pixels(image))
        assert isinstance(source.name(index), str)
        assert isinstance(source.key(index), str)
        assert isinstance(source.label_bytes(index), bytes)
    again = pickle.loads(pickle.dumps(source))  # as it travels to a worker
    assert len(again) == len(source)
    assert torch.equal(again.pixels(0), source.pixels(0))
    if len(source) <= 1000:
        keys = [source.key(index) for index in range(len(source))]
        assert len(set(keys)) == len(keys)
        summary = contents(source.classes, source, source)
        assert summary["train"]["keys"] == keys
        assert set(summary) == {"classes", "train", "val"}
        assert set(summary["val"]) == {"count", "names", "labels", "folders", "keys", "checks"}
        assert json.loads(json.dumps(summary)) == summary
        assert differences(summary, summary) == []
    return places


def check_classify(source):
    for index in check_images(source):
        assert type(source.label(index)) is int
        assert 0 <= source.label(index) < len(source.classes)


def check_detect(source):
    assert isinstance(source.has_masks, bool)
    assert all(isinstance(key, str) and isinstance(value, int) for key, value in source.category_ids.items())
    assert len(source.heights) == len(source.widths) == len(source)
    counts = source.objects_by_class()
    assert counts is None or len(counts) == len(source.classes)
    for index in check_images(source):
        found, encoded = source.target(index), source.encoded_target(index)
        height, width = source.read(index).height, source.read(index).width
        assert (source.heights[index], source.widths[index]) == (height, width)
        assert isinstance(found, ImageObjects)
        assert found.masks.shape == (len(found), height, width)
        assert (found.boxes.dtype, found.boxes.shape) == (torch.float32, (len(found), 4))
        assert (found.labels.dtype, found.iscrowd.dtype, found.area.dtype) == (torch.int64, torch.bool, torch.float32)
        assert found.labels.tolist() == encoded.labels.tolist()
        assert all(0 <= label < len(source.classes) for label in found.labels.tolist())
        assert torch.equal(encoded.to_dict()["masks"], found.masks)
        assert set(found.to_dict()) == set(encoded.to_encoded()) == {"boxes", "labels", "masks", "iscrowd", "area", "image_id"}


def check_segment(source):
    assert all(isinstance(text, str) for text in source.problems)
    assert source.class_ids is None or len(source.class_ids) == len(source.classes)
    for index in check_images(source):
        image, mask = source.read(index), source.mask(index)
        assert (mask.dtype, mask.shape) == (torch.uint8, (image.height, image.width))
        assert set(mask.unique().tolist()) <= {*range(len(source.classes)), 255}
        assert torch.equal(masks.mask_of(source, index, image), mask)


@pytest.mark.parametrize("name", names_of("classify"))
def test_images_with_labels(name, tmp_path, monkeypatch):
    where = EXAMPLES[name](tmp_path, monkeypatch)
    source = open_source(where)
    check_classify(source)
    rest, held = table.hold_out(source, 0.3, seed=0)
    check_classify(rest)
    check_classify(held)
    assert sorted(part.key(i) for part in (rest, held) for i in range(len(part))) == sorted(source.key(i) for i in range(len(source)))
    assert open_source(where, source.classes).classes == source.classes


@pytest.mark.parametrize("name", names_of("multilabel"))
def test_images_with_any_number_of_labels(name, tmp_path, monkeypatch):
    where = EXAMPLES[name](tmp_path, monkeypatch)
    source = open_multilabel(where)
    for index in check_images(source):
        assert type(source.label(index)) is tuple
        assert sorted(set(source.label(index))) == list(source.label(index))
        assert all(0 <= label < len(source.classes) for label in source.label(index))
    assert open_multilabel(where, source.classes).classes == source.classes
    with pytest.raises(ConvnextError):
        open_multilabel(where, ["another"])


@pytest.mark.parametrize("name", names_of("values"))
def test_images_with_numbers(name, tmp_path, monkeypatch):
    source = open_values(EXAMPLES[name](tmp_path, monkeypatch))
    assert all(type(source.label(index)) is float for index in check_images(source))


@pytest.mark.parametrize("name", names_of("detect"))
def test_images_with_objects(name, tmp_path, monkeypatch):
    where = EXAMPLES[name](tmp_path, monkeypatch)
    source = open_detection(where)
    check_detect(source)
    assert open_detection(where, source.classes).classes == source.classes
    check_detect(DetectSubset(source, [len(source) - 1, 0]))
    with_objects = open_detection(where, keep_empty=False)
    assert all(len(with_objects.target(i)) for i in range(min(3, len(with_objects))))


@pytest.mark.parametrize("name", names_of("segment"))
def test_images_with_masks(name, tmp_path, monkeypatch):
    where = EXAMPLES[name](tmp_path, monkeypatch)
    source = open_segmentation(where)
    check_segment(source)
    check_segment(SegmentSubset(source, [len(source) - 1, 0]))
    assert open_segmentation(where, source.classes).classes == source.classes


def test_classes_that_the_network_lacks_are_refused(tmp_path, monkeypatch):
    for name in names_of("classify"):
        where = EXAMPLES[name](tmp_path / name, monkeypatch)
        with pytest.raises(ConvnextError):
            open_source(where, ["another"])


def test_evaluation_sets(tmp_path):
    synsets = imagenet.synsets(1000)[:2]
    image_folder(tmp_path / "plain", synsets, each=2)
    check_classify(open_evaluation_set(f"imagenet:{tmp_path}/plain", None, 1000))
    for corruption in CORRUPTIONS["c-bar"]:
        for severity in SEVERITIES:
            image_folder(tmp_path / "bar" / corruption / str(severity), synsets[:1], each=1)
    source = open_evaluation_set(f"imagenet-c-bar:{tmp_path}/bar", None, 1000)
    check_classify(source)
    check_classify(source.source)
    assert len(source) == len(CORRUPTIONS["c-bar"]) * len(SEVERITIES)


def test_generated_corruptions(tmp_path):
    pytest.importorskip("imagecorruptions", reason="needs convnext[robustness]")
    image_folder(tmp_path, imagenet.synsets(1000)[:1], each=1)
    source = open_evaluation_set(f"imagenet-c:{tmp_path}", None, 1000).source
    assert len({source.key(i) for i in range(len(source))}) == len(source) == 75
    generated = source.sources[0]
    assert generated.read(0).size == (224, 224)
    assert np.array_equal(generated.pixels(0).permute(1, 2, 0).numpy(), np.asarray(generated.read(0)))
    assert (generated.label(0), generated.label_bytes(0)) == (0, b"0")


def test_a_format_from_outside_is_opened_like_any_other(monkeypatch):
    monkeypatch.setattr(table, "_FORMATS", list(formats()))
    register_format(SourceFormat("mine", ("mine",), classify=lambda where, classes: Digits(where.removeprefix("mine:"))))
    assert len(open_source("mine:train")) == 1437
    check_classify(open_source("mine:val"))
    with pytest.raises(ConvnextError, match="unknown dataset 'mime:val'; did you mean 'mine:'"):
        open_source("mime:val")
