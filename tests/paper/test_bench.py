import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from convnext.errors import UsageError
from convnext.paper.bench import Setting, bench, differences, measure
from convnext.paper.contestants import Contestant, enter

CPU = torch.device("cpu")
calls = []  # of networks whose turns are of interest, in order


class Sleeper(nn.Module):
    """A network that takes the time it is told to, and notes that it ran."""

    def __init__(self, name, seconds):
        super().__init__()
        self.name, self.seconds, self.linear = name, seconds, nn.Linear(3, 10)

    def forward(self, images):
        calls.append((self.name, self.training, torch.is_grad_enabled(), images.dtype, len(images)))
        time.sleep(self.seconds)
        return self.linear(images.mean((-2, -1)))


def sleepers(a, b, beside=0):
    calls.clear()
    return [Contestant("a", "convnext", Sleeper("a", a)), Contestant("b", "convnext", Sleeper("b", b), beside=beside)]


def run(*arguments, code=0):
    done = subprocess.run([sys.executable, "-m", "convnext", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done


def test_contestants_take_turns_after_two_batches_of_warming_up():
    results = measure(sleepers(0.01, 0.01), Setting(32, rounds=4, seconds=0), CPU, batch_size=3)
    order = "".join(name for name, *_ in calls)
    assert order == "aabb" + "ababab"  # no time at all: the fewest rounds, one batch each
    assert {tuple(rest) for _, *rest in calls} == {(False, False, torch.float32, 3)}
    assert [(one.rounds, one.batches, one.mode) for one in results] == [(3, 1, "inference")] * 2


def test_time_is_shared_among_rounds():
    results = measure(sleepers(0.01, 0.05), Setting(32, rounds=5, seconds=1), CPU, batch_size=1)
    assert [one.rounds for one in results] == [5, 5]
    assert results[0].batches > results[1].batches >= 1
    slow = measure(sleepers(0.001, 0.1), Setting(32, rounds=7, seconds=0.42), CPU, batch_size=1)
    assert slow[0].rounds in (3, 4)  # 0.42 s hold no more of the slower's batches


def test_speeds_and_ratios_are_of_the_same_rounds():
    a, b = measure(sleepers(0.06, 0.02), Setting(32, seconds=0.4), CPU, batch_size=2)
    assert (a.ratio, b.ratio_to) == (None, "a")
    for one, most in ((a, 2 / 0.06), (b, 2 / 0.02)):
        speed = one.images_per_second
        assert 0 < speed.least <= speed.median <= speed.most <= most
    assert b.ratio.least <= b.ratio.median <= b.ratio.most
    assert b.images_per_second.least / a.images_per_second.most <= b.ratio.least
    assert b.ratio.most <= b.images_per_second.most / a.images_per_second.least


def test_training_steps_a_copy():
    contestants = enter(["convnext_atto"], None, 32)
    before = {key: tensor.clone() for key, tensor in contestants[0].model.state_dict().items()}
    (result,) = measure(contestants, Setting(32, seconds=0), CPU, batch_size=2, mode="training")
    assert result.mode == "training"
    assert all(torch.equal(before[key], tensor) for key, tensor in contestants[0].model.state_dict().items())
    assert all(parameter.grad is None for parameter in contestants[0].model.parameters())
    measure(sleepers(0, 0), Setting(32, seconds=0, dtype="bf16"), CPU, batch_size=2, mode="training")
    assert {tuple(rest) for _, *rest in calls} == {(True, True, torch.float32, 2)}  # autocast converts inside


@pytest.mark.parametrize(("dtype", "wanted"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_inference_is_in_the_dtype_itself(dtype, wanted):
    measure(sleepers(0, 0), Setting(32, seconds=0, dtype=dtype, channels_last=False), CPU, batch_size=1)
    assert {dtype for *_, dtype, _ in calls} == {wanted}


def test_how_float32_multiplies_is_put_back():
    flags = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [flag.fp32_precision for flag in flags]
    try:
        for wanted in (before, ["tf32", "ieee"]):  # the latter by the newer switches, after which PyTorch refuses to read the older
            for flag, precision in zip(flags, wanted, strict=True):
                flag.fp32_precision = precision
            measure(sleepers(0, 0), Setting(32, seconds=0), CPU, batch_size=1)
            assert [flag.fp32_precision for flag in flags] == wanted
    finally:
        for flag, precision in zip(flags, before, strict=True):
            flag.fp32_precision = precision


def test_two_functions_of_the_same_weights_are_told():
    contestants = enter(["convnext_atto"], "timm", 64)
    assert differences(contestants) == []
    ours, peer = contestants
    for error in (0.03, float("nan")):
        told = differences([replace(ours, relative_error=error), peer])
        assert [f"convnext_atto here and in timm are different functions: their outputs differ by {error:.1e}"] == told


def test_a_report_holds_all_settings_beside_the_peer():
    report = bench(["convnext_atto"], Setting(64, seconds=0), CPU, batch_sizes=(1, 2), train=True, against="timm").to_json()
    assert json.loads(json.dumps(report)) == report
    assert report["environment"]["versions"].keys() >= {"torch", "timm", "convnext"}
    assert report["environment"]["hardware"]["cpu"]
    assert report["setting"]["image_size"] == 64
    found = [(one["mode"], one["batch_size"], one["library"]) for one in report["results"]]
    assert found == [(mode, size, library) for mode in ("inference", "training") for size in (1, 2) for library in ("convnext", "timm")]
    ours, peer = report["results"][:2]
    assert (ours["ratio_to"], peer["ratio"], ours["peak_memory"]) == ("timm", None, None)
    assert ours["relative_error"] < 1e-5
    assert any("peak memory is measured on CUDA devices only" in remark for remark in report["remarks"])


def test_settings_that_make_no_sense():
    for setting, message in ((Setting(dtype="bf61"), "did you mean 'bf16'"), (Setting(dtype="tf32"), "use float32 or bf16")):
        with pytest.raises(UsageError, match=message):
            bench(["convnext_atto"], setting, CPU)


@pytest.mark.slow
def test_the_command_prints_one_json_value_or_a_table():
    arguments = (
        "bench",
        "convnext_atto",
        "convnext_femto",
        "--size",
        64,
        "--seconds",
        0,
        "--batch-size",
        1,
        "--batch-size",
        2,
        "--device",
        "cpu",
    )
    done = run(*arguments, "--json")
    report = json.loads(done.stdout)
    assert [(one["name"], one["ratio_to"]) for one in report["results"]] == [
        ("convnext_atto", None),
        ("convnext_femto", "convnext_atto"),
    ] * 2
    lines = run(*arguments).stdout.splitlines()
    assert max(map(len, lines)) <= 140
    assert "64 pixels, float32, channels-last" in lines[2]
    assert [line.split()[:4] for line in lines[5:7]] == [
        ["convnext_atto", "convnext", "inference", "1"],
        ["convnext_femto", "convnext", "inference", "1"],
    ]


@pytest.mark.slow
def test_compiled_networks_are_timed_too():
    results = measure(enter(["convnext_atto"], "timm", 64), Setting(64, seconds=0, compile=True), CPU, batch_size=1)
    assert all(one.images_per_second.least > 0 for one in results)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_peak_memory_is_of_one_network_alone():
    cuda = torch.device("cuda")
    weights = sum(parameter.numel() for parameter in enter(["convnext_atto"], None, 64)[0].model.parameters()) * 4
    for mode, copies in (("inference", 1), ("training", 4)):
        one, two = measure(enter(["convnext_atto", "convnext_atto"], None, 64), Setting(64, seconds=0), cuda, batch_size=2, mode=mode)
        assert copies * weights <= one.peak_memory < copies * weights + 200e6
        assert abs(one.peak_memory - two.peak_memory) <= 0.02 * one.peak_memory
