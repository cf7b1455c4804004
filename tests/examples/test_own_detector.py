"""The example of docs/extend/head.md: an anchor-free detector of one's own over any backbone."""

import pytest
import torch
from registered import imported

import convnext
from convnext.data.transforms.detect import DetectPreprocessing
from convnext.errors import UsageError
from convnext.models.detection.postprocess import Selection
from convnext.tasks.detect.graph import DetectExport

BOXES = torch.tensor([[8.0, 8, 40, 40], [30, 16, 62, 46], [0, 0, 64, 48]])
LABELS = torch.tensor([0, 2, 1])
CROWDS = torch.tensor([False, False, True])


@pytest.fixture(scope="module")
def own():
    with imported("examples.own_detector") as module:
        torch.manual_seed(0)
        sizes = {"channels": 16, "depths": (1, 1, 1, 1), "widths": (8, 8, 16, 16)}
        yield module, convnext.create_model("point_head_convnext_atto", num_classes=3, **sizes)


def test_it_learns_the_objects_of_an_image_and_no_crowd(own):
    module, model = own
    assert isinstance(model.network, module.PointHead)
    image, target = torch.randn(3, 48, 64), {"boxes": BOXES, "labels": LABELS, "iscrowd": CROWDS}
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2)
    for _ in range(50):
        losses = model([image], [target])
        assert losses.keys() == {"loss_class", "loss_box"}
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    (found,) = model.eval().predict([image], [(96, 128)], threshold=0.3)
    assert sorted(found["labels"].tolist()) == [0, 2]
    assert found["boxes"][found["labels"].argsort()] == pytest.approx(2 * BOXES[:2], abs=8)  # in pixels of the image as annotated


def test_it_predicts_what_is_asked_for(own):
    _, model = own
    images = [torch.randn(3, 48, 64), torch.randn(3, 64, 40)]
    for one in model.eval().predict(images, threshold=0.0, selection=Selection(most=5, labels=(1,))):
        assert one["labels"].tolist() == [1] * 5
        assert (one["scores"].diff() <= 0).all()
        assert "masks" not in one


def test_it_is_not_exported(own):
    with pytest.raises(UsageError, match="a detector of your own can't be exported"):
        DetectExport().graph(own[1], DetectPreprocessing(64, 64))


def test_an_image_without_objects_has_a_loss(own):
    _, model = own
    target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "iscrowd": torch.zeros(0, dtype=torch.bool)}
    losses = model.train()([torch.randn(3, 32, 32)], [target])
    assert losses["loss_box"] == 0
    assert losses["loss_class"] > 0
