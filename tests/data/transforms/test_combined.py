"""Copy-paste and mosaic on images whose grey levels say which object, or which ground, each pixel is of."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion

from convnext.data.annotations.objects import ImageObjects
from convnext.data.randomness import seeded
from convnext.data.run_lengths import EncodedMasks, encode_all
from convnext.data.transforms.combined import assembled, draw_quarters, draw_window, pasted, seen_through
from convnext.data.transforms.detect import DetectAugmentation, train_transform
from convnext.data.transforms.segment import TrainTransform

FILL = [250.0, 251.0, 252.0]
STEP = 10  # levels between two objects


def painted(ground, boxes, height, width):
    """An image with one level for each box, later boxes over earlier ones, and its objects; label and level say the same."""
    levels = torch.full((height, width), ground, dtype=torch.uint8)
    for number, (left, top, right, bottom) in enumerate(boxes, 1):
        levels[top:bottom, left:right] = ground + STEP * number
    numbers = torch.tensor([ground + STEP * number for number in range(1, len(boxes) + 1)], dtype=torch.uint8)
    masks = (levels == numbers[:, None, None]).to(torch.uint8)
    count = len(boxes)
    corners = torch.tensor([box_of(mask) for mask in masks], dtype=torch.float32).reshape(-1, 4)
    objects = ImageObjects(
        corners, numbers.long(), masks, torch.zeros(count, dtype=torch.bool), 2 * masks.sum((1, 2)).float(), ground
    )  # fmt: skip
    return levels.expand(3, -1, -1).clone(), objects


def box_of(mask):
    rows, columns = np.flatnonzero(mask.numpy().any(1)), np.flatnonzero(mask.numpy().any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


MAIN = [(5, 5, 25, 20), (30, 10, 55, 40), (20, 30, 34, 50), (0, 52, 60, 60)]
OTHER = [(2, 2, 30, 14), (10, 20, 40, 44), (34, 4, 46, 18)]


def assert_objects_are_what_the_pixels_show(pixels, found, before, at_least=0.1):
    """Masks are the pixels of an object's level, boxes fit them, areas are in proportion, and nothing that is visible is forgotten."""
    shown = {int(level): int((pixels[0] == level).sum()) for level in pixels[0].unique()}
    for at, label in enumerate(found.labels.tolist()):
        assert torch.equal(found.masks[at].bool(), pixels[0] == label)
        assert found.boxes[at].tolist() == box_of(found.masks[at])
        assert found.area[at] == pytest.approx(2 * shown[label])
    assert len(set(found.labels.tolist())) == len(found)
    return {label for label, count in before.items() if shown.get(label, 0) >= at_least * count} - set(found.labels.tolist())


@pytest.mark.parametrize("size", [(48, 50), (60, 60), (90, 30), (100, 120)])
def test_pasted_objects_cut_the_masks_of_what_they_cover(size):
    pixels, objects = painted(0, MAIN, 60, 60)
    other, found = painted(100, [(left, top, min(right, size[1]), bottom) for left, top, right, bottom in OTHER if left < size[1]], *size)
    before = {label: int(count) for label, count in zip(objects.labels.tolist(), objects.masks.sum((1, 2)), strict=True)}
    numbers, cut = set(), 0
    for seed in range(40):
        with seeded(seed):
            image, after = pasted(pixels, objects, other, found)
        forgotten = assert_objects_are_what_the_pixels_show(image, after, before)
        assert not forgotten
        assert set(image[0].unique().tolist()) <= {0, *before, *found.labels.tolist()}  # the other's ground is never seen
        assert after.image_id == 0
        new = [label for label in after.labels.tolist() if label > 100]
        assert {int(level) for level in image[0].unique() if level > 100} == set(new)  # what is pasted is annotated
        numbers.add(len(new))
        cut += any(count < before.get(label, 0) for label, count in zip(after.labels.tolist(), after.masks.sum((1, 2)), strict=True))
    assert max(numbers) == len(found)
    assert len(numbers) > 1
    assert cut > 5


