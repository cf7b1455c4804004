"""What is wrong with a recipe although each value is of its type: contradictions, and keys that change nothing.

A key without effect is refused, because whoever sets it expects one. Imports no PyTorch.
"""

from collections.abc import Callable, Container, Iterator, Sequence

from convnext.errors import UsageError
from convnext.recipe.images import Data
from convnext.recipe.measured import MEASURED_BY, to_measure
from convnext.recipe.schema import Recipe, Train
from convnext.recipe.section import RecipeSection

# By task, the metrics that can choose the best weights. Here, so that another one is refused before PyTorch loads.
BEST_METRICS = {
    "classify": ("top1", "balanced_accuracy", "f1", "auroc", "loss"),
    "multilabel": ("map", "f1", "micro_f1", "loss"),
    "regress": ("r2", "mae", "rmse"),
    "detect": ("box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap50", "mask_ap75", "loss"),
    "segment": ("miou", "mean_accuracy", "overall_accuracy", "loss"),
    "pretrain": ("loss",),
}

_CLASSIFIERS = ("classify", "multilabel", "regress")
_WITH_LABELS = "eval.metrics augment.mixup augment.cutmix train.loss"
_ON_WHOLE_IMAGES = (*_CLASSIFIERS, "pretrain")  # tasks of one sample for each image
_OF_WHOLE_IMAGES = """
    eval. data.image_column data.label_column data.root data.group_column
    augment.crop augment.crop_scale augment.crop_aspect augment.rand_augment augment.trivial_augment augment.color_jitter
    augment.random_erasing
"""

# The tasks of the package that use a key, or all keys of a section, where not every task does. Tasks from outside may use any.
_USED_BY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_WITH_LABELS.split(), _CLASSIFIERS),
    **dict.fromkeys(_OF_WHOLE_IMAGES.split(), _ON_WHOLE_IMAGES),
    "detect.": ("detect",),
    "segment.": ("segment",),
    "eval.best_by": tuple(BEST_METRICS),
    "eval.loss": ("detect", "segment"),
    "data.image_size": (*_ON_WHOLE_IMAGES, "segment"),
    **dict.fromkeys(["data.val_fraction", "data.group", "data.fold"], (*_ON_WHOLE_IMAGES, "detect", "segment")),
    **dict.fromkeys(["data.classes", "data.crowds", "data.masks_from_boxes"], ("detect", "segment")),
    "data.keep_empty": ("detect",),
    "data.sampler": ("classify", "multilabel", "detect", "segment"),
    "data.repeat_threshold": ("classify", "multilabel", "detect", "segment"),
    "augment.copy_paste": ("detect",),
    "augment.mosaic": ("detect", "segment"),
    "augment.plain_epochs": ("detect", "segment"),
    "train.label_smoothing": ("classify", "multilabel"),
    "train.class_weights": ("classify", "detect", "segment"),
    "train.focal_gamma": ("classify", "detect", "segment"),
    "train.dice": ("segment",),
}

_INSTEAD = {("data.image_size", "detect"): "detect.size"}  # by key and task: what to set there

