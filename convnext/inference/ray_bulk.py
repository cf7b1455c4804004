"""Predict many images on Ray Data: its workers hold the network, this process writes their answers, in order.

Ray runs on one machine or on a cluster (RAY_ADDRESS); each machine must have the images and the weights under the same paths. Ray
replaces a worker that is lost, and predicts its batch again.
"""

import io
import logging
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from convnext import extend
from convnext.errors import ConvnextError, need
from convnext.inference.answers import Answer
from convnext.inference.bulk import Engine, run_here
from convnext.inference.inputs import Item
from convnext.inference.predictor import load
from convnext.models.cost import ImageSize

Reduced = tuple[Callable[[np.ndarray], Tensor], tuple[np.ndarray]]


class _Worker:
    """Holds a network and predicts one batch at a time."""

    def __init__(
        self,
        folder: str,
        modules: list[str],
        model: str,
        weights: str | None,
        device: str | None,
        needs: frozenset[str],
        threads: int | None,
        max_pixels: int | None,
        size: ImageSize | None,
        options: Mapping[str, object],
    ) -> None:
        os.chdir(folder)  # so that relative paths keep their meaning
        for module in modules:
            extend.load(module)
        self.predictor = load(model, weights, device=device, max_pixels=max_pixels, size=size).with_options(**options)
        self.needs, self.threads = needs, threads

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        items: list[Item] = pickle.loads(row["items"])  # noqa: S301  (made below)
        (answers,) = run_here(self.predictor, items, self.needs, len(items), self.threads)
        content = io.BytesIO()
        _Pickler(content).dump(answers)
        return {"answers": content.getvalue()}


class _Pickler(pickle.Pickler):
    """Pickles a tensor that is a part of another, such as a row of a batch, without the rest: 30 times less to send."""

    def reducer_override(self, value: object) -> Reduced:
        return (torch.from_numpy, (value.numpy(),)) if isinstance(value, Tensor) else NotImplemented


def on_ray(
    model: str,
    weights: str | None,
    device: str | None,
    threads: int | None = None,
    max_pixels: int | None = None,
    size: ImageSize | None = None,
    options: Mapping[str, object] | None = None,
) -> Engine:
    """Return an engine for `predict_all` that runs batches on Ray: one worker per GPU if there are any, else one per core.

    The batches are those of one process, and so are the answers, to the last bit if the machines are alike.

    Args:
        model, weights, device, max_pixels, size: as for `convnext.load`.
        threads: threads that open images in each worker; by default one per core of its machine.
        options: as for `Predictor.with_options`.

    Raises UsageError if Ray is not installed. The engine raises ConvnextError if Ray fails.
    """
    ray = need("ray.data", "ray") and need("ray", "ray")

    def run(items: Sequence[Item], needs: frozenset[str], batch_size: int) -> Iterator[list[Answer]]:
        if not items:
            return
        starts = range(0, len(items), batch_size)
        batches = [{"items": pickle.dumps(items[start : start + batch_size])} for start in starts]
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        is_ours = not ray.is_initialized()
        if is_ours:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
        try:
            context = ray.data.DataContext.get_current()
            context.execution_options.preserve_order = True
            context.enable_progress_bars = False
            resources = ray.cluster_resources()
            kind = "GPU" if device != "cpu" and resources.get("GPU") else "CPU"
            pool = ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, int(resources[kind])))
            given = (os.getcwd(), extend.loaded(), model, weights, device, needs, threads, max_pixels, size, options or {})
            # One block per batch: Ray hands a block to a worker, and to another if that one is lost.
            data = ray.data.from_items(batches, override_num_blocks=len(batches))
            for row in data.map(_Worker, fn_constructor_args=given, compute=pool, **{f"num_{kind.lower()}s": 1}).iter_rows():
                yield pickle.loads(row["answers"])  # noqa: S301  (made above)
        except ray.exceptions.RayError as error:
            reason = str(error).strip().split("\n")[-1]
            raise ConvnextError(f"Ray failed: {reason}; the same command continues where it stopped") from error
        finally:
            if is_ours:
                ray.shutdown()

    return run
