"""What features tell of a dataset as lines, CSV files and sections of a report."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from fit.quality.embedded import Images, embedded
from helpers import sample_image
from PIL import ImageOps

from convnext.fit.heads import Chosen, Linear
from convnext.fit.quality.duplicates import DataPart
from convnext.fit.quality.findings import examine
from convnext.fit.quality.sections import sections
from convnext.fit.quality.tables import lines, write_tables


class Named(Images):
    def name(self, index):
        return ["a,b.jpg", 'a "quoted".jpg', "two\nlines.jpg"][index] if index < 3 else super().name(index)


@pytest.fixture(scope="module")
def parts():
    images = [sample_image(seed, (64, 48)) for seed in range(50)]
    images[1] = ImageOps.mirror(images[0])
    train, val = Named(images, [index % 2 for index in range(50)]), Images([sample_image(99, (64, 48)), images[7].copy()], [0, 1])
    return [DataPart("train", train, embedded(train)), DataPart("val", val, embedded(val))]


def out_of_fold(labels, wrong=(2,)):
    logits = np.where(np.arange(2) == labels[:, None], 2.0, 0.0)
    logits[list(wrong)] = -5 * logits[list(wrong)]
    head, measured = Linear(np.zeros((2, 3)), np.zeros(2)), np.ones(len(labels), bool)
    chosen = Chosen(head, "a head", (), logits, measured, refit=lambda train, held: logits[held])
    return labels, np.arange(len(labels)) // 2 % 5, chosen


@pytest.fixture(scope="module")
def findings(parts):
    return examine(parts, *out_of_fold(np.arange(50) % 2))


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_both_tables_name_images_as_the_source_does(findings, tmp_path):
    labels, duplicates = (rows(path) for path in write_tables(tmp_path, findings))
    assert labels[0] == {"image": r"two\nlines.jpg", "label": "a", "suggested": "b", "score": labels[0]["score"]}
    assert float(labels[0]["score"]) > 0.9
    found = [(row["group"], row["part"], row["image"], row["other_part"], row["other"], row["relation"]) for row in duplicates]
    assert found == [
        ("0", "train", "a,b.jpg", "train", 'a "quoted".jpg', "mirrored"),
        ("1", "train", "photos/7.jpg", "val", "photos/1.jpg", "identical"),
    ]


def test_a_class_that_no_other_fold_has_is_no_suspect(parts):
    labels, fold, chosen = out_of_fold(np.arange(50) % 2)
    found = examine(parts[:1], labels, fold, replace(chosen, measured=np.arange(50) != 2))
    assert 2 not in {one.row for one in found.suspects}


def test_lines_count_and_name_the_first(findings):
    text = "\n".join(lines(findings))
    assert r"1 label may be wrong, the first: two\nlines.jpg is labelled a and seems to be b" in text
    assert "near duplicates: 4 images in 2 groups, 1 pair across train and val, such as photos/7.jpg and photos/1.jpg (identical)" in text
    assert "more images: 100 would give about" in text


def test_images_of_other_labels_have_duplicates_and_outliers_only(parts, tmp_path):
    found = examine(parts, np.zeros(50), *out_of_fold(np.arange(50) % 2)[1:])
    assert (found.suspects, found.torn, found.growth) == (None, None, None)
    assert [path.name for path in write_tables(tmp_path, found)] == ["duplicates.csv"]
    assert [section.title for section in sections(found)] == ["Near duplicates", "Images unlike all others"]
    assert not any(line.startswith(("labels", "torn", "more")) for line in lines(found))


def test_sections_show_the_images(findings):
    found = {section.title: section.body for section in sections(findings)}
    assert list(found)[:2] == ["Suspected wrong labels", "Near duplicates"]
    assert r"is a · two\nlines.jpg" in found["Suspected wrong labels"]
    assert found["Near duplicates"].index("photos/7.jpg") < found["Near duplicates"].index("a,b.jpg")  # leaks first
    assert found["Near duplicates"].count("<img") == 4
    assert "a &#34;quoted&#34;.jpg" in found["Near duplicates"]
    assert "<svg" in found["What more images would bring"]


def test_a_small_set_says_what_can_not_be_told():
    source = Images([sample_image(seed, (64, 48)) for seed in range(6)], [0, 1] * 3)
    found = examine([DataPart("train", source, embedded(source))], *out_of_fold(np.arange(6) % 2, ()))
    assert lines(found) == [
        "labels: none seems wrong",
        "near duplicates: none",
        "outliers: 6 images are too few to call any an outlier",
        "more images: 6 images are too few for a prediction: 40 are needed",
    ]
    assert sections(found)[2].body == "<p>6 images are too few to call any an outlier.</p>"
