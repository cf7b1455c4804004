"""The steps from ResNet to ConvNeXt: what each changes in the design before it, and why. Importing this takes no PyTorch.

Source: Liu et al., *A ConvNet for the 2020s*, CVPR 2022 (arXiv 2201.03545), section 2, figure 2, tables 10 and 11.
"""

from dataclasses import dataclass, replace
from typing import Literal, TypedDict

Regime = Literal["t", "b"]


@dataclass(frozen=True)
class Design:
    """Everything in which one step of the roadmap differs from another. The defaults are the original ResNet-50."""

    depths: tuple[int, ...] = (3, 4, 6, 3)  # blocks of each stage
    width: int = 64  # of the first stage; it doubles from stage to stage
    patchify: bool = False  # the stem is one 4 x 4 convolution of stride 4, not 7 x 7 of stride 2 and a max pool
    depthwise: bool = False  # the spatial convolution has one filter per channel
    inverted: bool = False  # the block is wide in the middle, not at its ends
    moved_up: bool = False  # the spatial convolution comes first, where the block is narrow
    kernel_size: int = 3
    gelu: bool = False  # GELU replaces ReLU
    few_activations: bool = False  # one per block, between the two 1 x 1 convolutions
    few_norms: bool = False  # one per block, before the first 1 x 1 convolution
    layer_norm: bool = False  # LayerNorm replaces BatchNorm
    separate_downsampling: bool = False  # LayerNorm and a 2 x 2 convolution of stride 2 between stages: this is ConvNeXt


class Change(TypedDict, total=False):
    """Some fields of a `Design`, with new values."""

    depths: tuple[int, ...]
    width: int
    patchify: bool
    depthwise: bool
    inverted: bool
    moved_up: bool
    kernel_size: int
    gelu: bool
    few_activations: bool
    few_norms: bool
    layer_norm: bool
    separate_downsampling: bool


@dataclass(frozen=True)
class Step:
    """One step of the roadmap: what it changes in the design before it, and why."""

    name: str
    title: str  # its row in the published tables
    why: str
    change: Change


# Regime "b" begins at ResNet-200. Its stages differ, its width keeps the multiply-adds, and so does the width after 'wider'.
_CHANGES_B: dict[str, Change] = {
    "resnet": {"depths": (3, 24, 36, 3)},
    "stage_ratio": {"depths": (3, 3, 27, 3), "width": 84},
    "wider": {"width": 128},
}

STEPS = (
    Step("resnet", "original ResNet", "ResNet as in 2015, where the roadmap begins.", {}),
    Step("modern_training", "modern training recipe", "The same network under the recipe of vision Transformers.", {}),
    Step("stage_ratio", "stage compute ratio", "Blocks are distributed as in Swin, 1 : 1 : 3 : 1.", {"depths": (3, 3, 9, 3)}),
    Step("patchify_stem", "patchify stem", "The image is cut into 4 x 4 patches, as Transformers do.", {"patchify": True}),
    Step("depthwise", "depthwise convolution", "Space is mixed in each channel alone, as attention does.", {"depthwise": True}),
    Step("wider", "wider", "What depthwise convolution saved is spent on width, as in ResNeXt.", {"width": 96}),
    Step("inverted_bottleneck", "inverted bottleneck", "Wide in the middle, as a Transformer's MLP is.", {"inverted": True}),
    Step("moved_up", "depthwise convolution moved up", "Space is mixed first, where it is cheap, as attention is.", {"moved_up": True}),
    Step("kernel_5", "kernel 5x5", "A larger window, towards Swin's.", {"kernel_size": 5}),
    Step("kernel_7", "kernel 7x7", "As large as Swin's window; later steps build on this one.", {"kernel_size": 7}),
    Step("kernel_9", "kernel 9x9", "An ablation: larger does not help.", {"kernel_size": 9}),
    Step("kernel_11", "kernel 11x11", "An ablation: larger still does not help.", {"kernel_size": 11}),
    Step("gelu", "ReLU to GELU", "The Transformers' activation, again with 7 x 7.", {"kernel_size": 7, "gelu": True}),
    Step("fewer_activations", "fewer activations", "One activation per block, as in a Transformer's MLP.", {"few_activations": True}),
    Step("fewer_norms", "fewer normalizations", "One normalization per block.", {"few_norms": True}),
    Step("layer_norm", "BatchNorm to LayerNorm", "The Transformers' normalization.", {"layer_norm": True}),
    Step(
        "separate_downsampling",
        "separate downsampling layers",
        "Layers of their own separate the stages, normalized for stability: ConvNeXt.",
        {"separate_downsampling": True},
    ),
)


def design(step: int, regime: Regime = "t") -> Design:
    """Return the network after that step (0 to 16), of the roadmap that begins at ResNet-50 ("t") or ResNet-200 ("b")."""
    found = Design()
    for passed in STEPS[: step + 1]:
        found = replace(found, **(_CHANGES_B.get(passed.name, passed.change) if regime == "b" else passed.change))
    return found


def step_names(regime: Regime) -> list[str]:
    """Return the names under which `create_model` knows the steps of a regime, in their order."""
    return [f"roadmap_{regime}_{number:02d}_{step.name}" for number, step in enumerate(STEPS)]
