"""The maps of a network's stages, as a sheet of images."""

from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convnext.data.deep import DeepImage
from convnext.errors import UsageError
from convnext.explain.activation_maps import Mapped, coloured
from convnext.inference.predictor import Predictor
from convnext.report.sheets import SheetRow, sheet
from convnext.tasks.base import Prediction

STRONGEST = 7  # channels of a stage that are shown, after the mean of all


def stage_maps(predictor: Predictor[Prediction], image: Image.Image | DeepImage) -> list[Tensor]:
    """Return the maps (channels, H', W') float32 of the backbone's stages for an opened image, on the CPU.

    Raises UsageError for a network without maps: an exported one, LeNet-5 or AlexNet.
    """
    backbone = getattr(predictor.model, "backbone", predictor.model)  # a detector's or segmenter's
    if not hasattr(backbone, "features"):
        raise UsageError("this network gives predictions but no maps: use the weights that it was exported from, or another network")
    x = predictor.preprocessing.transform()(image)[None].to(predictor.device)
    with torch.inference_mode():
        return [one[0].float().cpu() for one in cast(Mapped, backbone).features(x)]


def strongest(maps: Tensor, count: int = STRONGEST) -> list[int]:
    """Return the channels of maps (channels, H', W') with the largest mean absolute value, the largest first."""
    return maps.abs().mean((1, 2)).topk(min(count, len(maps))).indices.tolist()


def feature_sheet(predictor: Predictor[Prediction], image: Image.Image | DeepImage) -> Image.Image:
    """Return a sheet with one row per stage: the mean of all channels' absolute values, then the strongest channels.

    Each tile is scaled from its lowest value to its highest.

    Raises UsageError as `stage_maps` does.
    """
    rows = []
    for number, maps in enumerate(stage_maps(predictor, image), 1):
        channels, height, width = maps.shape
        tiles = [(drawn(maps.abs().mean(0)), "mean of all")]
        tiles += [(drawn(maps[channel]), f"channel {channel}") for channel in strongest(maps)]
        rows.append(SheetRow(f"stage {number}: {channels} channels of {width} x {height}", tiles))
    return sheet(rows)


def drawn(values: Tensor) -> Image.Image:
    """Return a map (H', W') as an RGB image of as many pixels, from its lowest value (dark blue) to its highest (yellow)."""
    array = values.numpy()
    low, high = float(array.min()), float(array.max())
    # A constant map is drawn in the middle colour.
    scaled = (array - low) / (high - low) if high > low else np.full_like(array, 0.5)
    return coloured(scaled).convert("RGB")
