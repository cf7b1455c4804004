"""The roadmap from ResNet to ConvNeXt: one network, modernized step by step.

Source: Liu et al., *A ConvNet for the 2020s*, CVPR 2022 (arXiv 2201.03545), section 2, figure 2, tables 10 and 11.
Read `roadmap_steps` first: `Design` (what can differ) and `STEPS` (what each step changes). Here is what that means for the layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from convnext.errors import UsageError
from convnext.models.backbones.convnext import ConvNeXt, check_arguments
from convnext.models.backbones.dropping import DropPath, drop_path_rates
from convnext.models.backbones.norms import LayerNorm2d
from convnext.models.backbones.pooled import PooledClassifier
from convnext.models.backbones.roadmap_steps import STEPS, Design, Regime, design


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
) -> PooledClassifier:
    """Return the network after a step, in full or narrow.

    Args:
        step: 0 to 16, a position in `STEPS`.
        regime: "t" begins at ResNet-50 and ends at ConvNeXt-T, "b" begins at ResNet-200 and ends at ConvNeXt-B.
        width: of the first stage after the last step, for a narrow copy of the whole roadmap: the steps before 'wider' shrink likewise.
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
    if not plan.separate_downsampling:
        return RoadmapNet(
            plan,
            in_channels=in_channels,
            num_classes=num_classes,
            drop_path=drop_path,
            layer_scale=layer_scale or 0.0,
            head_init_scale=head_init_scale,
            grad_checkpointing=grad_checkpointing,
        )
    return ConvNeXt(
        plan.depths,
        [plan.width * 2**i for i in range(4)],
        in_channels=in_channels,
        num_classes=num_classes,
        kernel_size=plan.kernel_size,
        drop_path=drop_path,
        layer_scale=1e-6 if layer_scale is None else layer_scale,
        head_init_scale=head_init_scale,
        grad_checkpointing=grad_checkpointing,
    )


class RoadmapBlock(nn.Module):
    """A residual block of a design. `width` is its stage's; a bottleneck has four times as many outputs, an inverted one as many."""

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
    # The spatial convolution is between the two others: ResNet's bottleneck, and its descendants up to 'inverted bottleneck'.
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
    # The spatial convolution is first. The later steps keep one of the norms and one of the activations.
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
    # A convolution and, if `normed`, its norm. BatchNorm makes a bias before it pointless.
    same = size // 2 if padding is None else padding
    conv = nn.Conv2d(inputs, outputs, size, stride, same, groups=groups, bias=not normed or plan.layer_norm)
    return [conv, LayerNorm2d(outputs, eps=1e-6) if plan.layer_norm else nn.BatchNorm2d(outputs)] if normed else [conv]


def _activation(plan: Design) -> nn.Module:
    return nn.GELU() if plan.gelu else nn.ReLU()


class RoadmapNet(PooledClassifier):
    """The network of a design that is not yet ConvNeXt. It is initialised as ConvNeXt is, so that a step is one change.

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
                blocks.append(RoadmapBlock(plan, inputs, width, 2 if i and not j else 1, next(rates), layer_scale))
                inputs = outputs
            self.stages.append(nn.Sequential(*blocks))
        self._build_head(self.channels[-1], num_classes, head_init_scale)
        self.norm = nn.Identity()  # the norm before the classifier comes with the last step

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the four stages' maps of images (N, in_channels, H, W), of strides 4, 8, 16, 32."""
        self._check_size(x)
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = self._run(stage, x)
            maps.append(x)
        return maps

    def layer_group(self, name: str) -> int:
        """Return groups as ConvNeXt's: the stem 0, stages 1 and 2, three blocks of the third per group, the last stage, the head."""
        last = 3 + -(-self.depths[2] // 3)
        part, *numbers = name.split(".")
        if part == "stages":
            stage, block = int(numbers[0]), int(numbers[1])
            return (1, 2, 3 + block // 3, last)[stage]
        return 0 if part == "stem" else last + 1

    def stages_of_parameters(self) -> dict[str, int]:
        """Return the stage of each parameter, counted from 1; 0 for the stem."""
        parts = [(name, name.split(".")) for name, _ in self.named_parameters()]
        return {name: int(number) + 1 if part == "stages" else 0 for name, (part, number, *_) in parts if part in ("stem", "stages")}

    def to_native(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state as it is: no other library has these names."""
        return dict(state)
