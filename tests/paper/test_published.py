import csv
import re

import pytest
from helpers import shared

import convnext
from convnext.errors import UsageError
from convnext.paper.published import TABLES, read

COUNTS = {"imagenet": 34, "coco": 16, "ade20k": 11, "roadmap": 36, "robustness": 5, "throughput": 8}


def rows(table):
    return {(row.label, row.group, row.image_size): row for row in read(table)}


def test_every_row_of_every_table():
    assert {table: len(read(table)) for table in TABLES} == COUNTS
    with pytest.raises(UsageError, match="unknown table 'imagnet'; did you mean 'imagenet'"):
        read("imagnet")


@pytest.mark.parametrize("table", ["imagenet", "coco", "ade20k", "robustness"])
def test_values_are_those_of_the_reference_but_for_the_misprints(table):
    with shared(f"reference/{table}.csv").open() as file:
        lines = list(csv.DictReader(file))
    for row, line in zip(read(table), lines, strict=True):
        assert (row.label, row.group) == (line.get("model") or line["backbone"], line["pretrained_on"])
        printed = {key.replace("gflops", "gmacs"): float(line[key]) if line[key] else None for key in line.keys() & _columns(table)}
        wrong = {key for key in printed if row.values[key] != printed[key]}
        assert wrong == (
            {"gmacs"} if line["pretrained_on"] == "imagenet1k" and (row.label, row.image_size) == ("ConvNeXt-B", 384) else set()
        )


def _columns(table):
    return set(shared(f"reference/{table}.csv").read_text().split("\n")[0].split(",")) - {
        "model",
        "backbone",
        "detector",
        "pretrained_on",
        "image_size",
        "crop",
    }


def test_the_roadmap_is_two_ladders_of_17_steps_and_a_swin():
    with shared("reference/roadmap.csv").open() as file:
        lines = list(csv.DictReader(file))
    for letter, regime, some in (("t", "resnet50", read("roadmap")[:18]), ("b", "resnet200", read("roadmap")[18:])):
        assert [row.model for row in some[:17]] == [f"roadmap_{letter}_{number:02d}_*" for number in range(17)]
        assert some[17].model == {"t": "swin_tiny", "b": "swin_base"}[letter]
        assert [row.values["top1"] for row in some] == [float(line[f"{regime}_regime_top1"]) for line in lines]
        assert len({row.group for row in some}) == 1
    assert [row.label for row in read("roadmap")[:17]] == [line["step"] for line in lines[:17]]


def test_misprints_are_corrected_and_noted():
    noted = {(row.label, row.group): row for table in TABLES for row in read(table) if any("misprint" in note for note in row.notes)}
    right = {key: row.values["gmacs"] for key, row in noted.items()}
    assert right == {
        ("ConvNeXt-B", "imagenet1k"): 45.1,
        ("BatchNorm to LayerNorm", "ResNet-50 regime"): 4.15,
        ("separate downsampling layers", "ResNet-50 regime"): 4.46,
    }
    assert ["45.0 G" in " ".join(noted[key].notes) for key in right] == [True, False, False]
    assert "4.49 G" in " ".join(noted["separate downsampling layers", "ResNet-50 regime"].notes)
    assert rows("imagenet")["ConvNeXt-B", "imagenet22k", 384].values["gmacs"] == 45.1
    assert "2 to 4 %" in rows("imagenet")["EffNet-B7", "imagenet1k", 600].notes[0]


def test_names_are_one_network_each():
    ours = {row.model for table in ("imagenet", "robustness", "throughput") for row in read(table) if row.label.startswith("ConvNeXt")}
    assert ours == {f"convnext_{size}" for size in ("tiny", "small", "base", "large", "xlarge")}
    assert ours <= set(convnext.list_models())
    names = {(row.label, row.image_size): row.model for row in read("imagenet")}
    wanted = {
        "EffNet-B3": "efficientnet_b3",
        "R-152x4": "bit_r152x4",
        "ViT-L/16": "vit_large_16_384",
        "RegNetY-16G": "regnety_16g",
        "DeiT-S": "deit_small",
    }
    assert {label: name for (label, _), name in names.items() if label in wanted} == wanted
    assert (names["Swin-B", 224], names["Swin-B", 384]) == ("swin_base", "swin_base_384")
    assert {row.model for row in read("coco")} >= {
        "mask_rcnn_swin_tiny",
        "cascade_mask_rcnn_resnext101_64x4d",
        "cascade_mask_rcnn_convnext_xlarge",
    }
    assert all(re.fullmatch(r"upernet_(swin|convnext)_[a-z]+", row.model) for row in read("ade20k"))
    assert {row.image_size for row in read("ade20k")} == {(512, 2048), (640, 2560)}


def test_throughput_ratios_of_both_machines():
    found = rows("throughput")
    tiny, large, xlarge = (found[f"ConvNeXt-{size}", f"{pixels} pixels", pixels] for size, pixels in (("T", 224), ("L", 384), ("XL", 384)))
    assert (round(tiny.values["ratio_a100"], 3), round(tiny.values["ratio_v100"], 3), tiny.baseline) == (1.466, 1.022, "swin_tiny")
    assert (round(large.values["ratio_a100"], 3), round(large.values["ratio_v100"], 3), large.baseline) == (1.339, 1.096, "swin_large_384")
    assert (xlarge.values["ratio_a100"], xlarge.baseline, xlarge.values["convnext_v100"]) == (None, None, 30.2)
