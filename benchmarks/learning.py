"""Train a recipe by convnext, and the same network, data and settings by timm's own parts.

    python benchmarks/learning.py RECIPE FOLDER [key=value …] [--seeds 3] [--first 0] [--alone]

FOLDER holds two image folders, train/ and val/ (`--unpack SHARDS` writes them from WebDataset shards first). timm's side is what its
train.py would do: its model, loader, transforms, mixup, optimizer, scheduler and loss. Both sides run in turns, seed by seed, for the same
number of epochs. `--alone` skips timm's side, which has AdamW alone. Accuracy is that of the last epoch. Time is wall time of training and
evaluation; in brackets are the seconds of CPU time (user and system), which other work lengthens less. Prints a table.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import Mixup, create_dataset, create_loader
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler

import convnext
from convnext.data.sources.packed.shards import open_shards
from convnext.data.transforms.preprocessing import sides
from convnext.recipe import Recipe, load_recipe


def unpack(shards: str, folder: Path) -> None:
    """Write train/ and val/ image folders from shards `SHARDS/train-*.tar` and `SHARDS/val-*.tar`, image files unchanged."""
    for part in ("train", "val"):
        source = open_shards(f"{shards}/{part}-*.tar")
        for index in range(len(source)):
            path = folder / part / source.classes[source.label(index)] / f"{index:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            source.read(index).save(path, compress_level=1)


def by_convnext(recipe: Recipe, folder: Path) -> tuple[float, float]:
    """Train by convnext; return top-1 in percent and seconds."""
    result = convnext.train(recipe, output=folder)
    return result.metrics["top1"], result.seconds


def by_timm(recipe: Recipe) -> tuple[float, float]:
    """Train by timm's parts; return top-1 in percent and seconds."""
    started = time.monotonic()
    settings, augment, optim = recipe.train, recipe.augment, recipe.optim
    torch.manual_seed(recipe.seed)
    loaders = [_loader(recipe, part) for part in ("train", "val")]
    sizes: dict[str, Any] = {"depths": recipe.model.depths, "dims": recipe.model.widths, "ls_init_value": recipe.model.layer_scale}
    model: Any = timm.create_model(
        recipe.model.name,
        num_classes=len(loaders[1].dataset.reader.class_to_idx),
        drop_path_rate=recipe.model.drop_path,
        **{key: value for key, value in sizes.items() if value is not None},
    ).to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=optim.lr, weight_decay=optim.weight_decay, betas=optim.betas, eps=optim.eps)
    steps, warmup = len(loaders[0]) * settings.epochs, round(len(loaders[0]) * settings.warmup_epochs)
    scheduler = CosineLRScheduler(
        optimizer, t_initial=steps, lr_min=optim.min_lr, warmup_t=warmup, warmup_lr_init=0, warmup_prefix=False, t_in_epochs=False
    )
    mix, loss_of = None, LabelSmoothingCrossEntropy(settings.label_smoothing)
    if augment.mixup or augment.cutmix:
        mix = Mixup(augment.mixup, augment.cutmix, label_smoothing=settings.label_smoothing, num_classes=model.num_classes)
        loss_of = SoftTargetCrossEntropy()
    step = 0
    for _ in range(settings.epochs):
        model.train()
        for images, labels in loaders[0]:
            scheduler.step_update(step)
            images, targets = mix(images, labels) if mix else (images, labels)
            optimizer.zero_grad()
            loss_of(model(images.contiguous(memory_format=torch.channels_last)), targets).backward()
            optimizer.step()
            step += 1
    model.eval()
    with torch.inference_mode():
        hits = [(model(images).argmax(1) == labels).float() for images, labels in loaders[1]]
    return 100 * torch.cat(hits).mean().item(), time.monotonic() - started


def _loader(recipe: Recipe, part: str) -> Any:
    training, augment = part == "train", recipe.augment
    dataset = create_dataset("", root=str(getattr(recipe.data, part)))
    return create_loader(
        dataset,
        input_size=(3, *sides(recipe.data.image_size)),
        batch_size=recipe.train.batch_size,
        is_training=training,
        use_prefetcher=False,
        no_aug=False,
        re_prob=augment.random_erasing,
        re_mode="pixel",
        scale=augment.crop_scale,
        ratio=augment.crop_aspect,
        hflip=augment.flip,
        color_jitter=augment.color_jitter or None,
        auto_augment=augment.rand_augment,
        interpolation=recipe.eval.interpolation,
        crop_pct=recipe.eval.crop_ratio,
        num_workers=recipe.data.workers,
        persistent_workers=recipe.data.workers > 0,
        pin_memory=False,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("folder", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--unpack", metavar="SHARDS")
    options = parser.parse_args()
    if options.unpack and not options.folder.exists():
        unpack(options.unpack, options.folder)
    given = [*options.overrides, f"data.train={options.folder}/train", f"data.val={options.folder}/val"]
    found: dict[str, list[tuple[float, float, float]]] = {"convnext": []} | ({} if options.alone else {"timm": []})
    for seed in range(options.first, options.first + options.seeds):
        recipe = load_recipe(options.recipe, [*given, f"seed={seed}"])
        for name, runs in found.items():
            before = sum(os.times()[:4])
            with tempfile.TemporaryDirectory() as run:
                top1, seconds = by_convnext(recipe, Path(run) / "run") if name == "convnext" else by_timm(recipe)
            runs.append((top1, seconds, sum(os.times()[:4]) - before))
        last = {name: runs[-1] for name, runs in found.items()}
        print(
            f"seed {seed}: " + "; ".join(f"{name} {top1:.2f} % in {wall:.0f} s ({cpu:.0f})" for name, (top1, wall, cpu) in last.items()),
            flush=True,
        )
    print("\n| | top-1 of each seed | mean | seconds per run (CPU) |\n| --- | --- | --- | --- |")
    for name, runs in found.items():
        accuracies = [top1 for top1, _, _ in runs]
        each, mean = ", ".join(f"{top1:.2f}" for top1 in accuracies), statistics.mean(accuracies)
        took = [statistics.median(run[i] for run in runs) for i in (1, 2)]
        print(f"| {name} | {each} | {mean:.2f} % | {took[0]:.0f} ({took[1]:.0f}) |")


if __name__ == "__main__":
    main()
