"""`convnext demo`: the whole way on embedded data: train, evaluate, predict, report."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from convnext import tasks
from convnext.data.deep import shown
from convnext.data.sources.open import open_source
from convnext.inference.predictor import load
from convnext.report import plots
from convnext.training.run import Result, train

RECIPES = {"classify": "digits", "detect": "detect_digits", "segment": "segment_digits"}
_SHOWN, _SCENES = 12, 4


def demo(task: str = "classify", output: Path | None = None, device: str | None = None) -> Result:
    """Train a small network on the handwritten digits, and predict some that it never saw.

    Args:
        task: "classify" digits, or "detect" or "segment" them in scenes composed of them.
        output: the run folder; by default runs/demo, or the next of runs/demo-2, runs/demo-3 … that is free.

    Leaves predictions.png beside the run's other files.
    """
    output = output or _free_folder(Path("runs/demo" if task == "classify" else f"runs/demo-{task}"))
    console = Console(stderr=True)
    result = train(RECIPES[task], output=output, device=device, console=console)
    if task == "classify":
        _predict_digits(output, device, console)
    else:
        _draw_scenes(task, output)
    return result


def _predict_digits(output: Path, device: str | None, console: Console) -> None:
    source, predictor = open_source("digits:val"), load(output, device=device)
    chosen = np.random.RandomState(0).choice(len(source), _SHOWN, replace=False)
    images, labels = [shown(source.read(i)) for i in chosen], [source.classes[source.label(i)] for i in chosen]
    tops = [prediction.top()[0] for prediction in predictor(images)]
    right = [top[0] == label for top, label in zip(tops, labels, strict=True)]
    plots.predictions(images, [f"{name} ({p:.0%})" for name, p in tops], right, output / "predictions.png")
    console.print(f"predicted {' '.join(name for name, _ in tops)}\nwritten   {' '.join(labels)}", highlight=False)


def _draw_scenes(name: str, output: Path) -> None:
    task, details = tasks.get(name), json.loads((output / "evaluation.json").read_text("utf-8"))
    data = task.open_labelled("scenes:val", None, len(details["classes"]) if name == "detect" else len(details["iou"]))
    sheets = [sheet for sheet, _ in task.examples(details, data.classes, data)][:_SCENES]
    whole = Image.new("RGB", (max(sheet.width for sheet in sheets), sum(sheet.height + 8 for sheet in sheets)), "white")
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height + 8
    whole.save(output / "predictions.png")


def _free_folder(wanted: Path) -> Path:
    number, path = 1, wanted
    while path.exists():
        number += 1
        path = wanted.with_name(f"{wanted.name}-{number}")
    return path
