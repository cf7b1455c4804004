"""The recipe: one typed schema for everything that decides a training run.

A recipe file says only what differs from the defaults here. `convnext.recipe.load` reads it.
"""

from collections.abc import Iterator
from math import isfinite
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class _Dumper(yaml.SafeDumper):
    """Writes one key per line, and lists in brackets."""


_Dumper.add_representer(list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True))

Interpolation = Literal["nearest", "bilinear", "bicubic"]


_MAX_SIDE = 4096  # pixels


class RecipeSection(BaseModel):
    """A part of the recipe: unknown keys are errors, values cannot change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(RecipeSection):
    """What is trained. Beside these keys, every argument that the constructors of the named model take is a key."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field("convnext_tiny", description="a name that `convnext models` lists")
    weights: str | None = Field(None, description="published weights to start from: a tag, a file, hf://… or https://…")
    keep_head: bool = Field(False, description="keep the weights' head, if the classes are the same")
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth of the last block, rising linearly to it")
    layer_scale: float | None = Field(None, ge=0, description="initial scale of residual branches, 0 for none; default as published")
    head_init_scale: float = Field(1.0, gt=0, description="factor on the head's initial weights (paper: 0.001 to fine-tune)")
    depths: tuple[int, ...] | None = Field(None, description="blocks of each stage; default as the name says")
    widths: tuple[int, ...] | None = Field(None, description="channels of each stage; default as the name says")
    grad_checkpointing: bool = Field(False, description="recompute blocks in the backward pass: less memory, a third more time")

    def arguments(self) -> dict[str, object]:
        """Return what `create_model` takes for this model, beside its name and the number of classes.

        Keys with a default that the model does not take are missing. Raises UsageError for an unknown name.
        """
        from convnext.models.registry import find

        known, fields = find(self.name).arguments, type(self).model_fields
        given = self.model_dump(exclude_none=True, exclude={"name", "keep_head"})
        if self.head_init_scale == 1:
            del given["head_init_scale"]
        return {key: value for key, value in given.items() if key in known or key not in fields or value != fields[key].default}

    def get(self, key: str) -> object:
        """Return the value of any key; None if the recipe does not set it."""
        return getattr(self, key, None)


