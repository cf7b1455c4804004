"""Classification: one label an image."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from convnext.data import deep, imagenet
from convnext.data.counts import described
from convnext.data.images import CorruptImageError
from convnext.data.loader import Sample, Samples
from convnext.data.sources.corruptions import SEVERITIES
from convnext.data.sources.evaluation_sets import EvaluationSet, is_evaluation_set, open_evaluation_set
from convnext.data.sources.folder import one_class
from convnext.data.sources.open import Source, hold_out, open_source
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.errors import ConvnextError
from convnext.recipe import Recipe
from convnext.report import page, plots, tables
from convnext.tasks import Data, check_class_count
from convnext.tasks.classify.accuracy import ClassificationMetric
from convnext.tasks.classify.prediction import BATCH_SIZE as BATCH_SIZE
from convnext.tasks.classify.prediction import COLUMNS as COLUMNS
from convnext.tasks.classify.prediction import Prediction as Prediction
from convnext.tasks.classify.prediction import class_ids as class_ids
from convnext.tasks.classify.prediction import class_names as class_names
from convnext.tasks.classify.prediction import embed as embed
from convnext.tasks.classify.prediction import infer as infer
from convnext.tasks.classify.robustness import CorruptionMetric
from convnext.text import printable

HEADLINE = "top1"  # the metric by which the best weights are chosen; higher is better


@dataclass
class Batch:
    """Images (N, 3, H, W) float32 and labels (N,), with their positions in the source."""

    images: Tensor
    labels: Tensor
    indices: list[int]
    corrupt: list[tuple[int, str]]  # positions that could not be read, with the reason

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, part: slice) -> "Batch":
        return Batch(self.images[part], self.labels[part], self.indices[part], self.corrupt)

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device, images in channels-last."""
        images = self.images.to(device, memory_format=torch.channels_last, non_blocking=True)
        return Batch(images, self.labels.to(device, non_blocking=True), self.indices, self.corrupt)


def preprocessing(recipe: Recipe) -> ClassifyPreprocessing:
    """How the trained network will want its images."""
    data, test = recipe.data, recipe.eval
    return ClassifyPreprocessing(data.image_size, test.crop_ratio, test.warp, test.interpolation, data.mean, data.std, data.range)


def open_data(recipe: Recipe) -> Data:
    """The training and validation samples of a recipe."""
    from convnext.data.transforms.classify import train_transform

    train = open_source(recipe.data.train)
    check_class_count(recipe, train.classes)
    if len(train.classes) < 2:
        raise ConvnextError(f"data.train={one_class(recipe.data.train, train.classes)}")
    opened = [("train", train)]
    held = []
    if recipe.data.val is not None:
        val = open_source(recipe.data.val, train.classes)
        opened.append(("val", val))
    else:
        train, val = hold_out(train, recipe.data.val_fraction, recipe.seed)
        held.append(f"no data.val given: {len(val)} of the {len(train) + len(val)} images are held out for validation")
    remarks = [f"{where}: {told}" for where, source in opened for told in (counts(source), *remarks_on(source))] + held
    for where, source in (("train", train), ("val", val)):
        if not len(source):
            raise ConvnextError(f"no images in data.{where}")
    remarks += deep.remarks(train, recipe.data.range)
    transform = train_transform(recipe.data, recipe.augment, recipe.eval.interpolation)
    samples = Samples(train, transform, recipe.seed)
    return Data(samples, evaluation_samples(val, preprocessing(recipe)), train.classes, remarks)


def check(where: str) -> list[str]:
    """Everything wrong with the images that `where` names, a line each; reads them all."""
    source = open_source(where)
    problems, depths = [f"{printable(path)}: no image of any known ending" for path in source.skipped], deep.Depths()
    for index in range(len(source)):
        try:
            depths.add(source.pixels(index))
        except CorruptImageError as error:
            problems.append(str(error))
    return problems + depths.problems() + ([one_class(where, source.classes)] if len(source.classes) < 2 else [])


def overview(where: str) -> list[str]:
    """What the images that `where` names are, a line each: their number, and what is to be told of them."""
    source = open_source(where)
    return [counts(source), *source.remarks]


def counts(source: Source) -> str:
    """How many images of which classes a source holds, as `described` says it."""
    labels = np.array([source.label(index) for index in range(len(source))], dtype=int)
    return described(len(source), source.classes, np.bincount(labels, minlength=len(source.classes)).tolist())


