"""The recipe: one typed schema for everything that decides a training run.

A recipe file says only what differs from the defaults here. `convnext.recipe.load` reads it.
"""

from collections.abc import Callable, Iterator
from math import isfinite
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator

from convnext.recipe.images import Augment, Data, Detect, Eval, Segment
from convnext.recipe.section import Auto, RecipeSection
from convnext.text import class_name


class _Dumper(yaml.SafeDumper):
    """Writes one key per line, and lists in brackets."""


_Dumper.add_representer(list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True))


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
    callbacks: tuple[str, ...] = Field((), description="code of your own that the run calls: registered names, or module:Class")

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

    def to_yaml(self, uses: Callable[[str], bool] = lambda key: True) -> str:
        """Return the whole recipe, defaults included, as YAML from which `load_recipe` reads the same recipe.

        With `uses`, only the keys of which it returns True, such as "train.epochs".
        """
        values = self.model_dump(mode="json")
        sections = {name for name, value in values.items() if isinstance(value, dict)}
        for name in sections:
            values[name] = {key: value for key, value in values[name].items() if uses(f"{name}.{key}")}
        shown = {name: value for name, value in values.items() if (value if name in sections else uses(name))}
        return yaml.dump(shown, Dumper=_Dumper, sort_keys=False, width=120)


def keys(section: type[BaseModel] = Recipe, prefix: str = "") -> dict[str, str]:
    """Return every key of the schema, dotted, with its description. Other keys of `model` depend on its name."""
    return dict(_keys(section, prefix))


def _keys(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    for name, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, RecipeSection):
            yield from _keys(info.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, info.description or ""
