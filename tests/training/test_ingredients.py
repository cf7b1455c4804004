"""Each ingredient of a recipe changes what it should change, and nothing else: one at a time, on a run without any."""

import json

import pytest
import torch
from helpers import image_folder
from safetensors.torch import load_file

import convnext

PLAIN = {
    "model.name": "convnext_atto", "model.depths": [1, 1, 1, 1], "model.widths": [8, 16, 24, 32], "model.drop_path": 0,
    "model.layer_scale": 1,
    "data.image_size": 32, "data.workers": 0, "train.batch_size": 8, "train.log_every": 1, "train.iterations": 2,
    "train.warmup_epochs": 0, "train.ema": 0, "train.label_smoothing": 0, "augment.flip": 0, "augment.mixup": 0, "augment.cutmix": 0,
    "augment.rand_augment": None, "augment.random_erasing": 0, "augment.color_jitter": 0,
}  # fmt: skip
SEEN_BY_THE_FIRST_LOSS = {
    "flip": {"augment.flip": 1},
    "crop_scale": {"augment.crop_scale": [0.1, 0.2]},
    "rand_augment": {"augment.rand_augment": "rand-m9-mstd0.5-inc1"},
    "color_jitter": {"augment.color_jitter": 0.4},
    "random_erasing": {"augment.random_erasing": 1.0},
    "mixup": {"augment.mixup": 0.8},
    "cutmix": {"augment.cutmix": 1.0},
    "label_smoothing": {"train.label_smoothing": 0.1},
    "drop_path": {"model.drop_path": 0.9},
    "layer_scale": {"model.layer_scale": 0.5},
    "head_init_scale": {"model.head_init_scale": 0.001},
    "bf16": {"train.precision": "bf16"},
    "fp16": {"train.precision": "fp16"},
}
SEEN_BY_THE_STEP = {
    "clip": {"optim.clip": 1e-9},
    "layer_decay": {"optim.layer_decay": 0.5},
    "weight_decay": {"optim.weight_decay": 0.5},
    "lr": {"optim.lr": 1e-4},
    "warmup": {"train.warmup_epochs": 0.5},
    "min_lr": {"optim.min_lr": 1e-3},
    "betas": {"optim.betas": [0.5, 0.9]},
    "eps": {"optim.eps": 1e-3},
    "muon": {"optim.name": "muon"},
    "freeze": {"model.freeze": 1},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return str(image_folder(tmp_path_factory.mktemp("data") / "photos", each=12))


def trained(photos, folder, more=()):
    convnext.train("digits", PLAIN | {"data.train": photos, "data.val": photos} | dict(more), output=folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"], load_file(folder / "last.safetensors")


@pytest.fixture(scope="module")
def plain(photos, tmp_path_factory):
    return trained(photos, tmp_path_factory.mktemp("plain") / "run")


def differs(a, b):
    return any(not torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", SEEN_BY_THE_FIRST_LOSS)
def test_what_changes_the_first_loss(photos, plain, tmp_path, name):
    losses, _ = trained(photos, tmp_path / "run", SEEN_BY_THE_FIRST_LOSS[name])
    assert losses[0] != plain[0][0]
    if name in ("bf16", "fp16"):  # a rounding, not another loss
        assert losses[0] == pytest.approx(plain[0][0], rel=0.02)


@pytest.mark.parametrize("name", SEEN_BY_THE_STEP)
def test_what_changes_the_step_alone(photos, plain, tmp_path, name):
    losses, weights = trained(photos, tmp_path / "run", SEEN_BY_THE_STEP[name])
    assert losses[0] == plain[0][0]
    assert differs(weights, plain[1])


def test_layer_decay_shortens_the_steps_of_early_layers(photos, tmp_path):
    """AdamW's first step does not depend on the gradient's scale: the ratio of two is that of their learning rates."""
    once = {"train.iterations": 1, "optim.weight_decay": 0}
    still = trained(photos, tmp_path / "still", once | {"optim.lr": 1e-12, "optim.min_lr": 0})[1]
    full, decayed = (trained(photos, tmp_path / f"{factor}", once | {"optim.layer_decay": factor})[1] for factor in (1.0, 0.5))
    ratios = {
        key: ((decayed[key] - still[key]).abs().mean() / (full[key] - still[key]).abs().mean()).item()
        for key in ("head.weight", "stages.3.0.pwconv1.weight", "stages.0.0.pwconv1.weight", "downsample_layers.0.0.weight")
    }
    head, last, first, stem = ratios.values()
    assert head == pytest.approx(1, rel=1e-3)
    assert head > last > first > stem
    assert all(
        torch.log2(torch.tensor(ratio)).item() == pytest.approx(round(torch.log2(torch.tensor(ratio)).item()), abs=0.01)
        for ratio in ratios.values()
    )


def test_the_moving_average_is_kept_and_training_does_not_see_it(photos, plain, tmp_path):
    losses, weights = trained(photos, tmp_path / "run", {"train.ema": 0.9})
    assert losses == plain[0]
    assert differs(weights, plain[1])


@pytest.mark.slow
def test_a_compiled_step_is_compiled_and_computes_the_same(photos, plain, tmp_path):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    losses, _ = trained(photos, tmp_path / "run", {"train.compile": True, "train.device_batch_size": 4})
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert losses == pytest.approx(plain[0], rel=1e-4)
