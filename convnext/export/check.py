"""Verify that an exported file computes the same as the network that it was made from."""

import torch
import torch.nn.functional as F
from torch import Tensor

from convnext import tasks
from convnext.data.transforms.preprocessing import to_normalised
from convnext.errors import ConvnextError
from convnext.export.graphs import Form
from convnext.models.load import Loaded
from convnext.tasks.exported import ExportedNetwork

TOLERANCE = {
    "float32": 1e-3,
    "fp16": 2e-2,
    "bf16": 5e-2,
    "int8": 1e-3,
}  # of the largest difference, relative to the largest output; int8: before it is rounded


def pixels(batch: int, height: int, width: int, seed: int, channels: int = 3) -> list[Tensor]:
    """Return images uint8 (batch, channels, H, W): one of noise, one with structure at several scales as photographs have it."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(batch, channels, height, width, generator=generator)
    smooth = torch.zeros(batch, channels, height, width)
    for cells in (2, 5, 11):
        smooth += F.interpolate(torch.rand(batch, channels, cells, cells, generator=generator), (height, width), mode="bicubic") / 3
    return [(255 * image.clamp(0, 1)).round().to(torch.uint8) for image in (noise, smooth)]


def sizes(form: Form) -> list[tuple[int, int]]:
    """Return the sizes of images to compare at; one of them is divided by no stride if the file takes any size."""
    height, width = form.size
    return [form.size, (height, width * 3 // 2 + 7)] if form.dynamic else [form.size]


@torch.no_grad()
def compare(loaded: Loaded, network: ExportedNetwork, form: Form) -> float:
    """Return the largest relative error of an opened file on images of two kinds, in batches of two sizes and at `sizes`.

    Raises ConvnextError if it is above `TOLERANCE` or not finite, or if a detector finds other objects.
    """
    worst, allowed = 0.0, TOLERANCE[form.precision]
    channels = loaded.preprocessing.channels
    normalise = to_normalised(loaded.preprocessing.mean, loaded.preprocessing.std, channels=channels)
    rules = tasks.get(loaded.task).export()
    for number, (height, width) in enumerate(sizes(form)):
        for kind in pixels(2 - number, height, width, number, channels):
            normalised = torch.stack([normalise(image) for image in kind])
            error = rules.error(loaded.model, network, normalised, kind.float() if form.pixels else normalised)
            if not error <= allowed:
                reason = f"relative error {error:.1e} at {height} x {width}, above the {allowed:g} allowed for {form.precision}"
                raise ConvnextError(f"it computes something else than the network: {reason}")
            worst = max(worst, error)
    return worst
