"""Explain predictions as files and a page: evidence for a class, the maps of the stages, and the nearest images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from convnext.data.images import FORMATS, CorruptImageError
from convnext.data.sources.base import ClassifySource
from convnext.errors import ConvnextError, UsageError, writing
from convnext.explain.activation_maps import can_explain, laid_over
from convnext.explain.feature_maps import feature_sheet
from convnext.explain.neighbours import nearest_images, neighbour_sheet
from convnext.inference.inputs import Item, file_names
from convnext.inference.predictor import Predictor
from convnext.report import page
from convnext.tasks.base import Json, Prediction


@dataclass
class Explained:
    """The explanation of an image, or why it failed."""

    image: str
    error: str | None = None
    summary: str = ""  # the prediction on one line
    about: str | None = None  # the class whose evidence the map shows
    files: dict[str, Path] = field(default_factory=dict)  # "map", "features", "neighbours"
    neighbours: list[Json] = field(default_factory=list)

    def to_json(self) -> Json:
        """Return plain values of what was asked for."""
        if self.error is not None:
            return {"image": self.image, "error": self.error}
        found: Json = {"image": self.image, "files": {what: str(path) for what, path in self.files.items()}}
        found |= {"class": self.about} if self.about is not None else {}
        return found | ({"neighbours": self.neighbours} if "neighbours" in self.files else {})


class Explainer:
    """Writes the explanations of images into a folder.

    Args:
        predictor: from `convnext.load`.
        items: all images to explain; their files are named after them.
        folder: to write into.
        name: the class whose map is drawn; by default the likeliest of each image.
        features: also draw the maps of the stages.
        source: a dataset whose nearest images are shown.
        count: how many of them.

    Raises UsageError if there is nothing to draw, for instance for a detector without `features` or `source`, or if the files of two
    images would have one name.
    """

    def __init__(
        self,
        predictor: Predictor[Prediction],
        items: Sequence[Item],
        folder: Path,
        name: str | None,
        features: bool,
        source: ClassifySource | None,
        count: int,
    ) -> None:
        self.predictor, self.items, self.folder, self.name, self.source, self.count = predictor, items, folder, name, source, count
        self.has_map = can_explain(predictor)
        if not self.has_map and (name is not None or not (features or source is not None)):
            raise UsageError(
                "activation maps need a classifier in PyTorch that pools a map; for this network use --features or --neighbours"
            )
        kinds = [("map", self.has_map), ("features", features), ("neighbours", source is not None)]
        self.paths = {what: file_names(items, folder, f".{what}.png") for what, is_asked in kinds if is_asked}
        self.skipped: dict[str, str] = {}  # images of the dataset that could not be read, with the reason

    def run(self, progress: Callable[[int, int], object]) -> list[Explained]:
        """Return the explanations of all images; one that can't be read does not stop the others."""
        found, embeddings = [], []
        for item in self.items:
            one = Explained(item.name)
            try:
                embeddings.append(self._explain(item, one))
            except UsageError:
                raise  # for instance an unknown class, which fails for every image
            except (CorruptImageError, ConvnextError) as error:
                one.error = str(error)
            found.append(one)
        good = [(item, one) for item, one in zip(self.items, found, strict=True) if one.error is None]
        if self.source is not None and good:
            rows, self.skipped = nearest_images(self.predictor, torch.cat(embeddings), self.source, self.count, progress)
            for (item, one), neighbours in zip(good, rows, strict=True):
                one.neighbours = [neighbour.to_json() for neighbour in neighbours]
                self._write("neighbours", one, neighbour_sheet(item.read(self.predictor.reading), neighbours, self.source))
        return found

    def _explain(self, item: Item, one: Explained) -> Tensor:
        image = item.read(self.predictor.reading)
        prediction = self.predictor(image)
        one.summary = prediction.to_text()
        if "map" in self.paths:
            one.about = self.name or self._most_probable(prediction)
            self._write("map", one, laid_over(self.predictor, image, one.about))
        if "features" in self.paths:
            self._write("features", one, feature_sheet(self.predictor, image))
        return self.predictor.features(image) if self.source is not None else torch.empty(0)

    def _most_probable(self, prediction: Prediction) -> str:
        """Return the class that an image is most probably of, even if that is improbable; of a number, what stands for its class."""
        top = prediction.to_json(1).get("top")
        return str(top[0]["class"]) if isinstance(top, list) else self.predictor.classes[0]

    def _write(self, what: str, one: Explained, image: Image.Image) -> None:
        path = self.folder / self.paths[what][one.image]
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
        one.files[what] = path

    def write_page(self, found: Sequence[Explained], model: str) -> Path:
        """Write index.html into the folder, with all drawings inside, so that it opens offline. Returns its path."""
        sections = [page.PageSection(one.image, _body(one)) for one in found if one.error is None]
        if errors := [one.error for one in found if one.error is not None]:
            sections.append(page.PageSection("Skipped", page.preformatted("\n".join(errors))))
        path = self.folder / "index.html"
        with writing(path):
            path.write_text(page.page("What the network sees", model, {}, sections), encoding="utf-8")
        return path


def _body(one: Explained) -> str:
    captions = {
        "map": f"Evidence for {one.about}: the more yellow, the stronger (Grad-CAM).",
        "features": "The maps of the stages: the mean of all channels' absolute values, then the strongest channels.",
        "neighbours": "The nearest images of the dataset, by the cosine of their embeddings.",
    }
    parts = [page.preformatted(one.summary)]
    for what, path in one.files.items():
        with Image.open(path, formats=FORMATS) as image:
            parts.append(page.image(image, captions[what]))
    return page.spaced(parts)
