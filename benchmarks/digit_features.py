"""Train the network whose features `convnext fit digits` takes: every digit is a class of its own, so no label is used.

    python benchmarks/digit_features.py [--output FILE] [--epochs 100]

Each of the 1,437 training digits is told from the others under augmentation (Dosovitskiy et al., *Discriminative Unsupervised Feature
Learning with Exemplar Convolutional Neural Networks*, NeurIPS 2014). Writes the network without its head; two minutes on one core.
"""

import argparse
import tempfile
from pathlib import Path

from PIL.Image import Image

import convnext
from convnext.data.sources.digits import Digits
from convnext.models.load import create_model, load
from convnext.models.weights.files import write_weights

SETTINGS = [
    "model.widths=[16,32,64,96]", "model.depths=[1,1,1,1]", "model.drop_path=0", "optim.lr=3e-3", "train.batch_size=64",
    "train.label_smoothing=0", "augment.rand_augment=rand-m7-mstd0.5-inc1", "augment.crop_scale=[0.5,1.0]", "data.workers=0",
]  # fmt: skip


class EachDigit:
    """The training digits, each with its own number as its class."""

    def __init__(self) -> None:
        self.digits = Digits("train")
        self.classes = [self.digits.name(index) for index in range(len(self.digits))]

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> tuple[Image, int]:
        return self.digits.read(index), index


def main() -> None:
    """Train and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("convnext/fit/digits.safetensors"))
    parser.add_argument("--epochs", type=int, default=100)
    options = parser.parse_args()
    each = EachDigit()
    with tempfile.TemporaryDirectory() as work:
        given = [*SETTINGS, f"train.epochs={options.epochs}", f"train.eval_every={options.epochs}"]
        convnext.train("digits", given, output=Path(work) / "run", train_data=each, val_data=each)
        loaded = load(Path(work) / "run" / "last.safetensors")
    spec = {**loaded.model.spec, "num_classes": 0}
    state = {key: tensor for key, tensor in loaded.model.state_dict().items() if not key.startswith("head.")}
    create_model(**spec).load_state_dict(state)  # type: ignore[arg-type]
    write_weights(options.output, state, {"task": "classify", "model": spec, "preprocessing": loaded.preprocessing.to_json()})
    print(f"{options.output}: {options.output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
