"""Prediction of many images: decoded in the background, run in batches, written as they come."""

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from PIL import Image

from convnext import tasks
from convnext.data.deep import shown
from convnext.data.images import CorruptImageError
from convnext.errors import ConvnextError
from convnext.inference.inputs import Item
from convnext.inference.outputs import Answer, Output, refuse_changed
from convnext.inference.predictor import Predictor
from convnext.tasks.prediction import Prepared, prepare

# What runs the batches: from the items, what the outputs need of each, and the size of a batch, to the answers, batch by batch, in order.
Engine = Callable[[Sequence[Item], frozenset[str], int], Iterator[list[Answer]]]


@dataclass(frozen=True, eq=False)
class _Opened:
    item: Item
    prepared: Prepared | str  # or why it could not be read
    image: Image.Image | None = None  # where it is to be drawn over


def predict_all(
    predictor: Predictor,
    items: Sequence[Item],
    outputs: Sequence[Output],
    *,
    batch_size: int | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
    engine: Engine | None = None,
) -> dict[str, str]:
    """Predict all items that not every output holds already, and write them, in order, to the outputs that lack them.

    Args:
        predictor: of `load`.
        items: of `find_items`.
        outputs: at least one.
        batch_size: images that go through the network at a time; by default as suits its task.
        threads: that read, decode and prepare images, a batch ahead of the network; by default one a core, at most eight.
        progress: called with the numbers of images done and in all, first before the first batch.
        engine: what runs the batches instead of this process, as `ray_bulk.on_ray`.

    Returns: why images could not be predicted, by their names, those of earlier calls included. None of them stops the others.

    Raises ConvnextError if an output can't be written, UsageError if it holds answers of images that were changed since.
    """
    for output in outputs:
        refuse_changed(output, items)
    size = batch_size or tasks.get(predictor.task).BATCH_SIZE
    accounts = [output.done for output in outputs if output.done is not None]
    left = [item for item in items if not accounts or any(item.name not in done for done in accounts)]
    needs = frozenset[str]().union(*(output.needs for output in outputs))
    errors = {name: error for done in accounts for name, error in done.items() if error is not None}
    count = len(items) - len(left)
    if progress is not None:
        progress(count, len(items))
    batches = engine(left, needs, size) if engine is not None else run_here(predictor, left, needs, size, threads)
    for answers in batches:
        for output in outputs:
            output.write([answer for answer in answers if answer.item.name not in (output.done or {})])
        errors |= {answer.item.name: answer.error for answer in answers if answer.error is not None}
        count += len(answers)
        if progress is not None:
            progress(count, len(items))
    for output in outputs:
        output.finish()
    return {item.name: errors[item.name] for item in items if item.name in errors}


def run_here(
    predictor: Predictor, items: Sequence[Item], needs: frozenset[str], size: int, threads: int | None = None
) -> Iterator[list[Answer]]:
    """What comes of the items, in batches of `size`; `needs` are fields of an answer, and `threads` as for `predict_all`."""
    task = tasks.get(predictor.task)
    opened = _opened(items, predictor.preprocessing.transform(), "image" in needs, size, threads or _cores())
    while batch := list(islice(opened, size)):
        yield _answers(predictor, task, batch, needs)


def _opened(items: Sequence[Item], transform: Callable[[Any], Any], with_image: bool, ahead: int, threads: int) -> Iterator[_Opened]:
    """The items in their order, opened in threads, at most `ahead` of them before they are asked for."""
    waiting: deque[Future[_Opened]] = deque()
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        # Reading an image sets and restores Python's filters of warnings, in threads not always in that order: this one is in all.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            for item in items:
                waiting.append(pool.submit(_open, item, transform, with_image))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _open(item: Item, transform: Callable[[Any], Any], with_image: bool) -> _Opened:
    try:
        image = item.read()
        return _Opened(item, prepare(image, transform), shown(image) if with_image else None)
    except CorruptImageError as error:
        return _Opened(item, str(error))
    except Exception as error:  # an image so long and narrow, say, that it can't be resized
        return _Opened(item, f"{item.name}: {_one_line(error)}")


def _answers(predictor: Predictor, task: Any, batch: Sequence[_Opened], needs: frozenset[str]) -> list[Answer]:
    good = [one for one in batch if isinstance(one.prepared, Prepared)]
    found = {one.item.name: answer for one, answer in zip(good, _run(predictor, task, good, needs), strict=True)}
    return [found[one.item.name] if isinstance(one.prepared, Prepared) else Answer(one.item, one.prepared) for one in batch]


def _run(predictor: Predictor, task: Any, good: Sequence[_Opened], needs: frozenset[str]) -> list[Answer]:
    if not good:
        return []
    images, how, device = [one.prepared for one in good], predictor.preprocessing, predictor.device
    predictions, features = [None] * len(good), [None] * len(good)
    try:
        if "prediction" in needs:
            predictions = predictor.infer(images)
        if "features" in needs:
            features = list(task.embed(predictor.model, images, how, device).numpy())
    except (ConvnextError, MemoryError, torch.OutOfMemoryError) as error:  # too small for the network, or too large for the memory
        if len(good) == 1:
            return [Answer(good[0].item, f"{good[0].item.name}: {_one_line(error)}")]
        return [answer for one in good for answer in _run(predictor, task, [one], needs)]
    found = zip(good, predictions, features, strict=True)
    return [Answer(one.item, None, prediction, row, one.image) for one, prediction, row in found]


def _one_line(error: BaseException) -> str:
    return str(error).split("\n")[0] or type(error).__name__


def _cores() -> int:
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