def test_an_object_that_is_covered_but_for_a_twentieth_is_dropped_and_an_untouched_one_keeps_its_box():
    pixels, objects = painted(0, [(10, 10, 30, 30), (40, 40, 50, 50), (0, 0, 20, 5)], 60, 60)
    objects.boxes[1] = torch.tensor([39.5, 39.25, 50.5, 51])  # as annotated, looser than its mask
    other, found = painted(100, [(10, 11, 30, 30), (2, 0, 20, 5)], 60, 60)
    for seed in range(50):
        with seeded(seed):
            _, after = pasted(pixels, objects, other, found)
        if len(after) == 4 - (10 in after.labels):
            break
    assert after.labels.tolist() == [20, 30, 110, 120]
    assert after.boxes.tolist() == [[39.5, 39.25, 50.5, 51], [0, 0, 2, 5], [10, 11, 30, 30], [2, 0, 20, 5]]
    assert after.area.tolist() == [200, 20, 760, 180]


def test_nothing_is_pasted_from_an_image_without_objects_and_onto_one_without_objects_something_is():
    pixels, objects = painted(0, MAIN, 60, 60)
    other, none = painted(100, [], 60, 60)
    image, after = pasted(pixels, objects, other, none)
    assert image is pixels
    assert after is objects
    with seeded(0):
        image, after = pasted(other, none, pixels, objects)
    assert not assert_objects_are_what_the_pixels_show(image, after, {})
    assert len(after) > 0


def test_four_images_meet_in_a_random_point_with_what_is_visible_of_their_objects():
    points = set()
    for seed in range(30):
        with seeded(seed):
            quarters = draw_quarters(60, 80)
            parts, before = [], {}
            for number, quarter in enumerate(quarters):
                pixels, objects = painted(60 * number, MAIN if number % 2 else OTHER, 60, 60)
                if seed % 2:
                    objects = replace(objects, masks=EncodedMasks.whole(encode_all(objects.masks), 60, 60))
                before |= {label: int(count) / 2 for label, count in zip(objects.labels.tolist(), objects.area, strict=True)}
                top, left, height, width = window = draw_window(60, 60, quarter)
                parts.append((pixels[:, top : top + height, left : left + width], seen_through(objects, window)))
            image, found = assembled(parts, quarters, (60, 80), FILL)
        assert not assert_objects_are_what_the_pixels_show(image, found, before)
        row, column = quarters[3][:2]
        assert 12 <= row < 48
        assert 16 <= column < 64
        points.add((row, column))
        for number, (top, left, height, width) in enumerate(quarters):
            levels = image[0, top : top + min(height, 60), left : left + min(width, 60)]
            assert 60 * number <= levels.min()
            assert levels.max() < 60 * (number + 1)
    assert len(points) > 20


def test_a_quarter_that_its_image_does_not_fill_has_the_ground_s_colour():
    pixels, objects = painted(0, [(0, 0, 10, 4)], 6, 90)
    quarters = [(0, 0, 30, 40), (0, 40, 30, 40), (30, 0, 30, 40), (30, 40, 30, 40)]
    windows = [draw_window(6, 90, quarter) for quarter in quarters]
    assert all(window[2:] == (6, 40) for window in windows)
    parts = [(pixels[:, :, :40], seen_through(objects, (0, 0, 6, 40)))] * 4
    image, found = assembled(parts, quarters, (60, 80), FILL)
    assert image[:, 7, 3].tolist() == FILL
    assert found.boxes.tolist() == [[0, 0, 10, 4], [40, 0, 50, 4], [0, 30, 10, 34], [40, 30, 50, 34]]


def test_boxes_alone_are_clipped_to_their_window_and_slivers_are_dropped():
    objects = replace(painted(0, [(0, 0, 20, 20), (25, 25, 45, 45), (50, 0, 60, 10)], 60, 60)[1], masks=None)
    found = seen_through(objects, (10, 19, 30, 30))  # a twentieth of the first, three quarters of the second, none of the third
    assert found.boxes.tolist() == [[6, 15, 26, 30]]
    assert found.area.tolist() == [2 * 400 * 0.75]
    assert found.masks is None


