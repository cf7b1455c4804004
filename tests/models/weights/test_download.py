"""Fetching, without a network: through the hub's own cache, and the messages when it cannot be had."""

import json
import os
import subprocess
import sys

import pytest
import timm
import torch
from file_server import Server
from helpers import random_model, randomise
from safetensors.torch import save_file
from tiny_models import create

import convnext
from convnext.data import download as fetch_module
from convnext.data.download import cache_folder, cached
from convnext.data.hub import HubFile, of_page, parse
from convnext.errors import ConvnextError, UsageError
from convnext.models import load
from convnext.models.weights.files import write_weights
from convnext.models.weights.formats import from_native

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
    assert "ConvnextError: could not download model.safetensors of hf://" in done.stderr
    assert wanted in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_official_files_are_fetched_by_address(tmp_path):
    """Under a hash of their whole address: a file of that name from elsewhere, in our cache or in PyTorch's, is not taken for it."""
    model = random_model("convnext_isotropic_small", layer_scale=None, depth=18)
    code = "import convnext; convnext.create_model('convnext_isotropic_small', weights='fb_in1k')"
    name, cache = "convnext_iso_small_1k_224_ema.pth", tmp_path / "cache"
    planted = tmp_path / "torch" / "hub" / "checkpoints" / name
    env = {"CONVNEXT_CACHE": str(cache), "TORCH_HOME": str(tmp_path / "torch"), "http_proxy": "", "https_proxy": "http://127.0.0.1:9"}
    planted.parent.mkdir(parents=True)
    torch.save({"model": model.state_dict()}, planted)
    refused = python(code, **env).stderr.splitlines()[-1]
    assert "could not download https://dl.fbaipublicfiles.com" in refused
    wanted = cached(f"https://dl.fbaipublicfiles.com/convnext/{name}", "weights")
    wanted = cache / wanted.relative_to(cache_folder())
    assert f"put it at {wanted}" in refused
    wanted.parent.mkdir(parents=True, exist_ok=True)
    planted.rename(wanted)
    done = python(code, **env)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def server(tmp_path, monkeypatch):
    server = Server({})
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetch_module, "_WAITS", (0, 0, 0, 0))
    yield server
    server.shutdown()
    server.server_close()


def weights(path, seed):
    model = randomise(create("convnext_tiny"), seed)
    write_weights(path, model.state_dict())
    return path.read_bytes(), model


def test_one_name_at_two_addresses_is_two_files(server, tmp_path):
    x, found = torch.ones(1, 3, 32, 32), []
    with Server({}) as other:
        places = [(server, "a/model.safetensors"), (server, "b/model.safetensors"), (other, "a/model.safetensors")]
        places += [(server, "a/model.safetensors?v=2")]
        made = []
        for seed, (host, path) in enumerate(places):
            content, model = weights(tmp_path / "made.safetensors", seed)
            host.files[path] = content
            made.append(model.eval())
        for _ in range(2):
            found = [load.load(f"{host.address}/{path}") for host, path in places]
            assert [torch.equal(loaded.model(x), model(x)) for loaded, model in zip(found, made, strict=True)] == [True] * 4
        assert len(server.log) + len(other.log) == 4
        other.shutdown()
    assert found[0].source == f"{server.address}/a/model.safetensors"


def test_queries_and_encoded_names_keep_the_ending(server, tmp_path):
    content, _ = weights(tmp_path / "made.safetensors", 0)
    for path in ("x/model.safetensors?download=true", "x/my%20model.safetensors", "x/model%2Esafetensors?token=secret&x=/y.zip"):
        server.files[path] = content
        loaded = load.load(f"{server.address}/{path}")
        assert "secret" not in str(loaded.source)
    server.files["x/model.h5?download=true"] = b"1"
    with pytest.raises(ConvnextError, match=r"model.h5 is no weight file"):
        load.load(f"{server.address}/x/model.h5?download=true")


def test_a_transfer_of_weights_is_resumed(server, tmp_path):
    server.files["m.safetensors"], model = weights(tmp_path / "made.safetensors", 0)
    server.cuts, server.most = 3, 20_000
    loaded, x = load.load(f"{server.address}/m.safetensors").model, torch.ones(1, 3, 32, 32)
    assert torch.equal(loaded(x), model.eval()(x))
    assert [wanted for _, wanted in server.log] == [None, "bytes=20000-", "bytes=40000-", "bytes=60000-"]


