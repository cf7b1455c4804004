"""Embeddings of images and of their mirror images."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Features:
    """Embeddings of images, one row for each image that could be read."""

    plain: np.ndarray  # float32 (N, C)
    mirrored: np.ndarray  # float32 (N, C), of the mirror images
    indices: np.ndarray  # int64 (N,): positions in the source

    def __len__(self) -> int:
        return len(self.indices)
