"""What a network sees on its way: the maps of its stages, as a sheet to look at."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convnext.data.deep import DeepImage
from convnext.errors import UsageError
from convnext.explain.activation_maps import coloured
from convnext.report.sheets import Row, sheet

STRONGEST = 7  # channels of a stage that are shown, behind the mean of all


def stage_maps(predictor: Any, image: Image.Image | DeepImage) -> list[Tensor]:
    """The maps (channels, H', W') float32 of the backbone's stages, on the CPU; of an opened image.

    Raises UsageError for networks that have none: exported ones, LeNet-5 and AlexNet.
    """
    backbone = getattr(predictor.model, "backbone", predictor.model)  # a detector's or segmenter's
    if not hasattr(backbone, "features"):
        raise UsageError("this network gives predictions but no maps: take the weights that it was exported from, or another one")
    x = predictor.preprocessing.transform()(image)[None].to(predictor.device)
    with torch.inference_mode():
        return [one[0].float().cpu() for one in backbone.features(x)]


def strongest(maps: Tensor, count: int = STRONGEST) -> list[int]:
    """The channels of maps (channels, H', W') whose mean absolute value is the largest, that one first."""
    return maps.abs().mean((1, 2)).topk(min(count, len(maps))).indices.tolist()


def feature_sheet(predictor: Any, image: Image.Image | DeepImage) -> Image.Image:
    """A row a stage: the mean of all channels' absolute values, then the strongest channels, each from its lowest value to its highest.

    Raises UsageError as `stage_maps` does.
    """
    rows = []
    for number, maps in enumerate(stage_maps(predictor, image), 1):
        channels, height, width = maps.shape
        tiles = [(drawn(maps.abs().mean(0)), "mean of all")]
        tiles += [(drawn(maps[channel]), f"channel {channel}") for channel in strongest(maps)]
        rows.append(Row(f"stage {number}: {channels} channels of {width} x {height}", tiles))
    return sheet(rows)


def drawn(values: Tensor) -> Image.Image:
    """A map (H', W') as an RGB image of as many pixels, from its lowest value (dark blue) to its highest (yellow)."""
    array = values.numpy()
    low, high = float(array.min()), float(array.max())
    # One position alone has no lower and higher: it is drawn as the middle.
    scaled = (array - low) / (high - low) if high > low else np.full_like(array, 0.5)
    return coloured(scaled).convert("RGB")
