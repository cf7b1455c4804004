"""How the libraries are compiled: real compilers and a library of two lines. No fault of a compiler ends an installation."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from convnext.ops import compile as compiling

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on this machine")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="compiled operators are for Linux")


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Sources of two lines, which are compiled for each level."""
    folder = tmp_path / "csrc"
    folder.mkdir()
    (folder / "one.cpp").write_text('extern "C" int answer() { return 42; }\n')
    (folder / "cpu.cpp").write_text('extern "C" int cpu() { return 43; }\n')
    monkeypatch.setattr(compiling, "SOURCES", folder)
    monkeypatch.delenv("CXX", raising=False)
    return folder


def libraries(folder):
    return {path.stem for path in folder.glob("*.so")}


def refused(folder, *words):
    """No library is there, and one line says why."""
    missing = compiling.compile_all(folder)
    assert missing.keys() == compiling.LEVELS.keys()
    assert not libraries(folder)
    assert compiling.recorded(folder) == (compiling.digest(), missing)
    line = compiling.in_one_line(missing)
    assert all(word in line for word in ("this installation has no compiled operators", *words)), line
    assert "\n" not in line


@needs_compiler
@pytest.mark.parametrize("named", ["", "{} -O1 -DNDEBUG", "env {}", "'{}'"])
def test_each_level_is_compiled(named, sources, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", named.format(shutil.which("g++")))
    assert compiling.compile_all(tmp_path / "lib") == {}
    assert libraries(tmp_path / "lib") == {"cpu", *compiling.LEVELS}
    assert compiling.recorded(tmp_path / "lib") == (compiling.digest(), {})
    assert {path.suffix for path in (tmp_path / "lib").iterdir()} == {".so", ".json"}


@pytest.mark.parametrize(
    ("named", "word"),
    [
        ("/nowhere/c++", "not there"),
        ("nothing -O1", "not there"),
        ("'", "can't be read"),
        ("true", "true made no library"),
        ("false", "false failed (exit status 1)"),
    ],
)
def test_an_unusable_compiler(named, word, sources, tmp_path, monkeypatch):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/cpu.so").write_text("of an earlier installation")
    monkeypatch.setenv("CXX", named)
    refused(tmp_path / "lib", word, "reinstall")


def test_no_compiler(sources, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(tmp_path / "lib", "it was built without a C++ compiler; install g++ and reinstall")


@needs_compiler
def test_another_platform(sources, tmp_path, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    refused(tmp_path / "lib", "it was not built on Linux on x86-64")
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.delattr("os.sched_getaffinity")
    refused(tmp_path / "lib", "it was not built on Linux on x86-64")


@pytest.mark.parametrize("content", ["", "{}", "[]"])
def test_a_damaged_record_is_none(content, tmp_path):
    (tmp_path / compiling.RECORD).write_text(content)
    digest, missing = compiling.recorded(tmp_path)
    assert (digest, missing.keys()) == ("", compiling.LEVELS.keys())
    assert "they are not compiled yet; in a source tree run make" in compiling.in_one_line(missing)


@needs_compiler
def test_an_error_of_the_compiler_is_one_line(sources, tmp_path):
    (sources / "two.cpp").write_text("#include <nothing.h>\n")
    missing = compiling.compile_all(tmp_path / "lib")
    assert missing.keys() == compiling.LEVELS.keys()
    assert "nothing.h" in compiling.in_one_line(missing)
    assert not libraries(tmp_path / "lib")


@needs_compiler
def test_a_level_that_the_compiler_does_not_know_is_left_out(sources, tmp_path, monkeypatch):
    script = tmp_path / "old-c++"
    script.write_text('#!/bin/sh\ncase "$*" in *-mamx-tile*) echo "error: unknown -mamx-tile" >&2; exit 1;; esac\nexec g++ "$@"\n')
    script.chmod(0o755)
    assert compiling.compile_all(tmp_path / "lib") == {}
    monkeypatch.setenv("CXX", str(script))
    missing = compiling.compile_all(tmp_path / "lib")
    assert missing.keys() == {"amx"}
    assert "no compiled operators for amx: " in compiling.in_one_line(missing)
    assert "unknown -mamx-tile" in missing["amx"]
    assert libraries(tmp_path / "lib") == {"cpu", *compiling.LEVELS} - {"amx"}


@needs_compiler
def test_the_openmp_of_another_compiler_is_refused(sources, tmp_path):
    (sources / "one.cpp").write_text('extern "C" void __kmpc_fork_call();\nextern "C" void answer() { __kmpc_fork_call(); }\n')
    assert "LLVM's OpenMP" in compiling.in_one_line(compiling.compile_all(tmp_path / "lib"))


def test_a_compiler_that_hangs_is_given_up_with_what_it_started(sources, tmp_path, monkeypatch):
    script, pid = tmp_path / "slow-c++", tmp_path / "pid"
    script.write_text(f"#!/bin/sh\nsleep 600 & echo $! >{shlex.quote(str(pid))}; wait\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setattr(compiling, "_TIMEOUT", 1)
    refused(tmp_path / "lib", "did not finish within 1 s;")
    time.sleep(0.1)
    state = Path(f"/proc/{pid.read_text().strip()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


@needs_compiler
def test_as_a_script_it_compiles_what_is_older_than_its_sources(sources, tmp_path):
    """As make runs it: without the package, and at once where nothing is to be done."""
    script = shutil.copy(compiling.__file__, tmp_path)

    def run(**environment):
        done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=os.environ | environment, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    assert "compiling" in run()[0]
    assert libraries(tmp_path / "lib") == {"cpu", *compiling.LEVELS}
    os.utime(tmp_path / "lib/cpu.so", (0, 0))
    assert run() == ("", "")
    assert (tmp_path / "lib/cpu.so").stat().st_mtime > 1e9  # make compares its time with those of the sources
    (sources / "one.h").write_text("")
    assert "compiling" in run()[0]
    (tmp_path / "lib/cpu.so").unlink()
    assert "no compiled operators: false failed" in run(CXX="false")[1]


@needs_compiler
def test_the_libraries_here_are_those_of_the_sources_here():
    assert compiling.recorded()[0] == compiling.digest(), "the sources have changed: run make"


@pytest.mark.skipif(shutil.which("readelf") is None, reason="no readelf on this machine")
def test_the_libraries_need_nothing_that_pytorch_does_not_bring_or_need():
    """So they load wherever PyTorch does, in slim containers too; and no OpenMP but PyTorch's is loaded for them."""

    def needed(path):
        listed = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True).stdout
        return set(re.findall(r"\(NEEDED\).*\[(.*)\]", listed))

    theirs = needed(Path(torch.__file__).parent / "lib/libtorch_cpu.so")
    for path in compiling.LIBRARIES.glob("*.so"):
        assert needed(path) <= {name for name in theirs if "omp" not in name}
