"""A run in a precision that is slower than float32 on this CPU says so when it begins."""

import io

import pytest
from rich.console import Console

import convnext
from convnext import ops

SMALL = {"model.depths": [1, 1, 1, 1], "model.widths": [4, 4, 4, 4], "train.iterations": 1, "train.warmup_epochs": 0, "data.workers": 0}


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_slow_precision_is_reported_once(precision, tmp_path):
    said = io.StringIO()
    settings = SMALL | {"train.precision": precision}
    convnext.train("digits", settings, output=tmp_path / "run", device="cpu", console=Console(file=said, width=200))
    reason = ops.slow_on_cpu(precision)
    lines = [line for line in said.getvalue().splitlines() if "slower than float32" in line]
    assert len(lines) == (reason is not None)
    assert all("train.precision=float32" in line for line in lines)
