import pytest
import torch
from torch import nn

from convnext.errors import UsageError
from convnext.models.entry import Entry
from convnext.models.registry import BACKBONES
from convnext.paper.contestants import build, build_peer, enter, relative_error


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("convnext_atto", "timm"),
        ("convnext_tiny", "torchvision"),
        ("convnext_atto", "transformers"),
        ("convnext_tiny", "timm"),
        ("convnextv2_atto", "transformers"),
        ("convnext_atto_ols", "timm"),
    ],
)
def test_a_peer_is_the_same_function_and_one_changed_weight_is_seen(name, library):
    ours, peer = enter([name], library, 64)
    assert (ours.library, peer.library, ours.beside) == ("convnext", library, 1)
    assert ours.relative_error < 1e-5
    key, weight = next(
        (key, weight) for key, weight in peer.model.named_parameters() if "gamma" in key or "layer_scale" in key or "grn.weight" in key
    )
    with torch.no_grad():
        weight.view(-1)[0] += 0.5  # of the first block's layer scale: at its usual 1e-6 no output would change
    assert relative_error(ours.model, peer.model, 64) > 1e-4, key


def test_every_part_of_a_built_network_shows_in_its_outputs():
    model, x = build("convnext_atto"), torch.randn(1, 3, 64, 64)
    model(x).square().mean().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())
    again = build("convnext_atto").state_dict()
    assert all(torch.equal(tensor, again[key]) for key, tensor in model.state_dict().items())


def test_a_peer_has_a_copy_of_the_weights_and_nothing_random():
    ours = build("convnext_tiny")
    peer = build_peer("convnext_tiny", ours, "torchvision")
    shared = {parameter.data_ptr() for parameter in ours.parameters()} & {parameter.data_ptr() for parameter in peer.parameters()}
    assert not shared
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(peer.train()(x), peer.eval()(x))


def test_buffers_are_what_the_constructor_made_of_them(monkeypatch):
    def normed(num_classes, in_channels, drop_path):
        return nn.Sequential(nn.Conv2d(in_channels, num_classes, 3), nn.BatchNorm2d(num_classes))

    monkeypatch.setitem(BACKBONES, "normed", Entry(normed))
    assert build("normed")[1].running_var.tolist() == [1.0] * 1000


@pytest.mark.parametrize(
    ("name", "library", "message"),
    [
        ("convnext_atto", "tim", "unknown library 'tim'; did you mean 'timm'"),
        ("convnext_atto", "torchvision", "torchvision has no convnext_atto"),
        ("convnext_atto_ols", "transformers", "transformers has no convnext_atto_ols"),
        ("convnext_isotropic_small", "timm", "convnext_isotropic_small has no peer"),
        ("convnext_tny", "timm", "did you mean 'convnext_tiny'"),
    ],
)
def test_peers_that_there_are_not(name, library, message):
    with pytest.raises(UsageError, match=message):
        enter([name], library, 64)
