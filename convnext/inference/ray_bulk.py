"""Prediction of many images on Ray Data: its workers hold the network, this process writes what they find, in order.

Whatever Ray runs on, one machine or a cluster (RAY_ADDRESS), each machine must have the images and the weights under the same
paths. A worker that is lost is replaced, and its batch predicted again, by Ray.
"""

import io
import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from convnext.errors import ConvnextError, need
from convnext.inference.bulk import Engine, run_here
from convnext.inference.inputs import Item
from convnext.inference.outputs import Answer
from convnext.inference.predictor import load


class _Worker:
    """Holds a network, and predicts a batch at a time."""

    def __init__(
        self, folder: str, model: str, weights: str | None, device: str | None, needs: frozenset[str], threads: int | None
    ) -> None:
        os.chdir(folder)  # paths are as they were given
        self.predictor, self.needs, self.threads = load(model, weights, device=device), needs, threads

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        items: list[Item] = pickle.loads(row["items"])  # noqa: S301  (made below)
        (answers,) = run_here(self.predictor, items, self.needs, len(items), self.threads)
        content = io.BytesIO()
        _Pickler(content).dump(answers)
        return {"answers": content.getvalue()}


class _Pickler(pickle.Pickler):
    """Pickles a tensor that is a part of another, as a row of a batch is, without the rest: 30 times less to send."""

    def reducer_override(self, value: Any) -> Any:
        return (torch.from_numpy, (value.numpy(),)) if isinstance(value, Tensor) else NotImplemented


def on_ray(model: str, weights: str | None, device: str | None, threads: int | None = None) -> Engine:
    """The engine, for `predict_all`, that runs batches on Ray: a worker a GPU where there are any, else a worker a core.

    The batches are those of one process, and so are the answers, to the last bit where the machines are alike.

    Args:
        model: as for `load`, and likewise `weights` and `device`.
        threads: that open images in each worker; by default one a core of its machine.

    Raises UsageError if Ray is not installed, and, when it runs, ConvnextError if Ray gives up.
    """
    ray = need("ray.data", "ray") and need("ray", "ray")

    def run(items: Sequence[Item], needs: frozenset[str], size: int) -> Iterator[list[Answer]]:
        if not items:
            return
        batches = [{"items": pickle.dumps(items[start : start + size])} for start in range(0, len(items), size)]
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
            given = (os.getcwd(), model, weights, device, needs, threads)
            # A block a batch: what Ray hands to a worker, and gives to another if that is lost.
            data = ray.data.from_items(batches, override_num_blocks=len(batches))
            for row in data.map(_Worker, fn_constructor_args=given, compute=pool, **{f"num_{kind.lower()}s": 1}).iter_rows():
                yield pickle.loads(row["answers"])  # noqa: S301  (made above)
        except ray.exceptions.RayError as error:
            reason = str(error).strip().split("\n")[-1]
            raise ConvnextError(f"Ray gave up: {reason}; the same command goes on where it stopped") from error
        finally:
            if is_ours:
                ray.shutdown()

    return run
