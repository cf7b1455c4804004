"""Embeddings of images and of their mirror images, each computed once: a file in the run folder keeps them.

The file is named by a digest of the network's weights. Its records have one size: the digest of a prepared image, its embedding, and that
of its mirror image. So an image that changed is computed again, one that moved is not, and other preprocessing gives other records. A
record that a killed process left incomplete is dropped.
"""

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from convnext.data.loader import CorruptImages
from convnext.data.sources.base import ClassifySource
from convnext.data.transforms.preprocessing import Preprocessing
from convnext.errors import ConvnextError
from convnext.evaluate import EvaluationLoader
from convnext.models.network import Network
from convnext.models.registry import find
from convnext.models.weights.files import unwritable
from convnext.tasks.classify.known import EmbeddingNetwork
from convnext.tasks.classify.task import ClassifyTask
from convnext.tasks.shared import require_embeddings, require_finite
from convnext.text import counted

_DIGEST = 16  # bytes
_FEW = 64  # images, up to which starting processes that decode takes longer than decoding
_MAX_BYTES = 4 << 30  # of the embeddings of a dataset: heads are fitted on all of them in memory

Progress = Callable[[int, int], object]  # called with the numbers of images done and in all


@dataclass(frozen=True, eq=False)
class Features:
    """Embeddings of images, one row for each image that could be read."""

    plain: np.ndarray  # float32 (N, C)
    mirrored: np.ndarray  # float32 (N, C), of the mirror images
    indices: np.ndarray  # int64 (N,): positions in the source
    unreadable: tuple[str, ...] = ()  # the reasons of images without a row
    computed: int = 0  # images that were not in the file

    def __len__(self) -> int:
        return len(self.indices)


class FeatureFile:
    """The embeddings that a network gave already, in a file that only grows.

    Args:
        folder: that holds the file.
        key: names the network.
        width: numbers in an embedding.
    """

    def __init__(self, folder: Path, key: str, width: int) -> None:
        self.path = folder / f"{key}.features"
        self.record = np.dtype([("digest", f"S{_DIGEST}"), ("plain", "<f4", (width,)), ("mirrored", "<f4", (width,))])
        folder.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            whole = file.tell() // self.record.itemsize
        os.truncate(self.path, whole * self.record.itemsize)
        self.rows: dict[bytes, int] = {}
        if whole:
            digests = np.memmap(self.path, self.record, "r")["digest"]
            self.rows = {_padded(digest): row for row, digest in enumerate(digests.tolist())}
        self.count = whole

    def add(self, digests: list[bytes], plain: np.ndarray, mirrored: np.ndarray) -> None:
        """Append embeddings (N, C) of prepared images and of their mirror images. Raises ConvnextError if the file can't be written."""
        records = np.empty(len(digests), self.record)
        records["digest"], records["plain"], records["mirrored"] = digests, plain, mirrored
        try:
            with self.path.open("ab") as file:
                file.write(records.tobytes())
        except OSError as error:
            raise unwritable(self.path, error) from error
        for digest in digests:
            self.rows[digest] = self.count
            self.count += 1

    def take(self, digests: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Return the embeddings (N, C) of prepared images and of their mirror images."""
        if not digests:
            empty = np.empty((0, self.record["plain"].shape[0]), np.float32)
            return empty, empty
        stored = np.memmap(self.path, self.record, "r")
        rows = [self.rows[digest] for digest in digests]
        return stored["plain"][rows], stored["mirrored"][rows]


def _padded(digest: bytes) -> bytes:
    return digest.ljust(_DIGEST, b"\0")  # NumPy strips zeros at the end


def digest_of(model: Network) -> str:
    """Return a digest of the weights that the embeddings of a network depend on, all but its head's."""
    found, entry = hashlib.blake2b(digest_size=_DIGEST), find(str(model.spec["name"]))
    for name, tensor in model.state_dict().items():
        if entry.is_of_classes(model, name):
            continue
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def compute(
    model: Network,
    task: ClassifyTask,
    source: ClassifySource,
    how: Preprocessing,
    folder: Path,
    device: torch.device,
    *,
    max_corrupt: float = 0.01,
    progress: Progress | None = None,
) -> Features:
    """Return the embeddings of the images of a source and of their mirror images; the file in `folder` keeps them for the next call.

    Args:
        model: in evaluation mode, on `device`.
        task: whose labels the source has.
        source: the images.
        how: the network's preprocessing.
        folder: of the file.
        device: where they are computed.
        max_corrupt: the fraction of the images that may be unreadable.
        progress: called after each batch.

    Raises UsageError for a network without embeddings, and ConvnextError for more unreadable images or more images than memory holds.
    """
    require_embeddings(model, "forward_head")
    width = _width(model, how, device)
    if (size := 8 * width * len(source)) > _MAX_BYTES:
        raise ConvnextError(
            f"the embeddings of {counted(len(source), 'image')} take {size / 2**30:.1f} GB, and fit holds at most {_MAX_BYTES >> 30} GB of "
            "them in memory: train with `convnext train finetune`, or fit a part of the images"
        )
    kept = FeatureFile(folder, digest_of(model), width)
    workers = 0 if len(source) <= _FEW else min(2, os.cpu_count() or 1)
    loader = EvaluationLoader(task.evaluation_samples(source, how), task, task.batch_size, workers, device)
    corrupt, digests, indices, computed, done = CorruptImages(len(source), max_corrupt, "--max-corrupt"), list[bytes](), list[int](), 0, 0
    for batch in loader:
        corrupt.add(batch.corrupt)
        found = [hashlib.blake2b(image.numpy().data, digest_size=_DIGEST).digest() for image in batch.images.contiguous()]
        new = {digest: place for place, digest in enumerate(found) if digest not in kept.rows}
        if new:
            images = batch.images[list(new.values())].to(device, memory_format=torch.channels_last)
            kept.add(list(new), *(_embed(model, one).numpy() for one in (images, images.flip(-1))))
            computed += len(new)
        digests += found
        indices += batch.indices
        done += len(batch) + len(batch.corrupt)
        if progress is not None:
            progress(done, len(source))
    plain, mirrored = kept.take(digests)
    return Features(plain, mirrored, np.array(indices, np.int64), tuple(corrupt.reasons.values()), computed)


@torch.inference_mode()
def _embed(model: nn.Module, images: Tensor) -> Tensor:
    network = cast(EmbeddingNetwork, model)
    x = images.contiguous(memory_format=torch.channels_last)
    return require_finite(network.forward_head(network.forward_features(x), pre_logits=True).float().cpu())


def _width(model: nn.Module, how: Preprocessing, device: torch.device) -> int:
    image = torch.zeros(1, how.channels, *getattr(how, "size", (224, 224)), device=device)
    return _embed(model, image).shape[1]


def seconds_of_image(model: nn.Module, how: Preprocessing, device: torch.device) -> float:
    """Return how long the forward pass of an image takes in a batch of 8, the shortest of three."""
    images = torch.zeros(8, how.channels, *getattr(how, "size", (224, 224)), device=device)
    found = []
    for _ in range(3):
        began = time.monotonic()
        _embed(model, images)
        found.append((time.monotonic() - began) / len(images))
    return min(found)
