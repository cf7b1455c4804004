"""The build hook: what wheels and editable installations contain, with a compiler and without, and that an installed wheel needs none."""

import json
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest
from documented import ROOT

from convnext.ops import build
from convnext.ops.compile import DETECTION, LEVELS

backend = pytest.importorskip("hatchling.build")
pytestmark = pytest.mark.skipif(sysconfig.get_platform() != "linux-x86_64", reason="compiled operators are for Linux on x86-64")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on this machine")


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A source tree like this one's, with operators of one line, and libraries of an earlier installation."""
    root = tmp_path / "tree"
    csrc = root / "convnext/ops/csrc"
    csrc.mkdir(parents=True)
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "convnext/__init__.py", "convnext/ops/compile.py"):
        shutil.copy(ROOT / name, root / name)
    for name in ("one", DETECTION):
        (csrc / f"{name}.cpp").write_text('extern "C" int answer() { return 42; }\n')
    (root / "convnext/ops/lib").mkdir()
    (root / "convnext/ops/lib/amx.so").write_text("earlier")
    monkeypatch.chdir(root)
    monkeypatch.delenv("CXX", raising=False)
    return root


BUILT = {"build.json", *(f"{name}.so" for name in (*LEVELS, DETECTION))}


def libraries(wheel):
    with zipfile.ZipFile(wheel) as file:
        assert not [name for name in file.namelist() if "csrc" in name]
        return {name.removeprefix("convnext/ops/lib/") for name in file.namelist() if "/lib/" in name}


@needs_compiler
def test_a_wheel_contains_the_libraries_and_names_its_platform(tree, tmp_path, capfd):
    name = backend.build_wheel(str(tmp_path))
    assert name.endswith("-py3-none-linux_x86_64.whl")
    assert libraries(tmp_path / name) == BUILT
    assert (tree / "convnext/ops/lib/amx.so").read_text() == "earlier"
    assert "no compiled operators" not in capfd.readouterr().err


def test_without_a_usable_compiler_the_wheel_is_pure_and_says_so(tree, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("CXX", "/bin/false")
    name = backend.build_wheel(str(tmp_path))
    assert name.endswith("-py3-none-any.whl")
    assert libraries(tmp_path / name) == {"build.json"}
    with zipfile.ZipFile(tmp_path / name) as wheel:
        record = json.loads(wheel.read("convnext/ops/lib/build.json"))
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("convnext: ")]
    assert said == [f"convnext: this installation has no compiled operators: {record['missing']['amx']}"]
    assert "/bin/false failed" in said[0]


@needs_compiler
def test_an_editable_installation_compiles_into_the_source_tree(tree, tmp_path):
    name = backend.build_editable(str(tmp_path))
    assert libraries(tmp_path / name) == set()
    assert {path.name for path in (tree / "convnext/ops/lib").iterdir()} == BUILT
    assert (tree / "convnext/ops/lib/amx.so").read_bytes().startswith(b"\x7fELF")


def test_a_source_distribution_contains_the_sources_and_the_hook(tree, tmp_path):
    shutil.unpack_archive(tmp_path / backend.build_sdist(str(tmp_path)), tmp_path / "sdist", filter="data")
    (root,) = (tmp_path / "sdist").iterdir()
    assert (root / "hatch_build.py").exists()
    assert (root / "convnext/ops/csrc/one.cpp").exists()


FORWARD = """
import sys, torch, convnext
from convnext import ops
model = convnext.create_model("convnext_atto", num_classes=3).eval()
x = torch.randn(2, 3, 64, 64)
with torch.no_grad(), ops.using(True):
    found = model(x)
with torch.no_grad(), ops.using(False):
    assert torch.allclose(found, model(x), atol=1e-4)
print(convnext.__file__, ops.status()["block in float32, CPU"])
"""


@pytest.mark.slow
@needs_compiler
def test_an_installed_wheel_runs_compiled_operators_without_a_compiler(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(ROOT)], check=True, timeout=600)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv/bin/python"
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", str(wheel)], check=True)
    (site,) = (tmp_path / "venv/lib").glob("*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    for home in ({}, {"HOME": "/proc/nobody"}):  # none, and one that can't be written
        done = subprocess.run(
            [str(python), "-c", FORWARD], env={"PATH": str(python.parent)} | home, cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(str(site / "convnext")), done.stdout
        if build.levels():
            assert "'compiled'" in done.stdout, done.stdout
            assert f"level {build.levels()[-1]}" in done.stdout
        assert "compil" not in done.stderr
