"""Checkpoints of the published FCMAE: names, shapes and order of its sparse encoder, which MinkowskiEngine's layers decide."""

import argparse
import itertools
import math

import pytest
import torch
from helpers import image_folder, randomise, relative_error
from torch import nn

import convnext
from convnext.errors import ConvnextError
from convnext.models import load
from convnext.models.pretraining.sparse import dense
from convnext.tasks.pretrain.loss import losses_of

SIZES = {"depths": (1, 2, 1, 1), "widths": (8, 12, 16, 24)}


# The modules of models/fcmae.py, models/convnextv2_sparse.py and models/utils.py with MinkowskiEngine's parameters: only they matter here.
class Wrapping(nn.Module):
    def __init__(self, name, layer):
        super().__init__()
        self.add_module(name, layer)


class Sparse(nn.Module):
    """A convolution's `kernel` is (positions, [inputs,] outputs), its `bias` (1, outputs)."""

    def __init__(self, positions, *channels):
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(positions, *channels))
        self.bias = nn.Parameter(torch.empty(1, channels[-1]))


class Norm(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.gamma, self.beta = (nn.Parameter(torch.empty(shape)) for _ in range(2))


def sparse_block(width):
    block = nn.Module()
    block.dwconv, block.norm = Sparse(49, width), Wrapping("ln", nn.LayerNorm(width))
    block.pwconv1, block.pwconv2 = (Wrapping("linear", nn.Linear(*sides)) for sides in ((width, 4 * width), (4 * width, width)))
    block.grn = Norm(1, 4 * width)
    return block


def dense_block(width):
    block = nn.Module()
    block.dwconv, block.norm = nn.Conv2d(width, width, 7, groups=width), nn.LayerNorm(width)
    block.pwconv1, block.pwconv2, block.grn = nn.Linear(width, 4 * width), nn.Linear(4 * width, width), Norm(1, 1, 1, 4 * width)
    return block


def published(decoder_depth=1):
    """A checkpoint as main_pretrain.py saves it."""
    widths = SIZES["widths"]
    encoder, whole = nn.Module(), nn.Module()
    first = nn.Sequential(nn.Conv2d(3, widths[0], 4, 4), nn.LayerNorm(widths[0]))
    later = [nn.Sequential(Wrapping("ln", nn.LayerNorm(a)), Sparse(4, a, b)) for a, b in itertools.pairwise(widths)]
    encoder.downsample_layers = nn.ModuleList([first, *later])
    stages = zip(SIZES["depths"], widths, strict=True)
    encoder.stages = nn.ModuleList(nn.Sequential(*[sparse_block(width) for _ in range(depth)]) for depth, width in stages)
    whole.encoder, whole.proj, whole.pred = encoder, nn.Conv2d(widths[-1], 512, 1), nn.Conv2d(512, 32 * 32 * 3, 1)
    whole.mask_token = nn.Parameter(torch.empty(1, 512, 1, 1))
    whole.decoder = nn.Sequential(*[dense_block(512) for _ in range(decoder_depth)])
    state = {key: value.clone() for key, value in randomise(whole).state_dict().items()}
    return {"model": state, "epoch": 799, "scaler": {"scale": 1.0}, "args": argparse.Namespace(mask_ratio=0.6)}


def remapped(checkpoint):
    """The rules of `remap_checkpoint_keys`, on the encoder alone."""
    found = {}
    for key, tensor in checkpoint["model"].items():
        if not key.startswith("encoder."):
            continue
        key = key.removeprefix("encoder.")
        if key.endswith("kernel"):
            side = math.isqrt(len(tensor))
            shape = (tensor.shape[-1], -1, side, side)
            tensor = tensor.permute(*reversed(range(tensor.ndim))).reshape(shape).transpose(3, 2)
            key = key.removesuffix("kernel") + "weight"
        found[key.replace(".ln.", ".").replace(".linear.", ".")] = tensor.flatten() if key.endswith(("bias", "gamma", "beta")) else tensor
    return found


@pytest.fixture
def file(tmp_path):
    torch.save(published(), tmp_path / "checkpoint-799.pth")
    return tmp_path / "checkpoint-799.pth"


def test_it_is_a_masked_autoencoder_without_a_name(file, caplog):
    loaded, checkpoint = load.load(file), torch.load(file, weights_only=False)
    assert (loaded.task, loaded.model.spec["name"]) == ("pretrain", "fcmae_convnextv2_tiny")
    state, wanted = loaded.model.state_dict(), remapped(checkpoint)
    assert all(torch.equal(state[f"backbone.{key}"], tensor) for key, tensor in wanted.items())
    for key in ("mask_token", "proj.weight", "pred.bias"):
        assert torch.equal(state[key], checkpoint["model"][key])
    for key in ("dwconv.weight", "norm.bias", "pwconv2.weight"):
        assert torch.equal(state[f"decoder.{key}"], checkpoint["model"][f"decoder.0.{key}"])
    assert torch.equal(state["decoder.grn.gamma"], checkpoint["model"]["decoder.0.grn.gamma"].flatten())
    assert len(state) == len(checkpoint["model"])
    assert "ignored" not in caplog.text


@torch.no_grad()
def test_a_sparse_convolution_is_the_dense_one(file):
    """In Minkowski's order of positions columns come before rows: a kernel that reads the left neighbour stays one."""
    kernel = torch.zeros(49, 8)
    kernel[2 * 7 + 3] = 1.0  # column 2, row 3: one to the left of the centre
    moved = dense({"stages.0.0.dwconv.kernel": kernel})["stages.0.0.dwconv.weight"]
    x = torch.randn(1, 8, 9, 9)
    y = nn.functional.conv2d(x, moved, padding=3, groups=8)
    assert torch.equal(y[..., 1:], x[..., :-1])


def test_it_continues_and_is_fine_tuned(file, tmp_path, caplog):
    """By name: whole for task pretrain; the encoder alone for a classifier, which reports what it leaves."""
    sizes = {"depths": SIZES["depths"], "widths": SIZES["widths"]}
    whole = convnext.create_model("fcmae_convnextv2_atto", weights=file, **sizes).eval()
    assert not caplog.messages
    x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    seeds = torch.tensor([1, 2])
    assert torch.equal(losses_of(whole, x, seeds), losses_of(load.load(file).model, x, seeds))
    classifier = convnext.create_model("convnextv2_atto", num_classes=3, weights=file, **sizes).eval()
    outside = len(published()["model"]) - len(remapped(published()))
    assert f"{file} also holds {outside} tensors that the network does not have, ignored: decoder.0." in caplog.text
    assert "no head" in caplog.text
    with torch.no_grad():
        assert relative_error(classifier.features(x)[-1], whole.encode(x, torch.zeros(2, 3, 3))) < 1e-6
    segmenter = convnext.create_model("upernet_convnextv2_atto", num_classes=2, weights=file, **sizes)
    assert torch.equal(segmenter.backbone.stages[1][1].grn.gamma, classifier.stages[1][1].grn.gamma)


def test_a_run_continues_from_it(file, tmp_path):
    photos = image_folder(tmp_path / "photos", each=4)
    given = {"data.train": str(photos), "data.image_size": 64, "data.workers": 0, "train.epochs": 1, "train.batch_size": 4}
    given |= {"model.weights": str(file), "model.depths": list(SIZES["depths"]), "model.widths": list(SIZES["widths"])}
    given |= {"train.warmup_epochs": 0, "optim.lr": 1e-12, "data.val_fraction": 0.5, "optim.weight_decay": 0}
    convnext.train("fcmae/convnextv2_atto", given, output=tmp_path / "run", device="cpu")
    before, after = load.load(file).model.state_dict(), load.load(tmp_path / "run").model.state_dict()
    assert max((after[key] - tensor).abs().max() for key, tensor in before.items()) < 1e-6


def test_what_does_not_fit_is_named(tmp_path):
    torch.save(published(decoder_depth=2), tmp_path / "deeper.pth")
    with pytest.raises(ConvnextError, match=r"do not fit fcmae_convnextv2_tiny: unexpected: decoder\.1\.dwconv\.bias"):
        load.load(tmp_path / "deeper.pth")
    with pytest.raises(ConvnextError, match=r"stages\.0\.0\.dwconv\.kernel .* has the shape \(48, 8\), which is no square kernel"):
        dense({"stages.0.0.dwconv.kernel": torch.zeros(48, 8)})
