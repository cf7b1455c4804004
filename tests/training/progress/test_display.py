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
    assert shown(monkeypatch, False).splitlines() == [
        "epoch 1 · step 1 of 2 · 31 images/s · loss 1.500 · elapsed 0:00",
        "validation: 40 of 100 images · elapsed 0:00",
        "epoch 1 · validation: mIoU 50.00 %",
        "epoch 2 · step 2 of 2 · 31 images/s · loss 1.000 · mIoU 50.00 % · elapsed 0:00 · left 0:00",
    ]


def test_a_terminal_shows_the_same(monkeypatch):
    text = shown(monkeypatch, True)
    for part in ("epoch 1", "validation: 40 of 100 images", "elapsed 0:00 · left 0:00", "2/2", "mIoU 50.00"):
        assert part in text, part


def test_curves_are_for_notebooks():
    console = Console(file=StringIO(), force_jupyter=False)
    assert type(open_display(console, "run", "top1", list)) is Display
    assert type(open_display(Console(file=StringIO(), force_jupyter=True, quiet=True), "run", "top1", list)) is Display
    assert isinstance(open_display(Console(file=StringIO(), force_jupyter=True), "run", "top1", list), NotebookDisplay)
