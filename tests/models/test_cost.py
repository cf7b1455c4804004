import csv

import pytest
import torch
from helpers import shared
from timm.layers import set_fused_attn
from torch import nn

import convnext
from convnext.models import load
from convnext.models.cost import count_cost

# The paper's name and image size to ours, where the size decides; else the name alone.
OURS = {
    **{
        f"ConvNeXt-{short}": f"convnext_{name}"
        for short, name in zip(("T", "S", "B", "L", "XL"), ("tiny", "small", "base", "large", "xlarge"), strict=True)
    },
    **{f"RegNetY-{g}": f"regnety_{g.lower()}" for g in ("4G", "8G", "16G")},
    **{f"EffNet-B{number}": f"efficientnet_b{number}" for number in range(3, 8)},
    **{f"DeiT-{short}": f"deit_{name}" for short, name in zip("SB", ("small", "base"), strict=True)},
    **{f"Swin-{short}": f"swin_{name}" for short, name in zip("TSBL", ("tiny", "small", "base", "large"), strict=True)},
    ("Swin-B", 384): "swin_base_384",
    ("Swin-L", 384): "swin_large_384",
    "R-101x3": "bit_r101x3",
    "R-152x4": "bit_r152x4",
    "ViT-B/16": "vit_base_16_384",
    "ViT-L/16": "vit_large_16_384",
}


def test_multiply_adds_by_hand():
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 5, padding=2, groups=8), nn.Flatten(), nn.Linear(8 * 100, 7))
    cost = count_cost(model, 10)
    assert cost.macs == 100 * 8 * 3 * 9 + 100 * 8 * 25 + 800 * 7
    assert cost.parameters == (8 * 27 + 8) + (8 * 25 + 8) + (800 * 7 + 7)


@pytest.mark.slow
def test_every_row_of_the_papers_table():
    """Parameters to the printed million; multiply-adds within 0.5 % of what the printed digit may stand for (RegNetY-16G, printed
    as 16.0, has 15.91), EfficientNet's within 4 %: the published ones lie that much under anyone's count of today.
    """
    with shared("reference/imagenet.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 34
    found = {}
    for row in rows:
        size, printed = int(row["image_size"]), float(row["gflops"])
        name = OURS.get((row["model"], size)) or OURS[row["model"]]
        if (name, size) not in found:
            found[name, size] = load.cost_of(name, size)
        cost = found[name, size]
        assert f"{cost.parameters / 1e6:.0f}" == row["params_m"], row
        off = max(0.0, abs(cost.macs / 1e9 - printed) - 0.05) / printed
        assert off < (0.04 if name.startswith("efficientnet") else 0.005), (row, cost.macs)
        assert name.startswith("convnext") or size == load.find(name).image_size


@pytest.mark.parametrize(
    ("name", "size", "weights"),
    [
        ("alexnet", 224, "AlexNet_Weights.IMAGENET1K_V1"),
        ("resnet50", 224, "ResNet50_Weights.IMAGENET1K_V1"),
        ("resnext101_64x4d", 224, "ResNeXt101_64X4D_Weights.IMAGENET1K_V1"),
        ("regnety_16g", 224, "RegNet_Y_16GF_Weights.IMAGENET1K_V1"),
        ("regnety_16g", 384, "RegNet_Y_16GF_Weights.IMAGENET1K_SWAG_E2E_V1"),
        *((f"efficientnet_b{n}", None, f"EfficientNet_B{n}_Weights.IMAGENET1K_V1") for n in (3, 4, 5, 6, 7)),
        ("swin_tiny", 224, "Swin_T_Weights.IMAGENET1K_V1"),
        ("swin_base", 224, "Swin_B_Weights.IMAGENET1K_V1"),
        ("vit_base_16_384", 384, "ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1"),
        ("vit_large_16_384", 512, "ViT_L_16_Weights.IMAGENET1K_SWAG_E2E_V1"),
    ],
)
def test_torchvision_counts_the_same(name, size, weights):
    from torchvision.models import get_weight

    noted = get_weight(weights).meta["_ops"]
    assert load.cost_of(name, size).macs / 1e9 == pytest.approx(noted, abs=1e-3)


def test_attention_is_counted_whether_fused_or_not():
    tokens, width, depth = 1 + 14 * 14, 384, 12
    block = 12 * tokens * width**2 + 2 * tokens**2 * width  # linear layers; the two products of attention
    wanted = 14 * 14 * width * 3 * 16**2 + depth * block + width * 1000
    try:
        for fused in (False, True):
            set_fused_attn(fused)
            assert load.cost_of("deit_small").macs == wanted
    finally:
        set_fused_attn(True)


def test_lenet_costs_what_textbooks_say():
    with torch.device("meta"):
        cost = count_cost(convnext.create_model("lenet5", num_classes=10, in_channels=1), 32, in_channels=1)
    assert (cost.parameters, cost.macs) == (61_706, 416_520)
