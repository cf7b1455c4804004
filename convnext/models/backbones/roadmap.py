"""The road from ResNet to ConvNeXt: one network, and the list of changes that modernize it step by step.

Source: Liu et al., *A ConvNet for the 2020s*, CVPR 2022 (arXiv 2201.03545), section 2, figure 2, tables 10 and 11.
Read `Design` (what can differ), `STEPS` (what each step changes), then `Block` and `RoadmapNet` (what it means).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from convnext.errors import UsageError
from convnext.models.backbones.convnext import Classifier, ConvNeXt, DropPath, LayerNorm2d, check_arguments, drop_path_rates

Regime = Literal["t", "b"]


@dataclass(frozen=True)
class Design:
    """Everything in which one step of the road differs from another. As it stands: the original ResNet-50."""

    depths: tuple[int, ...] = (3, 4, 6, 3)  # blocks of each stage
    width: int = 64  # of the first stage; it doubles from stage to stage
    patchify: bool = False  # the stem is one 4 x 4 convolution of stride 4, not 7 x 7 of stride 2 and a max pool
    depthwise: bool = False  # the spatial convolution has one filter a channel
    inverted: bool = False  # the block is wide in the middle, not at its ends
    moved_up: bool = False  # the spatial convolution comes first, where the block is narrow
    kernel_size: int = 3
    gelu: bool = False  # GELU for ReLU
    few_activations: bool = False  # one a block, between the two 1 x 1 convolutions
    few_norms: bool = False  # one a block, before the first 1 x 1 convolution
    layer_norm: bool = False  # LayerNorm for BatchNorm
    separate_downsampling: bool = False  # LayerNorm and a 2 x 2 convolution of stride 2 between stages: this is ConvNeXt


@dataclass(frozen=True)
class Step:
    """One step of the road: what it changes in the design before it, and why."""

    name: str
    title: str  # its row in the published tables
    why: str
    change: dict[str, Any]


# What differs where the road begins at ResNet-200: its stages, of a width that keeps its multiply-adds, and the width after 'wider'.
_CHANGES_B: dict[str, dict[str, Any]] = {
    "resnet": {"depths": (3, 24, 36, 3)},
    "stage_ratio": {"depths": (3, 3, 27, 3), "width": 84},
    "wider": {"width": 128},
}

STEPS = (
    Step("resnet", "original ResNet", "ResNet as in 2015, where the road begins.", {}),
    Step("modern_training", "modern training recipe", "The same network under the recipe of vision Transformers.", {}),
    Step("stage_ratio", "stage compute ratio", "Blocks are shared out as in Swin, 1 : 1 : 3 : 1.", {"depths": (3, 3, 9, 3)}),
    Step("patchify_stem", "patchify stem", "The image is cut into 4 x 4 patches, as Transformers do.", {"patchify": True}),
    Step("depthwise", "depthwise convolution", "Space is mixed in each channel alone, as attention does.", {"depthwise": True}),
    Step("wider", "wider", "What depthwise convolution saved is spent on width, as in ResNeXt.", {"width": 96}),
    Step("inverted_bottleneck", "inverted bottleneck", "Wide in the middle, as a Transformer's MLP is.", {"inverted": True}),
    Step("moved_up", "depthwise convolution moved up", "Space is mixed first, where it is cheap, as attention is.", {"moved_up": True}),
    Step("kernel_5", "kernel 5x5", "A larger window, towards Swin's.", {"kernel_size": 5}),
    Step("kernel_7", "kernel 7x7", "As large as Swin's window; the road goes on from here.", {"kernel_size": 7}),
    Step("kernel_9", "kernel 9x9", "A side road: larger does not help.", {"kernel_size": 9}),
    Step("kernel_11", "kernel 11x11", "A side road: larger still does not help.", {"kernel_size": 11}),
    Step("gelu", "ReLU to GELU", "The Transformers' activation, again with 7 x 7.", {"kernel_size": 7, "gelu": True}),
    Step("fewer_activations", "fewer activations", "One activation a block, as in a Transformer's MLP.", {"few_activations": True}),
    Step("fewer_norms", "fewer normalizations", "One normalization a block.", {"few_norms": True}),
    Step("layer_norm", "BatchNorm to LayerNorm", "The Transformers' normalization.", {"layer_norm": True}),
    Step(
        "separate_downsampling",
        "separate downsampling layers",
        "Stages are parted by layers of their own, normalized for stability: ConvNeXt.",
        {"separate_downsampling": True},
    ),
)


def design(step: int, regime: Regime = "t") -> Design:
    """The network after that step (0 to 16), of the road that begins at ResNet-50 ("t") or ResNet-200 ("b")."""
    found = Design()
    for passed in STEPS[: step + 1]:
        found = replace(found, **(_CHANGES_B.get(passed.name, passed.change) if regime == "b" else passed.change))
    return found


def step_names(regime: Regime) -> list[str]:
    """The names under which `create_model` knows the steps of a regime, in their order."""
    return [f"roadmap_{regime}_{number:02d}_{step.name}" for number, step in enumerate(STEPS)]


def roadmap(
    step: int,
    regime: Regime,
    *,
    in_channels: int = 3,
    num_classes: int = 1000,
    width: int | None = None,
    depths: Sequence[int] | None = None,
    drop_path: float = 0.0,
    layer_scale: float | None = None,
    head_init_scale: float = 1.0,
    grad_checkpointing: bool = False,
) -> nn.Module:
    """The network after a step, whole or narrow.

    Args:
        step: 0 to 16, a position in `STEPS`.
        regime: "t" begins at ResNet-50 and ends at ConvNeXt-T, "b" begins at ResNet-200 and ends at ConvNeXt-B.
        width: of the first stage at the end of the road, for a narrow copy of all of it: the steps before 'wider' shrink likewise.
        depths: blocks in each stage, for a short copy.
        layer_scale: initial scale of the residual branches, 0 for none; by default 1e-6 in the last step, as published, and none before.
        in_channels, num_classes, drop_path, head_init_scale, grad_checkpointing: as for `ConvNeXt`.
    """
    plan = design(step, regime)
    if width is not None:
        plan = replace(plan, width=max(round(plan.width * width / design(len(STEPS) - 1, regime).width), 1))
    if depths is not None:
        if len(depths) != 4:
            raise UsageError(f"depths has one entry for each of the four stages, not {tuple(depths)}")
        plan = replace(plan, depths=tuple(depths))
    shared: dict[str, Any] = {
        "in_channels": in_channels,
        "num_classes": num_classes,
        "drop_path": drop_path,
        "head_init_scale": head_init_scale,
        "grad_checkpointing": grad_checkpointing,
    }
    if not plan.separate_downsampling:
        return RoadmapNet(plan, layer_scale=layer_scale or 0.0, **shared)
    scale = 1e-6 if layer_scale is None else layer_scale
    return ConvNeXt(plan.depths, [plan.width * 2**i for i in range(4)], kernel_size=plan.kernel_size, layer_scale=scale, **shared)


class Block(nn.Module):
    """A residual block of a design. `width` is its stage's; bottlenecks put out four times that, inverted ones just that."""

    def __init__(self, plan: Design, inputs: int, width: int, stride: int, drop_path: float, layer_scale: float) -> None:
        super().__init__()
        outputs = width if plan.inverted else 4 * width
        self.branch = nn.Sequential(*(_moved_up if plan.moved_up else _in_the_middle)(plan, inputs, width, stride))
        self.gamma = nn.Parameter(torch.full((outputs,), layer_scale)) if layer_scale else None
        self.drop_path = DropPath(drop_path)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(*_conv(plan, inputs, outputs, 1, stride, normed=not plan.few_norms))
        self.activation = nn.Identity() if plan.few_activations else _activation(plan)

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        if self.gamma is not None:
            y = self.gamma.view(-1, 1, 1) * y
        return self.activation(self.shortcut(x) + self.drop_path(y))


