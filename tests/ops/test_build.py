"""Which compiled library is loaded: by the CPU, by the system, by PyTorch's level, by what is installed, and by CONVNEXT_OPS."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ops.block_tools import needs_compiler, use_level
from torch.nn import functional as F

from convnext import ops
from convnext.errors import ConvnextError, UsageError
from convnext.ops import build
from convnext.ops.compile import DETECTION, LEVELS

NOTHING = dict.fromkeys(build.CPU_WORDS, 0)
_ALL = {"avx": 0x7, "avx512": 0xE7, "amx": 0x600E7}  # registers that systems save, with those of SSE
I7_8700 = NOTHING | {"1 ecx": 0x7FFAFBFF, "7.0 ebx": 0x029C6FBF, "80000001 ecx": 0x121, "xcr0": 0x1F}
ZEN5 = dict(zip(build.CPU_WORDS, (0xFFFA3203, 0xF1BF07AB, 0x405FC6, 0x110, 0x30, 0x4003F3, 0xE7, 0x68747541), strict=True))
EVERYTHING = dict.fromkeys(build.CPU_WORDS, 0xFFFFFFFF)


def without(words, *features):
    words = dict(words)
    for feature in features:
        word, bit, _ = build.FEATURES[feature]
        words[word] &= ~(1 << bit)
    return words


ICE_LAKE = without(EVERYTHING, "avxvnni", "avx512bf16", "amx-tile", "amx-int8", "amx-bf16") | {"xcr0": _ALL["avx512"]}
CASES = {
    "before AVX2": (NOTHING, "DEFAULT", []),
    "i7-8700": (I7_8700, "AVX2", ["avx2"]),
    "Alder Lake": (I7_8700 | {"7.1 eax": 1 << 4}, "AVX2", ["avx2", "avx2_vnni"]),
    "Skylake-X": (without(ICE_LAKE, "avx512vnni", "avx512vbmi"), "AVX512", ["avx2", "avx512"]),
    "Ice Lake": (ICE_LAKE, "AVX512", ["avx2", "avx512", "avx512_vnni"]),
    "Zen 5": (ZEN5, "AVX512", ["avx2", "avx2_vnni", "avx512", "avx512_vnni"]),
    "Sapphire Rapids": (EVERYTHING, "AVX512", list(LEVELS)),
    "a system that saves no tiles": (EVERYTHING | {"xcr0": _ALL["avx512"]}, "AVX512", ["avx2", "avx2_vnni", "avx512", "avx512_vnni"]),
    "a system that saves nothing of AVX-512": (EVERYTHING | {"xcr0": _ALL["avx"]}, "AVX2", ["avx2", "avx2_vnni"]),
    "a system that saves nothing of AVX": (EVERYTHING | {"xcr0": 0x3}, "DEFAULT", []),
    "ATEN_CPU_CAPABILITY=avx2": (EVERYTHING, "AVX2", ["avx2", "avx2_vnni"]),
    "ATEN_CPU_CAPABILITY=default": (EVERYTHING, "DEFAULT", []),
}


@pytest.fixture
def installed(tmp_path):
    """A folder with a file for each level."""
    for name in (DETECTION, *LEVELS):
        (tmp_path / f"{name}.so").touch()
    (tmp_path / "build.json").write_text('{"sources": "", "missing": {}}')
    return tmp_path


def running(words, capability, folder):
    return [level for level in LEVELS if not build.obstacle(level, words, capability, folder)]


@pytest.mark.parametrize("case", CASES)
def test_the_levels_of_a_cpu(case, installed):
    words, capability, wanted = CASES[case]
    assert running(words, capability, installed) == [level for level in LEVELS if level in wanted]


def test_the_obstacle_is_named(installed):
    assert build.obstacle("amx", ZEN5, "AVX512", installed) == "this CPU, or its system, lacks amx-tile, amx-int8, amx-bf16"
    assert build.obstacle("avx512", EVERYTHING, "AVX2", installed) == "PyTorch uses AVX2 here"


@pytest.mark.parametrize("gone", LEVELS)
def test_without_its_library_the_next_lower_level_runs(gone, installed):
    (installed / f"{gone}.so").unlink()
    assert running(EVERYTHING, "AVX512", installed) == [level for level in LEVELS if level != gone]
    assert build.obstacle(gone, EVERYTHING, "AVX512", installed).endswith(f"{gone}.so is missing; reinstall convnext")
    (installed / "build.json").write_text(json.dumps({"sources": "", "missing": {gone: "too old a compiler"}}))
    reason = build.obstacle(gone, EVERYTHING, "AVX512", installed)
    assert reason == f"this installation has no compiled operators for {gone}: too old a compiler"


def test_no_libraries(tmp_path):
    assert build.cpu_words(tmp_path) is None
    reason = build.obstacle("avx512", None, "AVX512", tmp_path)
    assert reason.startswith("this installation has no compiled operators: they are not compiled yet; in a source tree run make")
    (tmp_path / "build.json").write_text(json.dumps({"sources": "", "missing": dict.fromkeys(LEVELS, "no g++")}))
    assert build.obstacle("avx512", None, "AVX512", tmp_path) == "this installation has no compiled operators: no g++"


def test_the_library_that_reads_the_cpu_is_missing(installed):
    (installed / f"{DETECTION}.so").unlink()
    words = build.cpu_words(installed)
    assert build.obstacle("avx512", words, "AVX512", installed) == (
        "this installation has no compiled operators: cpu.so is missing; reinstall convnext"
    )


def test_each_instruction_set_of_the_levels_has_its_bit():
    assert {flag.removeprefix("-m") for flags in LEVELS.values() for flag in flags} <= build.FEATURES.keys()


@needs_compiler
def test_the_bits_are_those_that_linux_reads():
    linux = {"bmi": "bmi1", "lzcnt": "abm", "avxvnni": "avx_vnni", "avx512vnni": "avx512_vnni", "avx512bf16": "avx512_bf16"}
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next(line for line in lines if line.startswith("flags")).split()
    words = build.cpu_words()
    for feature in build.FEATURES:
        assert build.has_feature(feature, words) == (linux.get(feature, feature.replace("-", "_")) in flags), feature


@pytest.mark.parametrize("level", build.levels())
def test_an_operator_of_each_level(level, monkeypatch):
    use_level(level, monkeypatch)
    x, weight, bias = torch.randn(2, 24, 9, 9), torch.randn(24, 1, 7, 7), torch.randn(24)
    with ops.using(True):
        assert torch.allclose(ops.depthwise_conv(x, weight, bias), F.conv2d(x, weight, bias, padding=3, groups=24), atol=1e-4)
    assert build.library() is build.library_of(level)


@needs_compiler
def test_convnext_ops_names_a_level(monkeypatch):
    for name in build.levels():
        monkeypatch.setenv("CONVNEXT_OPS", f" {name.upper()} ")
        assert build._load.__wrapped__() == (build.library_of(name), f"level {name}, which CONVNEXT_OPS names")
    monkeypatch.setattr(build, "_obstacles", lambda: dict.fromkeys(LEVELS, "this CPU is old"))
    with pytest.raises(UsageError, match=f"CONVNEXT_OPS={name}: this CPU is old; levels that run here: none"):
        build._load.__wrapped__()


@needs_compiler
def test_a_damaged_library_is_reported_and_pytorch_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("CONVNEXT_OPS", raising=False)
    monkeypatch.setattr(build, "library_of", build.library_of.__wrapped__)
    level, detection = build.levels()[-1], build.LIBRARIES / f"{DETECTION}.so"
    monkeypatch.setattr(build, "LIBRARIES", tmp_path)
    library = tmp_path / f"{level}.so"
    library.write_text("not a library, though it is as long as the header of one would have to be")
    found, reason = build._load.__wrapped__()
    assert found is None
    assert reason.startswith(f"{library} can't be loaded (")
    assert reason.endswith("; reinstall convnext")
    assert capsys.readouterr().err.splitlines() == [f"convnext: the fast CPU operators are off, PyTorch's run instead: {reason}"]
    library.unlink()
    shutil.copy(detection, library)  # a library without the operators
    assert "undefined symbol: has_tiles" in build._load.__wrapped__()[1]
    with pytest.raises(ConvnextError, match=r"cpu.so can't be loaded .*; reinstall"):
        build.cpu_words(shutil.copy(__file__, tmp_path / f"{DETECTION}.so").parent)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on this machine")
def test_openmp_is_the_callers_under_any_name(tmp_path):
    """PyTorch's wheels bring it under names as libgomp-a34b3233.so.1."""

    def compiled(name, code, *more):
        (tmp_path / "code.cpp").write_text(code)
        command = ["g++", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(tmp_path / name), str(tmp_path / "code.cpp"), *more]
        subprocess.run(command, check=True)
        return str(tmp_path / name)

    openmp = compiled("libgomp-a34b3233.so.1", 'extern "C" void GOMP_parallel() {}')
    code = 'extern "C" void GOMP_parallel(); extern "C" void run() { GOMP_parallel(); }'
    caller = compiled("libcaller.so", code, openmp, f"-Wl,-rpath,{tmp_path}")
    torch.ops.load_library(caller)
    assert build.openmp_of(caller) == openmp
    assert "omp" in Path(build.openmp_of("libtorch_cpu.so")).name
    assert build.openmp_of("libnothing.so") == "libgomp.so.1"


