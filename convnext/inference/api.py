"""`convnext.predict` and `convnext.evaluate`: what the commands of the same names do, as functions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Literal

from torch import nn

from convnext import tasks
from convnext.data.storage.connection import is_stored
from convnext.distributed import process_group
from convnext.errors import UsageError
from convnext.export.load import load as load_network
from convnext.extend import giving, marker, qualified
from convnext.inference.answers import Answer, Output
from convnext.inference.bulk import predict_all
from convnext.inference.fingerprint import Options, fingerprint_of
from convnext.inference.inputs import Item, find_items
from convnext.inference.outputs import Drawings, open_output
from convnext.inference.predictor import Predictor, load
from convnext.inference.uploads import Upload, local_file, staged
from convnext.inference.video.drawn import DrawnVideo, check_fps, in_order, is_video_file
from convnext.models.cost import ImageSize
from convnext.models.load import at_size
from convnext.tasks.base import Prediction
from convnext.tasks.own import column
from convnext.tasks.shown import gallery, is_kept, with_thumbnail

if TYPE_CHECKING:
    from convnext.evaluate import Evaluated

Source = str | PathLike[str]
Progress = Callable[[int, int], object]  # called with the numbers of images done and in all


@dataclass(frozen=True)
class Predicted:
    """The result of `convnext.predict`."""

    predictions: dict[str, Prediction] = field(default_factory=dict)  # by image; empty if they were written to a file
    errors: dict[str, str] = field(default_factory=dict)  # why an image could not be predicted, by image

    def _repr_html_(self) -> str:
        return gallery(self.predictions, self.errors)


def predict(
    model: Source | Predictor[Prediction],
    sources: Source | Sequence[Source],
    output: Source | None = None,
    *,
    weights: str | None = None,
    kind: str | None = None,
    annotations: Source | None = None,
    features: Source | None = None,
    draw: Source | None = None,
    fps: float | None = None,
    top: int | None = None,
    coverage: float | None = None,
    unknown: bool = False,
    threshold: float | None = None,
    nms: float | None = None,
    class_agnostic: bool = False,
    classes: str | Sequence[str] | None = None,
    tile: int | None = None,
    tile_overlap: float | None = None,
    batch_size: int | None = None,
    threads: int | None = None,
    max_pixels: int | None = None,
    size: ImageSize | None = None,
    overwrite: bool = False,
    device: str | None = None,
    progress: Progress | None = None,
) -> Predicted:
    """Predict any number of images, decoded in the background and in batches.

    A call that writes files and was stopped, even killed, is resumed by the next: it skips the images that are in the files.

    Args:
        model: as for `convnext.load`, or a predictor.
        sources: images, videos, folders, shell patterns or shards, one or a list of them; images, folders, patterns and shards also in
            storage that fsspec reaches, as `s3://bucket/photos`. The frames of clip.mp4 are clip.mp4/000000
            and so on.
        output: a .jsonl, .csv or .json (COCO results) file, a folder (masks), or what `kind` needs; by default predictions are returned.
            A file in storage, `s3://bucket/found.jsonl`, is made in the cache of this machine and uploaded when it is complete.
        weights: as for `convnext.load`.
        kind: the format of `output`: jsonl or csv; of detectors coco, coco-dataset, cvat, label-studio, labelme, voc or yolo; of segmenters
            masks or colour-masks; by default by its ending.
        annotations: for COCO's formats, the file with the ids of images and categories.
        features: a .npy or .parquet file for embeddings.
        draw: a folder for the images with their predictions drawn on them, or a .mp4, .mov or .mkv file for a video of them.
        fps: how many frames of each second of a video to take, by default all; of images drawn to a video, how many a second, by
            default 25.
        top: how many classes or objects of an image to write.
        coverage: of a classifier made by `convnext fit`, the fraction of images whose class shall be in its set of classes.
        unknown: whether to compare each image with those that such a network was trained on.
        threshold: of a detector, the score that an object exceeds; by default 0.05.
        nms: of a detector, the IoU with a likelier object of its class above which one is dropped; by default 0.5.
        class_agnostic: let a detector's objects drop those of other classes too.
        classes: of a detector, the names of the classes to find; by default all.
        tile: of a detector, the side in pixels of the tiles that it also looks at; see `Predictor.tiled`.
        tile_overlap: the fraction of a side that neighbouring tiles share; by default 0.2.
        batch_size: images at a time; by default the task's.
        threads: threads that decode images; by default one per core.
        max_pixels: of an image; as for `convnext.load`, ignored for a predictor, which has its own.
        size: of prepared images; as for `convnext.load`.
        overwrite: start outputs again that exist already.
        device: as for `convnext.load`.
        progress: called with the numbers of images done and in all.

    Raises UsageError or ConvnextError as `convnext.load` does, for sources without images, for an output that can't be written or that
    holds answers of another network, and for a size beside a predictor.
    """
    if isinstance(model, Predictor) and size is not None:
        raise UsageError("a predictor takes images of its own size: give size to convnext.load, which makes it")
    check_tile(tile, tile_overlap)
    names = [sources] if isinstance(sources, str | PathLike) else sources
    items = in_order(find_items([str(source) for source in names], fps), staged(draw, "draw"))
    predictor: Predictor[Prediction] = (
        model if isinstance(model, Predictor) else load(str(model), weights, device=device, max_pixels=max_pixels, size=size)
    )
    predictor = predictor.with_options(**asked(coverage, unknown, threshold, nms, class_agnostic, classes))
    if tile is not None:
        if features is not None:
            raise UsageError("tile= can't be used with features=: omit one of them")
        predictor = predictor.tiled(tile, tile_overlap)
    outputs = open_outputs(
        predictor,
        items,
        {"tile": tile, "tile_overlap": tile_overlap},
        output=output,
        kind=kind,
        annotations=annotations,
        features=features,
        draw=draw,
        fps=fps,
        top=top,
        overwrite=overwrite,
    )
    collected = _Collected()
    if output is None:
        outputs.append(collected)
    errors = predict_all(predictor, items, outputs, batch_size=batch_size, threads=threads, progress=progress)
    return Predicted(collected.predictions, errors)


def check_tile(tile: int | None, overlap: float | None) -> None:
    """Raise UsageError for an overlap of no tiles."""
    if overlap is not None and tile is None:
        raise UsageError("--tile-overlap (tile_overlap=) is for --tile (tile=): give the side of the tiles too, for instance 1024")


def asked(
    coverage: float | None,
    unknown: bool,
    threshold: float | None,
    nms: float | None,
    class_agnostic: bool,
    classes: str | Sequence[str] | None,
) -> dict[str, object]:
    """Return the options of a task that were given; see `predict`."""
    given: dict[str, object] = {"coverage": coverage, "unknown": unknown or None, "threshold": threshold, "nms": nms}
    given |= {"class_agnostic": class_agnostic or None, "classes": classes}
    return {name: value for name, value in given.items() if value is not None}


def open_outputs(
    predictor: Predictor[Prediction],
    items: Sequence[Item],
    options: Options,
    *,
    output: Source | None,
    kind: str | None,
    annotations: Source | None,
    features: Source | None,
    draw: Source | None,
    fps: float | None,
    top: int | None,
    overwrite: bool,
) -> list[Output]:
    """Return the outputs for the files and folders that are named; see `predict`.

    Args:
        predictor: as loaded, before `optimize`.
        items: all images to be predicted.
        options: further options that change the answers, by their names on the command line.

    Raises UsageError as `open_output` and `Upload` do.
    """
    drawn_to, file, embeddings = staged(draw, "draw"), staged(output, "output", kind), staged(features, "features")
    check_fps(fps, items, drawn_to)
    if file is None and embeddings is None and drawn_to is None:
        return []
    from convnext.inference.embeddings import FeaturesOutput

    made = ((file, output), (embeddings, features))
    uploads = [Upload(path, str(where), overwrite) for path, where in made if path is not None and is_stored(str(where))]
    network = fingerprint_of(predictor, options)
    outputs: list[Output] = []
    if file is not None:
        listed = None if annotations is None else local_file(annotations)
        outputs.append(open_output(file, kind, predictor, items, top, overwrite, network.under(top=top), listed))
    if embeddings is not None:
        outputs.append(FeaturesOutput(embeddings, overwrite, network))
    # Opened last, so that it notes no network that another output refuses; written first, before a line says that the image is done.
    if drawn_to is None:
        return [*outputs, *uploads]
    is_video = is_video_file(drawn_to)
    drawn = DrawnVideo(drawn_to, items, fps, overwrite, network) if is_video else Drawings(drawn_to, items, overwrite, network)
    return [drawn, *outputs, *uploads]


class _Collected:
    """Keeps the predictions in memory."""

    done = None

    def __init__(self) -> None:
        self.predictions: dict[str, Prediction] = {}
        self.needs = frozenset({"prediction", "image"} if is_kept() else {"prediction"})

    def write(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            if answer.prediction is not None:
                found = answer.prediction
                self.predictions[answer.item.name] = found if answer.image is None else with_thumbnail(found, answer.image)

    def finish(self) -> None:
        pass


def evaluate(
    model: Source,
    data: Source | object | None = None,
    *,
    weights: str | None = None,
    network: nn.Module | None = None,
    metrics: Callable[..., object] | Sequence[Callable[..., object]] = (),
    batch_size: int | None = None,
    workers: int = 2,
    multi_scale: bool = False,
    tta: Literal["flip"] | None = None,
    tile: int | None = None,
    tile_overlap: float | None = None,
    max_corrupt: float | None = None,
    max_pixels: int | None = None,
    size: ImageSize | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> "Evaluated":
    """Measure a network on labelled images. Under torchrun each process measures its part, and the first has the result.

    Args:
        model: as for `convnext.load`.
        data: labelled images in the notation of `data.val`, for instance a folder, or a map-style dataset as for `convnext.train`; by
            default the validation data of the model's run.
        weights, network: as for `convnext.load`.
        metrics: one or several of your own, as for `convnext.register_metric`; by default those of the model's run.
        batch_size: images at a time; by default the task's.
        workers: processes that decode images.
        multi_scale: of a segmenter, test at six scales, with mirror images.
        tta: "flip": average the outputs for each image and its mirror image; not of a detector.
        tile: of a detector, the side in pixels of the tiles that it also looks at; see `Predictor.tiled`.
        tile_overlap: the fraction of a side that neighbouring tiles share; by default 0.2.
        max_corrupt: the fraction of the images that may be unreadable, and of the objects that may be invalid; by default the
            `data.max_corrupt` of the model's run, or else 0.01.
        max_pixels: of an image; larger ones are not opened. By default some 89 million.
        size: of prepared images; as for `convnext.load`.
        device: as for `convnext.load`.
        progress: called with the numbers of images done and in all.

    Raises UsageError or ConvnextError as `convnext.load` does, and for data that does not fit the network.
    """
    from convnext.evaluate import evaluate_loaded

    check_tile(tile, tile_overlap)
    where = None if data is None else str(data) if isinstance(data, str | PathLike) else marker("data", data)
    own = [metrics] if callable(metrics) else metrics
    with process_group(device) as target, giving(data=data):
        loaded = load_network(str(model), weights, network)
        if size is not None:
            loaded = at_size(loaded, size, weights or str(model), target)
        if multi_scale:
            loaded.preprocessing = tasks.get(loaded.task).multi_scale(loaded.preprocessing)
        if tta is not None:
            loaded.preprocessing = tasks.get(loaded.task).mirrored(loaded.preprocessing)
        if tile is not None:
            loaded.preprocessing = tasks.get(loaded.task).tiled(loaded.preprocessing, tile, tile_overlap)
        named = {column(qualified(one)): one for one in own}
        how = (loaded, where, batch_size, workers, max_corrupt, target, progress)
        return evaluate_loaded(*how, own=named or None, max_pixels=max_pixels)
