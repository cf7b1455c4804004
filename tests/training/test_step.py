import pytest
import torch
from helpers import randomise

import convnext
from convnext.errors import ConvnextError
from convnext.ops.memory import is_out_of_memory
from convnext.recipe import load_recipe
from convnext.tasks.classify import task
from convnext.training.state import new_state
from convnext.training.step import Stepper

DEVICE = torch.device("cpu")


class Small(task.Trainer):
    """A trainer on a device with room for so many images: what a GPU raises beyond them, raised on the CPU."""

    def __init__(self, recipe, room):
        super().__init__(recipe, ["a", "b", "c"])
        self.room, self.seen = room, []

    def loss(self, model, batch):
        self.seen.append(len(batch))
        if len(batch) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().loss(model, batch)


def stepper(room, *overrides):
    recipe = load_recipe("digits", ["train.precision=float32", "train.ema=0", *overrides])
    model = randomise(convnext.create_model("roadmap_t_16_separate_downsampling", width=8, num_classes=3, drop_path=0.3))
    made = Stepper(new_state(model, recipe, DEVICE), Small(recipe, room), recipe, 24, DEVICE)
    made.fitted = False  # as on a GPU
    return made


def batch():
    generator = torch.Generator().manual_seed(0)
    return task.Batch(torch.randn(24, 3, 32, 32, generator=generator), torch.arange(24) % 3, list(range(24)), [])


@pytest.mark.parametrize(("mixup", "expected"), [(0.0, [24, 12, 6, 6, 6, 6, 6]), (0.5, [24, 12, 6, 6, 6, 6, 6])])
def test_what_fits_is_found_and_the_step_is_the_same(mixup, expected):
    tight, roomy = stepper(6, f"augment.mixup={mixup}"), stepper(6, f"augment.mixup={mixup}", "train.device_batch_size=6")
    roomy.fitted = True
    losses = [made.step(batch(), 1e-3)[0] for made in (tight, roomy)]
    assert tight.trainer.seen == expected
    assert losses[0] == losses[1]
    pairs = zip(tight.state.model.parameters(), roomy.state.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    tight.step(batch(), 1e-3)
    assert tight.trainer.seen[len(expected) :] == [6] * 4  # it is looked for once


def test_where_not_even_one_image_fits_the_remedy_is_told():
    with pytest.raises(ConvnextError, match=r"too little memory for 1 images at a time.*grad_checkpointing"):
        stepper(0).step(batch(), 1e-3)
    made = stepper(1, "augment.mixup=0.5")
    with pytest.raises(ConvnextError, match="too little memory for 2 images"):  # mixup pairs them
        made.step(batch(), 1e-3)


# Steps that are left out


class Spoilt(task.Trainer):
    """A trainer whose loss, or whose gradient alone, is not finite from a number of calls on, for so many calls."""

    def __init__(self, recipe, calls, gradient_alone=False):
        super().__init__(recipe, ["a", "b", "c"])
        self.calls, self.gradient_alone, self.count = calls, gradient_alone, 0

    def loss(self, model, batch):
        self.count += 1
        if self.count in self.calls and not self.gradient_alone:
            batch.images[0, 0, 0, 0] = float("inf")
        loss = super().loss(model, batch)
        if self.count in self.calls and self.gradient_alone:
            loss = loss + 0 * (loss - loss.detach()).sqrt()  # 0, with the slope of a root at 0
        return loss


def spoilt(calls, *overrides, gradient_alone=False):
    recipe = load_recipe("digits", ["train.nonfinite=skip", "train.ema=0.9", *overrides])
    model = randomise(convnext.create_model("roadmap_t_01_modern_training", width=8, depths=(1, 1, 1, 1), num_classes=3))
    return Stepper(new_state(model, recipe, DEVICE), Spoilt(recipe, calls, gradient_alone), recipe, 24, DEVICE)


def all_tensors(state):
    found = {f"model.{key}": value.clone() for key, value in state.model.state_dict().items()}
    return found | {f"ema.{key}": value.clone() for key, value in state.ema.state_dict().items()}


@pytest.mark.parametrize("overrides", [[], ["train.device_batch_size=6"], ["optim.clip=1"]])
@pytest.mark.parametrize("gradient_alone", [False, True])
def test_a_skipped_step_leaves_weights_running_statistics_and_ema_as_they_were(overrides, gradient_alone):
    """Of a network with BatchNorm, whose forward pass moves the statistics before the loss is known; in parts, the second is bad."""
    parts = 4 if "train.device_batch_size=6" in overrides else 1
    made = spoilt([parts + 2 if parts > 1 else 2], *overrides, gradient_alone=gradient_alone)
    made.step(batch(), 1e-3)
    before = all_tensors(made.state)
    assert any("running_var" in key for key in before)
    loss, _, fault = made.step(batch(), 1e-3)
    assert fault == ("the norm of the gradient is nan" if gradient_alone else "the loss is nan")
    assert (loss == loss) == gradient_alone
    after = all_tensors(made.state)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert made.step(batch(), 1e-3)[2] is None
    assert made.state.is_finite()
    assert made.state.step == 3


def test_buffers_and_ema_count_as_weights_that_must_be_finite():
    for network in ("model", "ema"):
        made = spoilt([])
        assert made.state.is_finite()
        parent = made.state.model if network == "model" else made.state.ema.module
        next(value for key, value in parent.named_buffers() if "running_mean" in key)[0] = torch.nan
        assert not made.state.is_finite()


def test_a_layer_norm_network_has_nothing_to_keep():
    assert stepper(24, "train.nonfinite=skip").buffers == []
    assert spoilt([]).buffers
    assert spoilt([], "train.nonfinite=stop").buffers == []


# Memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
        MemoryError(),
    ],
)
def test_all_that_say_so_are_out_of_memory(error):
    assert is_out_of_memory(error)


def test_what_the_cpu_says_is_out_of_memory_and_other_errors_are_not():
    with pytest.raises(RuntimeError) as told:
        torch.empty(1 << 58)
    assert is_out_of_memory(told.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_too_little_memory_for_what_the_search_keeps_is_told_as_well():
    """Not even the room for the optimizer's moments: a parameter so large, and not yet there, that none is like it."""
    made = stepper(24)
    made.state.model.register_parameter("huge", torch.nn.Parameter(torch.zeros(1).expand(1 << 58)))
    with pytest.raises(ConvnextError, match="too little memory for 24 images"):
        made.step(batch(), 1e-3)