ONE_RUNTIME = """
import os, re, torch
from pathlib import Path
from convnext import ops

def threads():
    return len(os.listdir("/proc/self/task"))

x, weight, bias = torch.randn(4, 64, 40, 40), torch.randn(64, 1, 7, 7), torch.randn(64)
torch.set_num_threads(1)
with ops.using(True), torch.no_grad():
    ops.depthwise_conv(x, weight, bias)
    before = threads()
    ops.depthwise_conv(x, weight, bias)
    assert threads() == before
    torch.set_num_threads(4)
    ops.depthwise_conv(x, weight, bias)
assert threads() == before + 3, (before, threads())
torch.randn(1 << 20).exp()  # PyTorch uses the same threads
assert threads() == before + 3, (before, threads())
files = {line.split(maxsplit=5)[5].strip() for line in open("/proc/self/maps") if "/" in line}
assert any(file.endswith("/ops/lib/LEVEL.so") for file in files), files
runtimes = [file for file in files if re.search(r"/lib(g|i|)omp[^/]*\\.so", file)]
assert len(runtimes) == 1, runtimes
"""


@pytest.mark.slow
@needs_compiler
def test_one_openmp_and_its_threads_are_pytorchs():
    code = ONE_RUNTIME.replace("LEVEL", build.levels()[-1])
    settings = {name: value for name, value in os.environ.items() if name not in ("CONVNEXT_OPS", "OMP_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
