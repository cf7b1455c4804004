"""`convnext demo`: the whole way on embedded data: train, evaluate, predict, report."""

from pathlib import Path

import numpy as np
from rich.console import Console

from convnext.data.source import open_source
from convnext.deploy.predict import load
from convnext.report import plots
from convnext.training.run import Result, train

_SHOWN = 12


def demo(output: Path | None = None, device: str | None = None) -> Result:
    """Train a small ConvNeXt on the handwritten digits, and predict some that it never saw.

    Args:
        output: the run folder; by default runs/demo, or the next of runs/demo-2, runs/demo-3 … that is free.

    Leaves predictions.png beside the run's other files.
    """
    output = output or _free_folder(Path("runs/demo"))
    console = Console(stderr=True)
    result = train("digits", output=output, device=device, console=console)
    source, predictor = open_source("digits:val"), load(output, device=device)
    chosen = np.random.RandomState(0).choice(len(source), _SHOWN, replace=False)
    pictures, labels = [source.read(i) for i in chosen], [source.classes[source.label(i)] for i in chosen]
    tops = [prediction.top()[0] for prediction in predictor(pictures)]
    right = [top[0] == label for top, label in zip(tops, labels, strict=True)]
    plots.predictions(pictures, [f"{name} ({p:.0%})" for name, p in tops], right, output / "predictions.png")
    console.print(f"predicted {' '.join(name for name, _ in tops)}\nwritten   {' '.join(labels)}", highlight=False)
    return result


def _free_folder(wanted: Path) -> Path:
    number, path = 1, wanted
    while path.exists():
        number += 1
        path = wanted.with_name(f"{wanted.name}-{number}")
    return path
