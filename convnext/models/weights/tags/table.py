"""What is published about every ConvNeXt's weights: where they are, their licence, classes, preprocessing and accuracy.

Reading the table imports neither PyTorch nor timm. README.md beside it names the sources.
"""

import csv
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

FREE = frozenset({"apache-2.0", "bsd-3-clause", "mit"})
# What the other licences of the table say, in short.
_TERMS = {
    "cc-by-nc-4.0": "no commercial use",
    "fair-noncommercial-research-license": "research only, no commercial use",
    "dinov3-license": "Meta's own terms, which restrict some uses",
}


@dataclass(frozen=True)
class PublishedWeights:
    """One line of the table."""

    network: str  # by timm's name, which is the registry's where the network is known here
    tag: str  # empty for files that are given by their address
    source: str  # timm, torchvision, transformers or official
    address: str  # hf://owner/name, https://… or the name of a file that its authors hand out on request
    licence: str  # by the hub's name
    training: str  # data that it was trained on, in order
    classes: int  # 0 without a head
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int  # pixels a side
    test_size: int | None  # larger size at which it was also tested
    crop: float | None  # of the resized side that the central crop keeps; None where its publisher does not say
    test_crop: float | None  # at `test_size`
    crop_mode: str  # center, or squash: the whole image, warped; empty where its publisher does not say
    interpolation: str
    top1: Mapping[int, float]  # pixels a side → percent on ImageNet-1K
    parameters: float  # millions, with the head
    gmacs: float  # billions of multiply-adds at `size`

    @property
    def is_free(self) -> bool:
        """Whether the licence permits any use."""
        return self.licence in FREE

    @property
    def name(self) -> str:
        """The network and the tag, or the address of weights without a tag."""
        return f"{self.network}.{self.tag}" if self.tag else self.address

    def gmacs_at(self, size: int) -> float:
        """Return the multiply-adds at another size, in billions. All but the head's grow with the area."""
        return self.gmacs * (size / self.size) ** 2

    def as_timm(self) -> dict[str, object]:
        """Return the keys of timm's `pretrained_cfg` that say how an image is prepared, the number of classes and the licence."""
        test = None if self.test_size is None else (3, self.test_size, self.test_size)
        sizes = {"input_size": (3, self.size, self.size), "test_input_size": test, "crop_pct": self.crop, "test_crop_pct": self.test_crop}
        how = {"crop_mode": self.crop_mode, "interpolation": self.interpolation, "mean": self.mean, "std": self.std}
        return {"num_classes": self.classes, "license": self.licence} | sizes | how


def terms(licence: str) -> str:
    """Return a licence by name, and, if it restricts use, what it says in short."""
    return f"{licence} ({_TERMS[licence]})" if licence in _TERMS else licence


@functools.cache
def rows() -> tuple[PublishedWeights, ...]:
    """Return all lines of the table."""
    text = files("convnext.models.weights.tags").joinpath("published.csv").read_text("utf-8")
    return tuple(map(_row, csv.DictReader(text.splitlines())))


@functools.cache
def of_network(network: str) -> Mapping[str, PublishedWeights]:
    """Return the published weights of a network by their tags, without those that have none."""
    return {row.tag: row for row in rows() if row.network == network and row.tag}


def find(source: str) -> PublishedWeights | None:
    """Return what is published about weights; None if they are not in the table.

    Args:
        source: `hf://owner/name` with or without revision and file, an `https://` address, a file by its published name, or
            NETWORK.TAG, also with an ending.
    """
    where = source.partition("#")[0].replace("https://huggingface.co/", "hf://")
    if where.startswith("hf://"):
        owner, _, rest = where.removeprefix("hf://").partition("/")
        return _by_name().get(f"hf://{owner}/{re.split('[@/]', rest)[0]}")
    name = re.split(r"[/\\]", where)[-1]
    return _by_name().get(name) or _by_name().get(re.sub(r"\.(safetensors|bin|pth|pt)$", "", name))


@functools.cache
def _by_name() -> dict[str, PublishedWeights]:
    found: dict[str, PublishedWeights] = {}
    for row in rows():
        address = row.address if row.address.startswith("hf://") else row.address.rpartition("/")[2]
        for name in (address, row.name):
            found.setdefault(name, row)
    return found


def _row(line: Mapping[str, str]) -> PublishedWeights:
    def number(key: str) -> float | None:
        return float(line[key]) if line[key] else None

    return PublishedWeights(
        network=line["network"],
        tag=line["tag"],
        source=line["source"],
        address=line["address"],
        licence=line["licence"],
        training=line["training"],
        classes=int(line["classes"]),
        mean=tuple(map(float, line["mean"].split())),
        std=tuple(map(float, line["std"].split())),
        size=int(line["size"]),
        test_size=int(line["test_size"]) if line["test_size"] else None,
        crop=number("crop"),
        test_crop=number("test_crop"),
        crop_mode=line["crop_mode"],
        interpolation=line["interpolation"],
        top1={int(size): float(value) for size, _, value in (pair.partition(":") for pair in line["top1"].split())},
        parameters=float(line["parameters"]),
        gmacs=float(line["gmacs"]),
    )
