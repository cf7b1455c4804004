"""Predict many images: decode them in the background, run them in batches, write the answers as they come."""

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convnext import tasks
from convnext.data.deep import DeepImage, shown
from convnext.data.images import CorruptImageError, Reading
from convnext.data.sources.packed.video import Frame
from convnext.data.storage.connection import StorageError
from convnext.errors import ConvnextError
from convnext.inference.answers import Answer, Output
from convnext.inference.inputs import Item
from convnext.inference.outputs import refuse_changed
from convnext.inference.predictor import Predictor
from convnext.ops import keep_memory
from convnext.tasks.base import Prediction
from convnext.tasks.prepared import Prepared
from convnext.tasks.shared import prepare

# Runs the batches: from the items, the fields of an answer that the outputs need, and the batch size, to the answers, batch by batch.
Engine = Callable[[Sequence[Item], frozenset[str], int], Iterator[list[Answer]]]
Transform = Callable[[Image.Image | DeepImage], Tensor]  # of a preprocessing


@dataclass(frozen=True, eq=False)
class _Opened:
    item: Item
    prepared: Prepared | str  # or why it could not be read
    image: Image.Image | None = None  # if an output draws on it


def predict_all(
    predictor: Predictor[Prediction],
    items: Sequence[Item],
    outputs: Sequence[Output],
    *,
    batch_size: int | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
    engine: Engine | None = None,
) -> dict[str, str]:
    """Predict all items that are not yet in every output, and write them, in order, to the outputs that lack them.

    Args:
        predictor: from `convnext.load`.
        items: from `find_items`.
        outputs: at least one.
        batch_size: images that go through the network at a time; by default the task's.
        threads: threads that read, decode and prepare images, a batch ahead of the network; by default one per core, at most eight.
        progress: called with the numbers of images done and in all, first before the first batch.
        engine: runs the batches in place of this process, for instance `ray_bulk.on_ray`.

    Returns: the reasons why images could not be predicted, by their names, including those of earlier calls. No such image stops the
    others.

    Raises ConvnextError if an output can't be written, UsageError if it holds answers for images that were changed since.
    """
    for output in outputs:
        refuse_changed(output, items)
    size = batch_size or tasks.get(predictor.task).batch_size
    accounts = [output.done for output in outputs if output.done is not None]
    missing = [item for item in items if not accounts or any(item.name not in done for done in accounts)]
    needs = frozenset[str]().union(*(output.needs for output in outputs))
    errors = {name: error for done in accounts for name, error in done.items() if error is not None}
    count = len(items) - len(missing)
    if progress is not None:
        progress(count, len(items))
    batches = engine(missing, needs, size) if engine is not None else run_here(predictor, missing, needs, size, threads)
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
    predictor: Predictor[Prediction], items: Sequence[Item], needs: frozenset[str], size: int, threads: int | None = None
) -> Iterator[list[Answer]]:
    """Yield the answers for the items in batches of `size`; `needs` are fields of an answer, `threads` as for `predict_all`."""
    if predictor.device.type == "cpu":
        keep_memory()  # each layer of each batch allocates and frees its tensors
    opened = _opened(items, predictor.reading, predictor.preprocessing.transform(), "image" in needs, size, threads or _cores())
    while batch := list(islice(opened, size)):
        yield _answers(predictor, batch, needs)


def _opened(items: Sequence[Item], how: Reading, transform: Transform, with_image: bool, ahead: int, threads: int) -> Iterator[_Opened]:
    """Yield the items in their order, opened in threads, at most `ahead` of them in advance."""
    waiting: deque[Future[_Opened]] = deque()
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(1) as decoder:
        # Reading an image sets and restores Python's warning filters, in threads not always in that order: this filter is in all of them.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            for item in items:
                # A video is decoded from its beginning to its end: its frames are read in their order.
                read = decoder.submit(item.read, how).result if isinstance(item.where, Frame) else partial(item.read, how)
                waiting.append(pool.submit(_open, item, read, transform, with_image))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _open(item: Item, read: Callable[[], Image.Image | DeepImage], transform: Transform, with_image: bool) -> _Opened:
    try:
        image = read()
        return _Opened(item, prepare(image, transform), shown(image) if with_image else None)
    except CorruptImageError as error:
        return _Opened(item, str(error))
    except StorageError:  # says nothing of this image: the call ends, and the next one continues
        raise
    except Exception as error:  # for instance an image so long and narrow that it can't be resized
        return _Opened(item, f"{item.name}: {_one_line(error)}")


def _answers(predictor: Predictor[Prediction], batch: Sequence[_Opened], needs: frozenset[str]) -> list[Answer]:
    good = [one for one in batch if isinstance(one.prepared, Prepared)]
    found = {one.item.name: answer for one, answer in zip(good, _run(predictor, good, needs), strict=True)}
    return [Answer(one.item, one.prepared) if isinstance(one.prepared, str) else found[one.item.name] for one in batch]


def _run(predictor: Predictor[Prediction], good: Sequence[_Opened], needs: frozenset[str]) -> list[Answer]:
    if not good:
        return []
    images = [one.prepared for one in good if isinstance(one.prepared, Prepared)]
    predictions: list[Prediction | None] = [None] * len(good)
    features: list[np.ndarray | None] = [None] * len(good)
    try:
        if "prediction" in needs:
            predictions = list(predictor.infer(images))
        if "features" in needs:
            features = list(predictor.embed(images).numpy())
    except (ConvnextError, MemoryError, torch.OutOfMemoryError) as error:  # too small for the network, or too large for the memory
        if len(good) == 1:
            return [Answer(good[0].item, f"{good[0].item.name}: {_one_line(error)}")]
        return [answer for one in good for answer in _run(predictor, [one], needs)]
    found = zip(good, images, predictions, features, strict=True)
    return [Answer(one.item, None, prediction, row, one.image, image.size) for one, image, prediction, row in found]


def _one_line(error: BaseException) -> str:
    return str(error).split("\n")[0] or type(error).__name__


def _cores() -> int:
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
