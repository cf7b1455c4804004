"""The parts of a recipe that say which images are learned from, and how they reach the network in training and evaluation."""

import re
from math import isfinite
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from convnext.recipe.section import Auto, RecipeSection
from convnext.text import class_name

AnyNumber = Annotated[float, Field(allow_inf_nan=True)]  # of which a validator of its own says what is wrong
Interpolation = Literal["nearest", "bilinear", "bicubic"]

_MAX_SIDE = 4096  # pixels


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
        "ignore", description="of a COCO file: objects with iscrowd 1 are ignored; objects: each is an object, as CVAT writes masks"
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


def _name(value: object) -> str:
    """Return a class name, which YAML may have read as a number. Raises ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise ValueError(f"{value!r} is not a class name: write names in quotation marks")
    return class_name(str(value).strip())
