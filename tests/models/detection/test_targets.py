import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models.detection.detectors import scene

from convnext.errors import ConvnextError
from convnext.models.detection.targets import BACKGROUND, NEITHER, Matcher, Sampler, prepare


def slow_iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union else 0.0


def slow_match(matcher, candidates, objects):
    """The rule as Ren et al. (2015, section 3.1.2) and mmdetection's documentation tell it, pair by pair."""
    table = [[slow_iou(o, c) for c in candidates] for o in objects]
    matched = []
    for c in range(len(candidates)):
        overlaps = [row[c] for row in table]
        best = max(overlaps, default=0.0)
        positive = bool(objects) and best >= matcher.positive
        matched.append(overlaps.index(best) if positive else BACKGROUND if best < matcher.negative else NEITHER)
    if matcher.low_quality is not None:
        for o, row in enumerate(table):
            if row and max(row) >= matcher.low_quality:
                matched = [o if overlap == max(row) else m for overlap, m in zip(row, matched, strict=True)]
    return matched


# Corners on a coarse grid: ties, equal boxes and IoUs at a threshold are common, and exact in float32.
span = st.tuples(st.integers(0, 6), st.integers(0, 6)).map(sorted)
box = st.tuples(span, span).map(lambda b: [8.0 * b[0][0], 8.0 * b[1][0], 8.0 * b[0][1], 8.0 * b[1][1]])
matcher = st.sampled_from([Matcher(0.7, 0.3, 0.3), Matcher(0.5, 0.5), Matcher(0.5, 0.5, 0.5), Matcher(0.75, 0.25)])


@settings(max_examples=300)
@given(matcher=matcher, candidates=st.lists(box, max_size=12), objects=st.lists(box, max_size=5))
def test_matcher_agrees_with_a_slow_one(matcher, candidates, objects):
    found = matcher(torch.tensor(candidates).reshape(-1, 4), torch.tensor(objects).reshape(-1, 4))
    assert found.tolist() == slow_match(matcher, candidates, objects)


def test_low_quality_matches_overrule_better_ones():
    """A candidate that overlaps one object more is another's best: the other has it, for no candidate serves it better."""
    objects = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 16.0]])
    candidates = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0]])
    assert Matcher(0.7, 0.3)(candidates, objects).tolist() == [0, 0]
    assert Matcher(0.7, 0.3, 0.3)(candidates, objects).tolist() == [1, 0]


@given(matched=st.lists(st.integers(-2, 3), max_size=60), count=st.integers(1, 40), fraction=st.sampled_from([0.25, 0.5]))
def test_sampler_takes_what_it_says(matched, count, fraction):
    matched = torch.tensor(matched, dtype=torch.long)
    positive, negative = Sampler(count, fraction)(matched)
    assert len(positive) == min((matched >= 0).sum(), int(count * fraction))
    assert len(negative) == min((matched == BACKGROUND).sum(), count - len(positive))
    assert (matched[positive] >= 0).all()
    assert (matched[negative] == BACKGROUND).all()
    for indices in (positive, negative):
        assert (indices.diff() > 0).all()


def test_sampler_draws_evenly_and_by_the_global_seed():
    sampler, matched = Sampler(20, 0.5), torch.arange(40)
    torch.manual_seed(3)
    first = sampler(matched)[0]
    torch.manual_seed(3)
    assert torch.equal(sampler(matched)[0], first)
    counts = torch.stack([torch.bincount(sampler(matched)[0], minlength=40) for _ in range(2000)]).sum(0)
    assert ((counts - 500).abs() < 120).all()  # 6 standard deviations


def batch(**changed):
    image, target = scene()
    return [scene()[1], target | changed], [image.shape[1:]] * 2


def test_crowds_are_no_objects():
    (targets, sizes) = batch(iscrowd=torch.tensor([True, False]))
    alone, crowded = prepare(targets, sizes, (64, 96), 3, with_masks=True)
    assert len(alone.boxes) == 2
    assert torch.equal(crowded.boxes, targets[1]["boxes"][1:])
    assert crowded.labels.tolist() == [2]
    assert crowded.masks.shape == (1, 64, 96)


def test_masks_are_padded_with_the_batch():
    targets, sizes = batch()
    assert prepare(targets, sizes, (96, 128), 3, with_masks=True)[0].masks.shape == (2, 96, 128)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"boxes": torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, NAN, 3.0, 4.0]])}, r"box 1 is \[1.0, nan, 3.0, 4.0\]: boxes must be finite"),
        ({"boxes": torch.tensor([[1.0, 2.0, INF, 4.0], [1.0, 2.0, 3.0, 4.0]])}, "box 0 is"),
        ({"boxes": torch.tensor([[1.0, 2.0, 1.0, 4.0], [1.0, 2.0, 3.0, 4.0]])}, "x1 < x2"),
        ({"boxes": torch.ones(2, 5)}, r"boxes are \(2, 5\), not \(2, 4\)"),
        ({"labels": torch.tensor([0, 3])}, "labels run from 0 to 3, the network has classes 0 to 2"),
        ({"labels": torch.tensor([-1, 0])}, "labels run from -1"),
        ({"labels": torch.tensor([0.0, 1.0])}, "labels are torch.float32: masks must be uint8 or bool, labels int64"),
        ({"masks": torch.zeros(2, 64, 95, dtype=torch.uint8)}, r"masks are \(2, 64, 95\), not \(2, 64, 96\)"),
        ({"masks": torch.zeros(2, 64, 96)}, "masks are torch.float32"),
        ({"iscrowd": torch.tensor([True])}, r"iscrowd are \(1,\)"),
    ],
)
def test_bad_targets_are_reported_with_their_position_in_the_batch(changed, message):
    with pytest.raises(ConvnextError, match=f"target of image 1 of the batch: .*{message}"):
        prepare(*batch(**changed), (64, 96), 3, with_masks=True)


def test_incomplete_targets_are_reported():
    targets, sizes = batch()
    with pytest.raises(ConvnextError, match="2 images have 1 target: give"):
        prepare(targets[:1], sizes, (64, 96), 3, with_masks=True)
    del targets[0]["masks"]
    with pytest.raises(ConvnextError, match="target of image 0 of the batch: masks missing"):
        prepare(targets, sizes, (64, 96), 3, with_masks=True)
