"""`convnext demo`: train, evaluate, predict and report on embedded data."""

from pathlib import Path

from rich.console import Console

from convnext import tasks
from convnext.errors import UsageError
from convnext.training.result import TrainResult
from convnext.training.run import train


def demo(task: str = "classify", output: Path | None = None, device: str | None = None) -> TrainResult:
    """Train a small network on handwritten digits, and predict some that it never saw.

    Args:
        task: any that has a recipe of its own for it (`Task.demo_recipe`): "classify" digits, or "detect" them in scenes, for instance.
        output: the run folder; by default runs/demo, or the next of runs/demo-2, runs/demo-3 … that is free.

    Leaves predictions.png beside the run's other files. Raises UsageError for an unknown task, and for one without such a recipe.
    """
    is_default = task == tasks.names()[0]
    chosen = tasks.get(task)
    if chosen.demo_recipe is None:
        raise UsageError(f"the task {task!r} has no demo: it names no demo_recipe")
    output = output or _free_folder(Path("runs/demo" if is_default else f"runs/demo-{task}"))
    console = Console(stderr=True)
    result = train(chosen.demo_recipe, output=output, device=device, console=console)
    for line in chosen.draw_demo(output):
        console.print(line, highlight=False)
    return result


def _free_folder(first: Path) -> Path:
    number, path = 1, first
    while path.exists():
        number += 1
        path = first.with_name(f"{first.name}-{number}")
    return path
