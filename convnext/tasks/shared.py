"""What the tasks share: samples on the way into a batch, prepared images, and the check that outputs are finite."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from convnext.data.deep import DeepImage
from convnext.data.images import Reading
from convnext.data.loader import Sample
from convnext.data.sampling.draws import Draw, Present, balanced, repeat_factors, repeated
from convnext.data.sources.base import ImageSource
from convnext.data.transforms.preprocessing import Preprocessing
from convnext.data.transforms.statistics import measure
from convnext.errors import ConvnextError, NotFiniteError, UsageError, nearest
from convnext.recipe import Recipe
from convnext.tasks.base import Losses
from convnext.tasks.prepared import OpenedImage, Prepared
from convnext.text import counted, printable, shortened

# The modules of detectors and segmenters whose outputs decide. A NaN in the backbone comes out of these, too.
_DECIDING = ("neck", "rpn_head", "roi_head.bbox_head", "roi_head.mask_head", "decode_head")
_SHOWN = 40  # characters of a class name


def readable(samples: Sequence[Sample]) -> tuple[list[Sample], list[tuple[int, str]]]:
    """Return the samples that could be read, and for those that could not their positions, each with the reason."""
    return [sample for sample in samples if sample.readable], [bad for sample in samples for bad in sample.corrupt]


def skipped_remarks(files: Sequence[str]) -> list[str]:
    """Return what to report of files that are not used: at most one line."""
    if not files:
        return []
    what = "is not an image and was skipped" if len(files) == 1 else "are not images and were skipped, the first"
    return [f"{counted(len(files), 'file')} {what}: {printable(files[0])}"]


def prepare(image: Image.Image | DeepImage, transform: Callable[[Image.Image | DeepImage], Tensor]) -> Prepared:
    """Return an opened image after the `transform()` of a preprocessing."""
    return Prepared(transform(image), (image.height, image.width))


def prepared(images: Sequence[OpenedImage], preprocessing: Preprocessing) -> list[Prepared]:
    """Return the images, all prepared."""
    transform = preprocessing.transform()
    return [one if isinstance(one, Prepared) else prepare(one, transform) for one in images]


def same_size(images: Sequence[Prepared]) -> Iterator[list[int]]:
    """Yield the positions of the images of each size as prepared.

    Images of one size need no padding when they go through a network together: what is found in one does not depend on the others.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(tuple(image.image.shape), []).append(index)
    yield from groups.values()


def refuse_options(task: str, given: Mapping[str, object], known: Sequence[str]) -> None:
    """Raise UsageError for an option of `infer` that the task does not have."""
    for name in given:
        if name not in known:
            raise UsageError(f"the task {task!r} has no option {name!r}{nearest(name, known) if known else ''}")


def check_class_count(recipe: Recipe, classes: Sequence[str]) -> None:
    """Raise ConvnextError if the training data have other than the number of classes that the recipe is made for."""
    if recipe.data.num_classes not in (None, len(classes)):
        wanted = f"the recipe is for {recipe.data.num_classes}: check data.train, or set data.num_classes=null"
        raise ConvnextError(f"{recipe.data.train} has {len(classes)} classes, {wanted}")


def total(losses: Losses) -> Tensor:
    """Return the sum of a criterion's parts, a float32 scalar: what training minimises."""
    return torch.stack(list(losses.values())).sum()


def reading_of(recipe: Recipe) -> Reading:
    """Return how the images of a recipe are opened."""
    return Reading(recipe.data.channels, recipe.data.max_pixels)


def measured(recipe: Recipe, train: ImageSource) -> Recipe:
    """Return the recipe with numbers in place of `data.mean=auto`, measured on its training images."""
    data = recipe.data
    if data.mean != "auto":
        return recipe
    mean, std = measure(train, data.range, data.channels)
    return recipe.model_copy(update={"data": data.model_copy(update={"mean": mean, "std": std})})


def measured_remarks(recipe: Recipe, before: Recipe) -> list[str]:
    """Return what to report of the numbers that `measured` found."""
    if recipe is before:
        return []
    mean, std = ([round(value, 4) for value in values] for values in recipe.data.normalisation())
    return [f"measured on the training images: data.mean={mean} data.std={std}"]