def _in_the_middle(plan: Design, inputs: int, width: int, stride: int) -> list[nn.Module]:
    # The spatial convolution between the two others: ResNet's bottleneck, and, up to 'inverted bottleneck', its descendants.
    middle, outputs = (4 * width, width) if plan.inverted else (width, 4 * width)
    groups = middle if plan.depthwise else 1
    return [
        *_conv(plan, inputs, middle, 1),
        _activation(plan),
        *_conv(plan, middle, middle, plan.kernel_size, stride, groups),
        _activation(plan),
        *_conv(plan, middle, outputs, 1),
    ]


def _moved_up(plan: Design, inputs: int, width: int, stride: int) -> list[nn.Module]:
    # The spatial convolution first. Of its norms and activations the later steps leave one each.
    return [
        *_conv(plan, inputs, inputs, plan.kernel_size, stride, groups=inputs),
        *([] if plan.few_activations else [_activation(plan)]),
        *_conv(plan, inputs, 4 * width, 1, normed=not plan.few_norms),
        _activation(plan),
        *_conv(plan, 4 * width, width, 1, normed=not plan.few_norms),
    ]


def _stem(plan: Design, in_channels: int) -> list[nn.Module]:
    if not plan.patchify:
        return [*_conv(plan, in_channels, plan.width, 7, stride=2), _activation(plan), nn.MaxPool2d(3, stride=2, padding=1)]
    layers = _conv(plan, in_channels, plan.width, 4, stride=4, normed=not plan.few_norms, padding=0)
    return layers if plan.few_activations else [*layers, _activation(plan)]


