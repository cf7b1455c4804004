import copy

import pytest
import torch
from helpers import relative_error
from models.detection.detectors import BUILDERS, scene, small, total
from torch import nn

import convnext
from convnext.errors import ConvnextError, UsageError
from convnext.models.backbones.convnext import ConvNeXt
from convnext.models.detection import mask_rcnn
from convnext.models.detection.boxes import iou
from convnext.models.detection.rpn import ProposalLimits
from convnext.models.detection.targets import Sampler

KINDS = list(BUILDERS)
NOTHING = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long), "masks": torch.zeros(0, 64, 96, dtype=torch.uint8)}


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_called_as_torchvisions_detectors_are(kind):
    model = small(kind)
    images, targets = zip(*[scene(), scene(70, 50, [(3, 4, 40, 60)], [1])], strict=True)
    losses = model(list(images), list(targets))
    assert all(loss.ndim == 0 and loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    stages = ["loss_cls", "acc", "loss_bbox", "loss_mask"]
    stages = [f"s{i}.{name}" for i in range(3) for name in stages] if kind == "cascade" else stages
    assert list(losses) == ["loss_rpn_cls", "loss_rpn_bbox", *stages]
    total(losses).backward()
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients(model).values())

    for head in model.roi_head.box_heads:
        nn.init.normal_(head.fc_cls.weight, std=2.0)  # so that something is found
    found = model.eval()(list(images))
    assert len(found) == 2
    for one, image in zip(found, images, strict=True):
        count = len(one["labels"])
        assert 0 < count <= 100
        assert one["boxes"].shape == (count, 4)
        assert one["boxes"].dtype == one["scores"].dtype == torch.float32
        assert one["labels"].dtype == torch.int64
        assert set(one["labels"].tolist()) <= {0, 1, 2}
        assert one["masks"].shape == (count, 1, *image.shape[1:])
        assert one["masks"].dtype == torch.bool
        assert (one["scores"].diff() <= 0).all()
        assert one["scores"].min() > 0.05
        x1, y1, x2, y2 = one["boxes"].unbind(1)
        assert min(x1.min(), y1.min()) >= 0
        assert x2.max() <= image.shape[2]
        assert y2.max() <= image.shape[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", [[NOTHING, NOTHING], [NOTHING, scene()[1]]], ids=["none", "one image"])
def test_images_without_objects_train_every_parameter(kind, targets):
    model = small(kind)
    losses = model([scene()[0]] * 2, targets)
    total(losses).backward()
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients(model).values())
    if targets[1] is NOTHING:
        assert all(loss == 0 for name, loss in losses.items() if "bbox" in name or "mask" in name)
        assert all(loss > 0 for name, loss in losses.items() if "loss" in name and "cls" in name)


def test_crowds_train_as_if_they_were_not_there():
    image, target = scene()
    crowd = target | {"iscrowd": torch.tensor([False, True])}
    alone = {key: value[:1] for key, value in target.items()}
    found = []
    for given in (crowd, alone):
        model = small()
        torch.manual_seed(1)
        found.append(model([image], [given]))
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (1, 200), (33, 31)])
def test_tiny_and_odd_images(kind, size):
    model = small(kind)
    image = torch.randn(3, *size)
    target = {"boxes": torch.tensor([[0.0, 0.0, 1.0, 1.0]]), "labels": torch.tensor([1]), "masks": torch.ones(1, *size, dtype=torch.uint8)}
    losses = model([image, image], [target, target])
    total(losses).backward()
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients(model).values())
    (found,) = model.eval()([image])
    assert found["masks"].shape[1:] == (1, *size)


@pytest.mark.parametrize("kind", KINDS)
def test_one_class(kind):
    model = small(kind, num_classes=1)
    image, target = scene(labels=(0, 0))
    assert total(model([image], [target])).isfinite()
    assert set(model.eval()([image])[0]["labels"].tolist()) <= {0}


def test_the_seed_decides_which_regions_count():
    image, target = scene(256, 256)
    model = small()
    model.rpn_head.sampler = Sampler(32, 0.5)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(model([image], [target]))
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


