"""The command that uses a trained network: predict."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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
    bar,
    check_images,
    check_model,
    image_size,
    importing,
    optimized,
    print_json,
)
from convnext.errors import ConvnextError, UsageError
from convnext.text import counted, printable, printable_lines

if TYPE_CHECKING:
    from convnext.inference.answers import Answer, Output
    from convnext.inference.bulk import Engine
    from convnext.inference.inputs import Item
    from convnext.models.cost import ImageSize

_SOURCES = "Images, folders of them, patterns as 'photos/**/*.jpg', videos, shards, photos.zip, labels.csv; - for a list on standard input."
_DRAW = "A folder for the images with their predictions drawn on them, or a .mp4, .mov or .mkv file for a video of them."
_FPS = "How many frames of each second of a video to take, by default all; of images drawn to a video, how many a second, by default 25."
_OUTPUT = "Write to a .jsonl, .csv or .json (COCO results) file, or to a folder (masks); a call that was stopped is resumed."
_FORMAT = (
    "jsonl, csv; of detectors coco, coco-dataset, cvat, label-studio, labelme, voc, yolo; of segmenters masks, colour-masks; "
    "by default by the output's ending."
)
_COVERAGE = "The fraction of images whose class shall be in the set that is printed, as 0.95; of a network that `convnext fit` made."
_THRESHOLD = "Detectors: the score that an object exceeds, 0 to 1; by default 0.05."
_NMS = "Detectors: drop an object whose box has a larger IoU than this with a likelier one of its class; by default 0.5."
_CLASSES = "Detectors: find only these classes, as car,bus; may be given several times."
_UNKNOWN = "Print how unlike the training images an image is, 0 to 1, and whether it is unknown; of a network that `convnext fit` made."


@add_command("Use", "convnext predict runs/mine photo.jpg", "convnext predict runs/mine photos --output found.csv --draw drawn")
def predict(
    model: Annotated[str, typer.Argument(help=MODEL)],
    images: Annotated[list[str], typer.Argument(metavar="SOURCE...", help=_SOURCES)],
    weights: Weights = None,
    output: Annotated[str | None, typer.Option(help=_OUTPUT)] = None,
    kind: Annotated[str | None, typer.Option("--format", help=_FORMAT)] = None,
    annotations: Annotated[str | None, typer.Option(help="For COCO's formats: the file with the ids of images and categories.")] = None,
    draw: Annotated[str | None, typer.Option(help=_DRAW)] = None,
    fps: Annotated[float | None, typer.Option(help=_FPS)] = None,
    features: Annotated[str | None, typer.Option(help="Write embeddings to a .npy or .parquet file.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="How many classes or objects of an image to list.")] = None,
    coverage: Annotated[float | None, typer.Option(min=0, max=1, help=_COVERAGE)] = None,
    unknown: Annotated[bool, typer.Option("--unknown", help=_UNKNOWN)] = False,
    threshold: Annotated[float | None, typer.Option(min=0, max=1, help=_THRESHOLD)] = None,
    nms: Annotated[float | None, typer.Option(min=0, max=1, help=_NMS)] = None,
    class_agnostic: Annotated[bool, typer.Option("--class-agnostic", help="Detectors: --nms between objects of any classes.")] = False,
    classes: Annotated[list[str] | None, typer.Option(help=_CLASSES)] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images at a time; by default the task's.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that decode images; by default one per core.")] = None,
    size: Size = None,
    max_pixels: MaxPixels = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start outputs again that exist already.")] = False,
    engine: Annotated[Literal["ray"] | None, typer.Option(help="ray: on all of Ray's workers, here or on a cluster (RAY_ADDRESS).")] = None,
    tta: Tta = None,
    tile: Tile = None,
    tile_overlap: TileOverlap = None,
    optimize: Optimize = None,
    calibration: Calibration = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Run inference on images."""
    check_images(images)
    check_model(model)
    pixels = image_size(size)
    with importing():
        from convnext import tasks
        from convnext.inference.api import asked, check_tile, open_outputs
        from convnext.inference.bulk import predict_all
        from convnext.inference.inputs import find_items
        from convnext.inference.predictor import load
        from convnext.inference.uploads import staged
        from convnext.inference.video.drawn import in_order

    _refuse(output, kind, annotations, features, engine, optimize, as_json)
    check_tile(tile, tile_overlap)
    _refuse_views({"--tta": tta, "--tile": tile}, engine, features)
    task_options = asked(coverage, unknown, threshold, nms, class_agnostic, classes)
    _refuse_options(task_options, tta, size, features is not None and output is None and draw is None and not as_json)
    items = in_order(find_items(images, fps), staged(draw, "draw"))
    original = load(model, weights, device=device, max_pixels=max_pixels, size=pixels).with_options(**task_options)
    if features is None or output is not None or draw is not None or as_json:
        original.require_head()
    if tta is not None:
        original.preprocessing = tasks.get(original.task).mirrored(original.preprocessing)
    if tile is not None:
        original = original.tiled(tile, tile_overlap)
    predictor = optimized(original, optimize, calibration)
    if predictor.source is not None and not Path(weights or model).exists():
        print(f"weights: {printable(predictor.source)}", file=sys.stderr)
    options: dict[str, object] = {"optimize": optimize, "calibration": " ".join(calibration or []) or None, "tta": tta, "size": size}
    options |= {"tile": tile, "tile_overlap": tile_overlap}
    files = {"output": output, "annotations": annotations, "features": features, "draw": draw}
    outputs = open_outputs(original, items, options, **files, fps=fps, kind=kind, top=top, overwrite=overwrite)
    _report_done(outputs, items)
    prints = as_json or (output is None and features is None)
    if prints:
        outputs.append(_JsonValue(top) if as_json else _Text(top))
    runs = _on_ray(model, weights, device, threads, max_pixels, pixels, task_options) if engine is not None else None
    # Ray reports lost workers on standard output.
    with (
        redirect_stdout(sys.stderr) if engine is not None else nullcontext(),
        bar("predicting", shown=not (prints and sys.stdout.isatty())) as progress,
    ):
        errors = predict_all(predictor, items, outputs, batch_size=batch_size, threads=threads, progress=progress, engine=runs)
    for error in dict.fromkeys(errors.values()):  # frames that a video lacks have one reason
        print(f"skipped: {printable(error)}", file=sys.stderr)
    if len(errors) == len(items):
        raise ConvnextError(f"none of {counted(len(items), 'image')} could be predicted")
    if errors or not prints:
        print(f"predicted {len(items) - len(errors)} of {counted(len(items), 'image')}, skipped {len(errors)}", file=sys.stderr)


