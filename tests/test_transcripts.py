"""Which differences between documented and real output are allowed, and which are not."""

import pytest
from transcripts import check, first_missing

SHOWN = """\
train: 245 images, 2 classes: ants 124, bees 121
convnext_tiny, 28.59 M parameters, on cpu: 194 images of 2 classes
epoch 1 · validation: top-1 accuracy 78.43 % (40 of 51)
epoch 2 · validation: top-1 accuracy 94.12 % (48 of 51)
done: top-1 accuracy 94.12 % (48 of 51), best 96.08 %; report: runs/mine/report.html""".splitlines()
PRINTED = """\
train: 1 image, 3 classes: oak 1, elm 0, ash 0
a warning that no page shows
efficientnet_lite0, 3.37 M parameters, on cpu: 1 image of 3 classes
epoch 1 · step 1 of 1 · 3.1 images/s
epoch 1 · validation: top-1 accuracy 0.00 % (0 of 1)
done: top-1 accuracy 0.00 % (0 of 1), best 0.00 %; report: runs/mine/report.html
"""


def test_values_networks_and_epochs_may_differ():
    check("page", SHOWN, PRINTED)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("best", "highest"),
        ("on cpu", "on a cpu"),
        ("runs/mine", "runs/other"),
        ("%", "percent"),
        ("accuracy", "error"),
        ("train:", "data:"),
    ],
)
def test_other_words_are_reported(old, new):
    changed = [line.replace(old, new) for line in SHOWN]
    assert first_missing(changed, PRINTED) == next(line for line in changed if new in line)


def test_the_order_counts():
    assert first_missing(SHOWN[::-1], PRINTED) is not None
    assert first_missing(["a", "b", "a"], "a\nb\n") == "a"


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("…", ""),
        ("count 200  box_ap 71.69  …  best_threshold 0.67", "count 3  box_ap –  box_ap50 0.1  best_threshold 0.67"),
        ("classes: 0, 1, …, 9", "classes: 1, 2"),
        ("photo.jpg  ants 53.9%  bees 46.1%", "photo.jpg  bee 100.0%"),
        ("fruit/0.jpg  6 99.4%  2 99.1%", "fruit/0.jpg  nothing"),
        ("ants       70      97.1         95.8", "bee  12  –  –"),
        ("in 50 s, 0:04:38 left", "in 1.5 s, 12:00 left"),
        ("2 images were skipped", "1 image was skipped"),
    ],
)
def test_what_stands_for_what(shown, printed):
    check("page", [shown], printed)


@pytest.mark.parametrize(("shown", "printed"), [("… recall 3", "precision 3"), ("photo.jpg  ants 53.9%", "runs/photo.jpg  ants 53.9%")])
def test_what_does_not(shown, printed):
    with pytest.raises(AssertionError, match="Text must agree"):
        check("page", [shown], printed)