@torch.no_grad()
def test_images_of_a_batch_are_padded_with_zeros_to_the_largest():
    model = small().eval()
    image, wide, high = scene(64, 96)[0], torch.randn(3, 40, 130), torch.randn(3, 100, 20)
    levels = model.pyramid([image, wide, high])
    assert [tuple(level.shape) for level in levels] == [(3, 32, 128 // s, 160 // s) for s in (4, 8, 16, 32)] + [(3, 32, 2, 3)]
    padded = nn.functional.pad(image, (0, 160 - 96, 0, 128 - 64))
    for level, alone in zip(levels, model.pyramid([padded]), strict=True):
        assert relative_error(level[:1], alone) < 1e-5
    for size, proposals in zip([(64, 96), (40, 130), (100, 20)], model.propose(levels, [(64, 96), (40, 130), (100, 20)]), strict=True):
        assert proposals.boxes.min() >= 0
        assert proposals.boxes[:, 3].max() <= size[0]
        assert proposals.boxes[:, 2].max() <= size[1]


@torch.no_grad()
def test_detections_in_the_pixels_of_another_size():
    model = small()
    nn.init.normal_(model.roi_head.bbox_head.fc_cls.weight, std=2.0)
    model.eval()
    image = scene()[0]
    (own,), (larger,) = model.predict([image]), model.predict([image], [(160, 192)])
    assert torch.equal(own["scores"], larger["scores"])
    torch.testing.assert_close(larger["boxes"], own["boxes"] * torch.tensor([2.0, 2.5, 2.0, 2.5]))
    assert larger["masks"].shape[1:] == (1, 160, 192)
    ratio = larger["masks"].sum() / own["masks"].sum()
    assert ratio == pytest.approx(5, rel=0.02)


def test_wrong_calls_are_reported():
    model, (image, target) = small(), scene()
    with pytest.raises(UsageError, match="needs the targets"):
        model([image])
    with pytest.raises(UsageError, match="at least one image"):
        model.eval()([])
    bad = target | {"boxes": target["boxes"] * float("nan")}
    with pytest.raises(ConvnextError, match="image 1 of the batch"):
        model.train()([image, image], [target, bad])


@pytest.mark.parametrize("kind", KINDS)
def test_a_diverged_network_says_so_by_its_loss(kind):
    model, (image, target) = small(kind), scene()
    for head in model.roi_head.box_heads:
        head.fc_reg.bias.data.fill_(float("nan"))
    assert total(model([image], [target])).isnan()
    model.eval()([image])


def test_published_numbers_of_samples_and_proposals():
    """As `recipes.md` tells them."""
    for kind, kept in (("mask_rcnn", 1000), ("cascade", 2000)):
        model = small(kind)
        assert model.rpn_head.sampler == Sampler(256, 0.5)
        assert model.roi_head.sampler == Sampler(512, 0.25)
        assert model.rpn_head.train_limits == ProposalLimits(2000, kept)
        assert model.rpn_head.test_limits == ProposalLimits(1000, 1000)


def test_layer_groups_and_weight_decay_are_the_published_ones():
    """As `recipes.md` tells them: 6 groups of the backbone's stages for T, 12 for S, the rest one more."""
    with torch.device("meta"):
        models = {size: mask_rcnn(convnext.create_model(f"convnext_{size}"), 80, True) for size in ("tiny", "small")}
    for size, groups in (("tiny", 6), ("small", 12)):
        model = models[size]
        found = {name: model.layer_group(name) for name, _ in model.named_parameters()}
        assert found["backbone.downsample_layers.0.0.weight"] == 0
        assert found["backbone.stages.0.2.dwconv.weight"] == 1
        assert found["backbone.downsample_layers.2.1.weight"] == 3
        assert found["backbone.stages.2.5.gamma"] == 4
        assert found["backbone.stages.3.0.norm.bias"] == groups
        last = {name for name, group in found.items() if group == groups + 1}
        assert last == {name for name in found if not name.startswith("backbone.") or name.startswith("backbone.norm")}
    free = models["tiny"].no_weight_decay()
    assert {"backbone.norm0.weight", "neck.fpn_convs.0.conv.bias", "backbone.stages.0.0.gamma"} <= free
    assert not {"backbone.stages.0.0.pwconv1.weight", "roi_head.bbox_head.fc_cls.weight"} & free


def test_no_output_norm_for_residual_networks():
    model = mask_rcnn(ConvNeXt((1, 1, 1, 1), (8, 16, 24, 32)), 3, False, channels=32, fc_channels=64)
    assert not any("backbone.norm" in name for name in model.state_dict())
    image, target = scene()
    total(model([image], [target])).backward()
    assert all(gradient is not None for gradient in gradients(model).values())
    assert model.layer_group("backbone.stages.3.0.gamma") + 1 == model.layer_group("neck.fpn_convs.0.conv.weight")


def test_synchronised_norms_take_the_same_weights():
    model = small("cascade")
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    norms = [module for module in synchronised.modules() if isinstance(module, nn.SyncBatchNorm)]
    assert len(norms) == 3 * 4
    assert synchronised.state_dict().keys() == model.state_dict().keys()
    image = scene()[0]
    assert torch.equal(model.eval()([image])[0]["boxes"], synchronised.eval()([image])[0]["boxes"])


@pytest.mark.parametrize("kind", ["mask_rcnn", pytest.param("cascade", marks=pytest.mark.slow)])
def test_sixteen_bit_training(kind):
    model, (image, target) = small(kind), scene()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model([image], [target])
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    total(losses).backward()
    with torch.autocast("cpu", torch.bfloat16):
        assert model.eval()([image])[0]["boxes"].dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mask_rcnn", "cascade"])
def test_two_images_are_learnt(kind):
    model = small(kind, seed=1)
    model.roi_head.sampler = Sampler(48, 0.25)
    model.rpn_head.train_limits = model.rpn_head.test_limits = ProposalLimits(100, 100)
    images, targets = zip(scene(), scene(boxes=[(6, 4, 42, 60), (52, 20, 92, 58)], labels=[1, 0]), strict=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    steps = 100
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        total(model(images, targets)).backward()
        optimizer.step()
        schedule.step()
    for found, target in zip(model.eval()(images), targets, strict=True):
        count = len(target["labels"])  # the best of what is found are the objects
        assert sorted(found["labels"][:count].tolist()) == sorted(target["labels"].tolist())
        for box, label, mask in zip(target["boxes"], target["labels"], target["masks"], strict=True):
            best = int((found["labels"] == label).nonzero()[0])
            drawn = found["masks"][best, 0]
            assert found["scores"][best] > 0.5
            assert iou(found["boxes"][best, None], box[None]) > 0.7
            assert (drawn & mask.bool()).sum() / (drawn | mask.bool()).sum() > 0.7
