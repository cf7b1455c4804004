"""The nearest rows of embeddings by cosine similarity, block by block, so that memory stays bounded."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from convnext.fit.features import Features

_MAX_BYTES = 128 << 20  # of the similarities that are in memory at a time


def directions(rows: np.ndarray, centre: np.ndarray | None = None) -> Tensor:
    """Return embeddings (N, C) as float32 rows of length 1, with `centre` (C,) subtracted before; a row of zeros stays one."""
    found = torch.from_numpy(np.array(rows, np.float32))
    if centre is not None:
        found -= torch.from_numpy(np.asarray(centre, np.float32))
    return F.normalize(found)


def both_sides(features: Features) -> np.ndarray:
    """Return the mean of each image's embedding and its mirror image's: float32 (N, C)."""
    return np.asarray((features.plain + features.mirrored) / 2, np.float32)


def nearest(queries: Tensor, rows: Tensor, count: int, leave_out_own: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return the cosines (Q, K) of the nearest rows for each query, the nearest first, and their positions, int64 (Q, K).

    Args:
        queries: (Q, C), of `directions`.
        rows: (N, C), of `directions`.
        count: how many; K is less where there are fewer rows.
        leave_out_own: whether row i is not a neighbour of query i.
    """
    count = max(0, min(count, len(rows) - leave_out_own))
    block = max(1, _MAX_BYTES // (4 * max(len(rows), 1)))
    cosines, positions = np.empty((len(queries), count), np.float32), np.empty((len(queries), count), np.int64)
    for start in range(0, len(queries) if count else 0, block):
        found = queries[start : start + block] @ rows.T
        if leave_out_own:
            found.diagonal(start).fill_(-torch.inf)
        best = found.topk(count)
        cosines[start : start + block], positions[start : start + block] = best.values.numpy(), best.indices.numpy()
    return cosines, positions
