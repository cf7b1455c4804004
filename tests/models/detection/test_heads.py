import pytest
import torch
import torch.nn.functional as F
from helpers import randomise, relative_error

from convnext.models.detection.box_heads import BoxHead, giou_loss, l1_loss
from convnext.models.detection.boxes import DeltaCoder
from convnext.models.detection.layers import ConvLayer, FeaturePyramid
from convnext.models.detection.mask_head import MaskHead, mask_loss, mask_targets


def test_mask_head_is_its_modules_one_after_another():
    head, x, labels = randomise(MaskHead(6, 5)), torch.randn(3, 6, 14, 14), torch.tensor([4, 0, 2])
    y = x
    for layer in head.convs:
        y = F.relu(layer.conv(y))
    every = head.conv_logits(F.relu(head.upsample(y)))
    found = head(x, labels)
    assert found.shape == (3, 28, 28)
    assert relative_error(found, every[torch.arange(3), labels]) < 1e-5


@pytest.mark.parametrize("relu", [True, False])
def test_the_norm_folded_into_the_convolution_is_the_norm(relu):
    layer, x = randomise(ConvLayer(4, 6, 3, norm=True, relu=relu)), torch.randn(2, 4, 7, 7)
    layer.bn.running_mean.normal_()
    layer.bn.running_var.uniform_(0.5, 2)
    layer.eval()
    wanted = layer.bn(layer.conv(x))
    assert relative_error(layer(x), F.relu(wanted) if relu else wanted) < 1e-5
    layer(x).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_the_norm_learns_its_statistics_in_training():
    layer = ConvLayer(4, 6, 3, norm=True)
    layer(torch.randn(8, 4, 7, 7) + 3)
    assert layer.bn.num_batches_tracked == 1
    assert layer.bn.running_mean.abs().max() > 0.01


@pytest.mark.parametrize(("convs", "fcs"), [(0, 2), (4, 1)])
def test_box_head_shapes(convs, fcs):
    head = BoxHead(8, 5, convs=convs, fcs=fcs, fc_width=16)
    logits, deltas = head(torch.randn(3, 8, 7, 7))
    assert logits.shape == (3, 6)
    assert deltas.shape == (3, 5, 4)
    assert (len(head.shared_convs), len(head.shared_fcs)) == (convs, fcs)


def test_box_losses_by_hand():
    coder = DeltaCoder((0.1, 0.1, 0.2, 0.2))
    proposals, boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([[5.0, 0.0, 15.0, 10.0]])
    still = torch.zeros(1, 4)
    assert l1_loss(coder, proposals, still, boxes).item() == pytest.approx(5.0)  # half a side to the right, over 0.1
    assert giou_loss(coder, proposals, still, boxes).item() == pytest.approx(10 * (1 - 1 / 3), rel=1e-5)
    apart = torch.tensor([[20.0, 0.0, 30.0, 10.0]])  # no overlap; the hull is 300 with 200 in it
    assert giou_loss(coder, proposals, still, apart).item() == pytest.approx(10 * (1 + 1 / 3), rel=1e-5)
    assert giou_loss(coder, proposals, coder.encode(proposals, boxes), boxes).item() == pytest.approx(0, abs=1e-4)


def test_mask_targets_are_what_is_seen_in_the_box():
    masks = torch.zeros(2, 40, 60, dtype=torch.uint8)
    masks[0, 10:30, 20:50] = 1
    masks[1, :, 30:] = 1
    boxes = torch.tensor([[20.0, 10.0, 50.0, 30.0], [10.0, 0.0, 50.0, 40.0], [20.0, 10.0, 50.0, 50.0]])
    found = mask_targets(masks, boxes, torch.tensor([0, 1, 0]))
    half = torch.zeros(28, 28)
    half[:, 14:] = 1
    assert torch.equal(found[0], torch.ones(28, 28))
    assert torch.equal(found[1], half)
    assert found[2].mean() == pytest.approx(2 / 3, abs=0.03)  # the box is cut off at the border, 30 rows of which 20 are the object


def test_mask_loss_is_the_mean_and_0_without_masks():
    logits, targets = torch.randn(3, 28, 28), [torch.ones(1, 28, 28), torch.zeros(2, 28, 28)]
    assert mask_loss(logits, targets).item() == pytest.approx(F.binary_cross_entropy_with_logits(logits, torch.cat(targets)).item())
    none = torch.zeros(0, 28, 28, requires_grad=True)
    loss = mask_loss(none, [torch.zeros(0, 28, 28)])
    assert loss.item() == 0
    loss.backward()


@pytest.mark.parametrize("sizes", [[(16, 24), (8, 12), (4, 6), (2, 3)], [(9, 13), (5, 7), (3, 4), (2, 2)]])
def test_pyramid(sizes):
    """By hand: the coarser map enlarged to nearest neighbours and added, a 3 x 3 convolution on each."""
    pyramid = randomise(FeaturePyramid((2, 3, 4, 5), 6))
    maps = [torch.randn(1, c, *size) for c, size in zip((2, 3, 4, 5), sizes, strict=True)]
    levels = pyramid(maps)
    assert [tuple(level.shape[-2:]) for level in levels] == [*sizes, tuple(-(-side // 2) for side in sizes[-1])]
    assert torch.equal(levels[4], levels[3][:, :, ::2, ::2])
    below = [conv.conv(x) for conv, x in zip(pyramid.lateral_convs, maps, strict=True)]
    for i in (2, 1, 0):
        (height, width), (h, w) = below[i].shape[-2:], below[i + 1].shape[-2:]
        below[i] = below[i] + below[i + 1][:, :, torch.arange(height) * h // height][..., torch.arange(width) * w // width]
    for conv, x, level in zip(pyramid.fpn_convs, below, levels, strict=False):
        assert relative_error(level, conv.conv(x)) < 1e-5