def _refuse(
    output: str | None,
    kind: str | None,
    annotations: str | None,
    features: str | None,
    engine: str | None,
    optimize: str | None,
    as_json: bool,
) -> None:
    """Raise UsageError for options that do not go together."""
    if output is not None and as_json:
        raise UsageError("--json prints what --output writes: choose one of them")
    if kind is not None and output is None:
        raise UsageError(f"--format {kind} applies to a file: name it with --output")
    if annotations is not None and output is None:
        raise UsageError("--annotations is for COCO results: name their file with --output found.json")
    if engine is not None and output is None and features is None:
        raise UsageError(f"--engine {engine} writes to files: name one with --output or --features")
    if engine is not None and optimize is not None:
        raise UsageError(f"--optimize can't be used with --engine {engine}: omit one of them")


def _refuse_views(views: Mapping[str, object], engine: str | None, features: str | None) -> None:
    """Raise UsageError for several views of an image, by the option that asks for them, where only one is taken."""
    other = "--engine" if engine is not None else "--features" if features is not None else None
    for name, given in views.items():
        if given is not None and other is not None:
            raise UsageError(f"{name} can't be used with {other}: omit one of them")


def _refuse_options(given: Mapping[str, object], tta: str | None, size: str | None, only_features: bool) -> None:
    """Raise UsageError for options of the task that make no sense with others."""
    for name in given:
        if only_features:
            option = name.replace("_", "-")
            raise UsageError(f"--{option} is of predictions, and --features alone writes embeddings: add --output, --draw or --json")
        if size is not None and name in ("coverage", "unknown"):
            raise UsageError(f"--{name} can't be used with --size: the calibration is of images of the network's own size")
    if tta is not None and "coverage" in given:
        raise UsageError(f"--coverage can't be used with --tta {tta}: the calibration is of probabilities of the images alone")


def _report_done(outputs: "Sequence[Output]", items: "Sequence[Item]") -> None:
    accounts = [output.done for output in outputs if output.done is not None]
    if accounts and (count := sum(all(item.name in done for done in accounts) for item in items)):
        verb = "is" if count == 1 else "are"
        print(f"{count} of {counted(len(items), 'image')} {verb} done already; --overwrite starts again", file=sys.stderr)


def _on_ray(
    model: str,
    weights: str | None,
    device: str | None,
    threads: int | None,
    max_pixels: int | None,
    size: "ImageSize | None",
    options: Mapping[str, object],
) -> "Engine":
    from convnext.inference.ray_bulk import on_ray

    return on_ray(model, weights, device, threads, max_pixels, size, options)


class _Text:
    """Prints one line per image."""

    needs, done = frozenset({"prediction"}), None

    def __init__(self, top: int | None) -> None:
        self.top = top

    def write(self, answers: "Sequence[Answer]") -> None:
        for one in answers:
            if one.error is None:
                print(f"{printable(one.item.name)}  {printable_lines(one.predicted.to_text(self.top))}", flush=True)

    def finish(self) -> None:
        pass


class _JsonValue:
    """Prints one JSON value for all images."""

    needs, done = frozenset({"prediction"}), None

    def __init__(self, top: int | None) -> None:
        self.top = top
        self.rows: list[dict[str, object]] = []

    def write(self, answers: "Sequence[Answer]") -> None:
        for one in answers:
            found: dict[str, object] = {"error": one.error} if one.error is not None else one.predicted.to_json(self.top)
            self.rows.append(one.item.label() | found)

    def finish(self) -> None:
        print_json(self.rows)
