"""UperNet against mmsegmentation's golden outputs and transformers' network, its loss, its costs, and that it learns."""

import csv
import importlib.util

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from helpers import randomise, relative_error, shared, swin_large_attention_macs

import convnext
from convnext.errors import UsageError
from convnext.models.backbones.convnext import ConvNeXt, LayerNorm2d
from convnext.models.backbones.dropping import split_of
from convnext.models.backbones.isotropic import ConvNeXtIsotropic
from convnext.models.cost import count_cost
from convnext.models.segmentation.upernet import ChannelDropout, UperNet, loss
from convnext.models.weights.heads import segmenters
from convnext.training.optim import build_optimizer

ADE20K = [
    ("Swin-T", 60, 945, 512),
    ("ConvNeXt-T", 60, 939, 512),
    ("Swin-S", 81, 1038, 512),
    ("ConvNeXt-S", 82, 1027, 512),
    ("Swin-B", 121, 1188, 512),
    ("ConvNeXt-B", 122, 1170, 512),
    ("Swin-B", 121, 1841, 640),
    ("ConvNeXt-B", 122, 1828, 640),
    ("Swin-L", 234, 2468, 640),
    ("ConvNeXt-L", 235, 2458, 640),
    ("ConvNeXt-XL", 391, 3335, 640),
]
SIZES = {"T": "tiny", "S": "small", "B": "base", "L": "large", "XL": "xlarge"}


def telling(model, seed=0):
    """Random weights under which every part matters, the statistics of the norms included."""
    randomise(model, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.3, generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2, generator=generator)
        else:
            buffer.zero_()
    return model.eval()


def segmenter(name):
    with torch.device("meta"):
        model = UperNet(convnext.create_model(name, layer_scale=1.0), 150, output_norm=True)
    return telling(model.to_empty(device="cpu"))


def small(num_classes=5, seed=0, grn=False, **how):
    torch.manual_seed(seed)
    backbone = ConvNeXt((1, 1, 1, 1), (8, 12, 16, 24), layer_scale=0.0 if grn else 1.0, grn=grn)
    return UperNet(backbone, num_classes, **{"output_norm": True, "channels": 16, "auxiliary_channels": 8} | how)


def in_transformers(ours):
    """The same segmenter as transformers builds it."""
    stages = {"depths": [len(stage) for stage in ours.backbone.stages], "hidden_sizes": list(ours.backbone.channels)}
    is_v2 = ours.backbone.stages[0][0].grn is not None
    backbone = (transformers.ConvNextV2Config if is_v2 else transformers.ConvNextConfig)(
        **stages, out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    with torch.device("meta"):
        config = transformers.UperNetConfig(
            backbone_config=backbone,
            hidden_size=ours.decode_head.conv_seg.in_channels,
            auxiliary_channels=ours.auxiliary_head.conv_seg.in_channels,
            num_labels=ours.num_classes,
        )
        theirs = transformers.UperNetForSemanticSegmentation(config)
    theirs.load_state_dict(segmenters.from_native(ours.state_dict(), "transformers"), assign=True)
    return theirs.eval()


def agree(ours, theirs, height, width):
    x = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(height))
    maps = theirs.backbone(x).feature_maps
    logits, auxiliary = ours.logits_and_auxiliary(x)
    assert relative_error(logits, theirs.decode_head(maps)) < 1e-4
    assert relative_error(auxiliary, theirs.auxiliary_head(maps)) < 1e-4
    assert relative_error(ours(x), F.interpolate(theirs.decode_head(maps), (height, width), mode="bilinear")) < 1e-4


@torch.no_grad()
def test_same_logits_as_mmsegmentation():
    spec = importlib.util.spec_from_file_location("fill", shared("golden/fill.py"))
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    kept = np.load(shared("golden/upernet_convnext_tiny_128x160.npz"))
    state = fill.fill(fill.read_keys(shared("reference/keys/upernet_convnext_tiny.mmseg.txt")))
    with torch.device("meta"):
        model = UperNet(convnext.create_model("convnext_tiny"), 150, output_norm=True).eval()
    model.load_state_dict(segmenters.to_native(state, segmenters.recognise(state)), assign=True)
    logits, auxiliary = model.logits_and_auxiliary(fill.picture(128, 160))
    assert relative_error(logits[:, ::10], torch.from_numpy(kept["logits"])) < 1e-4
    assert relative_error(auxiliary[:, ::10], torch.from_numpy(kept["auxiliary_logits"])) < 1e-4


