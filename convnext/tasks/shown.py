"""Predictions as a notebook shows them: with a small copy of their image, which is kept where IPython runs."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import TypeVar

from PIL import Image

from convnext.data.deep import DeepImage, shown
from convnext.report import notebook
from convnext.report.notebook import Bar, Thumbnail

_MAX_BARS = 12
_MAX_SHOWN = 12  # predictions of several images

PredictionT = TypeVar("PredictionT")


@dataclass(frozen=True, eq=False, repr=False)
class ShownPrediction(ABC):
    """A prediction that IPython shows as HTML, and Python as its text."""

    _: KW_ONLY
    thumbnail: Thumbnail | None = None  # of the image; None outside of IPython

    @abstractmethod
    def to_text(self, top: int | None = None) -> str:
        """Return the prediction on one line."""

    def bars(self) -> list[Bar]:
        """Return what a notebook shows as bars, the most important first."""
        return []

    def note(self) -> str:
        """Return what a notebook shows below the bars."""
        return self.to_text()

    def drawn_on(self, thumbnail: Thumbnail) -> Image.Image:
        """Return the small copy of the image with the prediction drawn on it."""
        return thumbnail.open()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.to_text()})"

    def _repr_html_(self) -> str:
        bars, image = self.bars(), None if self.thumbnail is None else self.drawn_on(self.thumbnail)
        more = [f"and {len(bars) - _MAX_BARS} more"] if len(bars) > _MAX_BARS else []
        return notebook.prediction(image, bars[:_MAX_BARS], "\n".join([*more, self.note()]).strip())


def is_kept() -> bool:
    """Return whether predictions keep small copies of their images: in IPython, and so in notebooks."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", None)  # other libraries may have imported IPython in a program
    return shell is not None and shell() is not None


def with_thumbnails(predictions: Sequence[PredictionT], images: Iterable[Image.Image | DeepImage]) -> list[PredictionT]:
    """Return predictions that keep small copies of their opened images, in IPython; elsewhere as they are."""
    return [with_thumbnail(one, image) for one, image in zip(predictions, images, strict=True)] if is_kept() else list(predictions)


def with_thumbnail(prediction: PredictionT, image: Image.Image | DeepImage) -> PredictionT:
    """Return a prediction that keeps a small copy of its opened image; as it is where its class has no place for one."""
    if not isinstance(prediction, ShownPrediction):
        return prediction
    return replace(prediction, thumbnail=Thumbnail.of(shown(image)))


def gallery(predictions: Mapping[str, object], errors: Mapping[str, str]) -> str:
    """Return predictions by image as HTML, the first twelve of them, and the first twelve errors by image."""
    found = list(predictions.items())[:_MAX_SHOWN]
    parts = [(name, one._repr_html_() if isinstance(one, ShownPrediction) else notebook.text(repr(one))) for name, one in found]
    parts += [(name, notebook.text(f"error: {error}")) for name, error in list(errors.items())[:_MAX_SHOWN]]
    return notebook.gallery(parts, len(predictions) + len(errors) - len(parts))
