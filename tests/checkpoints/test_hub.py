"""Fetching, without a network: through the hub's own cache, and the messages when it cannot be had."""

import os
import subprocess
import sys

import pytest
import torch
from helpers import random_model

import convnext
from convnext.checkpoints.files import write_weights
from convnext.checkpoints.formats import from_native

COMMIT = "0" * 40


def hub_cache(root, repository, file):
    """The layout in which huggingface-hub keeps a downloaded file."""
    folder = root / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    return folder / "snapshots" / COMMIT / file


def python(code, **environment):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment, check=False)


def test_a_tag_comes_from_the_hub_cache_when_offline(tmp_path):
    model = random_model("convnext_atto")
    state = from_native(model.state_dict(), "timm", conv_mlp=True)
    write_weights(hub_cache(tmp_path, "timm/convnext_atto.d2_in1k", "model.safetensors"), state)
    torch.save(model(torch.ones(1, 3, 64, 64)), tmp_path / "wanted.pt")
    code = f"""if True:
        import torch, convnext
        x = torch.ones(1, 3, 64, 64)
        wanted = torch.load({str(tmp_path / "wanted.pt")!r})
        for weights in ("d2_in1k", "hf://timm/convnext_atto.d2_in1k", "hf://timm/convnext_atto.d2_in1k/model.safetensors"):
            assert torch.equal(convnext.create_model("convnext_atto", weights=weights).eval()(x), wanted)
        assert convnext.load("convnext_atto", "d2_in1k").classes[0].startswith("tench")
        """
    done = python(code, HF_HUB_CACHE=str(tmp_path), HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ("'convnext_tiny', weights='fb_in1k'", "download https://huggingface.co/timm/convnext_tiny.fb_in1k/resolve/main/model.safetensors"),
        ("'convnext_tiny', weights='hf://some/body'", "resolve/main/model.safetensors, copy it to this machine and give its path"),
    ],
)
def test_offline_the_error_says_which_file_to_put_where(tmp_path, arguments, wanted):
    done = python(f"import convnext; convnext.create_model({arguments})", HF_HUB_CACHE=str(tmp_path), HF_HUB_OFFLINE="1")
    assert "ConvnextError: could not fetch model.safetensors" in done.stderr
    assert wanted in done.stderr.splitlines()[-1]


def test_official_files_are_fetched_by_address(tmp_path):
    """From a server of our own: over HTTPS the code is PyTorch's; here the file already lies where it would put it."""
    model = random_model("convnext_isotropic_small", layer_scale=None, depth=18)
    (tmp_path / "checkpoints").mkdir()
    torch.save({"model": model.state_dict()}, tmp_path / "checkpoints" / "convnext_iso_small_1k_224_ema.pth")
    code = "import convnext; convnext.create_model('convnext_isotropic_small', weights='fb_in1k')"
    env = {"TORCH_HOME": str(tmp_path / "nowhere"), "http_proxy": "", "https_proxy": "http://127.0.0.1:9"}
    refused = python(code, **env)
    wanted = tmp_path / "nowhere" / "hub" / "checkpoints" / "convnext_iso_small_1k_224_ema.pth"
    assert f"put it at {wanted}" in refused.stderr.splitlines()[-1]
    wanted.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "checkpoints" / "convnext_iso_small_1k_224_ema.pth").rename(wanted)
    done = python(code, **env)
    assert done.returncode == 0, done.stderr


def test_an_unknown_tag_suggests_the_nearest():
    with pytest.raises(convnext.ConvnextError, match="no weights called 'fb_in2k'.*did you mean 'fb_in22k'"):
        convnext.create_model("convnext_tiny", weights="fb_in2k")
