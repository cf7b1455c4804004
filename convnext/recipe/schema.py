"""The recipe: one typed schema for everything that decides a training run, read from YAML.

A recipe file says only what differs from the defaults here. Every key can be overridden as `section.key=value`.
Recipes of the package lie in `convnext/recipes`, and are named by their path there without the ending.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from importlib.resources import files
from importlib.resources.abc import Traversable
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from convnext.errors import UsageError, nearest
from convnext.text import read_text


class _Dumper(yaml.SafeDumper):
    """One key a line, lists in brackets."""


_Dumper.add_representer(list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True))

Interpolation = Literal["nearest", "bilinear", "bicubic"]


class Section(BaseModel):
    """A part of the recipe: unknown keys are errors, values cannot change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(Section):
    """What is trained."""

    name: str = Field("convnext_tiny", description="a name that `convnext models` lists")
    weights: str | None = Field(None, description="published weights to start from: a tag, a file, hf://… or https://…")
    keep_head: bool = Field(False, description="keep the weights' head, where the classes are the same")
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth of the last block, rising linearly to it")
    layer_scale: float | None = Field(None, ge=0, description="initial scale of residual branches, 0 for none; default as published")
    head_init_scale: float = Field(1.0, gt=0, description="factor on the head's initial weights (paper: 0.001 to fine-tune)")
    depths: tuple[int, ...] | None = Field(None, description="blocks in each stage, where not those of the name")
    widths: tuple[int, ...] | None = Field(None, description="channels of each stage, where not those of the name")
    width: int | None = Field(None, ge=1, description="of a roadmap network: channels of the first stage at the end of the road")
    channels: int | None = Field(None, ge=1, description="of a detector or segmenter: width of its pyramid, where not 256 or 512")
    fc_channels: int | None = Field(None, ge=1, description="of a detector: width of its box heads, where not 1024")
    masks: bool | None = Field(None, description="of a detector: whether it finds masks beside boxes; default true")
    anchor_scale: float | None = Field(None, gt=0, description="of a detector: an anchor's side in strides, where not 8")
    proposals: int | None = Field(None, ge=1, description="of a detector: in an image, where not 1000")
    regions: int | None = Field(None, ge=1, description="of a detector: proposals that count in a step, in an image, where not 512")
    auxiliary_channels: int | None = Field(None, ge=1, description="of a segmenter: width of its auxiliary head, where not 256")
    dropout: float | None = Field(
        None, ge=0, lt=1, description="of a segmenter: rate at which its heads drop whole channels, where not 0.1"
    )
    patch_size: int | None = Field(None, ge=1, description="kernel and stride of the stem, where not that of the name")
    kernel_size: int | None = Field(None, ge=1, description="of the depthwise convolutions, where not that of the name")
    grad_checkpointing: bool = Field(False, description="recompute blocks in the backward pass: less memory, a third more time")


class Data(Section):
    """Which images, and how they reach the network."""

    train: str = Field(description="a folder with one folder of images a class, shards (x-{000..007}.tar), cifar10:train, digits:train")
    val: str | None = Field(None, description="likewise; where none is given, a part of train is held out")
    num_classes: int | None = Field(None, ge=1, description="how many classes the data must have, where the recipe is made for them")
    val_fraction: float = Field(0.2, gt=0, lt=1, description="about the part of each class held out where there is no val; by file name")
    image_size: int = Field(224, ge=1, le=4096, description="pixels a side, in training and evaluation")
    workers: int = Field(2, ge=0, description="processes that decode images; results do not depend on it")
    max_corrupt: float = Field(0.01, ge=0, le=1, description="part of the images that may be unreadable before the run stops")
    mean: tuple[float, float, float] = Field((0.485, 0.456, 0.406), description="subtracted from RGB in 0 to 1 (ImageNet's)")
    std: tuple[float, float, float] = Field((0.229, 0.224, 0.225), description="divided by after that (ImageNet's)")
    range: float | tuple[float, float] | None = Field(
        None, description="of images with more than 8 bits: what is white, or [black, white]; by default 65535, or 1 for floats"
    )

    @field_validator("range")
    @classmethod
    def _in_order(cls, value: float | tuple[float, float] | None) -> float | tuple[float, float] | None:
        black, white = value if isinstance(value, tuple) else (0.0, value)
        if white is not None and not (isfinite(black) and isfinite(white) and black < white):
            raise ValueError("white must be a number above black, which is 0 unless given as in data.range=[-1024,3071]")
        return value


