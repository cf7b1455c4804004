"""What the commands share: the application, options, a counter."""

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from convnext.errors import UsageError

app = typer.Typer(
    name="convnext",
    help="Train, compare, adapt and ship the ConvNet of the 2020s.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

MODEL = "A run folder, a weight file, an exported file, hf://owner/name, or a model's name with --weights."
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value and nothing else.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; by default the fastest there is.")]
Weights = Annotated[str | None, typer.Option(help="Published weights of a model's name: a tag, a file or an address.")]


Optimize = Annotated[str | None, typer.Option(help="On CPUs, through convnext.optimize: auto (the fastest here), bf16, float32, int8.")]
Calibration = Annotated[list[str] | None, typer.Option(help="For --optimize int8: images or folders of them, like those to come.")]


def optimized(predictor: Any, precision: str | None, calibration: list[str] | None) -> Any:
    """The predictor as --optimize and --calibration say."""
    if calibration and precision != "int8":
        raise UsageError("--calibration is for --optimize int8")
    if precision is None:
        return predictor
    from convnext.inference.inputs import find_images

    return predictor.optimize(precision, list(find_images(calibration or [])))


def print_json(value: Any) -> None:
    """Print a value as JSON, which has no NaN and no infinity: null stands for them."""
    print(json.dumps(_finite(value), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, (list, tuple)) else value


def recipe_keys(incomplete: str) -> list[tuple[str, str]]:
    """Completions of a recipe's keys."""
    from convnext.recipe import keys

    return [(f"{key}=", description) for key, description in keys().items() if key.startswith(incomplete)]


def counter(what: str) -> Any:
    """A callback that shows a count on a terminal's standard error, and is silent elsewhere."""

    def show(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{what} {done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show


@contextmanager
def bar(what: str, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """A callback that shows on a terminal's standard error what is done, in all, and the time left; silent elsewhere."""
    if not (shown and sys.stderr.isatty()):
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(bar_width=None), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=None)

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield show
