"""What the commands share: the application, options, checks that need no PyTorch, progress."""

import atexit
import gc
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from convnext.cli.help import CommandWithExamples, GroupedCommands
from convnext.errors import ConvnextError, UsageError, nearest_path

if TYPE_CHECKING:
    from convnext.inference.predictor import Predictor
    from convnext.tasks.base import PredictionT

app = typer.Typer(
    name="convnext",
    cls=GroupedCommands,
    help="Train, compare, adapt and deploy the ConvNet of the 2020s.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_CommandFunction = TypeVar("_CommandFunction", bound=Callable[..., object])


def add_command(
    group: str | None, *examples: str, name: str | None = None, of: typer.Typer = app
) -> Callable[[_CommandFunction], _CommandFunction]:
    """Return a decorator that adds a function to the command line.

    Args:
        group: the heading under which `convnext --help` lists it, one of `help.GROUPS`; None for a command of a command.
        examples: at least two lines of at most 76 characters, which the command's own help shows.
        name: by default the function's.
        of: the command that it belongs to, as `data` of `data check`.
    """
    return of.command(name, cls=CommandWithExamples, rich_help_panel=group, epilog="\n".join(examples))


WITH_PARTS = ("digits", "cifar10", "cifar100")  # names of data that have a training and a validation part
MODEL = "A run folder, a weight file, an exported file, hf://owner/name, or a model's name with --weights."
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value and nothing else.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; by default the fastest there is.")]
Weights = Annotated[str | None, typer.Option(help="Published weights of a model's name: a tag, a file or an address.")]

MaxPixels = Annotated[
    int | None, typer.Option(min=1, help="The largest image to open, width x height; by default 89478485, against decompression bombs.")
]
Optimize = Annotated[
    str | None, typer.Option(help="On CPUs, through convnext.optimize: auto (the fastest here), bf16, float32, int8, openvino, inductor.")
]
Tta = Annotated[Literal["flip"] | None, typer.Option(help="Average probabilities over each image and its mirror image; not of detectors.")]
Size = Annotated[str | None, typer.Option(help="Classifiers: pixels a side of their images, or HEIGHTxWIDTH; by default the weights' own.")]
Tile = Annotated[int | None, typer.Option(help="Detectors: also cut images into tiles of so many pixels a side, for small objects.")]
TileOverlap = Annotated[float | None, typer.Option(help="Of --tile: the fraction of its side that neighbours share; by default 0.2.")]
Calibration = Annotated[list[str] | None, typer.Option(help="For --optimize int8: images or folders of them, like those to be predicted.")]


@contextmanager
def importing() -> Iterator[None]:
    """Within, import what a command needs, PyTorch for instance, without searches for garbage: they find none and take a fifth of the time.

    In a fresh process no later search goes through these modules either, which stay to its end. The last one, when Python ends, would
    take a third of a second. Under torchrun it stays: it ends the threads of process groups, without which the process would abort.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        if not gc.get_freeze_count():
            gc.freeze()
            if "WORLD_SIZE" not in os.environ:
                atexit.register(gc.freeze)


def check_model(model: str) -> None:
    """Raise UsageError or ConvnextError for a MODEL that is neither a path, an address nor a name. Loads no PyTorch.

    After a path, `#` may name an entry of a checkpoint.
    """
    file = model.partition("#")[0]
    if "://" in model or Path(model).expanduser().exists() or Path(file).expanduser().is_file():
        return
    path = Path(file).expanduser()
    if path.suffix in (".safetensors", ".pth", ".pt", ".bin"):
        raise ConvnextError(f"no weight file {model}{nearest_path(path)}")
    from convnext.models.registry import find

    try:
        find(model)
    except UsageError as error:
        hint = nearest_path(path) if "/" in model or path.suffix else ""  # a mistyped network is near to other networks, not to files
        raise UsageError(f"no file or run folder {model}{hint or f', and {error}'}") from error


def check_images(sources: Sequence[str]) -> None:
    """Raise UsageError for a SOURCE that is plainly a file or folder, and missing. Loads no PyTorch."""
    from convnext.data.archives.names import archive_in

    for source in sources:
        if not re.search(r"^-$|[*?{\[:]|\.tar$", source) and not Path(source).exists() and archive_in(source) is None:
            raise UsageError(f"no image or folder {source}{nearest_path(Path(source))}")


def check_data(where: str) -> None:
    """Raise UsageError for data that is plainly a folder or table, and missing. Loads no PyTorch."""
    from convnext.training.folder.run_paths import is_missing, missing_data

    if where not in WITH_PARTS and is_missing(where):
        raise UsageError(missing_data(where, where))


def optimized(predictor: "Predictor[PredictionT]", precision: str | None, calibration: list[str] | None) -> "Predictor[PredictionT]":
    """Return the predictor as --optimize and --calibration say."""
    if calibration and precision != "int8":
        raise UsageError("--calibration is for --optimize int8")
    if precision is None:
        return predictor
    if precision in ("openvino", "inductor"):
        return predictor.optimize(backend=precision)
    from convnext.inference.inputs import find_images

    return predictor.optimize(precision, list(find_images(calibration or [])))


def image_size(text: str | None) -> int | tuple[int, int] | None:
    """Return the size that an option names: "224", or "192x256" as (height, width). Raises UsageError for other text."""
    if text is None:
        return None
    numbers = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text)
    if numbers is None:
        raise UsageError(f"--size {text!r} is no size: give pixels a side, for instance 224, or HEIGHTxWIDTH, for instance 192x256")
    return int(numbers[1]) if numbers[2] in (None, numbers[1]) else (int(numbers[1]), int(numbers[2]))


def size_text(pixels: int | tuple[int, int]) -> str:
    """Return a size as the paper's tables print it: pixels a side, or WIDTHxHEIGHT."""
    return str(pixels) if isinstance(pixels, int) else f"{pixels[1]}x{pixels[0]}"


def print_json(value: object) -> None:
    """Print a value as JSON. JSON has no NaN and no infinity, so null replaces them."""
    print(json.dumps(_finite(value), allow_nan=False))


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, (list, tuple)) else value


def recipe_keys(incomplete: str) -> list[tuple[str, str]]:
    """Return completions of a recipe's keys, each with its description."""
    from convnext.recipe import keys

    return [(f"{key}=", description) for key, description in keys().items() if key.startswith(incomplete)]


def counter(what: str) -> Callable[[int, int], None]:
    """Return a callback that shows a count on a terminal's standard error, and nothing elsewhere."""

    def show(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{what} {done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show


@contextmanager
def bar(what: str, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback that shows on a terminal's standard error the count, the total and the time left; nothing elsewhere."""
    if not (shown and sys.stderr.isatty()):
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(bar_width=None), MofNCompleteColumn())
    times = (TextColumn("elapsed"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, *times, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=None)

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield show
