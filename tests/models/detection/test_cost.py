import csv

import pytest
import torch
from helpers import shared, swin_large_attention_macs

import convnext
from convnext.models.detection import cascade_mask_rcnn, mask_rcnn
from convnext.models.detection.cost import count_detector
from convnext.models.load import cost_of

BUILDERS = {"mask_rcnn": mask_rcnn, "cascade_mask_rcnn": cascade_mask_rcnn}
SIZES = {"T": "tiny", "S": "small", "B": "base", "L": "large", "XL": "xlarge"}
MILLIONS = {"mask_rcnn T": 48, "cascade_mask_rcnn T": 86, "cascade_mask_rcnn S": 108, "cascade_mask_rcnn B": 146}
MILLIONS |= {"cascade_mask_rcnn L": 255, "cascade_mask_rcnn XL": 407}


def cost(detector, size):
    with torch.device("meta"):
        return count_detector(BUILDERS[detector](convnext.create_model(f"convnext_{SIZES[size]}"), 80, True))


def test_published_multiply_adds_and_parameters():
    rows = [row for row in csv.DictReader(shared("reference/coco.csv").open()) if row["backbone"].startswith("ConvNeXt")]
    seen = {f"{row['detector']} {row['backbone'].removeprefix('ConvNeXt-')}": float(row["gflops"]) for row in rows}
    assert seen.keys() == MILLIONS.keys()
    for name, wanted in seen.items():
        found = cost(*name.split())
        assert found.macs / 1e9 == pytest.approx(wanted, rel=0.005), name
        assert round(found.parameters / 1e6) == MILLIONS[name]


OTHERS = ["Swin-T", "ResNet-50", "X101-32", "X101-64", "Swin-S", "Swin-B", "Swin-L"]
NAMES = {"ResNet-50": "resnet50", "X101-32": "resnext101_32x4d", "X101-64": "resnext101_64x4d"}


@pytest.mark.parametrize("backbone", [*(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS[1:-1]), OTHERS[0], OTHERS[-1]])
def test_published_multiply_adds_of_the_baselines(backbone):
    rows = [row for row in csv.DictReader(shared("reference/coco.csv").open()) if row["backbone"] == backbone]
    assert rows
    name = NAMES.get(backbone) or f"swin_{SIZES[backbone.removeprefix('Swin-')]}"
    for detector, wanted in {(row["detector"], float(row["gflops"])) for row in rows}:
        counted = cost_of(f"{detector}_{name}").macs - (swin_large_attention_macs(800, 1280) if backbone == "Swin-L" else 0)
        assert counted / 1e9 == pytest.approx(wanted, rel=0.005)


def test_parts_as_published():
    """From the notes beside the tables."""
    parts = cost("mask_rcnn", "T")
    found = [parts.backbone, parts.pyramid, parts.proposals, parts.boxes, parts.masks, parts.macs]
    assert [round(macs / 1e9, 1) for macs in found] == [90.9, 53.1, 50.6, 14.3, 53.0, 261.9]
    assert round(cost("cascade_mask_rcnn", "T").macs / 1e9, 1) == 740.2


def test_by_hand():
    """Of the smallest image there can be, for a backbone without multiply-adds."""

    class Nothing(torch.nn.Module):
        channels, strides = (2, 3, 4, 5), (4, 8, 16, 32)

        def features(self, x):
            return [x.new_empty(1, c, x.shape[2] // s, x.shape[3] // s) for c, s in zip(self.channels, self.strides, strict=True)]

        def drop_head(self):
            pass

    with torch.device("meta"):
        found = count_detector(mask_rcnn(Nothing(), 3, False, channels=8, fc_channels=16), 32, 64)
    positions = [8 * 16, 4 * 8, 2 * 4, 1 * 2]
    assert found.backbone == 0
    assert found.pyramid == sum(n * 8 * (c + 8 * 9) for n, c in zip(positions, (2, 3, 4, 5), strict=True))
    assert found.proposals == (sum(positions) + 1) * 8 * (8 * 9 + 15)
    assert found.boxes == 1000 * (8 * 49 * 16 + 16 * 16 + 16 * (4 + 12))
    assert found.masks == 100 * (4 * 196 * 8 * 8 * 9 + 196 * 8 * 8 * 4 + 784 * 8 * 3)
