"""Checkpoints as the other programs write them in training: each opens, and its EMA weights do, as the pages say."""

import argparse

import pytest
import timm
import torch
from command import run
from timm.utils import CheckpointSaver, ModelEmaV3
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

import convnext
from convnext.errors import ConvnextError
from convnext.models.load import load

ARGUMENTS = argparse.Namespace(model="convnext_atto", lr=1e-3, opt_betas=None, model_kwargs={}, aa="rand-m9", device="cuda")
SIZES = {"depths": (1, 1, 2, 1), "widths": (8, 16, 24, 32)}


@torch.no_grad()
def same(path, theirs):
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(load(path).model.eval()(image), theirs.eval()(image), atol=1e-5)


def moved(model):
    """A copy of a network with other weights, and an optimizer that has moments."""
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def test_of_timm(tmp_path):
    model = timm.create_model("convnext_tiny", num_classes=4, depths=SIZES["depths"], dims=SIZES["widths"])
    ema = ModelEmaV3(model, decay=0.9)
    optimizer = moved(model)
    saver = CheckpointSaver(model, optimizer, ARGUMENTS, ema, checkpoint_dir=tmp_path, recovery_dir=tmp_path)
    saver.save_checkpoint(299, metric=82.1)
    for name in ("last.pth.tar", "checkpoint-299.pth.tar", "model_best.pth.tar"):
        same(tmp_path / name, model)
    same(f"{tmp_path}/model_best.pth.tar#state_dict_ema", ema.module)


def test_of_the_papers_code(tmp_path):
    """`utils.save_model` of main.py."""
    model, average = (convnext.create_model("convnext_tiny", num_classes=4, **SIZES) for _ in range(2))
    content = {"model": model.state_dict(), "optimizer": moved(average).state_dict(), "epoch": 299, "scaler": {}, "args": ARGUMENTS}
    torch.save(content | {"model_ema": average.state_dict()}, tmp_path / "checkpoint-best-ema.pth")
    same(tmp_path / "checkpoint-best-ema.pth", model)
    same(f"{tmp_path}/checkpoint-best-ema.pth#model_ema", average)
    run("convert", f"{tmp_path}/checkpoint-best-ema.pth#model_ema", tmp_path / "ema.pth", "--to", "official")
    same(tmp_path / "ema.pth", average)


def test_of_torchvisions_references(tmp_path):
    widths = (*SIZES["widths"], None)
    blocks = [CNBlockConfig(widths[i], widths[i + 1], depth) for i, depth in enumerate(SIZES["depths"])]
    model = ConvNeXt(blocks, num_classes=4)
    ema = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    optimizer = moved(model)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    content = {"model": model.state_dict(), "lr_scheduler": schedule.state_dict(), "epoch": 599, "args": ARGUMENTS}
    torch.save(content | {"model_ema": ema.state_dict()}, tmp_path / "checkpoint.pth")
    same(tmp_path / "checkpoint.pth", model)
    same(f"{tmp_path}/checkpoint.pth#model_ema", ema.module)


def test_of_mmengine(tmp_path):
    """A run's checkpoint holds its log as objects: it is refused, and the weights alone open."""
    logging = pytest.importorskip("mmengine.logging")
    hub = logging.MessageHub.get_instance("a run")
    hub.update_scalar("train/loss", 1.5)
    model = convnext.create_model("upernet_convnext_tiny", num_classes=3, channels=8, **SIZES)
    torch.save({"meta": {"epoch": 36}, "state_dict": model.state_dict(), "message_hub": hub.state_dict()}, tmp_path / "epoch_36.pth")
    with pytest.raises(ConvnextError, match=r"epoch_36\.pth holds more than tensors \(.*HistoryBuffer"):
        load(tmp_path / "epoch_36.pth")
    checkpoint = torch.load(tmp_path / "epoch_36.pth", weights_only=False)
    torch.save(checkpoint["state_dict"], tmp_path / "weights.pth")
    found = convnext.create_model("upernet_convnext_tiny", num_classes=3, channels=8, weights=tmp_path / "weights.pth", **SIZES)
    assert all(torch.equal(found.state_dict()[key], tensor) for key, tensor in model.state_dict().items())
