"""Fine-tune on two classes of which one has a tenth of the images, with each remedy that a recipe has.

    python benchmarks/imbalance.py FOLDER [--rare CLASS] [--part 0.1] [--seeds 5] [key=value …]

FOLDER holds train/ and val/, image folders. Of the rare class's training images (by default the last class), a part is drawn by the seed.
The recipe is `finetune`, its overrides as given. All remedies train on the same images, seed by seed, and are evaluated on all of val/
after the last epoch. Prints a Markdown table of balanced accuracy, the mean of the accuracies of the classes.
"""

import argparse
import json
import random
import shutil
import statistics
import tempfile
from pathlib import Path

import convnext

REMEDIES = {
    "none": [],
    "train.class_weights=balanced": ["train.class_weights=balanced"],
    "data.sampler=balanced": ["data.sampler=balanced"],
    "train.focal_gamma=2": ["train.focal_gamma=2"],
}


def thinned(folder: Path, rare: str, part: float, seed: int, to: Path) -> Path:
    """Copy an image folder, of the class `rare` only a part that the seed draws; return the copy."""
    for images in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = sorted(images.iterdir())
        if images.name == rare:
            files = random.Random(seed).sample(files, round(part * len(files)))
        (to / images.name).mkdir(parents=True)
        for file in files:
            shutil.copy(file, to / images.name)
    return to


def by_class(run: Path) -> list[float]:
    """Return the accuracy of each class in percent at the end of a run."""
    found = json.loads((run / "evaluation.json").read_text("utf-8"))
    return [100 * hits / total for hits, total in zip(found["hits"], found["totals"], strict=True)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--rare")
    parser.add_argument("--part", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_intermixed_args()  # key=value after an option too
    classes = sorted(path.name for path in (options.folder / "train").iterdir() if path.is_dir())
    rare = options.rare or classes[-1]
    found: dict[str, list[list[float]]] = {name: [] for name in REMEDIES}
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as work:
            train = thinned(options.folder / "train", rare, options.part, seed, Path(work) / "train")
            for name, remedy in REMEDIES.items():
                given = [f"data.train={train}", f"data.val={options.folder}/val", f"seed={seed}", *options.overrides, *remedy]
                convnext.train("finetune", given, output=Path(work) / name)
                found[name].append(by_class(Path(work) / name))
                print(f"seed {seed}: {name}: {statistics.mean(found[name][-1]):.2f} %, {found[name][-1]}", flush=True)
    print(f"\n| remedy | balanced accuracy of each seed | mean | {rare}, mean |\n| --- | --- | --- | --- |")
    for name, runs in found.items():
        balanced = [statistics.mean(accuracies) for accuracies in runs]
        of_rare = statistics.mean(accuracies[classes.index(rare)] for accuracies in runs)
        each = ", ".join(f"{value:.1f}" for value in balanced)
        print(f"| {name} | {each} | {statistics.mean(balanced):.1f} % | {of_rare:.1f} % |")


if __name__ == "__main__":
    main()
