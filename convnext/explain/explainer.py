"""`convnext explain`: what speaks for a class, what the stages see and what is alike, for some images, as files and a page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from convnext.data.images import FORMATS, CorruptImageError
from convnext.data.sources.open import Source
from convnext.errors import ConvnextError, UsageError, writing
from convnext.explain.activation_maps import can_explain, laid_over
from convnext.explain.feature_maps import feature_sheet
from convnext.explain.neighbours import nearest_images, neighbour_sheet
from convnext.inference.inputs import Item, file_names
from convnext.report import page


@dataclass
class Explained:
    """What came of an image: why it could not be explained, or what was found and written."""

    image: str
    error: str | None = None
    said: str = ""  # the prediction in a line
    about: str | None = None  # the class that the map is of
    files: dict[str, Path] = field(default_factory=dict)  # "map", "features", "neighbours"
    neighbours: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values, of what was asked for alone."""
        if self.error is not None:
            return {"image": self.image, "error": self.error}
        found: dict[str, Any] = {"image": self.image, "files": {what: str(path) for what, path in self.files.items()}}
        found |= {"class": self.about} if self.about is not None else {}
        return found | ({"neighbours": self.neighbours} if "neighbours" in self.files else {})


class Explainer:
    """Writes what is asked for of each image below a folder.

    Args:
        predictor: of `load`.
        items: all that will be explained; their files are called after them.
        folder: where to.
        name: the class whose map is drawn; by default the likeliest of each image.
        features: draw the maps of the stages too.
        source: a data set whose nearest images are shown.
        count: how many of them.

    Raises UsageError if nothing could be drawn, as of a detector without `features` or `source`, or two images' files would be one.
    """

    def __init__(
        self, predictor: Any, items: Sequence[Item], folder: Path, name: str | None, features: bool, source: Source | None, count: int
    ) -> None:
        self.predictor, self.items, self.folder, self.name, self.source, self.count = predictor, items, folder, name, source, count
        self.has_map = can_explain(predictor)
        if not self.has_map and (name is not None or not (features or source is not None)):
            raise UsageError(
                "activation maps are for classifiers in PyTorch that pool a map; of this network ask for --features or --neighbours"
            )
        kinds = [("map", self.has_map), ("features", features), ("neighbours", source is not None)]
        self.paths = {what: file_names(items, folder, f".{what}.png") for what, wanted in kinds if wanted}
        self.left_out: dict[str, str] = {}  # images of the data set, and why

    def run(self, progress: Callable[[int, int], object]) -> list[Explained]:
        """Explain all images; one that can't be read stops no other."""
        found, embeddings = [], []
        for item in self.items:
            one = Explained(item.name)
            try:
                embeddings.append(self._explain(item, one))
            except UsageError:
                raise  # as of a class that there is not: it is so for every image
            except (CorruptImageError, ConvnextError) as error:
                one.error = str(error)
            found.append(one)
        good = [(item, one) for item, one in zip(self.items, found, strict=True) if one.error is None]
        if self.source is not None and good:
            rows, self.left_out = nearest_images(self.predictor, torch.cat(embeddings), self.source, self.count, progress)
            for (item, one), neighbours in zip(good, rows, strict=True):
                one.neighbours = [neighbour.to_json() for neighbour in neighbours]
                self._write("neighbours", one, neighbour_sheet(item.read(), neighbours, self.source))
        return found

    def _explain(self, item: Item, one: Explained) -> Tensor:
        image = item.read()
        prediction = self.predictor(image)
        one.said = prediction.to_text()
        if "map" in self.paths:
            one.about = self.name or prediction.top()[0][0]
            self._write("map", one, laid_over(self.predictor, image, one.about))
        if "features" in self.paths:
            self._write("features", one, feature_sheet(self.predictor, image))
        return self.predictor.features(image) if self.source is not None else torch.empty(0)

    def _write(self, what: str, one: Explained, image: Image.Image) -> None:
        path = self.folder / self.paths[what][one.image]
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
        one.files[what] = path

    def write_page(self, found: Sequence[Explained], model: str) -> Path:
        """index.html in the folder, with all that was drawn inside: it opens offline, and alone."""
        sections = [page.Section(one.image, _body(one)) for one in found if one.error is None]
        if errors := [one.error for one in found if one.error is not None]:
            sections.append(page.Section("Left out", page.preformatted("\n".join(errors))))
        path = self.folder / "index.html"
        with writing(path):
            path.write_text(page.page("What the network sees", model, {}, sections), encoding="utf-8")
        return path


def _body(one: Explained) -> str:
    captions = {
        "map": f"What speaks for {one.about}: the more yellow, the more (Grad-CAM).",
        "features": "The maps of the stages: the mean of all channels' absolute values, then the strongest channels.",
        "neighbours": "The nearest images of the data set, by the cosine of their embeddings.",
    }
    parts = [page.preformatted(one.said)]
    for what, path in one.files.items():
        with Image.open(path, formats=FORMATS) as image:
            parts.append(page.image(image, captions[what]))
    return page.spaced(parts)
