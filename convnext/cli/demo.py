"""`convnext demo`: train, evaluate, predict and report on embedded data."""

from pathlib import Path

from rich.console import Console

from convnext import tasks
from convnext.data import deep
from convnext.errors import UsageError
from convnext.recipe import load_recipe
from convnext.tasks.base import AnyTask
from convnext.training.result import TrainResult
from convnext.training.run import train


def demo(task: str = "classify", output: Path | None = None, device: str | None = None, resume: bool = False) -> TrainResult:
    """Train a small network on handwritten digits, and predict some that it never saw.

    Args:
        task: any that has a recipe of its own for it (`Task.demo_recipe`): "classify" digits, or "detect" them in scenes, for instance.
        output: the run folder; by default runs/demo, or the next of runs/demo-2, runs/demo-3 … that is free.
        device: "cpu", "cuda", "cuda:1", "mps"; by default the fastest there is.
        resume: continue the run in the folder, by default in the last one that exists.

    Leaves predictions.png, and example.png to predict, beside the run's other files. Raises UsageError for an unknown task, and for
    one without such a recipe.
    """
    is_default = task == tasks.names()[0]
    chosen = tasks.get(task)
    if chosen.demo_recipe is None:
        raise UsageError(f"the task {task!r} has no demo: it names no demo_recipe")
    output = output or _folder(Path("runs/demo" if is_default else f"runs/demo-{task}"), resume)
    console = Console(stderr=True)
    result = train(chosen.demo_recipe, output=output, resume=resume, device=device, console=console)
    for line in chosen.draw_demo(output):
        console.print(line, highlight=False)
    write_example(chosen, chosen.demo_recipe, output / "example.png")
    return result


def write_example(task: AnyTask, recipe: str, path: Path) -> None:
    """Write the first validation image of a recipe as a PNG, for the commands that `Task.demo_next` names."""
    source = task.open(load_recipe(recipe)).val.source
    deep.shown(source.read(0)).save(path)


def _folder(first: Path, resume: bool) -> Path:
    """Return the first free folder of runs/demo, runs/demo-2 …; to resume, the one before it."""
    number, last, path = 1, first, first
    while path.exists():
        number += 1
        last, path = path, first.with_name(f"{first.name}-{number}")
    return last if resume else path
