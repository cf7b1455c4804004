"""Images per second on one core, from JPEG files to training tensors: ours beside torchvision's ImageFolder with Pillow.

    python benchmarks/data.py

The JPEGs have ImageNet's size (500 pixels on the long side, about 100 kB). They are made of shared/data/coco if it exists, else of
scikit-learn's sample photographs. The steps are a random resized crop to 224 (bicubic), flip and normalisation; the files are in the
disk cache. Our time includes the seeding of each sample. The two alternate, pass by pass; the ratio is the median over passes of the
ratio of processor time, which other programs on the machine disturb less than wall time.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from timm.data import create_transform
from torchvision import transforms

from convnext.data.images import read_image
from convnext.data.loader import Samples
from convnext.data.randomness import seed_everything
from convnext.data.sources.open import open_source
from convnext.data.transforms.classify import Augmentation, train_transform
from convnext.data.transforms.preprocessing import IMAGENET_MEAN, IMAGENET_STD

COCO = Path(__file__).parents[2] / "shared/data/coco/train2017"
COUNT, ROUNDS = 64, 15


def photographs() -> list[Image.Image]:
    """Return COUNT photographs, 500 pixels on the long side."""
    if COCO.exists():
        found = [Image.open(path).convert("RGB") for path in sorted(COCO.glob("*.jpg"))[:COUNT]]
        return [photo.resize([round(side * 500 / max(photo.size)) for side in photo.size], Image.Resampling.LANCZOS) for photo in found]
    from sklearn.datasets import load_sample_images

    samples, rng = [Image.fromarray(pixels) for pixels in load_sample_images().images], np.random.default_rng(0)
    corners = [(int(rng.integers(photo.width - 499)), int(rng.integers(photo.height - 374))) for photo in samples * (COUNT // 2)]
    return [photo.crop((x, y, x + 500, y + 375)) for photo, (x, y) in zip(samples * (COUNT // 2), corners, strict=True)]


def seconds(read: Callable[[int], object]) -> float:
    """Return the processor time of reading each image once, in seconds."""
    started = time.process_time()
    for i in range(COUNT):
        read(i)
    return time.process_time() - started


def differences(paths: list[Path]) -> torch.Tensor:
    """Return the distances, in levels of 255, of our tensors from those of timm's transforms under the same draws."""
    ours = train_transform(Augmentation())
    theirs = create_transform(224, is_training=True, color_jitter=0, interpolation="bicubic")
    levels, found = torch.tensor(IMAGENET_STD)[:, None, None] * 255, []
    for i, path in enumerate(paths):
        image, pair = read_image(path), []
        for transform in (ours, theirs):
            seed_everything(i)
            pair.append(transform(image))
        found.append((pair[0] - pair[1]).abs() * levels)
    return torch.stack(found).round()


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    processor = next((line for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines() if line.startswith("model name")), "unknown")
    print(f"{processor.split(': ')[-1]}, {os.cpu_count()} cores, one used")
    print(f"Pillow {PIL.__version__}, torch {torch.__version__}, torchvision {torchvision.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i % 2}" / f"{i:03d}.jpg" for i in range(COUNT)]
        for path, photo in zip(paths, photographs(), strict=True):
            path.parent.mkdir(exist_ok=True)
            photo.save(path, quality=96, subsampling="4:2:0")
        size = statistics.mean(path.stat().st_size for path in paths) / 1000
        print(f"{COUNT} JPEGs of {'COCO' if COCO.exists() else 'scikit-learn'}, {size:.0f} kB each")
        crop = transforms.RandomResizedCrop(224, interpolation=transforms.InterpolationMode.BICUBIC)
        normalise = transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)
        theirs = torchvision.datasets.ImageFolder(
            folder, transforms.Compose([crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(), normalise])
        )
        ours = Samples(open_source(folder), train_transform(Augmentation()), seed=0)
        passes = [(seconds(lambda i: theirs[i]), seconds(lambda i: ours[0, i])) for _ in range(ROUNDS + 1)][1:]  # the first warms up
        for name, times in zip(("torchvision ImageFolder", "convnext"), zip(*passes, strict=True), strict=True):
            print(f"{name:24} {COUNT / statistics.median(times):6.0f} images per second")
        ratios = [a / b for a, b in passes]
        print(f"{'ratio':24} {statistics.median(ratios):6.2f} (from {min(ratios):.2f} to {max(ratios):.2f} in {ROUNDS} passes)")
        off = differences(paths)
        shares = ", ".join(f"{(off > level).float().mean():.4%} by more than {level}" for level in range(3))
        print(f"off timm with Pillow: {shares}; at most {off.max():.0f}, on average {off.mean():.4f} levels of 255")


if __name__ == "__main__":
    main()
