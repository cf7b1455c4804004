"""The command line: parses, calls, prints. Everything heavy is imported by the command that needs it.

Results go to standard output, messages and progress to standard error. Exit codes: 0 done, 1 the work failed, 2 wrong usage.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from convnext.errors import ConvnextError, UsageError, nearest

app = typer.Typer(
    name="convnext",
    help="Train, compare, adapt and ship the ConvNet of the 2020s.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipes_app = typer.Typer(help="List recipes, show one as it resolves, list all keys.", invoke_without_command=True)
app.add_typer(recipes_app, name="recipes")
data_app = typer.Typer(help="Check data before a run; convert annotations to COCO's format.", no_args_is_help=True)
app.add_typer(data_app, name="data")


def _recipe_names(incomplete: str) -> list[str]:
    from convnext.recipe import list_recipes

    return [name for name in list_recipes() if name.startswith(incomplete)]


def _recipe_keys(incomplete: str) -> list[tuple[str, str]]:
    from convnext.recipe import keys

    return [(f"{key}=", description) for key, description in keys().items() if key.startswith(incomplete)]


MODEL = "A run folder, a weight file, hf://owner/name, or a model's name with --weights."
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value and nothing else.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; by default the fastest there is.")]
Weights = Annotated[str | None, typer.Option(help="Published weights of a model's name: a tag, a file or an address.")]


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if version:
        from convnext import __version__

        print(__version__)
        raise typer.Exit


@app.command()
def demo(
    task: Annotated[Literal["classify", "detect", "segment"], typer.Option(help="What to show.")] = "classify",
    output: Annotated[Path | None, typer.Option(help="The run folder; by default a fresh one under runs/.")] = None,
    device: Device = None,
) -> None:
    """Train, evaluate and predict on embedded data, in minutes."""
    from convnext import tasks
    from convnext.deploy.demo import demo as run_demo

    result = run_demo(task, output, device)
    print(f"{tasks.get(task).headline(result.metrics)} of what was held out, in {result.seconds:.0f} s")
    print(f"report: {result.folder / 'report.html'}    picture: {result.folder / 'predictions.png'}")


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (`convnext recipes`) or a YAML file.", autocompletion=_recipe_names)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Changes, as train.epochs=4; `convnext recipes keys` explains every key.", autocompletion=_recipe_keys),
    ] = None,
    output: Annotated[Path, typer.Option(help="The run folder to make.")] = ...,  # type: ignore[assignment]
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that the folder holds, if it holds one.")] = False,
    change: Annotated[bool, typer.Option("--change", help="Resume although the recipe was changed.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that the folder holds.")] = False,
    watch: Annotated[list[str] | None, typer.Option(help="Also send the course of the run to tensorboard, trackio or wandb.")] = None,
    device: Device = None,
) -> None:
    """Train by a recipe; leaves weights, metrics and a report in a run folder."""
    from convnext.training.run import train as run

    run(recipe, overrides or [], output=output, resume=resume, change=change, overwrite=overwrite, watch=watch or [], device=device)


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
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 64,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode pictures.")] = 2,
    max_corrupt: Annotated[float, typer.Option(min=0, max=1, help="Part of the pictures that may be unreadable.")] = 0.01,
    report_page: Annotated[Path | None, typer.Option("--report", help="Also write a page that opens offline.")] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure a network on labelled pictures."""
    from convnext.distributed import is_main, process_group
    from convnext.evaluate import evaluate_loaded
    from convnext.models import load

    if report_page is not None and not report_page.absolute().parent.is_dir():
        raise UsageError(f"--report {report_page}: there is no folder {report_page.parent}")
    with process_group(device) as place:
        found = evaluate_loaded(load(model, weights), data, batch_size, workers, max_corrupt, place, _counter("evaluated"))
        if not is_main():
            return
    for reason in found.result.corrupt:
        print(f"left out: {reason}", file=sys.stderr)
    if report_page is not None:
        report_page.write_text(found.to_page(f"{model} on {data or 'its own validation pictures'}"))
    print(json.dumps(found.to_json()) if as_json else found.to_text())


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help=MODEL)],
    pictures: Annotated[list[str], typer.Argument(help="Pictures, or folders of them.")],
    weights: Weights = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 3,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Say what is in pictures."""
    from convnext.deploy.predict import find_pictures, load, predict_files

    paths = list(find_pictures(pictures))
    predictor = load(model, weights, device=device)
    rows: list[dict[str, Any]] = []
    for path, found in predict_files(predictor, paths):
        if isinstance(found, str):
            print(f"left out: {found}", file=sys.stderr)
            rows.append({"picture": str(path), "error": found})
            continue
        best = [{"class": name, "probability": probability} for name, probability in found.top(top)]
        rows.append({"picture": str(path), "top": best})
        if not as_json:
            print(f"{path}  " + "  ".join(f"{one['class']} {one['probability']:.1%}" for one in best), flush=True)
    if as_json:
        print(json.dumps(rows))
    if all("error" in row for row in rows):
        raise ConvnextError(f"none of {len(rows)} pictures could be read")


@app.command()
def models(
    pattern: Annotated[str | None, typer.Argument(help="A shell pattern, for instance 'upernet_*'; '*' for all there is.")] = None,
    as_json: Json = False,
) -> None:
    """List models with their cost at the size of the paper's tables and their published weights."""
    from dataclasses import asdict

    from convnext.models import cost_of, list_models
    from convnext.names import HEADS, find

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
        print(json.dumps(rows))