@pytest.mark.parametrize("size", ["tiny", pytest.param("base", marks=pytest.mark.slow)])
@torch.no_grad()
def test_same_function_as_transformers(size):
    ours = segmenter(f"convnext_{size}")
    theirs = in_transformers(ours)
    agree(ours, theirs, 97, 131)


@pytest.mark.parametrize("height", [32, 64, 95, 97])
@torch.no_grad()
def test_same_function_as_transformers_at_any_size(height):
    ours = telling(small())
    theirs = in_transformers(ours)
    for width in (32, 63, 130):
        agree(ours, theirs, height, width)


@torch.no_grad()
def test_same_function_as_transformers_over_convnext_v2():
    ours = telling(small(grn=True))
    theirs = in_transformers(ours)
    agree(ours, theirs, 64, 96)
    again = segmenters.to_native(theirs.state_dict(), "transformers")
    assert all(torch.equal(value, again[key]) for key, value in ours.state_dict().items())


@torch.no_grad()
def test_same_loss_as_transformers_where_nothing_is_ignored():
    ours, x, masks = telling(small()), torch.randn(2, 3, 64, 96), torch.randint(0, 5, (2, 64, 96))
    theirs = in_transformers(ours)(x, labels=masks).loss
    assert loss(ours, x, masks).item() == pytest.approx(theirs.item(), rel=1e-5)


@torch.no_grad()
def test_ignored_pixels_count_as_nothing_in_the_mean_over_all():
    """mmsegmentation's avg_non_ignore=False; PyTorch's own mean would leave them out of the divisor."""
    model, x = telling(small()), torch.randn(2, 3, 64, 64)
    masks = torch.randint(0, 5, (2, 64, 64), dtype=torch.uint8)
    masks[0, :40] = masks[1, :, :50] = 255
    expected = 0.0
    for logits, weight in zip(model.logits_and_auxiliary(x), (1.0, 0.4), strict=True):
        enlarged = F.interpolate(logits, (64, 64), mode="bilinear", align_corners=False)
        expected += weight * F.cross_entropy(enlarged, masks.long(), ignore_index=255, reduction="none").mean()
    assert loss(model, x, masks).item() == pytest.approx(expected.item(), rel=1e-6)
    masks[:] = 255
    assert loss(model, x, masks).item() == 0.0


@torch.no_grad()
def test_the_loss_is_computed_in_float32_under_autocast():
    model, x, masks = telling(small()), torch.randn(2, 3, 64, 64), torch.randint(0, 5, (2, 64, 64))
    expected = 0.0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(model, x, masks)
        outputs = model.logits_and_auxiliary(x)
    for logits, weight in zip(outputs, (1.0, 0.4), strict=True):
        assert logits.dtype == torch.bfloat16
        expected += weight * F.cross_entropy(F.interpolate(logits.float(), (64, 64), mode="bilinear"), masks)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(("name", "parameters", "gmacs", "crop"), ADE20K)
def test_costs_are_the_published_ones(name, parameters, gmacs, crop):
    family, size = name.split("-")
    known = f"{family.lower()}_{SIZES[size]}"
    if known not in convnext.list_models():
        pytest.skip(f"no backbone {known} yet")
    with torch.device("meta"):
        model = UperNet(convnext.create_model(known), 150, output_norm=True)
    found = count_cost(model, (crop, 4 * crop))
    assert round(found.parameters / 1e6) == parameters
    counted = found.macs - (swin_large_attention_macs(crop, 4 * crop) if name == "Swin-L" else 0)
    assert counted / 1e9 == pytest.approx(gmacs, rel=0.005)


def test_the_published_costs_are_those_of_the_reference():
    with shared("reference/ade20k.csv").open() as file:
        rows = [(row["backbone"], int(row["params_m"]), int(row["gflops"]), int(row["crop"])) for row in csv.DictReader(file)]
    assert rows == ADE20K


