"""The cache of compiled libraries, with a real compiler and a library of two lines: no fault there ends a process."""

import os
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from convnext.ops import cache

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="compiled operators are for Linux"),
    pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler on this machine"),
]
FLAGS = ("-O0", "-fPIC")


@pytest.fixture
def sources(tmp_path):
    folder = tmp_path / "csrc"
    folder.mkdir()
    (folder / "one.cpp").write_text('extern "C" int answer() { return 42; }\n')
    return folder


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path / "cache"


def loaded(sources, *functions):
    return cache.load_or_warn(sources, FLAGS, functions or ("answer",))


def command(sources, before=""):
    """Of another process that loads the library: without `convnext.ops`, whose import of PyTorch would take seconds."""
    code = f"""
        import importlib.util, os
        from pathlib import Path
        spec = importlib.util.spec_from_file_location("cache", {cache.__file__!r})
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        {before}
        found, reason = module.load_or_warn(Path({str(sources)!r}), {FLAGS!r}, ["answer"])
        print(found and found.answer(), reason)
    """
    return [sys.executable, "-c", textwrap.dedent(code)]


def elsewhere(sources, before=""):
    """Standard output, exit status and standard error of another process that loads the library."""
    done = subprocess.run(command(sources, before), capture_output=True, text=True, timeout=120)
    return done.stdout, done.returncode, done.stderr


def refused(result, capsys, *words):
    """There is no library, and one line says why."""
    found, reason = result
    assert found is None
    printed = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("compiling")]
    assert len(printed) == 1
    assert all(word in printed[0] and word in reason for word in words), printed


def test_a_library_is_compiled_once_and_is_the_users_alone(sources, home, capsys):
    found, path = loaded(sources)
    assert found.answer() == 42
    assert Path(path).parent == home / f"ops-{os.geteuid()}"
    assert stat.S_IMODE(Path(path).parent.stat().st_mode) == 0o700
    assert "compiling" in capsys.readouterr().err
    before = Path(path).stat().st_ino
    assert loaded(sources)[0].answer() == 42
    assert Path(path).stat().st_ino == before
    assert not capsys.readouterr().err


def test_two_processes_compile_once(sources, home):
    both = [subprocess.Popen(command(sources), stdout=-1, stderr=-1, text=True) for _ in range(2)]
    printed = [process.communicate(timeout=120) for process in both]
    assert printed[0][0] == printed[1][0]
    assert printed[0][0].startswith("42")
    assert sum("compiling" in messages for _, messages in printed) == 1
    assert [path.suffix for path in (home / f"ops-{os.geteuid()}").iterdir() if path.suffix != ".lock"] == [".so"]


def cut(file):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 3])


def without_symbols(file):
    """Write a library without our functions."""
    subprocess.run(["c++", "-shared", "-x", "c++", "-o", str(file), "/dev/null"], check=True)


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        without_symbols,
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(os.urandom(5000)),
        lambda file: file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:]),
        lambda file: (file.unlink(), os.mkfifo(file)),
        lambda file: (file.unlink(), file.symlink_to("/usr/lib/anything.so")),
        lambda file: file.chmod(0o666),
    ],
    ids=["cut off", "another", "empty", "noise", "one bit", "a pipe", "a link", "open to others"],
)
def test_a_damaged_file_is_compiled_anew(damage, sources, home):
    assert elsewhere(sources)[0].startswith("42")
    (file,) = (home / f"ops-{os.geteuid()}").glob("*.so")
    damage(file)
    printed, status, messages = elsewhere(sources)
    assert (printed.split()[0], status) == ("42", 0)
    assert "compiling" in messages
    assert not elsewhere(sources)[2]  # the file is sound again


def test_what_another_user_could_have_planted_is_not_loaded(sources, home, tmp_path, capsys):
    folder = Path(loaded(sources)[1]).parent
    capsys.readouterr()
    folder.chmod(0o777)
    refused(loaded(sources), capsys, str(folder), "others", "CONVNEXT_CACHE")
    folder.chmod(0o700)
    folder.rename(tmp_path / "theirs")
    folder.symlink_to(tmp_path / "theirs")
    refused(loaded(sources), capsys, str(folder), "remove it")
    folder.unlink()
    folder.write_text("")
    refused(loaded(sources), capsys, str(folder), "remove it")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of another user")
