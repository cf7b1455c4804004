"""Commands that count and measure: eval, cost, bench, table."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from convnext.cli.common import (
    MODEL,
    Calibration,
    Device,
    Json,
    MaxPixels,
    Optimize,
    Size,
    Tile,
    TileOverlap,
    Tta,
    Weights,
    add_command,
    check_model,
    counter,
    image_size,
    importing,
    optimized,
    print_json,
    size_text,
)
from convnext.errors import UsageError
from convnext.text import printable, printable_lines

if TYPE_CHECKING:
    from convnext.evaluate import Evaluated
    from convnext.models.network import Network


_DATA = (
    "A folder with one folder per class, shards, digits:val; imagenet-real:FOLDER, -v2, -a, -r, -sketch, -c or -c-bar; "
    "by default a run's own."
)


@add_command(
    "Measure", "convnext eval runs/mine --data more-photos", "convnext eval runs/mine --data more-photos --report page.html", name="eval"
)
def evaluate(
    model: Annotated[str, typer.Argument(help=MODEL)],
    data: Annotated[str | None, typer.Option(help=_DATA)] = None,
    weights: Weights = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images at a time; by default the task's.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 2,
    multi_scale: Annotated[bool, typer.Option("--multi-scale", help="Segmenters: at six scales, with mirror images.")] = False,
    tta: Tta = None,
    tile: Tile = None,
    tile_overlap: TileOverlap = None,
    max_corrupt: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Largest fraction of unreadable images, and of invalid objects; by default the run's, or 0.01."),
    ] = None,
    size: Size = None,
    max_pixels: MaxPixels = None,
    output: Annotated[
        Path | None, typer.Option(help="Detectors: also write all detections as COCO results, with the data's ids, to a .json file.")
    ] = None,
    report_page: Annotated[Path | None, typer.Option("--report", help="Also write a page that opens offline.")] = None,
    optimize: Optimize = None,
    calibration: Calibration = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure a network on labelled images."""
    check_model(model)
    pixels = image_size(size)
    with importing():
        from convnext import tasks
        from convnext.distributed import is_main, on_all, process_group
        from convnext.evaluate import evaluate_loaded
        from convnext.export.load import load
        from convnext.inference.api import check_tile
        from convnext.inference.predictor import Predictor
        from convnext.models.load import at_size

    check_tile(tile, tile_overlap)
    _check_outputs(report_page, output)
    with process_group(device) as target:
        loaded = on_all(lambda: load(model, weights))
        task, progress = tasks.get(loaded.task), counter("evaluated")
        if output is not None and "coco" not in task.formats:
            raise UsageError(f"--output writes COCO results, which are of detectors, and the task of {model} is {task.name}")
        if pixels is not None:
            loaded = at_size(loaded, pixels, weights or model, target)
        if multi_scale:
            loaded.preprocessing = task.multi_scale(loaded.preprocessing)
        if tta is not None:
            loaded.preprocessing = task.mirrored(loaded.preprocessing)
        if tile is not None:
            loaded.preprocessing = task.tiled(loaded.preprocessing, tile, tile_overlap)
        how = (loaded, data, batch_size, workers, max_corrupt, target, progress)
        found = evaluate_loaded(*how, with_results=output is not None and optimize is None, max_pixels=max_pixels)
        if optimize is not None:
            print(f"without --optimize: {found.summary_line()}", file=sys.stderr)
            loaded.model = cast("Network", optimized(Predictor(loaded, target), optimize, calibration).model)
            found = evaluate_loaded(*how, with_results=output is not None, max_pixels=max_pixels)
            print(f"{_named(optimize)}: {found.summary_line()}", file=sys.stderr)
        if is_main():
            _report(found, f"{model} on {data or 'its own validation images'}", output, report_page, as_json)


def _check_outputs(report_page: Path | None, output: Path | None) -> None:
    """Raise UsageError if a file could not be written after the evaluation."""
    if report_page is not None and not report_page.absolute().parent.is_dir():
        raise UsageError(f"--report {report_page}: there is no folder {report_page.parent}")
    if output is not None and (output.suffix != ".json" or not output.absolute().parent.is_dir()):
        raise UsageError(f"--output {output}: name a .json file in an existing folder")


def _report(found: "Evaluated", title: str, output: Path | None, report_page: Path | None, as_json: bool) -> None:
    """Print an evaluation, and write the files that were asked for."""
    from convnext.inference.coco_results import write_results
    from convnext.report.page import write_page

    print(printable(found.data()), file=sys.stderr)
    for reason in found.result.corrupt:
        print(f"skipped: {printable(reason)}", file=sys.stderr)
    if output is not None:
        write_results(output, found.result.results or ())
    if report_page is not None:
        write_page(report_page, lambda: found.to_page(title), lambda line: print(printable(line), file=sys.stderr))
    if as_json:
        print_json(found.to_json())
    else:
        print(printable_lines(found.to_text()))


