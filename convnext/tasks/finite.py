"""Outputs with a NaN or an infinity in them: a prediction made of one would look like any other, or be no JSON."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from convnext.errors import NotFiniteError

# What decides in detectors and segmenters, each called as a module. NaN in the backbone comes out of these, too.
_DECIDING = ("neck", "rpn_head", "roi_head.bbox_head", "roi_head.mask_head", "decode_head")


def require_finite(values: Tensor) -> Tensor:
    """The values, if all of them are finite. Raises NotFiniteError else."""
    if not bool(values.isfinite().all()):
        raise NotFiniteError
    return values


@contextmanager
def finite_outputs(model: Any) -> Iterator[None]:
    """Watch what a detector's or segmenter's parts give meanwhile. Raises NotFiniteError at the end if not all of it is finite.

    A NaN would not come out of it: no score is above a threshold, and one class has the largest logit. Exported networks, which have
    no parts, look for themselves.
    """
    sums: list[Tensor] = []

    def watch(module: nn.Module, inputs: Any, output: Any) -> None:
        sums.extend(_sums(output))

    handles = [module.register_forward_hook(watch) for module in _deciding(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if sums:
        require_finite(torch.stack(sums))  # at the end, so that a GPU is waited for once


def _deciding(model: Any) -> list[nn.Module]:
    found: list[nn.Module] = []
    for path in _DECIDING:
        module: Any = model
        for name in path.split("."):
            module = getattr(module, name, None)
        if isinstance(module, nn.ModuleList):  # one of these a stage
            found += module
        elif isinstance(module, nn.Module):
            found.append(module)
    return found


def _sums(output: Any) -> list[Tensor]:
    """A number for each tensor that is finite if the tensor is. (It could overflow where that holds numbers of 1e30 and more.)"""
    if isinstance(output, Tensor):
        return [output.detach().sum(dtype=torch.float32)]
    return [one for part in output for one in _sums(part)] if isinstance(output, (list, tuple)) else []
