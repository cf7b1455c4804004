"""The recipe: one typed schema for everything that decides a training run.

A recipe file says only what differs from the defaults here. `convnext.recipe.load` reads it.
"""

import re
from collections.abc import Iterator
from math import isfinite
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from convnext.text import class_name


class _Dumper(yaml.SafeDumper):
    """Writes one key per line, and lists in brackets."""


_Dumper.add_representer(list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True))

Auto = Literal["auto"]  # a task measures the value on the training data; see `convnext.recipe.measured`
AnyNumber = Annotated[float, Field(allow_inf_nan=True)]  # of which a validator of its own says what is wrong
Interpolation = Literal["nearest", "bilinear", "bicubic"]

_MAX_SIDE = 4096  # pixels


def _name(value: object) -> str:
    """Return a class name, which YAML may have read as a number. Raises ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise ValueError(f"{value!r} is not a class name: write names in quotation marks")
    return class_name(str(value).strip())


class RecipeSection(BaseModel):
    """A part of the recipe: unknown keys are errors, values cannot change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Model(RecipeSection):
    """What is trained. Beside these keys, every argument that the constructors of the named model take is a key."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    name: str = Field("convnext_tiny", description="a name that `convnext models` lists")
    weights: str | None = Field(None, description="weights to start from: a tag, best (of a free licence), a file, hf://… or https://…")
    keep_head: bool = Field(False, description="keep the weights' head, if the classes are the same")
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth of the last block, rising linearly to it")
    layer_scale: float | None = Field(None, ge=0, description="initial scale of residual branches, 0 for none; default as published")
    head_init_scale: float = Field(1.0, gt=0, description="factor on the head's initial weights (paper: 0.001 to fine-tune)")
    depths: tuple[int, ...] | None = Field(None, description="blocks of each stage; default as the name says")
    widths: tuple[int, ...] | None = Field(None, description="channels of each stage; default as the name says")
    freeze: Literal["head_only", "backbone", "neck"] | int | None = Field(
        None,
        description="what stays as it is; N: stem and first N stages; backbone or head_only: all but the head; neck: the pyramid, too",
    )
    grad_checkpointing: bool = Field(False, description="recompute blocks in the backward pass: less memory, a third more time")

    @field_validator("freeze", mode="before")
    @classmethod
    def _head_or_number(cls, value: object) -> object:
        if value in (None, "head_only", "backbone", "neck") or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
            return value
        raise ValueError(f"must be backbone, neck, head_only or a number of stages, as in model.freeze=2, not {value!r}")

    def arguments(self) -> dict[str, object]:
        """Return what `create_model` takes for this model, beside its name and the number of classes.

        Keys with a default that the model does not take are missing. Raises UsageError for an unknown name.
        """
        from convnext.models.registry import find

        known, fields = find(self.name).arguments, type(self).model_fields
        given = self.model_dump(exclude_none=True, exclude={"name", "keep_head", "freeze"})
        if self.head_init_scale == 1:
            del given["head_init_scale"]
        return {key: value for key, value in given.items() if key in known or key not in fields or value != fields[key].default}

    def get(self, key: str) -> object:
        """Return the value of any key; None if the recipe does not set it."""
        return getattr(self, key, None)


class Data(RecipeSection):
    """Which images, and how they reach the network."""

    train: str = Field(
        description="a folder with one folder of images per class, labels.csv, photos.zip, shards x-{0..7}.tar, cifar10:train, module:name"
    )
    val: str | None = Field(None, description="likewise; by default a part of train is held out")
    image_column: str | None = Field(None, description="of a table (.csv, .tsv, .parquet): the column that names the images")
    label_column: str | None = Field(None, description="of a table: the column of the labels")
    root: str | None = Field(None, description="of a table: the folder that the paths of its images start from; default its own")
    fold: str | None = Field(None, description="as 2/5: of 5 folds by file name the second is held out, instead of val and val_fraction")
    group_column: str | None = Field(None, description="of a table: images alike in this column are never in both train and val")
    group: str | None = Field(None, description="likewise, alike in what this regular expression finds in their paths (its groups, if any)")
    num_classes: int | None = Field(None, ge=1, description="classes that the data must have, if the recipe needs a fixed number")
    val_fraction: float = Field(
        0.2, gt=0, lt=1, description="without val: about the fraction of each class that is held out, chosen by file name"
    )
    image_size: int | tuple[int, int] = Field(224, description="pixels a side, or [height, width], in training and evaluation")
    classes: tuple[str, ...] | dict[str, tuple[str, ...]] | None = Field(
        None, description="of a COCO file: the categories to use, as [car, bus], or united, as {vehicle: [car, bus], person: person}"
    )
    crowds: Literal["ignore", "objects"] = Field(
        "ignore", description="of a COCO file: objects with iscrowd 1 are left out; objects: each is an object, as CVAT writes masks"
    )
    masks_from_boxes: bool = Field(False, description="of a COCO file: the mask of an object without one is its box")
    keep_empty: bool = Field(False, description="detect: train on images without objects too")
    workers: int = Field(2, ge=0, description="processes that decode images; results do not depend on their number")
    max_corrupt: float = Field(
        0.01, ge=0, le=1, description="fraction of the images that may be unreadable, and of a COCO file's objects that may be invalid"
    )
    channels: int = Field(3, ge=1, le=16, description="channels of the images: 3 for RGB, 1 for grey, others for files with as many bands")
    max_pixels: int | None = Field(None, ge=1, description="largest image that is opened, width x height; default 89478485")
    mean: tuple[float, ...] | Literal["auto"] = Field(
        (0.485, 0.456, 0.406), description="subtracted from each channel in 0 to 1 (ImageNet's); auto: mean and std of the training images"
    )
    std: tuple[float, ...] = Field((0.229, 0.224, 0.225), description="divided by after that (ImageNet's)")
    sampler: Literal["shuffle", "balanced", "repeat_factor"] = Field(
        "shuffle", description="images of an epoch: each once; balanced: every class equally often; repeat_factor: rare classes more often"
    )
    repeat_threshold: float = Field(
        0.001, gt=0, le=1, description="sampler repeat_factor: fraction of the images below which a class is rare (LVIS: 0.001)"
    )
    range: AnyNumber | tuple[AnyNumber, AnyNumber] | None = Field(
        None, description="images with more than 8 bits: the value of white, or [black, white]; default 65535, or 1 for floats"
    )

    @model_validator(mode="after")
    def _one_split(self) -> "Data":
        given = [key for key in ("fold", "group_column", "group") if getattr(self, key) is not None]
        if given and self.val is not None:
            raise ValueError(
                f"data.{given[0]} chooses validation images from data.train, so data.val can't be given too: leave one of them"
            )
        if self.group is not None and self.group_column is not None:
            raise ValueError("data.group and data.group_column both name the groups: leave one of them")
        return self

    def fold_of(self) -> tuple[int, int] | None:
        """Return the number of the fold to hold out, from 1, and how many folds there are; None without `fold`."""
        if self.fold is None:
            return None
        number, _, count = self.fold.partition("/")
        return int(number), int(count)

    @field_validator("fold")
    @classmethod
    def _is_fold(cls, value: str | None) -> str | None:
        match = re.fullmatch(r"(\d{1,4})/(\d{1,4})", value) if value is not None else None
        if value is not None and not (match and int(match[2]) >= 2 and 1 <= int(match[1]) <= int(match[2])):
            raise ValueError("write it as 2/5, for the second of five folds")
        return value

    @field_validator("group")
    @classmethod
    def _is_pattern(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"not a regular expression ({error})") from error
        return value

    @field_validator("classes", mode="before")
    @classmethod
    def _class_names(cls, value: object) -> object:
        if isinstance(value, dict):
            return {_name(new): tuple(map(_name, own if isinstance(own, list | tuple) else [own])) for new, own in value.items()}
        if isinstance(value, list | tuple) and value:
            return tuple(map(_name, value))
        if value is not None:
            raise ValueError(f"name classes, as in [car, bus], or unite some, as in {{vehicle: [car, bus]}}, not {value!r}")
        return value

    def united_classes(self) -> dict[str, tuple[str, ...]]:
        """Return each of `classes` with the categories of the data that it unites; nothing without it."""
        return self.classes if isinstance(self.classes, dict) else {name: (name,) for name in self.classes or ()}

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
    copy_paste: float = Field(0.0, ge=0, le=1, description="detect: probability that objects of another image are pasted on an image")
    mosaic: float = Field(0.0, ge=0, le=1, description="detect, segment: probability of a mosaic of four images in place of one")
    plain_epochs: int = Field(0, ge=0, description="detect, segment: last epochs without copy_paste and mosaic (YOLOX: 15)")
    extra: str | None = Field(None, description="an augmentation of your own behind these: a registered name, or module:function")


class Detect(RecipeSection):
    """Image sizes of a detector, instead of data.image_size, and its results. Defaults: as published for COCO (Carion et al., 2020)."""

    size: int | Auto | None = Field(
        None, description="pixels of the long side, instead of all keys below; auto: so that all but the smallest objects can be seen"
    )
    short: tuple[int, ...] = Field(
        tuple(range(480, 801, 32)), description="pixels of the short side in training; one of them is drawn for each image"
    )
    longest: int = Field(1333, ge=1, description="largest number of pixels of the long side")
    crop_short: tuple[int, ...] = Field((400, 500, 600), description="pixels of the short side before a crop; one of them is drawn")
    crop: tuple[int, int] = Field((384, 600), description="minimum and maximum side of the crop in pixels")
    test_short: int = Field(800, ge=1, description="pixels of the short side in evaluation")
    test_longest: int = Field(1333, ge=1, description="largest number of pixels of the long side in evaluation")
    most: int = Field(100, ge=1, le=10_000, description="largest number of objects that are found in an image, the likeliest first")


class Segment(RecipeSection):
    """Images of a segmenter; its training crop is data.image_size. Defaults: as published for ADE20K."""

    scale: tuple[int, int] | Auto | None = Field(
        (2048, 512), description="largest number of pixels of the long and short side; null: images as they are; auto: up to 512"
    )
    ratio_range: tuple[float, float] = Field((0.5, 2.0), description="factor on scale in training")
    max_class_share: float = Field(0.75, gt=0, le=1, description="largest fraction of a training crop that one class may cover")
    distort: bool = Field(True, description="distort brightness, contrast, saturation and hue in training")
    window: int | None = Field(
        None, ge=1, description="side of the square windows for evaluation, as published the crop; null: whole images"
    )
    stride: int | None = Field(None, ge=1, description="pixels from one window to the next")


class Optim(RecipeSection):
    """Optimizer and schedule, step by step: linear warm-up, then half a cosine, or as for the published detectors and segmenters."""

    name: Literal["adamw", "sgd", "lamb", "muon"] = Field(
        "adamw", description="optimizer; muon takes the matrices of hidden layers, and AdamW the rest"
    )
    lr: float = Field(4e-3, gt=0, description="peak learning rate, for the whole batch_size")
    min_lr: float = Field(1e-6, ge=0, description="learning rate at the end of the cosine or line")
    schedule: Literal["cosine", "step", "linear"] = Field(
        "cosine", description="learning rate after the warm-up; step: a tenth at each milestone"
    )
    milestones: tuple[float, ...] = Field(
        (), description="schedule step: epochs after which the rate falls to a tenth; below 1: parts of the run, as in [0.67,0.92]"
    )
    warmup_start: float = Field(0.0, ge=0, le=1, description="schedules step and linear: fraction of the rate at which the warm-up begins")
    weight_decay: float = Field(0.05, ge=0, description="not applied to biases and one-dimensional parameters")
    betas: tuple[float, float] = Field((0.9, 0.999), description="moment decays of AdamW and LAMB")
    eps: float = Field(1e-8, gt=0, description="epsilon of AdamW and LAMB")
    momentum: float | None = Field(None, ge=0, lt=1, description="Nesterov momentum of sgd and muon; default 0.9 and 0.95")
    layer_decay: float = Field(1.0, gt=0, le=1, description="factor on lr from each group of layers to the one before it; 1 for none")
    layer_decay_by: Literal["group", "block"] = Field(
        "group", description="what a group of layers is: group, as published for the network (ConvNeXt: three blocks), or a block"
    )
    clip: float | None = Field(None, gt=0, description="largest norm of the gradient; by default unlimited, as published")


class Train(RecipeSection):
    """The run itself."""

    epochs: int = Field(300, ge=1, description="passes over the training images; as an override it replaces iterations")
    iterations: Annotated[int, Field(ge=1)] | Auto | None = Field(
        None, description="optimizer steps in all, instead of epochs; auto (detect): for minutes on two CPU cores"
    )
    warmup_epochs: float = Field(20, ge=0, description="length of the linear warm-up in epochs")
    warmup_steps: int | None = Field(None, ge=0, description="length of the warm-up in optimizer steps, instead of epochs")
    warmup_share: float | None = Field(
        None, gt=0, le=1, description="largest part of the run that the warm-up may take; a longer one is shortened, and reported"
    )
    batch_size: int = Field(4096, ge=1, description="images in one optimizer step, all devices together")
    device_batch_size: int | None = Field(None, ge=1, description="images of a micro-batch, by default what fits; gradients accumulate")
    label_smoothing: float = Field(
        0.1, ge=0, lt=1, description="fraction of the target that is spread over all classes; multilabel: to 1/2; regress: none"
    )
    class_weights: Literal["balanced"] | dict[str, float] | None = Field(
        None, description="factors on the loss by class, as {ant: 3}; balanced: N / (classes x images, objects or pixels of the class)"
    )
    focal_gamma: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="gamma of the focal loss of classes (Lin et al., 2017), 0 for cross-entropy"
    )
    dice: float = Field(0.0, ge=0, description="segment: weight of the dice loss beside cross-entropy, 0 for none")
    loss: str | None = Field(
        None, description="in place of the task's: asymmetric (multilabel), mse (regress), a registered name, or module:function"
    )
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
    patience: int | None = Field(None, ge=1, description="stop after so many evaluations in a row without a better best; null: never")
    max_hours: float | None = Field(None, gt=0, description="stop after so many hours of the whole run, resumes included; null: never")

    def steps(self) -> int | None:
        """Return the optimizer steps of a run; None for one that is counted in epochs. `auto` is not known before the data are opened."""
        assert self.iterations != "auto"
        return self.iterations

    @field_validator("class_weights", mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        for name, weight in value.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not (isfinite(weight) and weight > 0):
                raise ValueError(f"the weight of {str(name)!r} must be a number above 0, not {weight}")
        return {class_name(str(name)): float(weight) for name, weight in value.items()}


class Eval(RecipeSection):
    """How images are prepared for evaluation."""

    crop_ratio: float = Field(0.875, gt=0, le=1, description="resize the short side to image_size / crop_ratio, take the centre")
    warp: bool = Field(False, description="resize the whole image to image_size instead (published from 384 pixels up)")
    letterbox: bool = Field(False, description="keep the whole image in its proportions instead, and fill the rest with data.mean")
    interpolation: Interpolation = Field("bicubic", description="filter of every resize, in training too")
    best_by: str | None = Field(
        None, description="metric that chooses the best weights: top1, balanced_accuracy, f1, auroc, loss; box_ap, mask_ap; miou, …"
    )
    loss: bool = Field(
        False, description="detect, segment: also the loss of training on the validation images, by part; takes about as long again"
    )
    metrics: tuple[str, ...] = Field((), description="metrics of your own beside the task's: registered names, or module:function")


class Recipe(RecipeSection):
    """Everything that decides a run."""

    imports: tuple[str, ...] = Field((), description="modules of your own to import first, for the names that they register")
    task: str = Field("classify", description="classify, multilabel, regress, detect, segment, pretrain, or a registered name")
    model: Model = Model()
    data: Data
    augment: Augment = Augment()
    detect: Detect = Detect()
    segment: Segment = Segment()
    optim: Optim = Optim()
    train: Train = Train()
    eval: Eval = Eval()
    seed: int = Field(0, ge=0, description="seed of everything random: weights, order, augmentation, mixup, stochastic depth")

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