SIZES = {"short": (120,), "longest": 160, "crop_short": (120,), "crop": (100, 120), "mean": (0.0,) * 3, "std": (1 / 255,) * 3}


@pytest.mark.parametrize("keys", [{"copy_paste": 1.0}, {"mosaic": 1.0}, {"mosaic": 1.0, "copy_paste": 1.0, "rotate": 25.0, "vflip": 0.5}])
@pytest.mark.parametrize("encoded", [False, True])
def test_masks_stay_on_their_objects_through_the_whole_transform(keys, encoded):
    examples = [painted(60 * number, [(10, 10, 60, 50), (70, 20, 110, 100), (20, 70, 60, 110)], 120, 160) for number in range(4)]
    if encoded:
        examples = [(p, replace(o, masks=EncodedMasks.whole(encode_all(o.masks), 120, 160))) for p, o in examples]
    transform, taken = train_transform(DetectAugmentation(**SIZES, **keys)), []

    def others():
        taken.append(1 + np.random.randint(3))
        return examples[taken[-1]]

    for seed in range(8):
        with seeded(seed):
            image, found = transform(*examples[0], others)
        assert found.masks.shape == (len(found), *image.shape[1:])
        for label, mask, box in zip(found.labels.tolist(), found.masks.numpy().astype(bool), found.boxes, strict=True):
            level = (image[0] - label).abs().numpy() < 1
            inner = binary_erosion(mask, np.ones((5, 5)))  # the pixels of its border are blends
            assert (inner & ~level).sum() <= 0.02 * inner.sum() + 2
            assert (box - torch.tensor(box_of(torch.from_numpy(mask)))).abs().max() <= 1.5
    assert len(taken) == 8 * sum(3 if key == "mosaic" else key == "copy_paste" for key in keys)


@pytest.mark.parametrize("rotate", [0.0, 30.0])
def test_a_segmenters_mosaic_shows_four_images_with_their_masks(rotate):
    keys = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3, "distort": False, "mosaic": 1.0, "rotate": rotate}
    transform, seen = TrainTransform((48, 64), None, (1.0, 1.0), 1.0, **keys), []
    examples = [(torch.full((3, 40, 90), 50 * n, dtype=torch.uint8), torch.full((40, 90), n, dtype=torch.uint8)) for n in range(1, 5)]
    for seed in range(10):
        with seeded(seed):
            image, mask = transform(*examples[0], lambda: examples[np.random.randint(1, 4)])
        assert (image.shape, mask.shape) == ((3, 48, 64), (48, 64))
        shown = mask != 255
        inner = torch.from_numpy(binary_erosion(shown.numpy(), np.ones((3, 3))))
        assert (image[0] == 50 * mask)[inner].float().mean() > 0.95  # but where two of them meet turned
        assert mask[0, 0] in (1, 255)
        seen.append(len(mask[shown].unique()))
    assert max(seen) >= 3


def test_what_is_off_draws_nothing_and_needs_no_other_image():
    pixels, objects = painted(0, MAIN, 60, 60)
    results = []
    for arguments in ((), (lambda: pytest.fail("another image is read"),)):
        with seeded(1):
            results.append(train_transform(DetectAugmentation(**SIZES))(pixels, objects, *arguments)[0])
    assert torch.equal(*results)


def test_images_of_a_single_row_are_combined_too():
    example = painted(0, [(3, 0, 9, 1)], 1, 40)
    transform = train_transform(DetectAugmentation(**SIZES | {"short": (40,), "longest": 40}, mosaic=1.0, copy_paste=1.0))
    for seed in range(4):
        with seeded(seed):
            image, found = transform(*example, lambda: example)
        assert image.shape == (3, 1, 40)
        assert found.masks.shape == (len(found), 1, 40)
