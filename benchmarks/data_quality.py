"""Measure what frozen features tell of a dataset: wrong labels, near duplicates, unknown images.

    python benchmarks/data_quality.py FOLDER --weights FILE [--model efficientnet_lite0] [labels duplicates unknown]

FOLDER holds hymenoptera/train and val, coco, camvid and tiny-imagenet-40 (shards). Copies and features are kept in the work folder.

labels      A tenth of the labels is flipped to another class at random, in several draws. The table shows the precision in the first tenth
            of the list, beside cleanlab on the same out-of-fold probabilities where cleanlab is installed.
duplicates  Half of the images get a copy, changed in one of six ways, and all are searched together.
unknown     The AUROC of the distance to the training images, of images of other data against the validation images.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from convnext import tasks
from convnext.data.images import read_image
from convnext.data.sources.folder import ImageFolder
from convnext.data.sources.open import open_source
from convnext.fit import features as embeddings
from convnext.fit.classes import logistic
from convnext.fit.features import Features
from convnext.fit.heads import Space, choose_folds, out_of_fold
from convnext.fit.network import build, open_start
from convnext.fit.quality.duplicates import DataPart, find_duplicates
from convnext.fit.quality.labels import suspects
from convnext.fit.quality.neighbours import both_sides, directions, nearest

KINDS = ("re-encoded", "scaled", "cropped", "mirrored", "brightness", "all at once")
STRENGTH = 1e-3  # C of the logistic regression: the best by cross-validation on the unflipped labels of both sets
TINY_EACH = 20  # images of a class of Tiny-ImageNet


class Embedder:
    """Computes the features of folders of images with one network."""

    def __init__(self, model: str, weights: str, work: Path) -> None:
        self.start, self.work, self.device = open_start(model, weights), work, torch.device("cpu")
        self.network, self.task = build(self.start, 2), tasks.get("classify")

    def __call__(self, source: ImageFolder) -> Features:
        """Return the features of a source; those in the work folder are not computed again."""
        return embeddings.compute(self.network, self.task, source, self.start.how, self.work / "features", self.device)


def tiny(folder: Path, work: Path) -> ImageFolder:
    """Return some images of each class of Tiny-ImageNet as an image folder in the work folder."""
    target = work / "tiny"
    if not target.exists():
        source, counts = open_source(str(folder / "tiny-imagenet-40" / "train-*.tar")), dict[int, int]()
        for index in np.random.default_rng(0).permutation(len(source)).tolist():
            label = source.label(index)
            counts[label] = counts.get(label, 0) + 1
            if counts[label] <= TINY_EACH:
                path = target / f"{label:02}" / f"{index:05}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                source.read(index).save(path)
    return ImageFolder(target)


def flipped(labels: np.ndarray, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels, a tenth of them changed, and which were changed."""
    rng, count = np.random.default_rng(seed), round(0.1 * len(labels))
    chosen, found = rng.choice(len(labels), count, replace=False), labels.copy()
    found[chosen] = (found[chosen] + rng.integers(1, classes, count)) % classes
    return found, found != labels


def by_cleanlab(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """Return the rows in the order of cleanlab's scores, by method; nothing where cleanlab is not installed."""
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        return {}
    scores = {name: get_label_quality_scores(labels, probabilities, method=name) for name in ("self_confidence", "normalized_margin")}
    found = {f"cleanlab, {name}": np.argsort(values, kind="stable") for name, values in scores.items()}
    issues = find_label_issues(labels, probabilities, return_indices_ranked_by="normalized_margin")
    rest = found["cleanlab, normalized_margin"]
    return {**found, "cleanlab, find_label_issues": np.concatenate([issues, rest[~np.isin(rest, issues)]]).astype(int)}


def measure_labels(name: str, source: ImageFolder, features: Features, draws: int) -> None:
    """Print the fraction of flipped labels in the first tenth of each list, over the draws."""
    space, classes = Space(features), len(source.classes)
    labels = np.array([source.label(int(index)) for index in features.indices])
    keys, found = [source.key(int(index)) for index in features.indices], dict[str, list[float]]()
    for seed in range(draws):
        given, wrong = flipped(labels, classes, seed)
        fold = choose_folds(keys, given.tolist(), None)
        probabilities = softmax(out_of_fold(space, fold, partial(logistic, space, given, classes, STRENGTH, False)), axis=1)
        lists = {"convnext": np.array([one.row for one in suspects(features, given, probabilities)]), **by_cleanlab(given, probabilities)}
        for method, order in lists.items():
            found.setdefault(method, []).append(float(wrong[order[: wrong.sum()]].sum() / wrong.sum()))
    for method, values in found.items():
        print(f"| {name} | {method} | {np.mean(values):.3f} ± {np.std(values):.3f} | {min(values):.3f} to {max(values):.3f} |", flush=True)


def changed(image: Image.Image, kind: str, rng: np.random.Generator) -> tuple[Image.Image, int]:
    """Return a copy of an image, changed as a kind says, and the JPEG quality to write it with."""
    every = kind == "all at once"
    if every or kind == "cropped":
        area, shape = rng.uniform(0.6, 0.95), np.exp(rng.uniform(-0.15, 0.15))
        width = min(1.0, area**0.5 * shape)
        height = min(1.0, area / width)
        width = min(1.0, area / height)
        w, h = round(width * image.width), round(height * image.height)
        left, top = int(rng.integers(0, image.width - w + 1)), int(rng.integers(0, image.height - h + 1))
        image = image.crop((left, top, left + w, top + h))
    if every or kind == "scaled":
        factor = rng.uniform(0.3, 0.95)
        how = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)[int(rng.integers(3))]
        image = image.resize((round(factor * image.width), round(factor * image.height)), how)
    if kind == "mirrored" or (every and rng.random() < 0.5):
        image = ImageOps.mirror(image)
    if every or kind == "brightness":
        image = ImageEnhance.Contrast(ImageEnhance.Brightness(image).enhance(rng.uniform(0.8, 1.2))).enhance(rng.uniform(0.85, 1.15))
    return image, int(rng.integers(30, 96)) if every or kind == "re-encoded" else 90


