"""Pre-train without labels, fine-tune on a part of the labels, and compare with the same fine-tuning from scratch.

    python benchmarks/fcmae.py FOLDER [--unpack SHARDS] [--part 0.05] [--seeds 3] [--pretrain key=value …] [--finetune key=value …]

FOLDER holds train/ and val/, image folders (`--unpack SHARDS` writes them from WebDataset shards first). All images of train/ are
pre-trained on, once, without their labels. A part of each class, drawn by the seed, is fine-tuned on; both ways train on the same images
by the same recipe, and are evaluated on all of val/ after the last epoch. `--pretrain` and `--finetune` add overrides to the settings
below, which are for images of 64 pixels. Prints a Markdown table.
"""

import argparse
import random
import shutil
import statistics
import tempfile
from pathlib import Path

from learning import unpack

import convnext

# A small network whose last map has stride 16, so that an image of 64 pixels has 16 patches.
NETWORK = ["model.depths=[2,2,6,2]", "model.widths=[24,48,96,192]", "model.patch_size=2"]
PRETRAIN = [
    "data.image_size=64", "eval.crop_ratio=1.0", "optim.lr=1.5e-3", "train.epochs=100", "train.warmup_epochs=5", "train.batch_size=256",
    "train.eval_every=10",
]  # fmt: skip
FINETUNE = [
    "model.name=convnextv2_atto", "model.layer_scale=null", "optim.lr=1e-3", "train.epochs=100", "train.warmup_epochs=5",
    "train.batch_size=64", "train.eval_every=20", "augment.rand_augment=rand-m7-mstd0.5-inc1",
]  # fmt: skip


def drawn(folder: Path, part: float, seed: int, to: Path) -> Path:
    """Copy a part of each class of an image folder, which the seed draws, at least two images; return the copy."""
    for images in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = sorted(images.iterdir())
        (to / images.name).mkdir(parents=True)
        for file in random.Random(f"{seed}/{images.name}").sample(files, max(2, round(part * len(files)))):
            shutil.copy(file, to / images.name)
    return to


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--unpack", metavar="SHARDS")
    parser.add_argument("--part", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pretrain", nargs="*", default=[])
    parser.add_argument("--finetune", nargs="*", default=[])
    options = parser.parse_args()
    if options.unpack and not options.folder.exists():
        unpack(options.unpack, options.folder)
    found: dict[str, list[float]] = {"from scratch": [], "pre-trained": []}
    with tempfile.TemporaryDirectory() as work:
        root = Path(work)
        given = [f"data.train={options.folder}/train", *NETWORK, *PRETRAIN, *options.pretrain]
        before = convnext.train("fcmae/convnextv2_atto", given, output=root / "pretrained")
        print(f"pre-trained in {before.seconds:.0f} s: loss {before.metrics['loss']:.4f}", flush=True)
        for seed in range(options.seeds):
            train = drawn(options.folder / "train", options.part, seed, root / f"train-{seed}")
            given = [f"data.train={train}", f"data.val={options.folder}/val", f"seed={seed}", *NETWORK, *FINETUNE, *options.finetune]
            for name, weights in (("from scratch", []), ("pre-trained", [f"model.weights={root}/pretrained/last.safetensors"])):
                result = convnext.train("tiny_imagenet", [*given, *weights], output=root / f"{name}-{seed}")
                found[name].append(result.metrics["top1"])
                print(f"seed {seed}, {name}: {found[name][-1]:.2f} % in {result.seconds:.0f} s", flush=True)
    print("\n| weights | top-1 of each seed | mean |\n| --- | --- | --- |")
    for name, values in found.items():
        print(f"| {name} | {', '.join(f'{value:.1f}' for value in values)} | {statistics.mean(values):.1f} % |")


if __name__ == "__main__":
    main()