@app.command()
def cost(
    name: Annotated[str, typer.Argument(help="A model's name.")],
    size: Annotated[int | None, typer.Option(min=1, help="Pixels a side; by default as in the paper's tables.")] = None,
    as_json: Json = False,
) -> None:
    """Count parameters and multiply-adds (which the field's tables print as FLOPs)."""
    from dataclasses import asdict

    from convnext.models import cost_of

    found = cost_of(name, size)
    if as_json:
        print(json.dumps({"name": name} | asdict(found)))
    else:
        print(f"{name} at {_size(found.image_size)}: {found.parameters / 1e6:.2f} M parameters, {found.macs / 1e9:.2f} G multiply-adds")


@recipes_app.callback()
def recipes(context: typer.Context) -> None:
    """List recipes."""
    if context.invoked_subcommand is None:
        from convnext.recipe import list_recipes, recipe_text

        for name in list_recipes():
            comment = recipe_text(name).split("\n", 1)[0].lstrip("# ")
            print(f"{name:30} {comment}")


@recipes_app.command("show")
def show_recipe(
    name: Annotated[str, typer.Argument(help="A recipe's name or a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to it, for instance train.epochs=4.")] = None,
) -> None:
    """Print a recipe as it resolves, defaults included."""
    from convnext.recipe import load_recipe, recipe_text

    comments = [line for line in recipe_text(name).splitlines() if line.startswith("#")]
    print("\n".join([*comments, load_recipe(name, overrides or []).to_yaml()]), end="")


@recipes_app.command("keys")
def list_keys() -> None:
    """List every key of a recipe with what it means."""
    from convnext.recipe import keys

    for key, description in keys().items():
        print(f"{key:26} {description}")


@data_app.command("check")
def check_data(
    where: Annotated[str, typer.Argument(help="What data.train would say: a folder, shards, coco:FILE:FOLDER, FOLDER:train …")],
    task: Annotated[Literal["classify", "detect", "segment"], typer.Option(help="What it is to be used for.")] = "classify",
) -> None:
    """Read all of a data set and tell everything wrong with it, a line each."""
    from convnext import tasks

    problems = tasks.get(task).check(where)
    print("\n".join(problems) or f"nothing wrong with {where}")
    if problems:
        raise ConvnextError(f"{len(problems)} problems in {where}")


