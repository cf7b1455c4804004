"""Commands that use a trained network: predict."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from convnext.cli.common import MODEL, Calibration, Device, Json, Optimize, Weights, app, bar, optimized, print_json
from convnext.errors import ConvnextError, UsageError
from convnext.text import printable, printable_lines

if TYPE_CHECKING:
    from convnext.inference.outputs import Answer

_SOURCES = "Images, folders of them, patterns as 'photos/**/*.jpg', shards (.tar); - for a list on standard input."
_OUTPUT = "Write to a .jsonl, .csv or .json (COCO results) file, or to a folder (masks); a call that was stopped goes on."


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help=MODEL)],
    images: Annotated[list[str], typer.Argument(metavar="SOURCE...", help=_SOURCES)],
    weights: Weights = None,
    output: Annotated[Path | None, typer.Option(help=_OUTPUT)] = None,
    kind: Annotated[str | None, typer.Option("--format", help="jsonl, csv, coco or masks; by default as the output's name ends.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="For COCO results: the file with the ids of images and categories.")] = None,
    draw: Annotated[Path | None, typer.Option(help="A folder for the images with what was found drawn over them.")] = None,
    features: Annotated[Path | None, typer.Option(help="Write embeddings to a .npy or .parquet file.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="How many classes or objects of an image to name.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images at a time; by default as suits the task.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that decode images; by default one a core.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin outputs anew that are there already.")] = False,
    engine: Annotated[Literal["ray"] | None, typer.Option(help="ray: on all that Ray has, here or on a cluster (RAY_ADDRESS).")] = None,
    optimize: Optimize = None,
    calibration: Calibration = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Say what is in images."""
    from convnext.inference.bulk import Engine, predict_all
    from convnext.inference.embeddings import Features
    from convnext.inference.fingerprint import fingerprint_of
    from convnext.inference.inputs import find_items
    from convnext.inference.outputs import Drawings, Output, open_output
    from convnext.inference.predictor import load

    if output is not None and as_json:
        raise UsageError("--json prints what --output writes: choose one of them")
    if kind is not None and output is None:
        raise UsageError(f"--format {kind} is of a file: name it with --output")
    if annotations is not None and output is None:
        raise UsageError("--annotations is for COCO results: name their file with --output found.json")
    if engine is not None and output is None and features is None:
        raise UsageError(f"--engine {engine} is for files: name one with --output or --features")
    if engine is not None and optimize is not None:
        raise UsageError(f"--optimize is not for --engine {engine}: leave one of them out")
    items = find_items(images)
    original = load(model, weights, device=device)
    predictor = optimized(original, optimize, calibration)
    if predictor.source is not None and not Path(weights or model).exists():
        print(f"weights: {predictor.source}", file=sys.stderr)
    outputs: list[Output] = []
    if draw is not None or output is not None or features is not None:
        network = fingerprint_of(original, {"optimize": optimize, "calibration": " ".join(calibration or []) or None})
        if output is not None:
            outputs.append(open_output(output, kind, predictor, items, top, overwrite, network.under(top=top), annotations))
        if features is not None:
            outputs.append(Features(features, overwrite, network))
        if draw is not None:  # opened last, lest it note a network that another output refuses; drawn before a line says that it is done
            outputs.insert(0, Drawings(draw, items, overwrite, network))
    accounts = [one.done for one in outputs if one.done is not None]
    if accounts and (count := sum(all(item.name in done for done in accounts) for item in items)):
        print(f"{count} of {len(items)} images are done already; --overwrite begins anew", file=sys.stderr)
    prints = as_json or (output is None and features is None)
    if prints:
        outputs.append(_Value(top) if as_json else _Text(top))
    runs: Engine | None = None
    if engine == "ray":
        from convnext.inference.ray_bulk import on_ray

        runs = on_ray(model, weights, device, threads)
    # Ray tells on standard output of workers that it lost.
    told = redirect_stdout(sys.stderr) if engine is not None else nullcontext()
    with told, bar("predicting", shown=not (prints and sys.stdout.isatty())) as progress:
        errors = predict_all(predictor, items, outputs, batch_size=batch_size, threads=threads, progress=progress, engine=runs)
    for error in errors.values():
        print(f"left out: {printable(error)}", file=sys.stderr)
    if len(errors) == len(items):
        raise ConvnextError(f"none of {len(items)} images could be predicted")
    if errors or not prints:
        print(f"{len(items) - len(errors)} of {len(items)} images are predicted, {len(errors)} left out", file=sys.stderr)


class _Text:
    """Prints a line an image."""

    needs, done = frozenset({"prediction"}), None

    def __init__(self, top: int | None) -> None:
        self.top = top

    def write(self, answers: "Sequence[Answer]") -> None:
        for one in answers:
            if one.error is None:
                print(f"{printable(one.item.name)}  {printable_lines(one.prediction.to_text(self.top))}", flush=True)

    def finish(self) -> None:
        pass


class _Value:
    """Prints one JSON value of all images."""

    needs, done = frozenset({"prediction"}), None

    def __init__(self, top: int | None) -> None:
        self.top = top
        self.rows: list[dict[str, Any]] = []

    def write(self, answers: "Sequence[Answer]") -> None:
        for one in answers:
            told = one.prediction.to_json(self.top) if one.error is None else {"error": one.error}
            self.rows.append({"image": one.item.name} | told)

    def finish(self) -> None:
        print_json(self.rows)