def with_copies(files: list[Path], folder: Path, seed: int = 0) -> dict[str, tuple[str, str]]:
    """Write an image folder with the files and changed copies of half of them; return the original and the kind of each copy by name."""
    rng, truth = np.random.default_rng(seed), dict[str, tuple[str, str]]()
    (folder / "all").mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(files):
        link = folder / "all" / f"{number:05}{file.suffix}"
        if not link.is_symlink():
            link.symlink_to(file.resolve())
    for place, number in enumerate(rng.permutation(len(files))[: len(files) // 2].tolist()):
        kind, original = KINDS[place % len(KINDS)], f"all/{number:05}{files[number].suffix}"
        copy = folder / "all" / f"{number:05}_copy.jpg"
        image, quality = changed(read_image(files[number]), kind, rng)
        if not copy.exists():
            image.save(copy, "JPEG", quality=quality)
        truth[f"all/{copy.name}"] = original, kind
    return truth


def measure_duplicates(name: str, files: list[Path], embed: Embedder) -> None:
    """Print precision, and recall by kind."""
    folder = embed.work / f"copies_{name}"
    truth = with_copies(files, folder)
    source = ImageFolder(folder)
    found = find_duplicates([DataPart("all", source, embed(source))])
    pairs = {frozenset((source.key(pair.first.index), source.key(pair.second.index))) for pair in found.pairs}
    wanted = {frozenset((copy, original)): kind for copy, (original, kind) in truth.items()}
    precision = len(pairs & wanted.keys()) / max(len(pairs), 1)
    recall = {kind: np.mean([pair in pairs for pair, of in wanted.items() if of == kind]) for kind in KINDS}
    whole = len(pairs & wanted.keys()) / len(wanted)
    by_kind = " | ".join(f"{value:.3f}" for value in recall.values())
    print(f"| {name} | {len(files)} + {len(wanted)} | {precision:.3f} | {whole:.3f} | {by_kind} | {len(found.similar)} |", flush=True)
    for pair in pairs - wanted.keys():
        print("not a copy:", *sorted(pair))


def measure_unknown(train: Features, val: Features, others: dict[str, Features]) -> None:
    """Print the AUROC of the mean cosine distance to the ten nearest training images, of embeddings as they are and centred."""
    for centred in (False, True):
        rows = {name: both_sides(one) for name, one in {"": val, **others}.items()}
        centre = both_sides(train).mean(0) if centred else None
        known = directions(both_sides(train), centre)
        far = {name: 1 - nearest(directions(one, centre), known, 10)[0].mean(1) for name, one in rows.items()}
        for name in others:
            labels = np.r_[np.zeros(len(far[""])), np.ones(len(far[name]))]
            score = roc_auc_score(labels, np.r_[far[""], far[name]])
            print(f"| {name} | {'centred' if centred else 'as they are'} | {score:.4f} |", flush=True)


def images_below(folder: Path) -> list[Path]:
    """Return the JPEGs below a folder, sorted."""
    return sorted(folder.rglob("*.jpg"))


def spread(files: list[Path], count: int | None) -> list[Path]:
    """Return so many of the files, evenly spread; all of them if there are no more."""
    return files[:: max(1, len(files) // count)][:count] if count else files


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("what", nargs="*", default=["labels", "duplicates", "unknown"])
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--work", type=Path, default=Path("build/data_quality"))
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--images", type=int, help="of each set, evenly spread, for duplicates and unknown; by default all")
    options = parser.parse_intermixed_args()  # what to measure after an option too
    embed, folder = Embedder(options.model, options.weights, options.work), options.folder
    train, val = ImageFolder(folder / "hymenoptera" / "train"), ImageFolder(folder / "hymenoptera" / "val")
    if "labels" in options.what:
        for name, source in (("hymenoptera", train), ("tiny-imagenet-40", tiny(folder, options.work))):
            measure_labels(name, source, embed(source), options.draws)
    sets = {name: images_below(folder / where) for name, where in (("coco", "coco"), ("camvid", "camvid/images"))}
    if "duplicates" in options.what:
        small = tiny(folder, options.work)
        photographs = [Path(source.name(index)) for source in (train, val) for index in range(len(source))]
        every = {"hymenoptera": photographs, **sets, "tiny-imagenet-40": [Path(small.name(index)) for index in range(0, len(small), 2)]}
        for name, files in every.items():
            measure_duplicates(name, spread(files, options.images), embed)
    if "unknown" in options.what:
        others = {}
        for name, files in sets.items():
            with_copies(spread(files, options.images), options.work / f"copies_{name}")
            source = ImageFolder(options.work / f"copies_{name}")
            found = embed(source)
            kept = np.array(["_copy" not in source.key(int(index)) for index in found.indices])
            others[name] = Features(found.plain[kept], found.mirrored[kept], found.indices[kept])
        measure_unknown(embed(train), embed(val), others)


if __name__ == "__main__":
    main()
