"""The networks that the paper compares ConvNeXt with: built by timm, used as a `Backbone`.

They keep timm's parameter names and timm's arithmetic, so that its published weights load as they are. Three things are added: the
methods of `Backbone`; our stochastic depth, which does not depend on how a batch is split; and images of any size, for detectors and
segmenters, in the two families whose networks are made for one size (Swin and ViT).
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext.models.backbones.convnext import check_drop_path
from convnext.models.backbones.dropping import DropPath
from convnext.models.network import Backbone

_UNMATCHED = "?"  # the name of a parameter that is in none of timm's groups, as those of the head are

# The submodules that only the logits need, by their names in any of the families.
_ONLY_FOR_LOGITS = ("norm", "conv_head", "bn2", "head", "fc", "classifier")


class Mixin(nn.Module):
    """Methods for a class of timm. `_mix` makes a class of both, which pickle finds again by its two parts."""

    def __reduce__(self) -> tuple[object, ...]:
        contract, network = type(self).__bases__
        return _blank, (contract, network), self.__dict__.copy()


class TimmBackbone(Mixin, Backbone):
    """The methods of `Backbone` for a network of timm.

    `features` gives the maps (N, channels[i], H', W') of strides 4, 8, 16 and 32, or, of a ViT or DeiT, the one map of stride 16 (its last
    block's, without the class token), before any last norm. H' and W' are rounded up where a side is not a multiple of the stride.
    BatchNorm's statistics are of the part of the batch that a device sees at a time. With gradient checkpointing its running averages count
    each part twice.
    """

    min_size = 1  # all of them pad

    if TYPE_CHECKING:
        # Methods of timm's.
        def forward_intermediates(self, x: Tensor, *, indices: int, intermediates_only: bool) -> list[Tensor]: ...
        def group_matcher(self, coarse: bool) -> dict[str, object]: ...

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the maps of images (N, in_channels, H, W), as `channels` and `strides` say."""
        return self.forward_intermediates(x, indices=len(self.strides), intermediates_only=True)

    def reset_classifier(self, num_classes: int, *args: object, **kwargs: object) -> None:
        """As timm's: put a fresh head for that many classes on the network; 0 leaves the pooled features as output."""
        super().reset_classifier(num_classes, *args, **kwargs)
        self.set_num_classes(num_classes)

    def drop_head(self) -> None:
        """Remove what only `forward` needs, so that every parameter has a gradient under a detector or segmenter."""
        self.set_num_classes(0)
        for name in _ONLY_FOR_LOGITS:
            if name in self._modules:
                delattr(self, name)

    def no_weight_decay(self) -> set[str]:
        """Return the names of all parameters of one dimension, of the embeddings of positions and of the class token."""
        own: set[str] = getattr(super(), "no_weight_decay", set)()
        return {name for name, parameter in self.named_parameters() if parameter.ndim <= 1 or name in own}

    def layer_group(self, name: str) -> int:
        """Return timm's own group: 0 for the stem, then each block, then the head. A last norm is in the last block's group."""
        from timm.models import group_parameters

        if name not in (groups := self.__dict__.setdefault("_groups", {})):
            groups |= group_parameters(self, self.group_matcher(coarse=False), reverse=True)
        return groups[name]

    def stages_of_parameters(self) -> dict[str, int]:
        """Return the stage of each parameter by timm, counted from 1; 0 for the stem. Of a ViT, each block is a stage."""
        from timm.models._manipulate import group_with_matcher

        names = [*(name for name, _ in self.named_parameters()), _UNMATCHED]
        groups: dict[str, int] = group_with_matcher([(name, None) for name in names], self.group_matcher(coarse=True), reverse=True)
        return {name: group for name, group in groups.items() if group != groups[_UNMATCHED]}

    def to_native(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a state of timm's or of the network's authors in this network's names, with its grid of position embeddings."""
        own = self.state_dict()
        # Old files do not count BatchNorm's batches. Nothing here depends on the count.
        counts = {name: torch.tensor(0) for name in own if name.endswith("num_batches_tracked")}
        native = counts | dict(state)
        if any(name not in own or own[name].shape != native[name].shape for name in native if not name.startswith(self.head_name)):
            rename = getattr(sys.modules[type(self).__module__], "checkpoint_filter_fn", lambda state, network: state)
            with suppress(AttributeError):  # of a module that this network lacks: `load_weights` then names the keys
                native = rename(native, self)
        return native

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> object:
        """As torch's. On the meta device (`assign`) the buffers that are computed and not stored get their values, too."""
        result = super().load_state_dict(state_dict, strict, assign)
        if assign:
            for module in self.modules():
                for name, buffer in module._buffers.items():
                    if buffer is not None and buffer.is_meta:
                        module._buffers[name] = torch.empty_like(buffer, device="cpu")
                if initialise := getattr(module, "init_non_persistent_buffers", None):
                    initialise()
        return result


class SwinBlockOfAnySize(Mixin):
    """Window attention for timm's Swin block at sizes other than the network's own.

    timm shifts the map before it pads it to whole windows, and never shifts where its own size is one window. The published detectors and
    segmenters pad first, and shift wherever a side has more than one window. At its own size both agree.
    """

    one_size_in_graphs = "padding and shift of its windows depend on the size of the map"  # a graph of any size can't hold branches
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
    """Return what is added to the attention of shifted windows (windows, positions, positions): -100 between parts of the map that
    were not neighbours, else 0.
    """
    rows, columns = (_parts(*side, like.device) for side in zip(counts, window, shift, strict=True))
    parts = (3 * rows[:, None, :, None] + columns[None, :, None, :]).view(counts[0] * counts[1], window[0] * window[1])
    return torch.where(parts[:, None] == parts[:, :, None], 0.0, -100.0).to(like.dtype)


def _parts(count: int, window: int, shift: int, device: torch.device) -> Tensor:
    # Of a shifted side, in windows: 0 before the last window, 1 in the rest of it, 2 in the rows that came around from the other end.
    index = torch.arange(count * window, device=device).view(count, window)
    return (index >= (count - 1) * window).long() + (index >= count * window - shift).long()


def build(
    network: str,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    drop_path: float = 0.0,
    head_init_scale: float = 1.0,
    grad_checkpointing: bool = False,
) -> TimmBackbone:
    """Return the network of that name in timm, with random weights as timm draws them.

    Args:
        network: timm's name.
        num_classes: outputs of the head; 0 for none.
        in_channels: channels of the image.
        drop_path: stochastic depth of the last block; the others rise to it linearly from 0.
        head_init_scale: factor on the head's initial weights.
        grad_checkpointing: recompute blocks in the backward pass to save memory.

    Raises UsageError unless drop_path is a probability below 1.
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
    """Return a ViT or DeiT; other arguments are as for `build`.

    Args:
        image_size: pixels a side that have position embeddings; by default as in the name. Embeddings of weights of another size are
            resampled when they are loaded; for images of another size they are resampled in each forward pass.
    """
    check_drop_path(drop_path)
    arguments: dict[str, object] = {"num_classes": num_classes, "in_chans": in_channels, "drop_path_rate": drop_path}
    sizes: dict[str, object] = {"dynamic_img_size": True, "dynamic_img_pad": True} | ({"img_size": image_size} if image_size else {})
    return _under_contract(network, arguments | sizes, head_init_scale, grad_checkpointing)


def _under_contract(network: str, arguments: Mapping[str, object], head_init_scale: float, grad_checkpointing: bool) -> TimmBackbone:
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


_MIXED: dict[tuple[type[Mixin], type[nn.Module]], type[nn.Module]] = {}


def _mix(contract: type[Mixin], module: nn.Module) -> None:
    # Into its class: methods that were put on the instance would be shared with its copies.
    module.__class__ = _mixed(contract, type(module))


def _mixed(contract: type[Mixin], network: type[nn.Module]) -> type[nn.Module]:
    if (contract, network) not in _MIXED:
        _MIXED[contract, network] = type(network.__name__, (contract, network), {"__module__": network.__module__})
    return _MIXED[contract, network]


def _blank(contract: type[Mixin], network: type[nn.Module]) -> nn.Module:
    # What pickle and copy fill.
    made = _mixed(contract, network)
    return made.__new__(made)