class Data(RecipeSection):
    """Which images, and how they reach the network."""

    train: str = Field(description="a folder with one folder of images per class, shards (x-{000..007}.tar), cifar10:train, digits:train")
    val: str | None = Field(None, description="likewise; by default a part of train is held out")
    num_classes: int | None = Field(None, ge=1, description="classes that the data must have, if the recipe needs a fixed number")
    val_fraction: float = Field(
        0.2, gt=0, lt=1, description="without val: about the fraction of each class that is held out, chosen by file name"
    )
    image_size: int | tuple[int, int] = Field(224, description="pixels a side, or [height, width], in training and evaluation")
    workers: int = Field(2, ge=0, description="processes that decode images; results do not depend on their number")
    max_corrupt: float = Field(0.01, ge=0, le=1, description="fraction of the images that may be unreadable before the run stops")
    channels: int = Field(3, ge=1, le=16, description="channels of the images: 3 for RGB, 1 for grey, others for files with as many bands")
    max_pixels: int | None = Field(None, ge=1, description="largest image that is opened, width x height; default 89478485")
    mean: tuple[float, ...] | Literal["auto"] = Field(
        (0.485, 0.456, 0.406), description="subtracted from each channel in 0 to 1 (ImageNet's); auto: mean and std of the training images"
    )
    std: tuple[float, ...] = Field((0.229, 0.224, 0.225), description="divided by after that (ImageNet's)")
    range: float | tuple[float, float] | None = Field(
        None, description="images with more than 8 bits: the value of white, or [black, white]; default 65535, or 1 for floats"
    )

    @field_validator("image_size", mode="before")
    @classmethod
    def _one_number_of_a_square(cls, value: object) -> object:
        sides = list(value) if isinstance(value, (list, tuple)) else [value, value]
        if len(sides) != 2 or not all(type(side) is int and 1 <= side <= _MAX_SIDE for side in sides):
            raise ValueError(f"give pixels a side, from 1 to {_MAX_SIDE}, or [height, width], not {value!r}")
        return sides[0] if sides[0] == sides[1] else tuple(sides)

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _numbers(cls, value: object) -> object:
        return [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else value

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and std as numbers. `auto` is measured when the training images are opened; before that it is not known."""
        assert self.mean != "auto"
        return self.mean, self.std

    @field_validator("range")
    @classmethod
    def _in_order(cls, value: float | tuple[float, float] | None) -> float | tuple[float, float] | None:
        black, white = value if isinstance(value, tuple) else (0.0, value)
        if white is not None and not (isfinite(black) and isfinite(white) and black < white):
            raise ValueError("white must be a number above black, which is 0 unless given as in data.range=[-1024,3071]")
        return value


class Augment(RecipeSection):
    """Augmentation of training images. By default only a random crop and a horizontal flip."""

    crop: Literal["random", "none"] = Field("random", description="random resized crop, or none: images are resized as in evaluation")
    crop_scale: tuple[float, float] = Field((0.08, 1.0), description="area of the random resized crop (Szegedy et al., 2015)")
    crop_aspect: tuple[float, float] = Field(
        (3 / 4, 4 / 3), description="width over height of the random resized crop, relative to those of data.image_size"
    )
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    vflip: float = Field(0.0, ge=0, le=1, description="probability of a vertical flip")
    rotate: float = Field(0.0, ge=0, le=180, description="largest angle of a rotation in degrees, either way")
    blur: float = Field(0.0, ge=0, le=1, description="probability of a Gaussian blur of 0.1 to 2 pixels")
    rand_augment: str | None = Field(None, description="RandAugment in timm's notation, for instance rand-m9-mstd0.5-inc1")
    trivial_augment: bool = Field(False, description="TrivialAugment (Müller & Hutter, 2021), instead of RandAugment")
    color_jitter: float = Field(0.0, ge=0, description="strength of colour jitter; RandAugment and TrivialAugment replace it")
    random_erasing: float = Field(0.0, ge=0, le=1, description="probability of erasing a rectangle with per-pixel noise")
    mixup: float = Field(0.0, ge=0, description="alpha of mixup, 0 for none (Zhang et al., 2018)")
    cutmix: float = Field(0.0, ge=0, description="alpha of CutMix, 0 for none (Yun et al., 2019)")


class Detect(RecipeSection):
    """Image sizes of a detector, instead of data.image_size. Defaults: as published for COCO (Carion et al., 2020)."""

    short: tuple[int, ...] = Field(
        tuple(range(480, 801, 32)), description="pixels of the short side in training; one of them is drawn for each image"
    )
    longest: int = Field(1333, ge=1, description="largest number of pixels of the long side")
    crop_short: tuple[int, ...] = Field((400, 500, 600), description="pixels of the short side before a crop; one of them is drawn")
    crop: tuple[int, int] = Field((384, 600), description="minimum and maximum side of the crop in pixels")
    test_short: int = Field(800, ge=1, description="pixels of the short side in evaluation")
    test_longest: int = Field(1333, ge=1, description="largest number of pixels of the long side in evaluation")


class Segment(RecipeSection):
    """Images of a segmenter; its training crop is data.image_size. Defaults: as published for ADE20K."""

    scale: tuple[int, int] | None = Field(
        (2048, 512), description="largest number of pixels of the long and short side; null: images as they are"
    )
    ratio_range: tuple[float, float] = Field((0.5, 2.0), description="factor on scale in training")
    max_class_share: float = Field(0.75, gt=0, le=1, description="largest fraction of a training crop that one class may cover")
    distort: bool = Field(True, description="distort brightness, contrast, saturation and hue in training")
    window: int | None = Field(
        None, ge=1, description="side of the square windows for evaluation, as published the crop; null: whole images"
    )
    stride: int | None = Field(None, ge=1, description="pixels from one window to the next")


class Optim(RecipeSection):
    """AdamW and its schedule, step by step: linear warm-up, then half a cosine, or as for the published detectors and segmenters."""

    lr: float = Field(4e-3, gt=0, description="peak learning rate, for the whole batch_size")
    min_lr: float = Field(1e-6, ge=0, description="learning rate at the end of the cosine or line")
    schedule: Literal["cosine", "step", "linear"] = Field(
        "cosine", description="learning rate after the warm-up; step: a tenth at each milestone"
    )
    milestones: tuple[float, ...] = Field((), description="schedule step: epochs after which the rate falls to a tenth")
    warmup_start: float = Field(0.0, ge=0, le=1, description="schedules step and linear: fraction of the rate at which the warm-up begins")
    weight_decay: float = Field(0.05, ge=0, description="not applied to biases and one-dimensional parameters")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's moment decays")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    layer_decay: float = Field(1.0, gt=0, le=1, description="factor on lr from each group of layers to the one before it; 1 for none")
    clip: float | None = Field(None, gt=0, description="largest norm of the gradient; by default unlimited, as published")


class Train(RecipeSection):
    """The run itself."""

    epochs: int = Field(300, ge=1, description="passes over the training images; as an override it replaces iterations")
    iterations: int | None = Field(None, ge=1, description="optimizer steps in all, instead of epochs")
    warmup_epochs: float = Field(20, ge=0, description="length of the linear warm-up in epochs")
    warmup_steps: int | None = Field(None, ge=0, description="length of the warm-up in optimizer steps, instead of epochs")
    batch_size: int = Field(4096, ge=1, description="images in one optimizer step, all devices together")
    device_batch_size: int | None = Field(None, ge=1, description="images of a micro-batch, by default what fits; gradients accumulate")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="fraction of the target that is spread over all classes")
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay of the moving average of the weights, which warms up and is evaluated and saved; 0 for none"
    )
    precision: Literal["float32", "bf16", "fp16"] = Field("float32", description="of the forward pass, by autocast; fp16 scales the loss")
    sync_norm: bool = Field(False, description="BatchNorm over the images of all CUDA devices instead of each")
    compile: bool = Field(False, description="run the training step through torch.compile")
    nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="on a loss that is not finite: stop the run, or skip the step and report it"
    )
    eval_every: int = Field(1, ge=1, description="epochs between evaluations")
    log_every: int = Field(10, ge=1, description="steps between lines of metrics.jsonl")
    checkpoint_every: int | None = Field(None, ge=1, description="steps between checkpoints, besides the one at the end of each epoch")
    keep_checkpoints: int = Field(2, ge=1, description="number of checkpoints that are kept")


class Eval(RecipeSection):
    """How images are prepared for evaluation."""

    crop_ratio: float = Field(0.875, gt=0, le=1, description="resize the short side to image_size / crop_ratio, take the centre")
    warp: bool = Field(False, description="resize the whole image to image_size instead (published from 384 pixels up)")
    letterbox: bool = Field(False, description="keep the whole image in its proportions instead, and fill the rest with data.mean")
    interpolation: Interpolation = Field("bicubic", description="filter of every resize, in training too")


class Recipe(RecipeSection):
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
    seed: int = Field(0, ge=0, description="seed of everything random: weights, order, augmentation, mixup, stochastic depth")

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if (self.augment.mixup or self.augment.cutmix) and self.train.batch_size % 2:
            raise ValueError("train.batch_size must be even, because mixup and CutMix pair the images of a batch")
        self._check_channels()
        if self.augment.rand_augment and self.augment.trivial_augment:
            raise ValueError("augment.trivial_augment replaces RandAugment: add augment.rand_augment=null, or remove it")
        if self.eval.warp and self.eval.letterbox:
            raise ValueError("eval.warp and eval.letterbox are two ways to prepare the whole image: choose one")
        if self.train.warmup_steps is None and self.train.warmup_epochs > self.train.epochs:
            epochs, warmup = self.train.epochs, self.train.warmup_epochs
            raise ValueError(f"train.warmup_epochs={warmup:g} is longer than train.epochs={epochs}: add train.warmup_epochs={epochs / 5:g}")
        return self

    def _check_channels(self) -> None:
        data, augment = self.data, self.augment
        for key, value in (("mean", data.mean), ("std", data.std)):
            if data.mean != "auto" and len(value) != data.channels:
                is_rgb = value == Data.model_fields[key].default
                given = "the defaults are for RGB" if is_rgb else f"data.{key} has {len(value)}"
                numbers = "1 number" if data.channels == 1 else f"{data.channels} numbers"
                raise ValueError(
                    f"data.channels={data.channels} needs {numbers} in data.mean and in data.std ({given}): give them, or measure both on "
                    "the training images with data.mean=auto"
                )
        if data.channels not in (1, 3):
            for key in ("rand_augment", "trivial_augment", "color_jitter"):
                if getattr(augment, key):
                    off = {"rand_augment": "null", "trivial_augment": "false", "color_jitter": "0"}[key]
                    raise ValueError(
                        f"augment.{key} works on RGB and grey images of 8 bits, not on {data.channels} channels: add augment.{key}={off}"
                    )
        if data.channels != 3 and self.task == "segment" and self.segment.distort:
            raise ValueError(
                f"segment.distort changes the colours of RGB images, not of {data.channels} channels: add segment.distort=false"
            )

    def to_yaml(self) -> str:
        """Return the whole recipe, defaults included, as YAML from which `load_recipe` reads the same recipe."""
        return yaml.dump(self.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, width=120)


def keys(section: type[BaseModel] = Recipe, prefix: str = "") -> dict[str, str]:
    """Return every key of the schema, dotted, with its description. Other keys of `model` depend on its name."""
    return dict(_keys(section, prefix))


def _keys(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    for name, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, RecipeSection):
            yield from _keys(info.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, info.description or ""
