"""Commands that count and measure: eval, models, cost, bench, table."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from convnext.cli.common import MODEL, Calibration, Device, Json, Optimize, Weights, app, counter, optimized, print_json
from convnext.errors import UsageError, nearest
from convnext.text import printable, printable_lines


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help=MODEL)],
    data: Annotated[
        str | None,
        typer.Option(
            help="A folder with one folder a class, shards, digits:val; imagenet-real:FOLDER, -v2, -a, -r, -sketch, -c or -c-bar; "
            "by default a run's own."
        ),
    ] = None,
    weights: Weights = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images at a time; by default as suits the task.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 2,
    multi_scale: Annotated[bool, typer.Option("--multi-scale", help="Segmenters: at six scales, with mirror images.")] = False,
    max_corrupt: Annotated[float, typer.Option(min=0, max=1, help="Part of the images that may be unreadable.")] = 0.01,
    output: Annotated[
        Path | None, typer.Option(help="Detectors: also write all that was found as COCO results, with the data's ids, to a .json file.")
    ] = None,
    report_page: Annotated[Path | None, typer.Option("--report", help="Also write a page that opens offline.")] = None,
    optimize: Optimize = None,
    calibration: Calibration = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure a network on labelled images."""
    from convnext.distributed import is_main, on_all, process_group
    from convnext.evaluate import evaluate_loaded
    from convnext.export.load import load
    from convnext.inference.coco_results import write_results
    from convnext.inference.predictor import Predictor
    from convnext.report.written import write_page

    if report_page is not None and not report_page.absolute().parent.is_dir():
        raise UsageError(f"--report {report_page}: there is no folder {report_page.parent}")
    if output is not None and (output.suffix != ".json" or not output.absolute().parent.is_dir()):
        raise UsageError(f"--output {output}: name a .json file in a folder that is there")
    with process_group(device) as place:
        loaded = on_all(lambda: load(model, weights))
        if output is not None and loaded.task != "detect":
            raise UsageError(f"--output writes COCO results, which are of detectors, and {model} is none")
        if multi_scale:
            if loaded.task != "segment":
                raise UsageError(f"--multi-scale is a test of segmenters, and {model} is none")
            loaded.preprocessing = loaded.preprocessing.multi_scale()
        with_results = output is not None and optimize is None
        found = evaluate_loaded(loaded, data, batch_size, workers, max_corrupt, place, counter("evaluated"), with_results)
        if optimize is not None:
            print(f"as it is: {found.headline()}", file=sys.stderr)
            loaded.model = optimized(Predictor(loaded, place), optimize, calibration).model
            found = evaluate_loaded(loaded, data, batch_size, workers, max_corrupt, place, counter("evaluated"), output is not None)
            print(f"{_named(optimize)}: {found.headline()}", file=sys.stderr)
        if not is_main():
            return
    print(printable(found.data()), file=sys.stderr)
    for reason in found.result.corrupt:
        print(f"left out: {printable(reason)}", file=sys.stderr)
    if output is not None:
        write_results(output, found.result.results or ())
    if report_page is not None:
        title = f"{model} on {data or 'its own validation images'}"
        write_page(report_page, lambda: found.to_page(title), lambda line: print(printable(line), file=sys.stderr))
    if as_json:
        print_json(found.to_json())
    else:
        print(printable_lines(found.to_text()))


@app.command()
def models(
    pattern: Annotated[str | None, typer.Argument(help="A shell pattern, for instance 'upernet_*'; '*' for all there is.")] = None,
    as_json: Json = False,
) -> None:
    """List models with their cost at the size of the paper's tables and their published weights."""
    from dataclasses import asdict

    from convnext.models.load import cost_of, list_models
    from convnext.models.registry import HEADS, find

    names = list_models(pattern or "*")
    if not names:
        raise UsageError(f"no model matches {pattern!r}{nearest(str(pattern), list_models())}")
    if pattern is None:
        others = ["roadmap_", *(f"{head}_" for head in HEADS)]
        names = [name for name in names if not name.startswith(tuple(others))]
        print(f"classifiers; there are also {', '.join(f'{other}*' for other in others)}", file=sys.stderr)
    if not as_json:
        print(f"{'name':34} {'parameters':>10} {'multiply-adds':>14} {'at':>8}  weights")
    rows: list[dict[str, Any]] = []
    for name in names:
        cost, weights = cost_of(name), list(find(name).weights)
        rows.append({"name": name} | asdict(cost) | {"weights": weights})
        if not as_json:
            numbers = f"{cost.parameters / 1e6:8.1f} M {cost.macs / 1e9:12.2f} G {_size(cost.image_size):>8}"
            print(f"{name:34} {numbers}  {' '.join(weights)}", flush=True)
    if as_json:
        print_json(rows)