# Keys that other keys leave without effect: which do so, when, and why.
_BESIDE: list[tuple[str, str, Callable[[Recipe], bool], str]] = [
    ("augment.color_jitter", "augment.rand_augment", lambda r: r.augment.rand_augment is not None, "augment.rand_augment replaces it"),
    ("augment.rand_augment", "augment.trivial_augment", lambda r: r.augment.trivial_augment, "augment.trivial_augment replaces it"),
    ("augment.color_jitter", "augment.trivial_augment", lambda r: r.augment.trivial_augment, "augment.trivial_augment replaces it"),
    ("augment.crop_scale", "augment.crop", lambda r: r.augment.crop == "none", "augment.crop=none takes the whole image"),
    ("augment.crop_aspect", "augment.crop", lambda r: r.augment.crop == "none", "augment.crop=none takes the whole image"),
    *(
        (f"detect.{key}", "detect.size", lambda r: r.detect.size is not None, "detect.size replaces it")
        for key in ("short", "longest", "crop_short", "crop", "test_short", "test_longest")
    ),
    ("augment.plain_epochs", "augment.mosaic", lambda r: not (r.augment.mosaic or r.augment.copy_paste), "no images are combined"),
    (
        "augment.plain_epochs",
        "train.iterations",
        lambda r: r.train.iterations is not None,
        "the run counts iterations; set train.epochs",
    ),
    ("data.val_fraction", "data.val", lambda r: r.data.val is not None, "data.val names the validation images"),
    ("data.val_fraction", "data.fold", lambda r: r.data.fold is not None, "data.fold chooses the validation images"),
    ("data.masks_from_boxes", "model.masks", lambda r: r.model.get("masks") is False, "model.masks=false finds boxes alone"),
    ("data.repeat_threshold", "data.sampler", lambda r: r.data.sampler != "repeat_factor", "only data.sampler=repeat_factor has it"),
    ("eval.warp", "eval.letterbox", lambda r: r.eval.letterbox, "eval.letterbox takes the whole image in another way"),
    ("eval.crop_ratio", "eval.warp", lambda r: r.eval.warp, "eval.warp takes the whole image"),
    ("eval.crop_ratio", "eval.letterbox", lambda r: r.eval.letterbox, "eval.letterbox takes the whole image"),
    ("model.keep_head", "model.weights", lambda r: r.model.weights is None, "without model.weights there is no head to keep"),
    ("optim.betas", "optim.name", lambda r: r.optim.name == "sgd", "optim.name=sgd has optim.momentum instead"),
    ("optim.eps", "optim.name", lambda r: r.optim.name == "sgd", "optim.name=sgd has none"),
    ("optim.milestones", "optim.schedule", lambda r: r.optim.schedule != "step", "only optim.schedule=step has milestones"),
    ("optim.layer_decay_by", "optim.layer_decay", lambda r: r.optim.layer_decay == 1, "optim.layer_decay=1 has no groups"),
    ("optim.min_lr", "optim.schedule", lambda r: r.optim.schedule == "step", "optim.schedule=step ends at a tenth for each milestone"),
    ("optim.momentum", "optim.name", lambda r: r.optim.name in ("adamw", "lamb"), "only optim.name=sgd and optim.name=muon have it"),
    ("optim.warmup_start", "optim.schedule", lambda r: r.optim.schedule == "cosine", "the warm-up of optim.schedule=cosine begins at 0"),
    ("train.class_weights", "data.sampler", lambda r: r.train.class_weights == r.data.sampler, "data.sampler=balanced balances already"),
    ("train.class_weights", "train.loss", lambda r: r.train.loss is not None, "train.loss replaces the loss that has them"),
    ("train.focal_gamma", "train.loss", lambda r: r.train.loss is not None, "train.loss replaces the loss that has it"),
    ("train.warmup_epochs", "train.warmup_steps", lambda r: r.train.warmup_steps is not None, "train.warmup_steps replaces it"),
]


def settled(recipe: Recipe, overrides: Container[str]) -> Recipe:
    """Return a recipe in which each key that only an override leaves without effect has its default.

    Args:
        recipe: with the overrides.
        overrides: the keys that the user gave beside the recipe.
    """
    changed = dict(_changed(recipe))
    moot = [key for key, cause, applies, _ in _BESIDE if applies(recipe) and cause in overrides]
    moot += [key for key in changed if "task" in overrides and recipe.task not in _users(recipe, key)]
    for key in moot:
        if key in changed and key not in overrides:
            section, name = key.split(".")
            part = getattr(recipe, section).model_copy(update={name: changed[key][1]})
            recipe = recipe.model_copy(update={section: part})
    return recipe


def check(recipe: Recipe, where: str = "recipe") -> None:
    """Raise UsageError, beginning with `where`, with the first thing that is wrong with a recipe and what to do."""
    for problems in (_values, _channels, _batches, _schedule, _best_by, _measured, _without_effect):
        for problem in problems(recipe):
            raise UsageError(f"{where}: {problem}")


def warmup_steps(recipe: Recipe, per_epoch: int, total: int) -> int:
    """Return the steps of the warm-up of a run of `total` steps, `per_epoch` of them in an epoch."""
    steps = _stated_warmup(recipe.train, per_epoch)
    return steps if recipe.train.warmup_share is None else min(steps, int(recipe.train.warmup_share * total))