def open_labelled(where: str, classes: list[str] | None, num_classes: int) -> Source:
    """Labelled images to test a network of `num_classes` classes on; `classes` are their names where they are known.

    Where they are not (weights that others wrote), folders named by ImageNet synsets, or one folder for each class in sorted
    order, are understood. `where` may also be one of the sets of `imagenet.EVALUATION_SETS`. Raises ConvnextError if the
    classes do not fit.
    """
    if is_evaluation_set(where):
        return open_evaluation_set(where, classes, num_classes)
    if classes is None and num_classes in imagenet.SUBSETS:
        names = imagenet.synsets(num_classes)
        source = open_source(where)
        if set(source.classes) <= set(names):
            return open_source(where, names)
    source = open_source(where, classes)
    if len(source.classes) != num_classes:
        raise ConvnextError(
            f"{where} has {len(source.classes)} classes, the network {num_classes}, and its weights do not name them: "
            "name the folders by ImageNet synset (n01440764 …), or have one folder for each class"
        )
    return source


def remarks_on(source: Source) -> list[str]:
    """What is to be told to the user of what a source holds."""
    told = list(source.remarks)
    if source.skipped:
        told.append(f"{len(source.skipped)} files are no images and left out, the first {printable(source.skipped[0])}")
    return told


def evaluation_samples(source: Source, how: ClassifyPreprocessing) -> Samples:
    """Images prepared as the network wants them, nothing random.

    ImageNet-C and -C-bar are central squares already, and taken whole as by their authors, not cropped a second time
    (https://github.com/hendrycks/robustness, ImageNet-C/test.py).
    """
    if isinstance(source, EvaluationSet) and source.corrupted is not None:
        how = replace(how, warp=True)
    return Samples(source, how.transform(), seed=0)


def collate(samples: list[Sample]) -> Batch:
    """Samples to a batch; those that could not be read are left out and noted."""
    corrupt = [bad for sample in samples for bad in sample.corrupt]
    good = [sample for sample in samples if sample.image is not None]
    images = torch.stack([sample.image for sample in good if sample.image is not None]) if good else torch.empty(0)
    labels = torch.tensor([sample.label for sample in good], dtype=torch.long)
    return Batch(images, labels, [sample.index for sample in good], corrupt)


class Trainer:
    """The loss of a batch in training: mixing, then cross-entropy with label smoothing."""

    def __init__(self, recipe: Recipe, classes: list[str]) -> None:
        from convnext.data.transforms.classify import batch_mixing

        self.label_smoothing = recipe.train.label_smoothing
        self.mix = batch_mixing(recipe.augment, self.label_smoothing, len(classes))

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """Mean loss (scalar, float32). Its randomness comes from the global generators."""
        if self.mix is None:
            return F.cross_entropy(model(batch.images).float(), batch.labels, label_smoothing=self.label_smoothing)
        images, targets = self.mix(batch.images, batch.labels)
        return F.cross_entropy(model(images).float(), targets)


def predict(model: Any, batch: Batch, samples: Samples) -> Tensor:
    """What `Metric.update` takes: the network's outputs (N, outputs) for a batch."""
    return model(batch.images)


class Metric:
    """Accuracy over an evaluation, and the samples that went most wrong.

    Args:
        num_classes: outputs of the network.
        source: the images. Where it is an `EvaluationSet`, it says which of the outputs compete and which answers are right.
    """

    KEPT = 24

    def __init__(self, num_classes: int, source: Source) -> None:
        self.source: Source | None = source
        self.set = source if isinstance(source, EvaluationSet) else None
        self.corrupted = self.set.corrupted if self.set is not None else None
        self.counts = ClassificationMetric(num_classes if self.set is None else len(source.classes))
        self.corruptions = CorruptionMetric(self.corrupted.parts) if self.corrupted is not None else None
        self.mistakes: list[dict[str, Any]] = []  # the worst first

    def __getstate__(self) -> dict[str, Any]:
        # Gathered from all processes: the counts, not the names of millions of images, which each process has.
        return self.__dict__ | {"source": None, "set": None, "corrupted": None}

    def update(self, logits: Tensor, batch: Batch) -> None:
        """Add the network's outputs (N, outputs) for a batch."""
        accepted = None
        if self.set is not None:
            logits, accepted = self.set.competing(logits), self.set.accepted(batch.indices)
        right = self.counts.update(logits, batch.labels, accepted)
        if self.corruptions is not None and self.corrupted is not None:
            self.corruptions.update(right, torch.tensor([self.corrupted.part(index) for index in batch.indices]))
        probabilities = logits.detach().float().softmax(1).cpu()
        labels = batch.labels.cpu()
        confidence, predicted = probabilities.max(1)
        for i in (~right).nonzero().flatten().tolist():
            mistake = {"index": batch.indices[i], "true": int(labels[i]), "predicted": int(predicted[i])}
            mistake |= {"confidence": float(confidence[i]), "probability_of_true": float(probabilities[i, labels[i]])}
            self.mistakes.append(mistake)
        self._keep_the_worst()

    def merge(self, other: "Metric") -> None:
        """Add what another process measured on other samples."""
        self.counts.merge(other.counts)
        if self.corruptions is not None and other.corruptions is not None:
            self.corruptions.merge(other.corruptions)
        self.mistakes += other.mistakes
        self._keep_the_worst()

    def _keep_the_worst(self) -> None:
        self.mistakes.sort(key=lambda mistake: (mistake["probability_of_true"], mistake["index"]))
        del self.mistakes[self.KEPT :]

    def compute(self) -> dict[str, float]:
        """See `ClassificationMetric.compute`, and for corrupted images `CorruptionMetric.compute`."""
        return self.counts.compute() | (self.corruptions.compute() if self.corruptions is not None else {})

    def details(self) -> dict[str, Any]:
        """Everything that `report_sections` draws, as plain values."""
        found = self.counts.details() | {"mistakes": []}
        if self.source is not None:
            name = self.source.name
            found["mistakes"] = [mistake | {"image": printable(name(mistake["index"]))} for mistake in self.mistakes]
        if self.corruptions is not None:
            found["corruptions"] = self.corruptions.details()
        return found