@data_app.command("convert")
def convert_data(
    kind: Annotated[Literal["voc", "yolo"], typer.Argument(help="What the annotations are.")],
    folder: Annotated[Path, typer.Argument(help="voc: the folder of Annotations/ and JPEGImages/; yolo: the folder of pictures.")],
    output: Annotated[Path, typer.Argument(help="The JSON file to write.")],
    labels: Annotated[Path | None, typer.Option(help="yolo: the folder of text files; by default labels/ beside images/.")] = None,
    names: Annotated[Path | None, typer.Option(help="yolo: a text file of the classes' names, a line each.")] = None,
) -> None:
    """Write the annotations of Pascal VOC or YOLO as a COCO file."""
    from convnext.data.convert import voc_to_coco, yolo_to_coco

    if kind == "voc":
        found = voc_to_coco(folder)
    elif names is None:
        raise UsageError("YOLO's files do not name the classes: give a text file of their names with --names")
    else:
        found = yolo_to_coco(folder, labels or folder.parent / "labels", names.read_text().splitlines())
    output.write_text(json.dumps(found) + "\n")
    counts = f"{len(found['images'])} pictures, {len(found['annotations'])} objects of {len(found['categories'])} classes"
    print(f"{output}: {counts}; data.train=coco:{output}:{folder if kind == 'yolo' else folder / 'JPEGImages'}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, finished or not.")],
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
) -> None:
    """Compare runs on one page that opens offline."""
    from convnext import tasks
    from convnext.report.compare import compare, read_runs

    found = read_runs(runs)
    kinds = {run.recipe.get("task", "classify") for run in found}
    if len(kinds) > 1:
        raise UsageError(f"runs of different tasks have no metric in common: {', '.join(sorted(kinds))}")
    output.write_text(compare(found, tasks.get(kinds.pop()).HEADLINE))
    print(output)


@app.command()
def roadmap(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Changes to the recipe, as train.epochs=4.", autocompletion=_recipe_keys),
    ] = None,
    data: Annotated[str | None, typer.Option(help="A folder that holds train and val (folders or shards), or digits, cifar10, …")] = None,
    output: Annotated[Path, typer.Option(help="The folder of all runs; what is finished there is kept.")] = Path("runs/roadmap"),
    regime: Annotated[Literal["t", "b"], typer.Option(help="t: ResNet-50 to ConvNeXt-T; b: ResNet-200 to ConvNeXt-B.")] = "t",
    scale: Annotated[Literal["full", "small"], typer.Option(help="small: a narrow copy of the road for small pictures.")] = "full",
    steps: Annotated[str | None, typer.Option(help="Which, as 1,3,9-12; by default all.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs a step.")] = 3,
    device: Annotated[list[str] | None, typer.Option(help="One run at a time on each; by default on all CUDA devices.")] = None,
    as_json: Json = False,
) -> None:
    """Train every step from ResNet to ConvNeXt, and show what each is worth."""
    from dataclasses import asdict

    from convnext.data.source import train_and_val
    from convnext.report import ladder
    from convnext.training.roadmap import parse_steps, walk

    where = [] if data is None else [f"data.{part}={place}" for part, place in zip(("train", "val"), train_and_val(data), strict=True)]
    found = walk(
        [*where, *(overrides or [])],
        output=output,
        regime=regime,
        small=scale == "small",
        steps=parse_steps(steps) if steps else None,
        seeds=seeds,
        devices=device or [],
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        print(ladder.markdown(found))
        print(f"report: {output / 'report.html'}    figure: {output / 'roadmap.png'}")


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Weights of any known format: a file, a run folder, hf://owner/name.")],
    output: Annotated[Path, typer.Argument(help="A .safetensors or .pth file; for transformers also a folder.")],
    to: Annotated[str, typer.Option(help="official, timm, torchvision or transformers.")],
) -> None:
    """Write weights in another library's format."""
    from convnext.deploy.convert import convert as run

    print(run(source, output, to))


