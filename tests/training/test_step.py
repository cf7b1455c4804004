import math

import pytest
import torch
from helpers import randomise
from torch import nn

import convnext
from convnext.errors import ConvnextError
from convnext.ops.memory import is_out_of_memory
from convnext.recipe import load_recipe
from convnext.tasks.classify.batch import ClassifyBatch
from convnext.tasks.classify.loss import ClassifyCriterion
from convnext.training.state import new_state
from convnext.training.step import HostCopy, TrainStep

DEVICE = torch.device("cpu")


class SmallDevice(ClassifyCriterion):
    """The loss on a device with room for so many images: the error of a GPU beyond them, raised on the CPU."""

    def __init__(self, recipe, room):
        super().__init__(recipe, 3)
        self.room, self.seen = room, []

    def __call__(self, model, batch):
        self.seen.append(len(batch))
        if len(batch) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().__call__(model, batch)


def train_step(room, *overrides):
    recipe = load_recipe("digits", ["train.precision=float32", "train.ema=0", *overrides])
    model = randomise(convnext.create_model("roadmap_t_16_separate_downsampling", width=8, num_classes=3, drop_path=0.3))
    made = TrainStep(new_state(model, recipe, DEVICE), SmallDevice(recipe, room), recipe, 24, DEVICE)
    made.fitted = False  # as on a GPU
    return made


def batch():
    generator = torch.Generator().manual_seed(0)
    return ClassifyBatch(torch.randn(24, 3, 32, 32, generator=generator), torch.arange(24) % 3, list(range(24)), [])


def step(made, micro_batch=24):
    """One step on the batch, given as micro-batches."""
    whole = batch()
    record = made.run(iter([whole[i : i + micro_batch] for i in range(0, 24, micro_batch)]), 1e-3)
    record.read()
    return record


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state.model.parameters(), other.state.model.parameters(), strict=True))


@pytest.mark.parametrize(("mixup", "expected"), [(0.0, [24, 12, 6, 6, 6, 6, 6]), (0.5, [24, 12, 6, 6, 6, 6, 6])])
def test_the_micro_batch_that_fits_is_found_and_the_step_is_the_same(mixup, expected):
    tight, roomy = train_step(6, f"augment.mixup={mixup}"), train_step(6, f"augment.mixup={mixup}", "train.device_batch_size=6")
    roomy.fitted = True
    losses = [step(made, micro_batch).loss for made, micro_batch in ((tight, 24), (roomy, 6))]
    assert tight.criterion.seen == expected
    assert roomy.criterion.seen == [6] * 4
    assert losses[0] == losses[1]
    assert same_weights(tight, roomy)
    step(tight)
    assert tight.criterion.seen[len(expected) :] == [6] * 4  # the search is made once


def test_a_remedy_is_named_if_not_even_one_image_fits():
    with pytest.raises(ConvnextError, match=r"too little memory for 1 image at a time.*grad_checkpointing"):
        step(train_step(0))
    with pytest.raises(ConvnextError, match="too little memory for 2 images"):  # mixup pairs them
        step(train_step(1, "augment.mixup=0.5"))


# Numbers


def test_a_step_takes_its_share_of_micro_batches_and_leaves_the_rest():
    made = train_step(24, "train.device_batch_size=10")
    whole = batch()
    stream = iter([whole[:10], whole[10:20], whole[20:], whole[:10]])
    record = made.run(stream, 1e-3)
    assert (record.count, record.indices) == (24, list(range(8)))
    assert len(next(stream)) == 10


def test_numbers_that_are_read_later_are_the_same():
    """As on a GPU, where a step does not wait for its loss."""
    now, later = train_step(24), train_step(24)
    later.deferred = True
    for _ in range(3):
        one = step(now)
        other = later.run(iter([batch()]), 1e-3)
        assert other.pending is not None
        assert math.isnan(other.loss)
        other.read()
        assert (one.loss, one.fault, one.stop, one.any_corrupt) == (other.loss, other.fault, other.stop, other.any_corrupt)
    assert same_weights(now, later)


@pytest.mark.parametrize("overrides", [[], ["optim.clip=0.01"], ["train.device_batch_size=10"]])
def test_the_norm_of_the_gradient_is_noted_unclipped_and_unscaled(overrides):
    plain, made = train_step(24), train_step(24, *overrides)
    made.state.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)  # as in fp16
    made.deferred = bool(overrides)
    norm = step(plain).norm
    assert norm == torch.nn.utils.get_total_norm([p.grad for p in plain.state.model.parameters()]) > 0.01
    assert step(made, made.micro_batch).norm == pytest.approx(norm, rel=1e-5)


def test_a_deferred_step_reports_what_was_not_finite():
    made = spoilt([2], "train.nonfinite=stop")
    made.deferred = True
    assert step(made).fault is None
    assert step(made).fault == "the loss is nan"
    made = spoilt([2], "train.nonfinite=stop", gradient_alone=True)
    made.deferred = True
    assert step(made).fault is None
    assert step(made).fault == "the norm of the gradient is nan"


