"""Classifiers as exported files."""

from dataclasses import replace

from torch import Tensor, nn

from convnext.data import imagenet
from convnext.data.transforms.preprocessing import ClassifyPreprocessing, ImageSize, Preprocessing
from convnext.tasks.classify.prediction import ClassifyPrediction
from convnext.tasks.exported import ExportedNetwork, TaskExport, logits_error


class ExportedClassifier(ExportedNetwork):
    """An exported classifier: images (N, 3, H, W) to logits (N, num_classes)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)[0]


class ClassifyExport(TaskExport):
    """The graph gives logits (N, num_classes)."""

    network = ExportedClassifier

    def run(self, graph: nn.Module, images: Tensor, *others: Tensor) -> Tensor:
        logits: Tensor = graph(images)
        return logits

    def size(self, how: Preprocessing, chosen: ImageSize | None) -> tuple[int, int]:
        assert isinstance(how, ClassifyPreprocessing)
        return how.size

    def resized(self, how: Preprocessing, size: ImageSize) -> Preprocessing:
        assert isinstance(how, ClassifyPreprocessing)
        return replace(how, image_size=size)

    def known_names(self, count: int) -> list[str] | None:
        return imagenet.descriptions(count) if count in imagenet.SUBSETS else None

    def error(self, model: nn.Module, exported: ExportedNetwork, ours: Tensor, theirs: Tensor) -> float:
        return logits_error(model(ours), exported(theirs))

    def agreement(self, expected: object, found: object) -> float:
        """Return 1 if the most probable class is the same, else 0."""
        assert isinstance(expected, ClassifyPrediction)
        assert isinstance(found, ClassifyPrediction)
        return float(expected.probabilities.argmax() == found.probabilities.argmax())