@app.command()
def bench(
    names: Annotated[list[str], typer.Argument(help="Names of classifiers (`convnext models`).")],
    against: Annotated[str | None, typer.Option(help="Beside each, the same network of timm, torchvision or transformers.")] = None,
    train: Annotated[bool, typer.Option("--train", help="Time training too.")] = False,
    batch_size: Annotated[list[int] | None, typer.Option(min=1, help="Pictures at a time; may be given several times.")] = None,
    size: Annotated[int, typer.Option(min=1, help="Pixels a side.")] = 224,
    dtype: Annotated[str, typer.Option(help="float32, tf32 (CUDA), bf16 or fp16.")] = "float32",
    channels_last: Annotated[bool, typer.Option(help="Memory layout of pictures and weights.")] = True,
    compiled: Annotated[bool, typer.Option("--compile", help="Through torch.compile.")] = False,
    rounds: Annotated[int, typer.Option(min=3, help="Turns of each contestant.")] = 7,
    seconds: Annotated[float, typer.Option(min=0, help="Time for each contestant and batch, all its rounds together.")] = 3.0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Time networks side by side, in turns: images a second, memory, ratios."""
    from convnext.deploy.bench import Setting
    from convnext.deploy.bench import bench as measured
    from convnext.distributed import pick_device
    from convnext.report import speed

    setting, place, batch_sizes = Setting(size, dtype, channels_last, compiled, rounds, seconds), pick_device(device), batch_size or [1, 32]
    report = measured(names, setting, place, batch_sizes=batch_sizes, train=train, against=against, progress=_counter("timed"))
    print(json.dumps(report.to_json()) if as_json else speed.plain(report.to_json()))


@app.command()
def table(
    name: Annotated[str, typer.Argument(help="imagenet, coco, ade20k, roadmap, robustness or throughput.")],
    model: Annotated[str, typer.Option(help="Only rows of this pattern, as 'ConvNeXt-*' or 'swin_*'.")] = "*",
    speed: Annotated[bool, typer.Option("--speed", help="Time every network here.")] = False,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Of the timing; by default 64 on CUDA devices, else 1.")] = None,
    seconds: Annotated[float, typer.Option(min=0, help="Of the timing, for each network.")] = 3.0,
    data: Annotated[str | None, typer.Option(help="Pictures to evaluate published weights on, as for `convnext eval`.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw accuracy over multiply-adds into this .png or .svg.")] = None,
    device: Device = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: Json = False,
) -> None:
    """Print a table of the paper beside what is counted and measured here."""
    from convnext.deploy.table import table as measured
    from convnext.distributed import pick_device
    from convnext.report import published

    if as_markdown + as_csv + as_json > 1:
        raise UsageError("--markdown, --csv and --json are three ways to print: choose one")
    if plot is not None:
        published.check_plot(name, plot)
    place, progress = pick_device(device), _counter("rows")
    found = measured(name, place, pattern=model, speed=speed, batch_size=batch_size, seconds=seconds, data=data, progress=progress)
    if plot is not None:
        published.plot(name, found.rows, plot)
        print(plot, file=sys.stderr)
    if as_json:
        print(json.dumps(found.to_json()))
    elif as_csv:
        for line in found.place():
            print(line, file=sys.stderr)
        print(published.comma_separated(found.rows))
    elif as_markdown:
        print(published.markdown(name, found.rows, found.place()))
    else:
        print(published.plain(name, found.rows, found.place()))


def _size(pixels: int | tuple[int, int]) -> str:
    return str(pixels) if isinstance(pixels, int) else f"{pixels[1]}x{pixels[0]}"


def _counter(what: str) -> Any:
    """A callback that shows a count on a terminal's standard error, and is silent elsewhere."""

    def show(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{what} {done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show


def main() -> None:
    """Run the command line; an error is one line, and a traceback with --debug."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(arguments, prog_name="convnext")
    except ConvnextError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        print(f"error: {type(error).__name__}: {error} (a defect of convnext; --debug shows the traceback)", file=sys.stderr)
        sys.exit(1)