class Augment(Section):
    """What is done to training images. Defaults: none but the random crop and the mirror image."""

    crop_scale: tuple[float, float] = Field((0.08, 1.0), description="area of the random resized crop (Szegedy et al., 2015)")
    crop_aspect: tuple[float, float] = Field((3 / 4, 4 / 3), description="width over height of the random resized crop")
    flip: float = Field(0.5, ge=0, le=1, description="chance of the mirror image")
    rand_augment: str | None = Field(None, description="RandAugment in timm's notation, for instance rand-m9-mstd0.5-inc1")
    color_jitter: float = Field(0.0, ge=0, description="strength of colour jitter; replaced by RandAugment where that is on")
    random_erasing: float = Field(0.0, ge=0, le=1, description="chance of erasing a rectangle with per-pixel noise")
    mixup: float = Field(0.0, ge=0, description="alpha of mixup, 0 for none (Zhang et al., 2018)")
    cutmix: float = Field(0.0, ge=0, description="alpha of CutMix, 0 for none (Yun et al., 2019)")


class Detect(Section):
    """Sizes of a detector's images, in place of data.image_size. Defaults: as published for COCO (Carion et al., 2020)."""

    short: tuple[int, ...] = Field(tuple(range(480, 801, 32)), description="of the short side in training, one is drawn")
    longest: int = Field(1333, ge=1, description="the long side never gets longer")
    crop_short: tuple[int, ...] = Field((400, 500, 600), description="of the short side before a crop, one is drawn")
    crop: tuple[int, int] = Field((384, 600), description="least and greatest side of the crop")
    test_short: int = Field(800, ge=1, description="the short side in evaluation")
    test_longest: int = Field(1333, ge=1, description="the long side in evaluation")


class Segment(Section):
    """Images of a segmenter; the crop it is trained on is data.image_size. Defaults: as published for ADE20K."""

    scale: tuple[int, int] | None = Field((2048, 512), description="most pixels of the long and short side; null: images as they are")
    ratio_range: tuple[float, float] = Field((0.5, 2.0), description="factor on scale in training")
    max_class_share: float = Field(0.75, gt=0, le=1, description="how much of a training crop one class may cover")
    distort: bool = Field(True, description="distort brightness, contrast, saturation and hue in training")
    window: int | None = Field(None, ge=1, description="test in square windows of that side, published: the crop; null: whole images")
    stride: int | None = Field(None, ge=1, description="from one window to the next")


class Optim(Section):
    """AdamW and its schedule, set at every step: linear warm-up, then half a cosine, or as the published detectors and segmenters."""

    lr: float = Field(4e-3, gt=0, description="peak learning rate, for the whole batch_size")
    min_lr: float = Field(1e-6, ge=0, description="learning rate at the end of the cosine or line")
    schedule: Literal["cosine", "step", "linear"] = Field(
        "cosine", description="of the rate after the warm-up; step: a tenth at each milestone"
    )
    milestones: tuple[float, ...] = Field((), description="epochs after which the schedule step takes a tenth of the rate")
    warmup_start: float = Field(0.0, ge=0, le=1, description="part of the rate at which the warm-up of step and linear begins")
    weight_decay: float = Field(0.05, ge=0, description="not applied to biases and one-dimensional parameters")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's moment decays")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    layer_decay: float = Field(1.0, gt=0, le=1, description="factor on lr from a group of layers to the one before it, 1 for none")
    clip: float | None = Field(None, gt=0, description="largest norm of the gradient, none as published")


class Train(Section):
    """The run itself."""

    epochs: int = Field(300, ge=1, description="passes over the training images; as an override, in place of iterations")
    iterations: int | None = Field(None, ge=1, description="optimizer steps in all, where the run is counted in them and not in epochs")
    warmup_epochs: float = Field(20, ge=0, description="length of the linear warm-up")
    warmup_steps: int | None = Field(None, ge=0, description="length of the warm-up in optimizer steps, where not in epochs")
    batch_size: int = Field(4096, ge=1, description="images in one optimizer step, all devices together")
    device_batch_size: int | None = Field(
        None, ge=1, description="most images on a device at a time, by default what fits; gradients accumulate"
    )
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="part of the target spread over all classes")
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay of the weights' moving average, which warms up; 0 for none; where on, it is evaluated and kept"
    )
    precision: Literal["float32", "bf16", "fp16"] = Field("float32", description="of the forward pass, by autocast; fp16 scales the loss")
    sync_norm: bool = Field(False, description="BatchNorm over the images of all CUDA devices, not of each")
    compile: bool = Field(False, description="run the training step through torch.compile")
    nonfinite: Literal["stop", "skip"] = Field("stop", description="what a loss that is not finite does; skipped steps are told")
    eval_every: int = Field(1, ge=1, description="epochs between evaluations")
    log_every: int = Field(10, ge=1, description="steps between lines of metrics.jsonl")
    checkpoint_every: int | None = Field(None, ge=1, description="steps between whole states, besides one at the end of each epoch")
    keep_checkpoints: int = Field(2, ge=1, description="how many whole states are kept")


