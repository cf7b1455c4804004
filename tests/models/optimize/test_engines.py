"""`convnext.optimize` by engines that compute any classifier."""

import threading

import pytest
import torch
from helpers import randomise
from models.optimize.bounds import outputs

import convnext
from convnext.errors import UsageError
from convnext.models.optimize.optimize import optimize


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return randomise(convnext.create_model("resnet50", num_classes=5)).eval()


def difference(found, wanted):
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def test_openvino_computes_any_classifier_at_any_size_in_several_threads(network):
    pytest.importorskip("openvino")
    fast, found = optimize(network, backend="openvino"), {}
    images = {side: torch.randn(2, 3, side, side) for side in (64, 96, 80)}

    def run(side):
        with torch.inference_mode():
            found[side] = fast(images[side])

    threads = [threading.Thread(target=run, args=(side,)) for side in images]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for side, x in images.items():
        assert difference(found[side], outputs(network, x, False)) < 1e-4


def test_an_engine_is_refused_where_it_can_do_nothing(network):
    with pytest.raises(UsageError, match="unknown backend 'openvno'; did you mean 'openvino'"):
        optimize(network, backend="openvno")
    with pytest.raises(UsageError, match="int8 is computed by our operators"):
        optimize(network, "int8", backend="openvino", calibration=lambda model: None)
    with pytest.raises(UsageError, match="float32 network on the CPU"):
        optimize(convnext.create_model("resnet50").double(), backend="openvino")
    with pytest.raises(UsageError, match="backend='inductor' computes in float32"):
        optimize(network, "bf16", backend="inductor")
    with pytest.raises(UsageError, match="backend='openvino'"):
        optimize(network)  # our operators compute ConvNeXt's blocks only


class Maps(torch.nn.Module):
    """A network that returns several tensors."""

    def forward(self, x):
        return [x, x]


def test_an_engine_computes_one_tensor():
    pytest.importorskip("openvino")
    with pytest.raises(UsageError, match="one tensor"):
        optimize(Maps(), backend="openvino")(torch.zeros(1, 3, 8, 8))


@pytest.mark.slow
def test_inductor_freezes_the_weights(network):
    x = torch.randn(2, 3, 64, 64)
    fast = optimize(network, backend="inductor")
    assert difference(outputs(fast, x, True), outputs(network, x, False)) < 1e-4