def test_every_named_part_of_the_loss_is_averaged_over_the_micro_batches():
    class Parts(ClassifyCriterion):
        def __call__(self, model, batch):
            loss = super().__call__(model, batch)["loss"]
            return {"cross_entropy": loss, "images": 0 * loss + batch.labels.float().mean()}

    recipe = load_recipe("digits", ["train.device_batch_size=10"])
    model = randomise(convnext.create_model("convnext_atto", depths=(1, 1, 1, 1), widths=(4, 4, 8, 8), num_classes=3))
    record = step(TrainStep(new_state(model, recipe, DEVICE), Parts(recipe, 3), recipe, 24, DEVICE), 10)
    assert list(record.losses) == ["cross_entropy", "images"]
    assert record.losses["images"] == pytest.approx(1.0)
    assert sum(record.losses.values()) == pytest.approx(record.loss)
    assert step(train_step(24)).losses == {}  # a single part is the loss


def test_flags_reach_the_record():
    made = train_step(24)
    asked = []
    record = made.run(iter([batch()]), 1e-3, lambda: asked.append(1) is None)
    assert (record.stop, record.any_corrupt, asked) == (True, False, [1])
    bad = batch()
    bad.corrupt = [(3, "a.jpg: bad")]
    record = made.run(iter([bad]), 1e-3)
    assert (record.stop, record.any_corrupt, record.corrupt) == (False, True, [(3, "a.jpg: bad")])


def test_numbers_on_the_host_are_read_as_they_are():
    assert HostCopy(torch.tensor([1.5, 2.0], dtype=torch.float64)).read() == [1.5, 2.0]


def test_an_error_within_a_step_leaves_running_statistics_as_they_were():
    """A process that decodes may die between two micro-batches; the state that is saved then is that of the step before."""
    made = spoilt([], "train.nonfinite=stop", "train.device_batch_size=6")
    step(made, 6)
    before = all_tensors(made.state)

    def broken():
        yield batch()[:6]
        raise ConvnextError("a process died")

    with pytest.raises(ConvnextError, match="a process died"):
        made.run(broken(), 1e-3)
    after = all_tensors(made.state)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert made.state.step == 1


# Skipped steps


class Spoilt(ClassifyCriterion):
    """A loss of which, in these calls, the value or the gradient alone is not finite."""

    def __init__(self, recipe, calls, gradient_alone=False):
        super().__init__(recipe, 3)
        self.calls, self.gradient_alone, self.count = calls, gradient_alone, 0

    def __call__(self, model: nn.Module, batch):
        self.count += 1
        if self.count in self.calls and not self.gradient_alone:
            batch.images[0, 0, 0, 0] = float("inf")
        loss = super().__call__(model, batch)["loss"]
        if self.count in self.calls and self.gradient_alone:
            loss = loss + 0 * (loss - loss.detach()).sqrt()  # 0, with the slope of a root at 0
        return {"loss": loss}


def spoilt(calls, *overrides, gradient_alone=False):
    recipe = load_recipe("digits", ["train.nonfinite=skip", "train.ema=0.9", *overrides])
    model = randomise(convnext.create_model("roadmap_t_01_modern_training", width=8, depths=(1, 1, 1, 1), num_classes=3))
    return TrainStep(new_state(model, recipe, DEVICE), Spoilt(recipe, calls, gradient_alone), recipe, 24, DEVICE)


def all_tensors(state):
    found = {f"model.{key}": value.clone() for key, value in state.model.state_dict().items()}
    return found | {f"ema.{key}": value.clone() for key, value in state.ema.state_dict().items()}


@pytest.mark.parametrize("overrides", [[], ["train.device_batch_size=6"], ["optim.clip=1"]])
@pytest.mark.parametrize("gradient_alone", [False, True])
def test_a_skipped_step_leaves_weights_running_statistics_and_ema_as_they_were(overrides, gradient_alone):
    """A network with BatchNorm moves the statistics in the forward pass, before the loss is known; of micro-batches the second is bad."""
    micro_batch = 6 if "train.device_batch_size=6" in overrides else 24
    made = spoilt([6 if micro_batch == 6 else 2], *overrides, gradient_alone=gradient_alone)
    step(made, micro_batch)
    before = all_tensors(made.state)
    assert any("running_var" in key for key in before)
    record = step(made, micro_batch)
    assert record.fault == ("the norm of the gradient is nan" if gradient_alone else "the loss is nan")
    assert math.isfinite(record.loss) == gradient_alone
    after = all_tensors(made.state)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert step(made, micro_batch).fault is None
    assert made.state.is_finite()
    assert made.state.step == 3


def test_buffers_and_ema_count_as_weights_that_must_be_finite():
    for network in ("model", "ema"):
        made = spoilt([])
        assert made.state.is_finite()
        parent = made.state.model if network == "model" else made.state.ema.module
        next(value for key, value in parent.named_buffers() if "running_mean" in key)[0] = torch.nan
        assert not made.state.is_finite()


def test_buffers_are_kept_only_where_a_step_may_not_be_made():
    assert train_step(24, "train.nonfinite=skip").buffers == []  # LayerNorm has none
    assert spoilt([]).buffers
    assert spoilt([], "train.nonfinite=stop").buffers == []
    assert spoilt([], "train.nonfinite=stop", "train.device_batch_size=6").buffers


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
def test_every_message_of_too_little_memory_is_recognised(error):
    assert is_out_of_memory(error)


def test_the_cpus_message_is_recognised_and_other_errors_are_not():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 58)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_too_little_memory_for_the_optimizers_moments_is_reported_as_well():
    """A parameter that takes no memory itself, but its moments would."""
    made = train_step(24)
    made.state.model.register_parameter("huge", torch.nn.Parameter(torch.zeros(1).expand(1 << 58)))
    with pytest.raises(ConvnextError, match="too little memory for 24 images"):
        step(made)