def test_overfits_two_images():
    torch.manual_seed(0)
    backbone = ConvNeXt((1, 1, 2, 1), (40, 80, 160, 320), layer_scale=1.0)
    model = UperNet(backbone, 3, output_norm=True, channels=32, auxiliary_channels=16).train()
    masks = torch.zeros(2, 64, 64, dtype=torch.long)
    masks[0, 8:40, 12:44], masks[1, 20:, 32:] = 1, 2
    masks[1, :4] = 255
    colours = torch.tensor([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0], [-1.0, 0.0, 1.0]])
    x = colours[masks.clamp(max=2)].permute(0, 3, 1, 2) + 0.3 * torch.randn(2, 3, 64, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(30):
        optimizer.zero_grad()
        loss(model, x, masks).backward()
        optimizer.step()
    with torch.no_grad():
        right = (model.eval()(x).argmax(1) == masks)[masks != 255]
    assert right.float().mean() > 0.97


def test_every_parameter_learns_and_the_image_of_one_is_refused():
    model = small().train()
    loss(model, torch.randn(2, 3, 64, 64), torch.randint(0, 5, (2, 64, 64))).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    with pytest.raises(UsageError, match="one image at a time.*at least two"):
        loss(model, torch.randn(1, 3, 64, 64), torch.zeros(1, 64, 64))
    assert model.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 5, 64, 64)


def test_forward_runs_no_auxiliary_head():
    model = small().eval()
    model.auxiliary_head.register_forward_hook(lambda *_: pytest.fail("the auxiliary head ran"))
    model(torch.randn(1, 3, 64, 64))
    model.logits(torch.randn(1, 3, 64, 64))


def test_output_norms_are_optional_and_as_published():
    with_norms, without = small(), small(output_norm=False)
    assert not any("backbone.norm" in name for name in without.state_dict())
    assert all(isinstance(with_norms.backbone.get_submodule(f"norm{i}"), LayerNorm2d) for i in range(4))
    x = torch.randn(1, 3, 64, 64)
    maps = [F.layer_norm(found.permute(0, 2, 3, 1), found.shape[1:2], eps=1e-6) for found in with_norms.backbone.features(x)]
    assert all(torch.allclose(a.permute(0, 2, 3, 1), b, atol=1e-6) for a, b in zip(with_norms.features(x), maps, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(without.features(x), without.backbone.features(x), strict=True))


def test_a_backbone_without_a_pyramid_is_refused():
    with pytest.raises(UsageError, match="four maps.*has 1"):
        UperNet(ConvNeXtIsotropic(1, 8), 5, output_norm=True)


def test_dropout_keeps_the_mean_and_does_not_depend_on_the_split():
    drop = ChannelDropout(0.25).train()
    torch.manual_seed(0)
    y = drop(torch.ones(64, 500, 2, 2))
    assert y.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert torch.equal(y, y[:, :, :1, :1].expand_as(y))  # whole channels
    assert y.mean().item() == pytest.approx(1.0, abs=0.02)
    for first in (0, 32):
        torch.manual_seed(0)
        with split_of(64, torch.arange(first, first + 32)):
            assert torch.equal(drop(torch.ones(32, 500, 2, 2)), y[first : first + 32])
    x = torch.randn(2, 500, 2, 2)
    assert torch.equal(drop.eval()(x), x)


def test_the_heads_start_as_in_mmsegmentation():
    """ConvModules by Kaiming's normal rule (fan out), classifiers normal with std 0.01 at 512 channels, more in narrower heads."""
    torch.manual_seed(0)
    model = small(channels=256)
    weight = model.decode_head.fpn_bottleneck.conv.weight
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)
    assert model.decode_head.conv_seg.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not model.decode_head.conv_seg.bias.any()


def test_optimizer_groups_are_those_of_the_published_runs():
    from convnext.recipe import Optim

    model = small()
    model.backbone.depths = (3, 3, 9, 3)  # ConvNeXt-T's count of groups
    optimizer = build_optimizer(model, Optim(lr=1e-4, weight_decay=0.05, layer_decay=0.9))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    assert found["backbone.downsample_layers.3.1.weight"] == (pytest.approx(0.9**7), 0.05)
    assert found["backbone.stages.3.0.gamma"] == (pytest.approx(0.9**3), 0.0)
    assert found["backbone.norm0.weight"] == (1.0, 0.0)
    assert found["decode_head.bottleneck.conv.weight"] == (1.0, 0.05)
    assert found["decode_head.bottleneck.bn.weight"] == (1.0, 0.0)
    assert found["auxiliary_head.conv_seg.bias"] == (1.0, 0.0)


@pytest.mark.slow
def test_compiles_without_graph_breaks():
    model, x = small().eval(), torch.randn(2, 3, 64, 96)
    assert relative_error(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x)) < 1e-5
