"""A user's own augmentation of objects and masks: what it gets, what may come back, and what is refused by name."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from convnext.data.annotations.objects import ImageObjects
from convnext.data.randomness import seeded
from convnext.data.run_lengths import EncodedMasks, encode_all
from convnext.data.transforms.detect import DetectAugmentation, train_transform
from convnext.data.transforms.extra import ExtraMask, ExtraObjects
from convnext.data.transforms.segment import TrainTransform
from convnext.errors import ConvnextError, UsageError

LEVELS = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}
SIZES = {"short": (40,), "longest": 60, "crop_short": (40,), "crop": (60, 60), "flip": 0.0}
PIXELS = torch.arange(3 * 40 * 60).reshape(3, 40, 60).remainder(251).to(torch.uint8)


def objects():
    masks = torch.zeros(2, 40, 60, dtype=torch.uint8)
    masks[0, 5:20, 10:30] = 1
    masks[1, 30:40, 40:60] = 1
    boxes = torch.tensor([[10.0, 5, 30, 20], [40, 30, 60, 40]])
    return ImageObjects(boxes, torch.tensor([0, 2]), masks, torch.zeros(2, dtype=torch.bool), torch.tensor([300.0, 200]), 3)


def detected(function, found=None, classes=3):
    return train_transform(DetectAugmentation(**SIZES, **LEVELS, extra=ExtraObjects("mine", function, classes)))(PIXELS, found or objects())


def segmented(function, classes=3):
    transform = TrainTransform((40, 60), None, (1.0, 1.0), 1.0, 0.0, False, **LEVELS, extra=ExtraMask("mine", function, classes))
    return transform(PIXELS, objects().masks[0] * 2)


def without_the_first(image, found):
    return image, {key: value[1:] for key, value in found.items()}


def mirrored_in_numpy(image, found):
    """As functions of albumentations are written: arrays (H, W, 3), and lists of boxes, labels and masks."""
    pixels, width = image.permute(1, 2, 0).numpy(), image.shape[2]
    boxes = [(width - right, top, width - left, bottom) for left, top, right, bottom in found["boxes"].tolist()]
    masks = [mask.numpy()[:, ::-1].astype(bool) for mask in found["masks"]]
    return np.ascontiguousarray(pixels[:, ::-1]), {"boxes": boxes, "labels": [int(label) for label in found["labels"]], "masks": masks}


@pytest.mark.parametrize("encoded", [False, True])
def test_objects_and_pixels_change_together(encoded):
    given = objects()
    if encoded:
        given = replace(given, masks=EncodedMasks.whole(encode_all(given.masks), 40, 60))
    seen = []
    image, found = detected(lambda *both: seen.append(both) or mirrored_in_numpy(*both), given)
    assert [(value.dtype, tuple(value.shape)) for value in (seen[0][0], *seen[0][1].values())] == [
        (torch.uint8, (3, 40, 60)), (torch.float32, (2, 4)), (torch.int64, (2,)), (torch.uint8, (2, 40, 60)),
    ]  # fmt: skip
    assert torch.equal(image, PIXELS.flip(-1).float())
    assert found.boxes.tolist() == [[30, 5, 50, 20], [0, 30, 20, 40]]
    assert torch.equal(found.masks, objects().masks.flip(-1))
    assert found.labels.tolist() == [0, 2]
    assert found.image_id == 3


def test_objects_may_disappear_and_slivers_are_dropped():
    _, found = detected(without_the_first)
    assert (found.labels.tolist(), len(found.masks)) == ([2], 1)
    _, found = detected(lambda image, found: (image, {key: value[:0] for key, value in found.items()}))
    assert (found.boxes.shape, found.masks.shape) == ((0, 4), (0, 40, 60))
    _, found = detected(lambda image, found: (image, {"boxes": [], "labels": [], "masks": []}))
    assert (found.boxes.shape, found.masks.shape) == ((0, 4), (0, 40, 60))
    _, found = detected(lambda image, found: (image, found | {"boxes": torch.tensor([[-5.0, 0, 20, 90], [59.5, 0, 70, 9]])}))
    assert found.boxes.tolist() == [[0, 0, 20, 40]]


def test_boxes_alone_need_no_masks():
    seen = []
    _, found = detected(lambda image, found: seen.append(set(found)) or (image, found), replace(objects(), masks=None))
    assert seen == [{"boxes", "labels"}]
    assert found.masks is None


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda image, found: image, "the transform mine must return an image and the dict of its objects, not a Tensor"),
        (lambda image, found: (image[:, :20], found), r"an image of shape \(3, 40, 60\), uint8 or float32, not \(3, 20, 60\)"),
        (lambda image, found: (image, found["boxes"]), "must return the objects as a dict with boxes, labels, masks, not a Tensor"),
        (lambda image, found: (image, {"boxes": found["boxes"]}), "as a dict with boxes, labels, masks, not one without 'labels'"),
        (lambda image, found: (image, found | {"labels": [1]}), r"must return labels of shape \(2\), not \(1,\)"),
        (lambda image, found: (image, found | {"labels": ["a", "b"]}), "returned labels that are no numbers"),
        (lambda image, found: (image, found | {"labels": [0, 3]}), r"returned the labels \[0, 3\]: they are 0 to 2"),
        (lambda image, found: (image, found | {"masks": found["masks"][:, :9]}), r"masks of shape \(2, 40, 60\), not \(2, 9, 60\)"),
        (lambda image, found: (image, found | {"boxes": found["boxes"] / 60}), "returned boxes from 0 to 1"),
        (lambda image, found: (image, found | {"boxes": found["boxes"].flip(1)}), r"returned the box \[20.0, 30.0, 5.0, 10.0\]"),
        (lambda image, found: (image, found | {"boxes": [[0, 0, 9, float("nan")]] * 2}), "boxes are left, top, right and bottom in pixels"),
    ],
)  # fmt: skip
def test_a_detectors_wrong_answers_are_refused_by_name(function, message):
    with pytest.raises(UsageError, match=message):
        detected(function)


def test_a_mask_changes_with_its_image():
    image, mask = segmented(lambda image, mask: (image.flip(-1).float() + 0.25, mask.numpy()[:, ::-1]))
    assert torch.equal(image, PIXELS.flip(-1).float() + 0.25)
    assert torch.equal(mask, objects().masks[0].flip(-1) * 2)
    _, mask = segmented(lambda image, mask: (image, torch.where(mask == 2, 255, 0)))
    assert (mask.dtype, set(mask.unique().tolist())) == (torch.uint8, {0, 255})


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda image, mask: image, "the transform mine must return an image and its mask, not a Tensor"),
        (lambda image, mask: (image, mask[None]), r"must return a mask of shape \(40, 60\), not \(1, 40, 60\)"),
        (lambda image, mask: (image, mask + 1), "a mask with the value 3: classes are 0 to 2, and 255 is ignored"),
    ],
)
def test_a_segmenters_wrong_answers_are_refused_by_name(function, message):
    with pytest.raises(UsageError, match=message):
        segmented(function)


def fails(*both):
    raise KeyError("hue")


@pytest.mark.parametrize("run", [detected, segmented])
def test_a_function_that_fails_is_named(run):
    with pytest.raises(ConvnextError, match=r"the transform mine failed: KeyError: 'hue'"):
        run(fails)


def test_what_it_draws_is_seeded():
    def shaken(image, found):
        return (image.float() + torch.randn(image.shape)).clamp(0, 255), found

    results = []
    for seed in (1, 1, 2):
        with seeded(seed):
            results.append(detected(shaken)[0])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