def _conv(
    plan: Design, inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1, normed: bool = True, padding: int | None = None
) -> list[nn.Module]:
    # A convolution and, where it has one, its norm; BatchNorm makes a bias before it pointless.
    same = size // 2 if padding is None else padding
    conv = nn.Conv2d(inputs, outputs, size, stride, same, groups=groups, bias=not normed or plan.layer_norm)
    return [conv, LayerNorm2d(outputs, eps=1e-6) if plan.layer_norm else nn.BatchNorm2d(outputs)] if normed else [conv]


def _activation(plan: Design) -> nn.Module:
    return nn.GELU() if plan.gelu else nn.ReLU()


class RoadmapNet(Classifier):
    """The network of a design that is not yet ConvNeXt. Initialised as ConvNeXt is, so that a step is one change.

    Args:
        plan: the design.
        layer_scale: initial scale of the residual branches, 0 for none.
        others: as for `ConvNeXt`.
    """

    def __init__(
        self,
        plan: Design,
        *,
        in_channels: int = 3,
        num_classes: int = 1000,
        drop_path: float = 0.0,
        layer_scale: float = 0.0,
        head_init_scale: float = 1.0,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_arguments(plan.kernel_size, drop_path)
        widths = [plan.width * 2**i for i in range(4)]
        self.depths = plan.depths
        self.channels = tuple(width if plan.inverted else 4 * width for width in widths)
        self.strides, self.min_size = (4, 8, 16, 32), 32
        self.grad_checkpointing = grad_checkpointing
        self.stem = nn.Sequential(*_stem(plan, in_channels))
        rates = iter(drop_path_rates(drop_path, sum(plan.depths)))
        self.stages, inputs = nn.ModuleList(), plan.width
        for i, (depth, width, outputs) in enumerate(zip(plan.depths, widths, self.channels, strict=True)):
            blocks = []
            for j in range(depth):
                blocks.append(Block(plan, inputs, width, 2 if i and not j else 1, next(rates), layer_scale))
                inputs = outputs
            self.stages.append(nn.Sequential(*blocks))
        self._build_head(self.channels[-1], num_classes, head_init_scale)
        self.norm = nn.Identity()  # the norm before the classifier comes with the last step

    def features(self, x: Tensor) -> list[Tensor]:
        """Images (N, in_channels, H, W) to the four stages' maps, strides 4, 8, 16, 32."""
        self._check_size(x)
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = self._run(stage, x)
            maps.append(x)
        return maps

    def layer_group(self, name: str) -> int:
        """As for ConvNeXt: the stem 0, stages 1 and 2, three blocks of the third a group, the last stage, the head."""
        last = 3 + -(-self.depths[2] // 3)
        part, *numbers = name.split(".")
        if part == "stages":
            stage, block = int(numbers[0]), int(numbers[1])
            return (1, 2, 3 + block // 3, last)[stage]
        return 0 if part == "stem" else last + 1

    def to_native(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state as it is: nobody else's weights have these names."""
        return dict(state)
