"""Dispatch between compiled operators and PyTorch: by the CPU's features, the need for gradients and the size of the batch."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from convnext import ops
from convnext.models.backbones.convnext import Block
from convnext.ops import build, dispatch

without_tiles = pytest.mark.skipif(
    build.library() is None or build.has_tiles() or dispatch._SETTING == "off", reason="for CPUs without AMX"
)


class Ours(TorchDispatchMode):
    """Collects the names of this package's operators that run."""

    def __init__(self):
        super().__init__()
        self.ran = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "convnext":
            self.ran.add(function.name().removeprefix("convnext::"))
        return function(*args, **kwargs or {})


def ran(batch, side, gradients, grn=False):
    block = Block(16, 3, 0.0, 1.0, grn=grn).requires_grad_(gradients)
    with Ours() as seen:
        block(torch.randn(batch, 16, side, side).contiguous(memory_format=torch.channels_last))
    return seen.ran


@pytest.mark.parametrize("amd", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_without_amx_training_is_left_to_pytorch_but_on_amd(amd, gradients, monkeypatch):
    monkeypatch.setattr(dispatch, "_trains_faster", lambda: amd)
    x, weight = torch.empty(1, 16, 7, 7), torch.empty(16, 1, 7, 7, requires_grad=gradients)
    assert dispatch._pays_without_tiles(x, weight) is (amd or not gradients)
    with torch.no_grad():
        assert dispatch._pays_without_tiles(x, weight)


@without_tiles
def test_the_faster_operators_run_and_the_compiled_ones_can_be_forced():
    for batch in (1, 8):
        assert ran(batch, 14, False) == {"block"}
        assert ran(batch, 14, True) == ({"block"} if dispatch._trains_faster() else set())
        with ops.using(True):
            assert ran(batch, 14, True) == {"block"}
    with ops.using(False):
        assert ran(8, 14, False) == set()


@without_tiles
def test_a_block_with_grn_is_fast_in_inference():
    for batch in (1, 8):
        assert ran(batch, 14, False, grn=True) == {"grn_block"}


@pytest.mark.skipif(build.library() is None or dispatch._SETTING == "off", reason="no compiled operators here")
def test_a_block_with_grn_runs_part_by_part_where_gradients_are_needed():
    with ops.using(True):
        assert ran(2, 14, True, grn=True) == {"depthwise_conv", "layer_norm"}


@without_tiles
def test_status_reports_it():
    assert ("PyTorch is faster in training" in ops.status()["block in float32, CPU"]["why"]) is not dispatch._trains_faster()
    assert ops.status()["block in bf16, CPU"]["runs"] == "PyTorch"


@pytest.mark.skipif(not build.has_tiles() or dispatch._SETTING == "off", reason="for CPUs with AMX")
def test_with_amx_they_always_run():
    assert all(ran(batch, 28, gradients) == {"block"} for batch in (1, 8) for gradients in (False, True))


def test_tensors_of_a_class_of_their_own_are_left_to_pytorch():
    class Quantized(torch.Tensor):
        """Like torchao's: its values are not in its own memory."""

    with ops.using(True):
        x, weight = torch.randn(2, 8, 9, 9), torch.randn(8, 1, 3, 3)
        assert not dispatch.fast(x, weight.as_subclass(Quantized))
        assert not dispatch.fast(x.as_subclass(Quantized), weight)
        assert dispatch.fast(x, weight) == (build.library() is not None)


@pytest.mark.parametrize(
    ("given", "wanted"), [("off", "off"), (" OFF ", "off"), ("0", "off"), ("", "on"), ("1", "on"), ("triton", "triton"), ("AMX", "amx")]
)
def test_the_switch_has_these_values(given, wanted, monkeypatch, recwarn):
    monkeypatch.setenv("CONVNEXT_OPS", given)
    assert dispatch._setting() == wanted
    assert not recwarn.list


def test_a_misspelt_switch_warns(monkeypatch):
    monkeypatch.setenv("CONVNEXT_OPS", "of")
    with pytest.warns(UserWarning, match="CONVNEXT_OPS=of is unknown .* on, off, triton, .*amx"):
        assert dispatch._setting() == "on"
