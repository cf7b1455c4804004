import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    jaccard_score,
    precision_score,
    recall_score,
)

from convnext.errors import ConvnextError
from convnext.tasks.segment.metric import PixelCounts


def drawn(seed, classes, used, ignored):
    """Masks and predictions of three images in which not all classes need occur."""
    rng = np.random.default_rng(seed)
    true, predicted = (rng.choice(rng.permutation(classes)[:used], (3, 7, 5)) for _ in range(2))
    predicted = np.where(rng.random(true.shape) < 0.5, true, predicted)
    return np.where(rng.random(true.shape) < ignored, 255, true), predicted


@pytest.mark.filterwarnings("ignore::UserWarning:sklearn")  # of masks that hold few classes, as these do on purpose
@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(2, 20), st.data())
def test_equals_scikit_learn(seed, classes, data):
    used = data.draw(st.integers(1, classes))
    masks, predictions = drawn(seed, classes, used, data.draw(st.sampled_from([0.0, 0.3, 0.95])))
    metric = PixelCounts(classes)
    metric.update(torch.from_numpy(predictions), torch.from_numpy(masks))
    found, details = metric.compute(), metric.details()
    true, predicted = masks[masks != 255], predictions[masks != 255]
    if not true.size:
        assert found == {"count": 3}
        return
    present = sorted({*true.tolist(), *predicted.tolist()})
    iou = jaccard_score(true, predicted, labels=present, average=None)
    assert [value for value in details["iou"] if value is not None] == pytest.approx(100 * iou, abs=1e-6)
    assert [label for label, value in enumerate(details["iou"]) if value is not None] == present
    in_masks = sorted(set(true.tolist()))
    recalls = recall_score(true, predicted, labels=in_masks, average=None)
    assert [value for value in details["accuracy"] if value is not None] == pytest.approx(100 * recalls, abs=1e-6)
    found_as = sorted(set(predicted.tolist()))
    precisions = precision_score(true, predicted, labels=found_as, average=None)
    assert [value for value in details["precision"] if value is not None] == pytest.approx(100 * precisions, abs=1e-6)
    assert [value for value in details["f1"] if value is not None] == pytest.approx(
        100 * f1_score(true, predicted, labels=present, average=None), abs=1e-6
    )
    assert found["miou"] == pytest.approx(100 * iou.mean(), abs=1e-6)
    assert found["mean_accuracy"] == pytest.approx(100 * balanced_accuracy_score(true, predicted), abs=1e-6)
    assert found["overall_accuracy"] == pytest.approx(100 * accuracy_score(true, predicted), abs=1e-6)
    assert details["confusion"] == confusion_matrix(true, predicted, labels=range(classes)).tolist()


def test_merged_parts_are_the_whole_and_the_integer_type_does_not_matter():
    masks, predictions = (torch.from_numpy(x) for x in drawn(1, 6, 6, 0.2))
    whole, parts = PixelCounts(6), [PixelCounts(6) for _ in range(2)]
    whole.update(predictions, masks)
    parts[0].update(predictions[:1].to(torch.uint8), masks[:1].to(torch.uint8))
    parts[1].update(predictions[1:].to(torch.uint16), masks[1:].to(torch.int32))
    parts[0].merge(parts[1])
    assert parts[0].compute() == whole.compute()
    assert parts[0].details() == whole.details()


def test_a_class_that_occurs_nowhere_is_skipped_and_one_predicted_wrongly_is_not():
    metric = PixelCounts(4)
    metric.update(torch.tensor([[[0, 0, 2, 1]]]), torch.tensor([[[0, 0, 1, 1]]]))
    assert metric.details()["iou"] == [100.0, 50.0, 0.0, None]
    assert metric.details()["accuracy"] == [100.0, 50.0, None, None]
    assert metric.compute() == {"miou": 50.0, "mean_accuracy": 75.0, "overall_accuracy": 75.0, "count": 1}


@pytest.mark.parametrize(
    ("predictions", "masks", "message"),
    [
        ([[[0, 1]]], [[[0, 3]]], "a mask holds class 3, but there are 3 classes"),
        ([[[0, 1]]], [[[-1, 2]]], "a mask holds class -1"),
        ([[[0, 7]]], [[[0, 2]]], "a prediction holds class 7"),
        ([[[0, 1, 2]]], [[[0, 2]]], "do not fit"),
    ],
)
def test_pixels_that_cannot_be_counted_are_refused(predictions, masks, message):
    with pytest.raises(ConvnextError, match=message):
        PixelCounts(3).update(torch.tensor(predictions), torch.tensor(masks))


def test_an_ignored_pixel_may_be_predicted_as_anything():
    metric = PixelCounts(3)
    metric.update(torch.tensor([[[0, 77]]]), torch.tensor([[[0, 255]]]))
    assert metric.compute()["miou"] == 100.0