def check_warmup(recipe: Recipe, per_epoch: int, total: int) -> list[str]:
    """Return what to report of a warm-up that is shortened, in a run whose steps are known now: `per_epoch`, and `total` in all.

    Raises UsageError if the warm-up is longer than the run.
    """
    stated, steps = _stated_warmup(recipe.train, per_epoch), warmup_steps(recipe, per_epoch, total)
    if steps > total:
        train = recipe.train
        given = f"train.warmup_epochs={train.warmup_epochs:g}" if train.warmup_steps is None else f"train.warmup_steps={steps}"
        raise UsageError(
            f"{given} is longer than the run: the warm-up takes {steps} steps of {total}, so the rate would never reach optim.lr; "
            f"add train.warmup_steps={total // 5}"
        )
    if steps == stated:
        return []
    share = f"train.warmup_share={recipe.train.warmup_share:g}"
    return [f"the warm-up takes {steps} of the run's {total} steps instead of {stated} ({share})"]


def _stated_warmup(train: Train, per_epoch: int) -> int:
    return round(train.warmup_epochs * per_epoch) if train.warmup_steps is None else train.warmup_steps


def _values(recipe: Recipe) -> Iterator[str]:
    """Yield what is wrong with values that have an order or a range."""
    augment, detect, segment, optim = recipe.augment, recipe.detect, recipe.segment, recipe.optim
    for beta in optim.betas:
        if not 0 <= beta < 1:
            yield f"optim.betas must be at least 0 and below 1, not {list(optim.betas)}"
    if min(recipe.data.std) <= 0:
        yield f"data.std must be above 0, not {list(recipe.data.std)}: images are divided by it"
    if not 0 <= augment.crop_scale[0] <= augment.crop_scale[1] <= 1 or not augment.crop_scale[1]:
        yield f"augment.crop_scale must be two fractions of the area, the smaller first, as in [0.08,1], not {list(augment.crop_scale)}"
    if augment.plain_epochs >= recipe.train.epochs and recipe.train.iterations is None:
        yield f"augment.plain_epochs={augment.plain_epochs} leaves none of train.epochs={recipe.train.epochs} for images that are combined"
    yield from _range("augment.crop_aspect", augment.crop_aspect)
    yield from _range("segment.ratio_range", segment.ratio_range)
    yield from _range("detect.crop", detect.crop)
    for key, sides in (("detect.short", detect.short), ("detect.crop_short", detect.crop_short), ("segment.scale", segment.scale)):
        if isinstance(sides, tuple) and (not sides or min(sides) < 1):
            yield f"{key} must be numbers of pixels above 0, not {list(sides)}"
    if (segment.window is None) != (segment.stride is None):
        yield f"segment.window={_shown(segment.window)} with segment.stride={_shown(segment.stride)}: give both or neither"
    if segment.window and segment.stride and segment.stride > segment.window:
        yield f"segment.stride={segment.stride} leaves pixels out between windows of {segment.window}: lower it"


def _range(key: str, pair: tuple[float, float]) -> Iterator[str]:
    if not 0 < pair[0] <= pair[1]:
        yield f"{key} must be two numbers above 0, the smaller first, not {list(pair)}"


def _channels(recipe: Recipe) -> Iterator[str]:
    """Yield what does not go with the number of channels of the images."""
    data, augment, channels = recipe.data, recipe.augment, recipe.data.channels
    for key, value in (("mean", data.mean), ("std", data.std)):
        if data.mean != "auto" and len(value) != channels:
            given = "the defaults are for RGB" if value == Data.model_fields[key].default else f"data.{key} has {len(value)}"
            numbers = "1 number" if channels == 1 else f"{channels} numbers"
            yield (
                f"data.channels={channels} needs {numbers} in data.mean and in data.std ({given}): give them, or measure both on the "
                "training images with data.mean=auto"
            )
    if channels not in (1, 3):
        for key, off in (("rand_augment", None), ("trivial_augment", False), ("color_jitter", 0)):
            if getattr(augment, key):
                remedy = f"augment.{key}={_shown(off)}"
                yield f"augment.{key} works on RGB and grey images of 8 bits, not on {channels} channels: add {remedy}"


def _batches(recipe: Recipe) -> Iterator[str]:
    """Yield sizes that mixup and CutMix can't pair."""
    if recipe.augment.mixup or recipe.augment.cutmix:
        for key, size in (("train.batch_size", recipe.train.batch_size), ("train.device_batch_size", recipe.train.device_batch_size)):
            if size is not None and size % 2:
                yield f"{key} must be even, because mixup and CutMix pair the images of a batch: add {key}={size + 1}"