@app.command()
def cost(
    name: Annotated[str, typer.Argument(help="A model's name.")],
    size: Annotated[int | None, typer.Option(min=1, help="Pixels a side; by default as in the paper's tables.")] = None,
    as_json: Json = False,
) -> None:
    """Count parameters and multiply-adds (which the field's tables print as FLOPs)."""
    from dataclasses import asdict

    from convnext.models.load import cost_of

    found = cost_of(name, size)
    if as_json:
        print_json({"name": name} | asdict(found))
    else:
        print(f"{name} at {_size(found.image_size)}: {found.parameters / 1e6:.2f} M parameters, {found.macs / 1e9:.2f} G multiply-adds")


@app.command()
def bench(
    names: Annotated[list[str], typer.Argument(help="Names of classifiers (`convnext models`), or exported files.")],
    against: Annotated[str | None, typer.Option(help="Beside each, the same network of timm, torchvision or transformers.")] = None,
    train: Annotated[bool, typer.Option("--train", help="Time training too.")] = False,
    batch_size: Annotated[list[int] | None, typer.Option(min=1, help="Images at a time; may be given several times.")] = None,
    size: Annotated[int, typer.Option(min=1, help="Pixels a side.")] = 224,
    dtype: Annotated[str, typer.Option(help="float32, tf32 (CUDA), bf16 or fp16.")] = "float32",
    channels_last: Annotated[bool, typer.Option(help="Memory layout of images and weights.")] = True,
    compiled: Annotated[bool, typer.Option("--compile", help="Through torch.compile.")] = False,
    rounds: Annotated[int, typer.Option(min=3, help="Turns of each contestant.")] = 7,
    seconds: Annotated[float, typer.Option(min=0, help="Time for each contestant and batch, all its rounds together.")] = 3.0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Time networks side by side, in turns: images a second, memory, ratios."""
    from convnext.distributed import pick_device
    from convnext.paper import speed
    from convnext.paper.bench import Setting
    from convnext.paper.bench import bench as measured

    setting, place, batch_sizes = Setting(size, dtype, channels_last, compiled, rounds, seconds), pick_device(device), batch_size or [1, 32]
    report = measured(names, setting, place, batch_sizes=batch_sizes, train=train, against=against, progress=counter("timed"))
    if as_json:
        print_json(report.to_json())
    else:
        print(speed.plain(report.to_json()))


@app.command()
def table(
    name: Annotated[str, typer.Argument(help="imagenet, coco, ade20k, roadmap, robustness or throughput.")],
    model: Annotated[str, typer.Option(help="Only rows of this pattern, as 'ConvNeXt-*' or 'swin_*'.")] = "*",
    speed: Annotated[bool, typer.Option("--speed", help="Time every network here.")] = False,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Of the timing; by default 64 on CUDA devices, else 1.")] = None,
    seconds: Annotated[float, typer.Option(min=0, help="Of the timing, for each network.")] = 3.0,
    data: Annotated[str | None, typer.Option(help="Images to evaluate published weights on, as for `convnext eval`.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw accuracy over multiply-adds into this .png or .svg.")] = None,
    device: Device = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: Json = False,
) -> None:
    """Print a table of the paper beside what is counted and measured here."""
    from convnext.distributed import pick_device
    from convnext.paper import listing
    from convnext.paper.table import table as measured

    if as_markdown + as_csv + as_json > 1:
        raise UsageError("--markdown, --csv and --json are three ways to print: choose one")
    if plot is not None:
        listing.check_plot(name, plot)
    place, progress = pick_device(device), counter("rows")
    found = measured(name, place, pattern=model, speed=speed, batch_size=batch_size, seconds=seconds, data=data, progress=progress)
    if plot is not None:
        listing.plot(name, found.rows, plot)
        print(plot, file=sys.stderr)
    if as_json:
        print_json(found.to_json())
    elif as_csv:
        for line in found.place():
            print(line, file=sys.stderr)
        print(listing.comma_separated(found.rows))
    elif as_markdown:
        print(listing.markdown(name, found.rows, found.place()))
    else:
        print(listing.plain(name, found.rows, found.place()))


def _named(precision: str) -> str:
    from convnext.models.optimize.optimize import fastest

    return f"auto ({fastest() or 'the network as it is'})" if precision == "auto" else precision


def _size(pixels: int | tuple[int, int]) -> str:
    return str(pixels) if isinstance(pixels, int) else f"{pixels[1]}x{pixels[0]}"
