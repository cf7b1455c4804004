import torch
from torch import nn

from convnext.metrics.cost import count_cost


def test_multiply_adds_by_hand():
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 5, padding=2, groups=8), nn.Flatten(), nn.Linear(8 * 100, 7))
    cost = count_cost(model, 10)
    assert cost.macs == 100 * 8 * 3 * 9 + 100 * 8 * 25 + 800 * 7
    assert cost.parameters == (8 * 27 + 8) + (8 * 25 + 8) + (800 * 7 + 7)