def _schedule(recipe: Recipe) -> Iterator[str]:
    """Yield what is wrong with the learning rate's course, as far as it is known without the data."""
    train, optim = recipe.train, recipe.optim
    is_shortened = train.warmup_share is not None
    if not is_shortened and train.warmup_steps is None and train.iterations is None and train.warmup_epochs > train.epochs:
        epochs, warmup = train.epochs, train.warmup_epochs
        yield f"train.warmup_epochs={warmup:g} is longer than train.epochs={epochs}: add train.warmup_epochs={epochs / 5:g}"
    if not is_shortened and train.warmup_steps is not None and isinstance(train.iterations, int) and train.warmup_steps > train.iterations:
        steps, warmup = train.iterations, train.warmup_steps
        yield f"train.warmup_steps={warmup} is longer than train.iterations={steps}: add train.warmup_steps={steps // 5}"
    if optim.schedule == "step":
        if not optim.milestones:
            yield "optim.schedule=step needs the epochs after which the rate falls: add optim.milestones=[8,11], for instance"
        if any(later <= earlier for earlier, later in zip((0.0, *optim.milestones), optim.milestones, strict=False)):
            yield f"optim.milestones must be epochs above 0 in increasing order, not {list(optim.milestones)}"
        if optim.milestones and min(optim.milestones) < 1 <= max(optim.milestones):
            yield f"optim.milestones must be epochs, or all be parts of the run below 1, not {list(optim.milestones)}"
    elif optim.min_lr > optim.lr:
        yield f"optim.min_lr={optim.min_lr:g} is above optim.lr={optim.lr:g}: the rate would rise; add optim.min_lr=0"


def _best_by(recipe: Recipe) -> Iterator[str]:
    """Yield a metric that the task does not have."""
    best_by, known = recipe.eval.best_by, BEST_METRICS.get(recipe.task)
    if best_by is not None and known is not None and best_by not in known and not recipe.eval.metrics:  # whose names are not known yet
        yield f"eval.best_by: task {recipe.task} has no metric {best_by!r}; known: {', '.join(known)}"
    if best_by == "loss" and recipe.task in _USED_BY["eval.loss"] and not recipe.eval.loss:
        yield "eval.best_by=loss: the loss on the validation images is not measured: add eval.loss=true"


def _measured(recipe: Recipe) -> Iterator[str]:
    """Yield a key that is to be measured and that the task does not measure."""
    for key in to_measure(recipe):
        if (tasks := MEASURED_BY[key]) is not None and recipe.task not in tasks:
            yield f"{key}=auto: task {recipe.task} does not measure it, only {', '.join(tasks)}: give a value"


def _without_effect(recipe: Recipe) -> Iterator[str]:
    """Yield the keys that are set to another value than their default and change nothing."""
    changed = dict(_changed(recipe))
    for key, (value, default) in changed.items():
        if recipe.task not in (tasks := _users(recipe, key)):
            instead = f" (set {_INSTEAD[key, recipe.task]} instead)" if (key, recipe.task) in _INSTEAD else ""
            yield _useless(key, value, default, f"task {recipe.task} does not use it, only {', '.join(tasks)}{instead}")
    for key, _, applies, reason in _BESIDE:
        if key in changed and applies(recipe):
            yield _useless(key, *changed[key], reason)


def tasks_that_use(key: str) -> tuple[str, ...] | None:
    """Return the tasks of the package that use a key, or None if all do."""
    return _USED_BY.get(key) or _USED_BY.get(f"{key.partition('.')[0]}.")


def is_used(recipe: Recipe, key: str) -> bool:
    """Return whether the recipe's task uses a key, such as "train.epochs"."""
    return recipe.task in _users(recipe, key)


def _users(recipe: Recipe, key: str) -> tuple[str, ...]:
    """Return the tasks that use a key; those from outside may use any."""
    known = tasks_that_use(key)
    return known if known is not None and recipe.task in BEST_METRICS else (recipe.task,)


def _useless(key: str, value: object, default: object, reason: str) -> str:
    return f"{key}={_shown(value)} has no effect: {reason}; remove it, or set its default: {key}={_shown(default)}"


def _changed(section: RecipeSection, prefix: str = "") -> Iterator[tuple[str, tuple[object, object]]]:
    """Yield the keys that do not have their default, each with its value and that default."""
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, RecipeSection):
            yield from _changed(value, f"{prefix}{name}.")
        elif not info.is_required() and value != info.default:
            yield prefix + name, (value, info.default)


def _shown(value: object) -> str:
    """Return a value as an override writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{','.join(map(_shown, value))}]"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
