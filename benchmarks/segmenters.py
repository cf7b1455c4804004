"""Train a small UperNet over ConvNeXt beside segmenters of its size of torchvision and transformers, all from scratch.

    python benchmarks/segmenters.py FOLDER [--seeds 3] [--steps 300] [--only NAME]

FOLDER holds images/ and masks/, each with train/ and val/. Masks hold class indices; `--ignore` is the index to ignore (CamVid).
All networks train in one loop on the same crops in the same order, with the same optimizer and schedule. They are tested on whole images.
They take turns, seed by seed. The program prints one line per run and a Markdown table at the end.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation import lraspp_mobilenet_v3_large
from transformers import SegformerConfig, SegformerForSemanticSegmentation

import convnext
from convnext.data.randomness import seeded
from convnext.data.sources.masks import mask_of
from convnext.data.sources.open import open_segmentation
from convnext.data.transforms.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from convnext.data.transforms.segment import SegmentPreprocessing, TrainTransform
from convnext.models.segmentation import upernet
from convnext.tasks.segment.metric import PixelCounts

SCALE, CROP, BATCH = (320, 240), 192, 8
MEAN, STD = IMAGENET_MEAN, IMAGENET_STD
IGNORED = upernet.IGNORED


def ours(classes: int) -> nn.Module:
    """Return a UperNet over a ConvNeXt of four stages, the largest width 320."""
    return convnext.create_model(
        "upernet_convnext_atto",
        num_classes=classes,
        depths=(2, 2, 4, 2),
        widths=(40, 80, 160, 320),
        layer_scale=0,
        channels=96,
        auxiliary_channels=48,
    )


def torchvisions(classes: int) -> nn.Module:
    """Return the small segmenter of torchvision."""
    return lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=classes)


def transformerss(classes: int) -> nn.Module:
    """Return the small segmenter of transformers."""
    return SegformerForSemanticSegmentation(SegformerConfig(num_labels=classes))  # its defaults are SegFormer-B0


CONTESTANTS: dict[str, Callable[[int], nn.Module]] = {
    "UperNet, small ConvNeXt (convnext)": ours,
    "LRASPP, MobileNetV3-L (torchvision)": torchvisions,
    "SegFormer-B0 (transformers)": transformerss,
}


def logits_of(model: nn.Module, images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the logits (N, classes, *size) of any library's segmenter."""
    found: Any = model(images)
    logits = found["out"] if isinstance(found, dict) and "out" in found else getattr(found, "logits", found)
    return F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)


def loss_of(model: nn.Module, images: Tensor, masks: Tensor) -> Tensor:
    """Return the loss as each library defines it: cross-entropy, for convnext with its auxiliary head."""
    if isinstance(model, upernet.UperNet):
        return upernet.loss(model, images, masks)
    return F.cross_entropy(logits_of(model, images, (masks.shape[1], masks.shape[2])), masks.long(), ignore_index=IGNORED)


def train(model: nn.Module, source: Any, seed: int, steps: int, lr: float) -> None:
    """Train in place on `steps` batches of crops, which are a function of the seed alone."""
    transform = TrainTransform(CROP, SCALE, (0.75, 1.75), 0.75, 0.5, True, MEAN, STD)
    order = torch.Generator().manual_seed(seed)
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}], lr=lr)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min((step + 1) / 50, 1) * (1 - step / steps)
        crops = []
        for place, index in enumerate(torch.randint(len(source), (BATCH,), generator=order).tolist()):
            with seeded(seed, step, place):
                image = source.read(index)
                crops.append(transform(image, mask_of(source, index, image)))
        images, masks = (torch.stack(parts) for parts in zip(*crops, strict=True))
        optimizer.zero_grad()
        loss_of(model, images.contiguous(memory_format=torch.channels_last), masks).backward()
        optimizer.step()


@torch.inference_mode()
def test(model: nn.Module, source: Any) -> float:
    """Return the mean IoU over whole images in percent."""
    model.eval()
    metric, prepare = PixelCounts(len(source.classes)), SegmentPreprocessing(None, None, None, MEAN, STD).transform()
    for index in range(len(source)):
        image = source.read(index)
        mask = mask_of(source, index, image)
        small = prepare(image.resize(SCALE))[None].contiguous(memory_format=torch.channels_last)
        metric.update(logits_of(model, small, (mask.shape[0], mask.shape[1])).argmax(1).to(torch.uint8), mask[None])
    return metric.compute()["miou"]


def main() -> None:
    """Train all networks and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--ignore", type=int, default=11)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--only", default="", help="contestants whose name has this in it")
    given = parser.parse_args()
    parts = [open_segmentation(f"{given.folder}:{part}:ignore={given.ignore}") for part in ("train", "val")]
    contestants = {name: build for name, build in CONTESTANTS.items() if given.only.lower() in name.lower()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    sizes = {}
    for seed in range(given.seeds):
        for name, build in contestants.items():
            torch.manual_seed(seed)
            model = build(len(parts[0].classes)).to(memory_format=torch.channels_last)
            sizes[name] = sum(parameter.numel() for parameter in model.parameters()) / 1e6
            started = time.process_time()
            train(model, parts[0], seed, given.steps, given.lr)
            seconds = time.process_time() - started
            found[name].append((test(model, parts[1]), seconds))
            print(f"{name}, seed {seed}: mIoU {found[name][-1][0]:.2f} %, {seconds:.0f} s of CPU", flush=True)
    print("| network | parameters | mIoU | each seed | CPU time of a training |\n| --- | --- | --- | --- | --- |")
    for name, runs in found.items():
        values = [value for value, _ in runs]
        each = ", ".join(f"{value:.1f}" for value in values)
        print(f"| {name} | {sizes[name]:.1f} M | {statistics.mean(values):.1f} % | {each} | {statistics.mean(s for _, s in runs):.0f} s |")


if __name__ == "__main__":
    main()
