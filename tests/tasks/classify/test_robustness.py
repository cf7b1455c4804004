import pytest
import torch

from convnext.data.sources.corruptions import CORRUPTIONS, SEVERITIES
from convnext.errors import ConvnextError
from convnext.tasks.classify.robustness import ALEXNET_ERRORS, CorruptionCounts

# By severity, from another public table of the same errors than the one that ALEXNET_ERRORS was copied from.
ALEXNET = {
    "gaussian_noise": (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
    "shot_noise": (0.71224, 0.85108, 0.93574, 0.98182, 0.99146),
    "impulse_noise": (0.78374, 0.89808, 0.9487, 0.9872, 0.99548),
    "defocus_blur": (0.65624, 0.73202, 0.85036, 0.91364, 0.94714),
    "glass_blur": (0.64308, 0.75054, 0.88806, 0.91622, 0.93344),
    "motion_blur": (0.5843, 0.70048, 0.82108, 0.8975, 0.92638),
    "zoom_blur": (0.70008, 0.76992, 0.80784, 0.84198, 0.87198),
    "snow": (0.71726, 0.88392, 0.86468, 0.9187, 0.94952),
    "frost": (0.6139, 0.79734, 0.8879, 0.89942, 0.9343),
    "fog": (0.67474, 0.7605, 0.84378, 0.8726, 0.945),
    "brightness": (0.4514, 0.48502, 0.54048, 0.62166, 0.7244),
    "contrast": (0.64548, 0.7615, 0.88874, 0.9776, 0.9927),
    "elastic_transform": (0.52596, 0.70116, 0.55686, 0.64076, 0.80554),
    "pixelate": (0.52218, 0.5462, 0.73728, 0.87092, 0.91262),
    "jpeg_compression": (0.51002, 0.54718, 0.57294, 0.65458, 0.74778),
}


def metric_of(errors, each=1000):
    """A metric that has seen `each` images of every part, with these errors."""
    parts = [(name, severity) for name in errors for severity in SEVERITIES]
    metric = CorruptionCounts(parts)
    for part, (name, severity) in enumerate(parts):
        right = torch.arange(each) >= round(errors[name][severity - 1] * each)
        metric.update(right, torch.full((each,), part))
    return metric


def test_the_table_has_each_corruption_and_is_the_mean_over_severities():
    assert tuple(ALEXNET_ERRORS) == CORRUPTIONS["c"]
    for name, errors in ALEXNET.items():
        assert ALEXNET_ERRORS[name] == pytest.approx(sum(errors) / 5, abs=1e-6)


def test_alexnet_has_an_mce_of_100():
    metric = metric_of(ALEXNET, each=50_000)
    assert metric.compute() == {
        "mean_error": pytest.approx(100 * sum(map(sum, ALEXNET.values())) / 75),
        "mce": pytest.approx(100, abs=1e-4),
    }


def test_the_mean_error_of_imagenet_c_bar_is_not_normalised():
    errors = dict.fromkeys(CORRUPTIONS["c-bar"], (0.1, 0.2, 0.3, 0.4, 0.5)) | {"sparkles": (1, 1, 1, 1, 1)}
    metric = metric_of(errors)
    assert metric.compute() == {"mean_error": pytest.approx((9 * 30 + 100) / 10)}
    row = metric.details()[0]
    assert row == {
        "corruption": "blue_noise_sample",
        "errors": pytest.approx({1: 10, 2: 20, 3: 30, 4: 40, 5: 50}),
        "mean": pytest.approx(30),
    }


def test_parts_of_a_batch_are_counted_apart_and_merged():
    parts = [("snow", 1), ("snow", 2)]
    first, second = CorruptionCounts(parts), CorruptionCounts(parts)
    first.update(torch.tensor([True, False, True]), torch.tensor([0, 1, 1]))
    second.update(torch.tensor([False]), torch.tensor([0]))
    first.merge(second)
    assert first.details() == [{"corruption": "snow", "errors": {1: 50.0, 2: 50.0}, "mean": 50.0, "ce": pytest.approx(50 / 0.866816)}]
    with pytest.raises(ConvnextError, match="no image of snow, severity 2, could be read"):
        second.compute()
