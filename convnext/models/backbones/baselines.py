"""The networks that the paper compares ConvNeXt with: built by timm, under our contract.

What timm builds keeps timm's names and timm's arithmetic, so that its published weights load as they are. Three things are
added: the contract's methods; our stochastic depth, which does not depend on how a batch is split; and images of any size,
for detectors and segmenters, in the two families whose networks are made for one size (Swin and ViT).
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.models.backbones.convnext import DropPath, check_drop_path
from convnext.models.weights.published import from_timm, timm_config

# All that only the logits need, by its name in one family or another; what is left has no parameters.
_ONLY_FOR_LOGITS = ("norm", "conv_head", "bn2", "head", "fc", "classifier")


class TimmBackbone(nn.Module):
    """Our contract, mixed into the class of a network of timm.

    `features` gives the maps (N, channels[i], H', W') of strides 4, 8, 16 and 32, or the one of stride 16 that a ViT or DeiT has
    (its last block's, without the class token), before any last norm. H' and W' are rounded up where a side is no multiple
    of the stride. BatchNorm keeps its meaning: its statistics are of the part of the batch that a device sees at a time, and
    with gradient checkpointing its running averages count each part twice.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    num_classes: int
    num_features: int
    head_name: str  # of the module that gives the logits, as "head.fc"
    min_size = 1  # all of them pad
    forward_intermediates: Any  # timm's
    group_matcher: Any  # timm's

    def features(self, x: Tensor) -> list[Tensor]:
        """Images (N, in_channels, H, W) to the maps of `channels` and `strides`."""
        return self.forward_intermediates(x, indices=len(self.strides), intermediates_only=True)

    def drop_head(self) -> None:
        """Remove what only `forward` needs, so that under a detector or segmenter every parameter has a gradient."""
        self.num_classes = 0
        for name in _ONLY_FOR_LOGITS:
            if name in self._modules:
                delattr(self, name)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that are not decayed: all of one dimension, and embeddings of positions and the class token."""
        own: set[str] = getattr(super(), "no_weight_decay", set)()
        return {name for name, parameter in self.named_parameters() if parameter.ndim <= 1 or name in own}

    def layer_group(self, name: str) -> int:
        """The group, from 0 at the stem, by timm's own grouping: the stem, each block, the head; a last norm is with the last block."""
        from timm.models import group_parameters

        if name not in (groups := self.__dict__.setdefault("_groups", {})):
            groups |= group_parameters(self, self.group_matcher(coarse=False), reverse=True)
        return groups[name]

    def to_native(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state that timm or the network's authors wrote, in this network's names and with its grid of position embeddings."""
        own = self.state_dict()
        # Old files do not count BatchNorm's batches; nothing here depends on the count.
        counts = {name: torch.tensor(0) for name in own if name.endswith("num_batches_tracked")}
        native = counts | dict(state)
        if any(name not in own or own[name].shape != native[name].shape for name in native if not name.startswith(self.head_name)):
            rename = getattr(sys.modules[type(self).__module__], "checkpoint_filter_fn", lambda state, network: state)
            with suppress(AttributeError):  # of a module that this network lacks: who loads the weights tells the keys
                native = rename(native, self)
        return native

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's; on the meta device (`assign`) also what is computed and not stored gets its values."""
        result = super().load_state_dict(state_dict, strict, assign)
        if assign:
            for module in self.modules():
                for name, buffer in module._buffers.items():
                    if buffer is not None and buffer.is_meta:
                        module._buffers[name] = torch.empty_like(buffer, device="cpu")
                if initialise := getattr(module, "init_non_persistent_buffers", None):
                    initialise()
        return result


class SwinBlockOfAnySize(nn.Module):
    """Window attention at sizes other than the network's own, mixed into timm's Swin block.

    timm shifts the map before it pads it to whole windows and never shifts where its own size is one window; the published
    detectors and segmenters pad first, and shift wherever a side has more than one window. At its own size both agree.
    """

    one_size_in_graphs = "windows are padded and shifted as the size of the map is"  # branches, which a graph of any size can't hold
    input_resolution: tuple[int, int]
    window_size: tuple[int, int]
    target_shift_size: tuple[int, int]
    attn: nn.Module

    def _attn(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        if (height, width) == tuple(self.input_resolution):
            return super()._attn(x)  # type: ignore[misc]
        high, wide = self.window_size
        rows, columns = (height + high - 1) // high, (width + wide - 1) // wide
        shift = [by if count > 1 else 0 for count, by in zip((rows, columns), self.target_shift_size, strict=True)]
        x, mask = F.pad(x, (0, 0, 0, columns * wide - width, 0, rows * high - height)), None
        if any(shift):
            x, mask = x.roll([-by for by in shift], (1, 2)), _shift_mask((rows, columns), self.window_size, shift, x)
        windows = x.view(batch, rows, high, columns, wide, channels).transpose(2, 3).contiguous()
        windows = self.attn(windows.view(batch * rows * columns, high * wide, channels), mask=mask)
        x = windows.view(batch, rows, columns, high, wide, channels).transpose(2, 3).contiguous()
        x = x.view(batch, rows * high, columns * wide, channels)
        return (x.roll(shift, (1, 2)) if any(shift) else x)[:, :height, :width]


def _shift_mask(counts: tuple[int, int], window: tuple[int, int], shift: Sequence[int], like: Tensor) -> Tensor:
    """What shifted windows add to their attention (windows, positions, positions): -100 between parts that were no neighbours."""
    rows, columns = (_parts(*side, like.device) for side in zip(counts, window, shift, strict=True))
    parts = (3 * rows[:, None, :, None] + columns[None, :, None, :]).view(counts[0] * counts[1], window[0] * window[1])
    return torch.where(parts[:, None] == parts[:, :, None], 0.0, -100.0).to(like.dtype)


def _parts(count: int, window: int, shift: int, device: torch.device) -> Tensor:
    # Of a shifted side, in windows: 0 up to the last, 1 what is left of that, 2 what came around from the other end.
    place = torch.arange(count * window, device=device).view(count, window)
    return (place >= (count - 1) * window).long() + (place >= count * window - shift).long()


def build(
    network: str,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    drop_path: float = 0.0,
    head_init_scale: float = 1.0,
    grad_checkpointing: bool = False,
) -> TimmBackbone:
    """The network of that name in timm, with random weights as timm draws them.

    Args:
        network: timm's name.
        num_classes: outputs of the head; 0 for none.
        in_channels: channels of the image.
        drop_path: stochastic depth of the last block; the others rise to it linearly from 0.
        head_init_scale: factor on the head's initial weights.
        grad_checkpointing: recompute blocks in the backward pass to save memory.

    Raises UsageError for a drop_path that is no probability.
    """
    check_drop_path(drop_path)
    arguments = {"num_classes": num_classes, "in_chans": in_channels, "drop_path_rate": drop_path}
    return _under_contract(network, arguments, head_init_scale, grad_checkpointing)


def build_vit(
    network: str,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    image_size: int | None = None,
    drop_path: float = 0.0,
    head_init_scale: float = 1.0,
    grad_checkpointing: bool = False,
) -> TimmBackbone:
    """A ViT or DeiT; arguments as for `build`.

    Args:
        image_size: pixels a side for which there are position embeddings; by default as in the name. Weights of another size
            are resampled when they are loaded, and images of another size resample the embeddings as they come.
    """
    check_drop_path(drop_path)
    arguments = {"num_classes": num_classes, "in_chans": in_channels, "drop_path_rate": drop_path}
    arguments |= {"dynamic_img_size": True, "dynamic_img_pad": True} | ({"img_size": image_size} if image_size else {})
    return _under_contract(network, arguments, head_init_scale, grad_checkpointing)


def _under_contract(network: str, arguments: dict[str, Any], head_init_scale: float, grad_checkpointing: bool) -> TimmBackbone:
    import timm
    from timm.layers import DropPath as TimmDropPath
    from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock

    built = timm.create_model(network, **arguments)
    for module in list(built.modules()):
        for name, child in module.named_children():
            if isinstance(child, TimmDropPath):
                setattr(module, name, DropPath(child.drop_prob))
            elif isinstance(child, SwinTransformerBlock):
                _mix(SwinBlockOfAnySize, child)
    if isinstance(built, SwinTransformer):
        built.patch_embed.strict_img_size, built.patch_embed.dynamic_img_pad = False, True

    _mix(TimmBackbone, built)
    built.strides = tuple(sorted({stage["reduction"] for stage in built.feature_info} - {2}))
    built.channels = tuple(stage["num_chs"] for stage in built.feature_info[-len(built.strides) :])
    built.head_name = built.pretrained_cfg["classifier"]
    built.set_grad_checkpointing(grad_checkpointing)
    if built.num_classes:
        with torch.no_grad():
            built.get_classifier().weight.mul_(head_init_scale)
    return built


def published(network: str, tags: Sequence[str], image_size: int, source: str) -> tuple[ClassifyPreprocessing, int]:
    """How published weights were tested, and how many classes they tell apart, as timm notes it.

    Args:
        network: timm's name.
        tags: of the weights that are known.
        image_size: of the paper's table; where weights were tested at this size and another, it is taken.
        source: a tag, or a file or address that has one in its name; where it has none, the first tag's answer is given.
    """
    if not tags:
        return ClassifyPreprocessing(image_size=image_size), 1000
    name = source.rpartition("/")[2]
    tag = max((tag for tag in tags if tag in name), key=len, default=tags[0])
    noted = timm_config(f"{network}.{tag}")
    assert noted is not None, f"{network}.{tag} is not in timm's table"
    return from_timm(noted, f"timm's table of {network}.{tag}", image_size), noted["num_classes"]


def _mix(contract: type, module: Any) -> None:
    # Into its class, for a copy of the network would share with it methods that were put on the instance.
    module.__class__ = _mixed(contract, module.__class__)


@cache
def _mixed(contract: Any, network: Any) -> Any:
    return type(network.__name__, (contract, network), {"__module__": network.__module__})
