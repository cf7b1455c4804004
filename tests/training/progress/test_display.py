import re
from io import StringIO

from rich.console import Console

from convnext.training.progress.display import Display
from convnext.training.progress.notebook import NotebookDisplay, open_display


def shown(monkeypatch, terminal):
    """What a run of two steps and an evaluation shows."""
    monkeypatch.setattr(Display, "LINE_EVERY", 0.0)
    text = StringIO()
    display = Display(Console(file=text, force_terminal=terminal, width=100))
    display.begin(2, 0)
    with display:
        display.step(1, 1, images_per_second=31.4, loss=1.5, lr=0.1)
        display.evaluating(40, 100)
        display.bar.refresh()
        display.evaluated(1, "mIoU 50.00 %", miou=50.0)
        display.step(2, 2, images_per_second=31.4, loss=1.0)
        display.bar.refresh()
    return text.getvalue()


def test_lines_name_the_numbers_and_evaluations_move(monkeypatch):
    assert re.sub(r"elapsed 0:\d\d", "elapsed 0:00", shown(monkeypatch, False)).splitlines() == [
        "epoch 1 · step 1 of 2 · loss 1.500 · 31 images/s · elapsed 0:00",
        "validation: 40 of 100 images · elapsed 0:00",
        "epoch 1 · validation: mIoU 50.00 %",
        "epoch 2 · step 2 of 2 · loss 1.000 · mIoU 50.00 % · 31 images/s · elapsed 0:00 · left 0:00",
    ]


def test_a_terminal_shows_the_same(monkeypatch):
    text = shown(monkeypatch, True)
    for part in ("epoch 1", "validation: 40 of 100 images", r"elapsed 0:\d\d · left 0:00", "2/2", "mIoU 50.00"):
        assert re.search(part, text), part


def test_a_line_of_a_narrow_terminal_is_not_broken():
    text = StringIO()
    display = Display(Console(file=text, force_terminal=True, width=80))
    display.begin(4000, 0)
    with display:
        for step in (3998, 3999):
            display.step(step, 100, images_per_second=1234.5, loss=12.345)
            display.bar.refresh()
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue()).strip().splitlines()[-1]
    assert re.fullmatch(r"epoch 100 \S+ 3999/4000 loss 12.345 elapsed 0:00 · left 0:00", last)  # no room for images/s


def test_curves_are_for_notebooks():
    console = Console(file=StringIO(), force_jupyter=False)
    assert type(open_display(console, "run", "top1", list)) is Display
    assert type(open_display(Console(file=StringIO(), force_jupyter=True, quiet=True), "run", "top1", list)) is Display
    assert isinstance(open_display(Console(file=StringIO(), force_jupyter=True), "run", "top1", list), NotebookDisplay)