def plain_from(recipe: Recipe) -> int | None:
    """Return the epoch from which on images are not combined, by `augment.plain_epochs`; None if they are to the end."""
    return recipe.train.epochs - recipe.augment.plain_epochs if recipe.augment.plain_epochs else None


def draw_of(recipe: Recipe, classes: Sequence[str], present: Callable[[], Present]) -> tuple[Draw | None, list[str]]:
    """Return which training samples an epoch consists of by `data.sampler`, None for each once, and what to report of it.

    Args:
        recipe: with the sampler.
        classes: their names.
        present: a function that gives the classes of each training image; called only if they matter.
    """
    sampler, threshold = recipe.data.sampler, recipe.data.repeat_threshold
    if sampler == "shuffle":
        return None, []
    if sampler == "balanced":
        return balanced(present()), []
    found = present()
    factors, least = repeat_factors(found, threshold), f"{100 * threshold:g} %"
    images = int((factors > 1).sum())
    if not images:
        why = f"every class is in at least {least} of the images (data.repeat_threshold={threshold:g})"
        return None, [f"data.sampler=repeat_factor repeats no image: {why}; a higher threshold repeats those of rare classes"]
    rarest = int(factors.argmax())
    name = classes[min(found[rarest], key=lambda one: sum(one in shown for shown in found))]
    line = f"{counted(images, 'image')} of {len(factors)} with classes in less than {least} of them come more often, up to "
    return repeated(factors), [f"data.sampler=repeat_factor: {line}{factors[rarest]:.1f} times as often (class {shortened(name, _SHOWN)})"]


def why_no_embeddings(model: nn.Module, method: str) -> str | None:
    """Return why a network has no embeddings: it lacks the method that makes them, as exported files, LeNet-5 and AlexNet do."""
    if hasattr(model, method):
        return None
    return "this network gives predictions but no embeddings: take the weights that it was exported from, or another network"


def require_embeddings(model: nn.Module, method: str) -> None:
    """Raise UsageError if the network lacks the method that its embeddings are made by."""
    if (reason := why_no_embeddings(model, method)) is not None:
        raise UsageError(reason)


def require_finite(values: Tensor) -> Tensor:
    """Return the values if all of them are finite. Raises NotFiniteError otherwise."""
    if not bool(values.isfinite().all()):
        raise NotFiniteError
    return values


@contextmanager
def finite_outputs(model: nn.Module) -> Iterator[None]:
    """Watch the outputs of a detector's or segmenter's parts. Raises NotFiniteError at the end if not all of them are finite.

    The predictions would not show a NaN: no score is above a threshold, and one class has the largest logit. Exported networks have
    no parts to watch, and check their outputs themselves.
    """
    sums: list[Tensor] = []

    def watch(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        sums.extend(_sums(output))

    handles = [module.register_forward_hook(watch) for module in _deciding(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if sums:
        require_finite(torch.stack(sums))  # at the end, so that a GPU is waited for once


def _deciding(model: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = []
    for path in _DECIDING:
        module: object = model
        for name in path.split("."):
            module = getattr(module, name, None)
        if isinstance(module, nn.ModuleList):  # one for each stage
            found += module
        elif isinstance(module, nn.Module):
            found.append(module)
    return found


def _sums(output: object) -> list[Tensor]:
    """Return for each tensor a number that is finite if the tensor is. It can overflow where a tensor holds numbers above 1e30."""
    if isinstance(output, Tensor):
        return [output.detach().sum(dtype=torch.float32)]
    return [one for part in output for one in _sums(part)] if isinstance(output, (list, tuple)) else []


def save_sheets(sheets: Sequence[Image.Image], path: Path) -> None:
    """Write images under each other into one file."""
    gap = 8
    whole = Image.new("RGB", (max(sheet.width for sheet in sheets), sum(sheet.height + gap for sheet in sheets)), "white")
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height + gap
    whole.save(path)