def headline(metrics: dict[str, float]) -> str:
    """An evaluation in a few words."""
    right = round(metrics["top1"] * metrics["count"] / 100)
    return f"{metrics['top1']:.2f} % right ({right} of {metrics['count']})"


def summary(metrics: dict[str, float], details: dict[str, Any], classes: list[str]) -> str:
    """An evaluation as lines of text, its headline first, accuracy by class last."""
    numbers = (f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in metrics.items())
    lines = [headline(metrics), "  ".join(numbers)]
    for row in _corruption_rows(details):
        if len(lines) == 2:
            lines.append(f"{'error in %':24}" + "".join(f"{key:>8}" for key in list(row)[1:]))
        lines.append(f"{row['corruption']:24}" + "".join(f"{value:>8}" for value in list(row.values())[1:]))
    rows = [
        {"class": name, "images": total, "accuracy": 100 * hits / total}
        for name, total, hits in zip(imagenet.readable(classes), details["totals"], details["hits"], strict=True)
        if total
    ]
    columns = [tables.Column("class", "class"), tables.Column("images", "images"), tables.Column("accuracy", "accuracy %", 1)]
    lines.append(tables.by_class(columns, rows, "accuracy"))
    return "\n".join(lines)


def report_sections(details: dict[str, Any], classes: list[str], source: Source) -> list[page.Section]:
    """What a report shows of an evaluation: errors by corruption, confusion, calibration, accuracy by class, the worst mistakes."""
    classes = imagenet.readable(classes)
    sections = []
    if rows := _corruption_rows(details):
        sections.append(page.Section("Error by corruption and severity, in percent", page.tight(page.table(rows))))
    if details["confusion"] is not None and len(classes) <= plots.MOST_CLASSES_DRAWN:
        sections.append(page.Section("Confusion", page.figure(plots.confusion(details["confusion"], classes))))
    elif details["confusion"] is not None:
        sections.append(page.Section("Most confused", page.table(_most_confused(details["confusion"], classes))))
    sections.append(page.Section("Calibration", page.figure(plots.reliability(details["calibration"]))))
    sections.append(page.Section("Accuracy by class", _by_class(details, classes)))
    tiles = [
        page.tile(
            deep.shown(source.read(mistake["index"])),
            f"{classes[mistake['predicted']]} {mistake['confidence']:.0%}",
            f"is {classes[mistake['true']]} · {mistake['image']}",
        )
        for mistake in details["mistakes"]
    ]
    sections.append(page.Section("Worst mistakes", "".join(tiles) or "<p>None: every image was right.</p>"))
    return sections


def _by_class(details: dict[str, Any], classes: list[str]) -> str:
    counts = [(name, total, hits) for name, total, hits in zip(classes, details["totals"], details["hits"], strict=True) if total]
    rows = [{"class": name, "images": n, "right": hits, "accuracy": f"{100 * hits / n:.1f} %"} for name, n, hits in counts]
    title = f"{len(rows)} classes" + (f"; the other {len(classes) - len(rows)} have no images here" if len(rows) < len(classes) else "")
    return page.table(rows) if len(classes) <= plots.MOST_CLASSES_DRAWN else page.details(title, page.table(rows))


def _corruption_rows(details: dict[str, Any]) -> list[dict[str, Any]]:
    """The errors under each corruption as rows of a table; none where the images were not corrupted."""
    rows = []
    for found in details.get("corruptions", ()):
        row = {"corruption": found["corruption"]} | {f"at {severity}": f"{found['errors'][severity]:.1f}" for severity in SEVERITIES}
        row["mean"] = f"{found['mean']:.1f}"
        rows.append(row | ({"CE": f"{found['ce']:.1f}"} if "ce" in found else {}))
    return rows


def _most_confused(confusion: list[list[int]], classes: list[str]) -> list[dict[str, Any]]:
    pairs = [(n, i, j) for i, row in enumerate(confusion) for j, n in enumerate(row) if i != j and n]
    return [{"is": classes[i], "taken for": classes[j], "times": n} for n, i, j in sorted(pairs, reverse=True)[:20]]