def test_a_web_page_is_no_weight_file(server):
    server.files["owner/name/blob/main/model.safetensors"] = b"<html>log in</html>"
    server.type = "text/html; charset=utf-8"
    with pytest.raises(ConvnextError, match="it gives a web page, not a file; .*/resolve/ in place of /blob/"):
        load.load(f"{server.address}/owner/name/blob/main/model.safetensors")
    assert not list(cached(f"{server.address}/owner/name/blob/main/model.safetensors", "weights").parent.glob("[!.]*"))


def test_names_and_passwords_of_addresses_are_used_and_not_printed(server, tmp_path):
    server.files["m.safetensors"], _ = weights(tmp_path / "made.safetensors", 0)
    address = server.address.replace("http://", "http://me:hidden@")
    assert load.load(f"{address}/m.safetensors").source == f"{server.address}/m.safetensors"
    assert server.logins == ["Basic bWU6aGlkZGVu"]
    for wrong in (f"{address}/none.safetensors?token=hidden", "http://me:hidden@:x/m.pth", "http://me:hidden@[/m.pth", "https:///m.pth"):
        with pytest.raises(ConvnextError) as caught:
            load.load(wrong)
        assert "hidden" not in str(caught.value)


@pytest.mark.slow
def test_a_revision_is_a_branch_a_tag_or_a_commit_and_its_commit_is_recorded(tmp_path):
    """From huggingface-hub's cache: two commits of one repository, which differ in weights and in how images are prepared."""
    commits = {"main": "a" * 40, "v2": "b" * 40}
    folder = tmp_path / "models--some--body"
    (folder / "refs").mkdir(parents=True)
    for seed, (name, commit) in enumerate(commits.items()):
        (folder / "refs" / name).write_text(commit)
        (folder / "snapshots" / commit).mkdir(parents=True)
        model = randomise(timm.create_model("convnext_atto", num_classes=2), seed)
        save_file(model.state_dict(), folder / "snapshots" / commit / "model.safetensors")
        how = {"input_size": [3, 64 + 32 * seed, 64 + 32 * seed]}
        (folder / "snapshots" / commit / "config.json").write_text(json.dumps({"architecture": "convnext_atto", "pretrained_cfg": how}))
    code = """if True:
        import sys
        from convnext import ConvnextError
        from convnext.models import load as models
        for address in sys.argv[1:]:
            try:
                loaded = models.load(address)
                print(loaded.source, loaded.preprocessing.image_size, float(loaded.model.head.bias[0]))
            except ConvnextError as error:
                print(type(error).__name__, error)
    """
    addresses = [
        "hf://some/body",
        "hf://some/body@main",
        "hf://some/body@v2",
        f"hf://some/body@{'b' * 40}/model.safetensors",
        "hf://some/body@v3",
    ]
    env = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code, *addresses], env=env, capture_output=True, text=True)
    main, again, tagged, by_commit, missing = done.stdout.splitlines()
    assert main.startswith(f"hf://some/body@{'a' * 40}/model.safetensors 64 ")
    assert tagged.startswith(f"hf://some/body@{'b' * 40}/model.safetensors 96 ")
    assert (main, tagged) == (again, by_commit)
    assert main.split()[2] != tagged.split()[2]
    assert missing.startswith("ConvnextError could not download model.safetensors")


@pytest.mark.parametrize(
    "address",
    [
        "hf://",
        "hf://me",
        "hf://me/",
        "hf:///me",
        "hf://a/b@",
        "hf://a/b@/f",
        "hf://a/b@x@y",
        "hf://a/b/../c",
        "hf://a b/c",
        "hf://a/b@..",
        "hf://datasets/a/b/c",
    ],
)
def test_what_is_no_address_on_the_hub_is_wrong_usage(address):
    with pytest.raises(UsageError, match="hf://"):
        load.load(address)


def test_revisions_of_pull_requests():
    assert of_page("https://huggingface.co/a/b/resolve/main/x/y.bin?download=true") == HubFile("model", "a/b", "main", "x/y.bin")
    assert of_page("https://elsewhere.example/a/b/resolve/main/y.bin") is None
    assert parse("hf://a/b@refs/pr/3/x/y.bin") == HubFile("model", "a/b", "refs/pr/3", "x/y.bin")
    assert parse("hf://datasets/a/b@v1.0/y.tar") == HubFile("dataset", "a/b", "v1.0", "y.tar")
    assert parse("hf://a/b@feature%2Fx") == HubFile("model", "a/b", "feature/x")


def test_an_unknown_tag_suggests_the_nearest():
    with pytest.raises(convnext.ConvnextError, match="no weights called 'fb_in2k'.*did you mean 'fb_in22k'"):
        convnext.create_model("convnext_tiny", weights="fb_in2k")
