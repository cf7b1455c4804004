import pytest
import torch
from helpers import relative_error
from torchvision.ops import roi_align

from convnext.models.detection.roi_align import level_of, pool, to_rois

STRIDES = (4, 8, 16, 32)


def levels(height=256, width=320, channels=5, requires_grad=False):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, channels, height // s, width // s) for s in STRIDES]
    return [torch.randn(shape, generator=generator).requires_grad_(requires_grad) for shape in shapes]


def boxes(count, height=256, width=320, seed=0):
    """Of all sizes and shapes, some of them over the border, flat, or without an area."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    half = torch.rand(count, 2, generator=generator) ** 3 * torch.tensor([width, height])
    half[:3] = torch.tensor([[0.0, 5.0], [0.0, 0.0], [width / 2, 0.5]])
    return torch.cat([centre - half, centre + half], 1)


def slow(maps, rois, size):
    """Each RoI by itself through torchvision."""
    which = level_of(rois[:, 1:], STRIDES)
    return torch.cat([roi_align(maps[i], roi[None], size, 1 / STRIDES[i], 0, True) for roi, i in zip(rois, which.tolist(), strict=True)])


@pytest.mark.parametrize("size", [7, 14])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_the_fast_way_gives_torchvisions_numbers(size, memory):
    maps = [level.to(memory_format=memory) for level in levels()]
    rois = to_rois([boxes(60), boxes(40, seed=1)])
    assert relative_error(pool(maps, STRIDES, rois, size), slow(maps, rois, size)) < 1e-4


def test_gradients_are_torchvisions_and_reach_every_level():
    maps, rois = levels(requires_grad=True), to_rois([boxes(30), boxes(3, seed=2)])
    towards = torch.randn(33, 5, 7, 7, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(pool(maps, STRIDES, rois, 7), maps, towards)
    wanted = torch.autograd.grad(slow(maps, rois, 7), maps, towards, materialize_grads=True)
    for gradient, expected in zip(found, wanted, strict=True):
        assert relative_error(gradient, expected) < 1e-5
    few = pool(maps, STRIDES, torch.tensor([[0.0, 10.0, 10.0, 40.0, 40.0]]), 7)
    assert all(gradient is not None for gradient in torch.autograd.grad(few.sum(), maps))


def test_without_regions_there_is_an_empty_batch():
    none = to_rois([torch.empty(0, 4), torch.empty(0, 4)])
    assert pool(levels(), STRIDES, none, 7).shape == (0, 5, 7, 7)
    assert pool(levels(requires_grad=True), STRIDES, none, 7).shape == (0, 5, 7, 7)


def test_sixteen_bit_products_stay_out_of_it():
    maps, rois = levels(), to_rois([boxes(20), boxes(20)])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pool(maps, STRIDES, rois, 7), pool(maps, STRIDES, rois, 7))
        assert relative_error(pool(maps, STRIDES, rois, 7), slow(maps, rois, 7)) < 1e-4


def test_levels_by_the_side_of_the_box():
    sides = torch.tensor([0.0, 1.0, 111.9, 112.1, 223.9, 224.1, 447.9, 448.1, 5000.0])
    squares = torch.stack([torch.zeros_like(sides), torch.zeros_like(sides), sides, sides], 1)
    assert level_of(squares, STRIDES).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]


def test_rois_are_numbered_by_image():
    assert to_rois([torch.ones(2, 4), torch.empty(0, 4), torch.ones(1, 4)])[:, 0].tolist() == [0, 0, 2]