class Eval(Section):
    """How images are prepared for evaluation."""

    crop_ratio: float = Field(0.875, gt=0, le=1, description="resize the short side to image_size / crop_ratio, take the centre")
    warp: bool = Field(False, description="resize the whole image to the square instead (published from 384 pixels up)")
    interpolation: Interpolation = Field("bicubic", description="filter of every resize, in training too")


class Recipe(Section):
    """Everything that decides a run."""

    task: Literal["classify", "detect", "segment"] = "classify"
    model: Model = Model()
    data: Data
    augment: Augment = Augment()
    detect: Detect = Detect()
    segment: Segment = Segment()
    optim: Optim = Optim()
    train: Train = Train()
    eval: Eval = Eval()
    seed: int = Field(0, ge=0, description="of everything random: weights, order, augmentation, mixup, stochastic depth")

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if (self.augment.mixup or self.augment.cutmix) and self.train.batch_size % 2:
            raise ValueError("train.batch_size must be even, because mixup and CutMix pair the images of a batch")
        if self.train.warmup_steps is None and self.train.warmup_epochs > self.train.epochs:
            raise ValueError("train.warmup_epochs is more than train.epochs")
        return self

    def to_yaml(self) -> str:
        """The whole recipe, defaults included, as YAML that `load_recipe` reads back to the same."""
        return yaml.dump(self.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, width=120)


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(_names(files("convnext.recipe")))


def recipe_text(name: str) -> str:
    """The YAML of a recipe: a name of the package's, or a path to a file of one's own. Raises UsageError if it is neither."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UsageError(f"no recipe file {path}")
        return read_text(path)
    if name not in (known := list_recipes()):
        raise UsageError(f"no recipe is called {name!r}{nearest(name, known)} (a file of your own ends in .yaml)")
    return files("convnext.recipe").joinpath(f"{name}.yaml").read_text("utf-8")


def load_recipe(name: str, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Recipe:
    """Read, override and check a recipe.

    Args:
        name: of a recipe of the package, or a path ending in .yaml.
        overrides: `["optim.lr=1e-3", …]` or `{"optim.lr": 1e-3, …}`.

    Raises UsageError that names the key, its file and the nearest known key, or what is wrong with its value.
    """
    try:
        values = yaml.safe_load(recipe_text(name)) or {}
    except yaml.YAMLError as error:
        raise UsageError(f"recipe {name} is no valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"recipe {name} must be a table of keys, not {type(values).__name__}")
    given = overrides if isinstance(overrides, Mapping) else dict(_parse_override(text) for text in overrides)
    for key, value in given.items():
        _check_key(key.split("."), f"override {key}")
        _set(values, key.split("."), value)
    if "train.epochs" in given and "train.iterations" not in given:
        values["train"].pop("iterations", None)  # whoever says epochs wants the run counted in them
    values.setdefault("data", {})  # so that a missing data.train is told as that key
    for key_path in _paths(values):
        _check_key(key_path, f"recipe {name}")
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        got = "" if first["type"] in ("missing", "value_error") else f", not {first['input']!r}"
        told = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"recipe {name}: {key + ': ' if key else ''}{told}{got}{_hint(key)}") from error


def keys(section: type[BaseModel] = Recipe, prefix: str = "") -> dict[str, str]:
    """Every key of the schema, dotted, with its description."""
    found: dict[str, str] = {}
    for name, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            found |= keys(info.annotation, f"{prefix}{name}.")
        else:
            found[prefix + name] = info.description or ""
    return found


def _names(folder: Traversable, prefix: str = "") -> Iterator[str]:
    for item in folder.iterdir():
        if item.is_dir():
            yield from _names(item, f"{prefix}{item.name}/")
        elif item.name.endswith(".yaml"):
            yield prefix + item.name.removesuffix(".yaml")


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"{text!r} is no override; write it as key=value, for instance train.epochs=4")
    parsed = yaml.safe_load(value)
    if isinstance(parsed, str):
        with suppress(ValueError):
            parsed = float(parsed)  # YAML reads 1e-3 as text
    return key, parsed


def _set(values: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        values = values.setdefault(part, {})
    values[path[-1]] = value


def _paths(values: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[list[str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _paths(value, (*prefix, str(key)))
        else:
            yield [*prefix, str(key)]


def _check_key(path: list[str], where: str) -> None:
    known, key = keys(), ".".join(path)
    if key in known:
        return
    # Someone who writes `lr` or `train.lr` means `optim.lr`: a key's last word says more than its section.
    by_last_word = [full for full in known if full.rpartition(".")[2] == path[-1]]
    closest = by_last_word or get_close_matches(key, known, n=1)
    hint = f"; did you mean {closest[0]!r}?" if closest else "; `convnext recipes keys` lists them all"
    raise UsageError(f"{where}: no key is called {key!r}{hint}")


def _hint(key: str) -> str:
    return f" (give it as {key}=…)" if key == "data.train" else ""