@add_command("Measure", "convnext cost convnext_tiny", "convnext cost mask_rcnn_convnext_tiny --json")
def cost(
    name: Annotated[str, typer.Argument(help="A model's name.")],
    size: Annotated[int | None, typer.Option(min=1, help="Pixels a side; by default as in the paper's tables.")] = None,
    as_json: Json = False,
) -> None:
    """Count parameters and multiply-adds.

    Papers print multiply-adds as FLOPs.
    """
    from dataclasses import asdict

    from convnext.models.registry import find

    find(name)  # refuses an unknown name before PyTorch is loaded
    from convnext.models.load import cost_of

    found = cost_of(name, size)
    if as_json:
        print_json({"name": name} | asdict(found))
    else:
        print(f"{name} at {size_text(found.image_size)}: {found.parameters / 1e6:.2f} M parameters, {found.macs / 1e9:.2f} G multiply-adds")


@add_command("Measure", "convnext bench convnext_tiny resnet50 --batch-size 1", "convnext bench convnext_tiny --against timm --train")
def bench(
    names: Annotated[list[str], typer.Argument(help="Names of classifiers (`convnext models`), or exported files.")],
    against: Annotated[str | None, typer.Option(help="Compare each with the same network of timm, torchvision or transformers.")] = None,
    train: Annotated[bool, typer.Option("--train", help="Also time training.")] = False,
    batch_size: Annotated[list[int] | None, typer.Option(min=1, help="Images at a time; may be given several times.")] = None,
    size: Annotated[str, typer.Option(help="Pixels a side, or HEIGHTxWIDTH.")] = "224",
    dtype: Annotated[str, typer.Option(help="float32, tf32 (CUDA), bf16 or fp16.")] = "float32",
    channels_last: Annotated[bool, typer.Option(help="Memory layout of images and weights.")] = True,
    compiled: Annotated[bool, typer.Option("--compile", help="Through torch.compile.")] = False,
    rounds: Annotated[int, typer.Option(min=3, help="Turns of each network.")] = 7,
    seconds: Annotated[float, typer.Option(min=0, help="Time for each network and batch size, all rounds together.")] = 3.0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Time networks in turns: images per second, memory, ratios."""
    for name in names:
        check_model(name)
    from convnext.distributed import pick_device
    from convnext.paper import speed
    from convnext.paper.bench import Setting
    from convnext.paper.bench import bench as measured

    setting, batch_sizes = Setting(image_size(size) or 224, dtype, channels_last, compiled, rounds, seconds), batch_size or [1, 32]
    report = measured(names, setting, pick_device(device), batch_sizes=batch_sizes, train=train, against=against, progress=counter("timed"))
    if as_json:
        print_json(report.to_json())
    else:
        print(speed.plain(report))


@add_command("Measure", "convnext table imagenet", "convnext table imagenet --model 'convnext_*' --plot accuracy.png")
def table(
    name: Annotated[str, typer.Argument(help="imagenet, coco, ade20k, roadmap, robustness or throughput.")],
    model: Annotated[str, typer.Option(help="Only rows of this pattern, for instance 'ConvNeXt-*' or 'swin_*'.")] = "*",
    speed: Annotated[bool, typer.Option("--speed", help="Time every network on this machine.")] = False,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images at a time in timing; by default 64 on CUDA, else 1.")] = None,
    seconds: Annotated[float, typer.Option(min=0, help="Time for each network in timing.")] = 3.0,
    data: Annotated[str | None, typer.Option(help="Images to evaluate published weights on, as for `convnext eval`.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Plot accuracy over multiply-adds into this .png or .svg file.")] = None,
    device: Device = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: Json = False,
) -> None:
    """Print a table of the paper beside what is measured here.

    Parameters and multiply-adds are counted; --speed and --data measure the rest.
    """
    from convnext.paper.published import read

    read(name)  # refuses an unknown table before PyTorch is loaded
    from convnext.distributed import pick_device
    from convnext.paper import listing
    from convnext.paper.table import table as measured

    if as_markdown + as_csv + as_json > 1:
        raise UsageError("--markdown, --csv and --json exclude each other: choose one")
    if plot is not None:
        listing.check_plot(name, plot)
    target, progress = pick_device(device), counter("rows")
    found = measured(name, target, pattern=model, speed=speed, batch_size=batch_size, seconds=seconds, data=data, progress=progress)
    if plot is not None:
        listing.plot(name, found.rows, plot)
        print(plot, file=sys.stderr)
    if as_json:
        print_json(found.to_json())
    elif as_csv:
        for line in found.measured_on():
            print(line, file=sys.stderr)
        print(listing.comma_separated(found.rows))
    elif as_markdown:
        print(listing.markdown(name, found.rows, found.measured_on()))
    else:
        print(listing.plain(name, found.rows, found.measured_on()))


def _named(precision: str) -> str:
    from convnext.models.optimize.optimize import by_default

    return f"auto ({by_default()})" if precision == "auto" else precision
