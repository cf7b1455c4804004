import pytest
from scipy.stats import binomtest

from convnext.report import metrics


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("top1", "top-1 accuracy"),
        ("raw_top1", "top-1 accuracy of the raw weights"),
        ("box_ap", "box AP"),
        ("box_ap50", "box AP at IoU 0.50"),
        ("mask_ap_small", "mask AP of small objects"),
        ("box_ar1", "box AR at 1 detection"),
        ("mask_ar100", "mask AR at 100 detections"),
        ("box_f1", "F1 at the best threshold"),
        ("boundary_miou", "mean boundary IoU"),
        ("miou", "mIoU"),
        ("overall_accuracy", "pixel accuracy"),
        ("of_my_own", "of my own"),
    ],
)
def test_metrics_have_names_for_people(name, label):
    assert metrics.label(name) == label


def test_values_have_their_unit():
    assert metrics.value("top1", 99.722) == "99.72\xa0%"
    assert metrics.value("raw_loss", 0.123456) == "0.1235"
    assert metrics.value("count", 360.0) == "360"
    assert metrics.value("best_threshold", 0.4) == "0.40"
    assert metrics.value("false_alarms", 12.5) == "12.50\xa0%"


@pytest.mark.parametrize(("right", "count"), [(359, 360), (0, 5), (5, 5), (700, 1000), (1, 3)])
def test_the_interval_is_that_of_wilson(right, count):
    wanted = binomtest(right, count).proportion_ci(method="wilson")
    assert metrics.wilson(right / count, count) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_only_proportions_have_an_interval():
    assert metrics.interval("top1", 100 * 359 / 360, 360) == "98.44 to 99.95\xa0%"
    assert metrics.interval("raw_top5", 50.0, 100) == "40.38 to 59.62\xa0%"
    for name, count in (("miou", 100), ("box_ap", 100), ("top1", None), ("top1", 0)):
        assert metrics.interval(name, 50.0, count) is None


def test_cards_of_an_evaluation():
    assert metrics.cards({"top1": 50.0, "loss": 1.5, "count": 100}) == {
        "top-1 accuracy, 95 % interval 40.38 to 59.62\xa0%": "50.00\xa0%",
        "loss": "1.5",
        "images": "100",
    }
    detector = {"box_ap": 40.0, "box_ap50": 60.0, "box_ap_small": 20.0, "box_ar1": 10.0, "box_ar100": 50.0}
    assert metrics.cards(detector) == {"box AP": "40.00\xa0%", "box AP at IoU 0.50": "60.00\xa0%"}
    segmenter = {"miou": 80.0, "miou_low": 75.25, "miou_high": 84.0}
    assert metrics.cards(segmenter) == {"mIoU, 95 % interval 75.25 to 84.00\xa0%": "80.00\xa0%"}