def test_what_belongs_to_another_user_is_not_loaded(sources, home, capsys):
    _, path = loaded(sources)
    os.chown(path, 12345, 12345)
    capsys.readouterr()
    assert loaded(sources)[0].answer() == 42
    assert "compiling" in capsys.readouterr().err
    assert Path(path).stat().st_uid == 0
    os.chown(Path(path).parent, 12345, 12345)
    refused(loaded(sources), capsys, "another user")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without a home directory")
def test_no_home_directory(sources):
    forget = 'os.environ.pop("HOME", None); os.environ.pop("CONVNEXT_CACHE", None); os.setuid(54321)'
    with tempfile.TemporaryDirectory() as folder:  # that this user can read
        Path(folder).chmod(0o755)
        printed, status, messages = elsewhere(shutil.copytree(sources, Path(folder, "csrc")), forget)
    assert (printed.split()[0], status) == ("None", 0)
    assert "home directory" in messages
    assert "CONVNEXT_CACHE" in messages
    assert len(messages.splitlines()) == 1


@pytest.mark.parametrize("folder", ["/proc/cache", "/dev/null/cache", "~nobodyofthatname/cache"])
def test_a_cache_that_can_not_be_written(folder, sources, home, capsys, monkeypatch):
    monkeypatch.setenv("CONVNEXT_CACHE", folder)
    refused(loaded(sources), capsys, "CONVNEXT_CACHE")


def test_a_cache_that_can_only_be_read_is_read(sources, home, monkeypatch):
    _, path = loaded(sources)
    Path(path).with_suffix(".lock").unlink()
    Path(path).parent.chmod(0o500)
    monkeypatch.setattr(cache, "_compile", None)  # would be an error
    assert loaded(sources)[0].answer() == 42


@pytest.mark.parametrize("named", ["{} -O1 -DNDEBUG", "env {}", "'{}'"])
def test_cxx_may_have_arguments(named, sources, home, monkeypatch):
    monkeypatch.setenv("CXX", named.format(shutil.which("c++")))
    assert loaded(sources)[0].answer() == 42


@pytest.mark.parametrize(
    ("named", "word"),
    [("/nowhere/c++", "not there"), ("nothing -O1", "not there"), ("'", "can't be read"), ("true", "No such file"), ("false", "status 1")],
)
def test_an_unusable_compiler(named, word, sources, home, capsys, monkeypatch):
    monkeypatch.setenv("CXX", named)
    refused(loaded(sources), capsys, word)


def test_an_error_of_the_compiler_is_one_line(sources, home, capsys):
    (sources / "two.cpp").write_text("#include <nothing.h>\n")
    refused(loaded(sources), capsys, "nothing.h")


@pytest.mark.parametrize("hangs", ["always", "when it compiles"])
def test_a_compiler_that_hangs_is_given_up_with_what_it_started(hangs, sources, home, tmp_path, capsys, monkeypatch):
    script, pid = tmp_path / "slow-c++", tmp_path / "pid"
    unless = "" if hangs == "always" else '[ "$1" = --version ] && exit 0; '
    script.write_text(f"#!/bin/sh\n{unless}sleep 600 & echo $! >{shlex.quote(str(pid))}; wait\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setattr(cache, "_VERSION_TIMEOUT", 1)
    monkeypatch.setattr(cache, "_COMPILE_TIMEOUT", 1)
    refused(loaded(sources), capsys, "did not finish within 1 second")
    time.sleep(0.1)
    state = Path(f"/proc/{pid.read_text().strip()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_missing_functions_are_named(sources, home, capsys):
    refused(loaded(sources, "answer", "question"), capsys, "question")


def test_libraries_that_nobody_loads_are_deleted(sources, home):
    folder = Path(loaded(sources)[1]).parent
    old, new = folder / "0123456789abcdef.so", folder / "fedcba9876543210.so"
    for path in (old, new):
        path.write_bytes(b"")
    os.utime(old, (0, 0))
    (sources / "one.cpp").write_text('extern "C" int answer() { return 43; }\n')
    assert loaded(sources)[0].answer() == 43
    assert new.exists()
    assert not old.exists()
