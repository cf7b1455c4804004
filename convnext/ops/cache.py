"""Compiled libraries in the user's cache: compiled once, checked before every load, compiled again when damaged.

A library runs with the rights of the user who loads it. So it is in a folder that belongs to this user, and nothing that another user
could have put there is loaded. The SHA-256 of its bytes follows them, since mapping a truncated file ends the process with a bus error.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from convnext.errors import first_line
from convnext.text import counted

_VERSION_TIMEOUT, _COMPILE_TIMEOUT = 30, 300  # seconds that a compiler may take: to print its version, and for one file
_MAX_UNUSED = 30 * 24 * 3600  # seconds after which a library that no process loaded is deleted


class NoCompilerError(Exception):
    """No C++ compiler is installed: an expected state, reported without a warning."""


class BuildError(Exception):
    """The library could not be compiled, or must not be loaded."""


def load_or_warn(sources: Path, flags: Sequence[str], functions: Iterable[str]) -> tuple[ctypes.CDLL | None, str]:
    """Return the library and its path, or None and the reason. Every failure is printed in one line and ends no process."""
    try:
        return load(sources, flags, functions)
    except NoCompilerError as error:
        return None, str(error)
    except Exception as error:  # any failure of files, compilers and systems
        reason = first_line(error)
        with suppress(OSError):
            print(f"convnext: the fast CPU operators are off, PyTorch's run instead: {reason}", file=sys.stderr, flush=True)
        return None, reason


def load(sources: Path, flags: Sequence[str], functions: Iterable[str]) -> tuple[ctypes.CDLL, str]:
    """Return the library of the C++ files in the folder `sources`, compiled if the cache has no sound one, and its path.

    Raises NoCompilerError, BuildError (also if one of `functions` is missing), OSError and RuntimeError (no home directory).
    """
    compiler = _compiler()
    name = f"{_fingerprint(compiler, sources, flags)}.so"
    path, descriptor = _own_folder() / name, None
    with _opened_folder(path.parent) as folder:
        if (descriptor := _sound(folder, name)) is None:
            with _only_builder(path) as alone:
                if (descriptor := _sound(folder, name)) is None:
                    if not alone:
                        raise BuildError("the process that was compiling them stopped before it had finished")
                    _delete_unused(folder)
                    _store(folder, name, _compile(compiler, sources, flags))
                    descriptor = _sound(folder, name)
    if descriptor is None:
        raise BuildError(f"{path} is damaged as soon as it is written: check the disk")
    # By its descriptor, so that the file that was checked is loaded, even if its path was replaced. It stays open, since the loader
    # identifies a library by its name, here the descriptor's.
    found = ctypes.CDLL(f"/proc/self/fd/{descriptor}")
    if missing := [function for function in functions if not hasattr(found, function)]:
        raise BuildError(f"{path} lacks the functions {', '.join(missing)}: delete it")
    return found, str(path)


def _compiler() -> list[str]:
    """Return the command of the C++ compiler, with its arguments: CXX, or the first that is installed."""
    named = os.environ.get("CXX", "").strip()
    if not named:
        found = next(filter(shutil.which, ("c++", "g++", "clang++")), None)
        if found is None:
            raise NoCompilerError("there is no C++ compiler: install g++ (apt install g++), or name one in CXX")
        return [found]
    try:
        command = [named] if shutil.which(named) else shlex.split(named)
    except ValueError as error:
        raise BuildError(f"CXX={named} can't be read: {error}") from error
    if not command or shutil.which(command[0]) is None:
        raise BuildError(f"CXX={named} names a compiler that is not there: correct it, or unset CXX")
    return command


def _fingerprint(compiler: Sequence[str], sources: Path, flags: Sequence[str]) -> str:
    """Return a hash of everything that decides the compiler's result."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_bytes().splitlines() if line.startswith(b"flags")), b"")
    parts = [_run([*compiler, "--version"], _VERSION_TIMEOUT), " ".join([*compiler[1:], *flags]).encode(), platform.machine().encode(), cpu]
    parts += [path.read_bytes() for path in sorted(sources.iterdir()) if path.suffix in (".h", ".cpp")]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _own_folder() -> Path:
    """Return the user's folder for libraries; create it if it does not exist."""
    try:
        cache = Path(os.environ.get("CONVNEXT_CACHE") or "~/.cache/convnext").expanduser()
    except RuntimeError as error:
        raise BuildError("there is no home directory to keep them in: name a folder in CONVNEXT_CACHE") from error
    folder = cache / f"ops-{os.geteuid()}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
    except OSError as error:
        raise BuildError(f"{folder} can't be made ({error.strerror}): name a folder in CONVNEXT_CACHE that can be written") from error
    return folder


@contextmanager
def _opened_folder(path: Path) -> Iterator[int]:
    """Yield a descriptor of the folder, so that all file operations are in the folder that was checked."""
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise BuildError(f"{path} is not a folder that can be opened ({error.strerror}): remove it") from error
    try:
        if not _is_own(os.fstat(folder)):
            raise BuildError(f"{path} belongs to another user or can be written by others: remove it, or name a folder in CONVNEXT_CACHE")
        yield folder
    finally:
        os.close(folder)


def _is_own(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _sound(folder: int, name: str) -> int | None:
    """Return a descriptor of the library of that name; None if it is missing, damaged or belongs to another user."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode) and _is_own(status):
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read()
            size = hashlib.sha256().digest_size
            if len(content) > size and hashlib.sha256(content[:-size]).digest() == content[-size:]:
                with suppress(OSError):  # fails in a read-only cache
                    os.utime(descriptor)
                return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


@contextmanager
def _only_builder(path: Path) -> Iterator[bool]:
    """Within, no other process compiles this library. Yields False if another did so while this one waited."""
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
        alone = True
    except Timeout:
        lock.acquire(timeout=2 * _COMPILE_TIMEOUT)
        alone = False
    try:
        yield alone
    finally:
        lock.release()


def _compile(compiler: Sequence[str], sources: Path, flags: Sequence[str]) -> bytes:
    print("compiling the fast CPU operators, once on this machine (about 10 seconds)", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="convnext-") as temporary, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = {source: str(Path(temporary, f"{source.stem}.o")) for source in sorted(sources.glob("*.cpp"))}
        commands = [[*compiler, *flags, "-c", str(source), "-o", made] for source, made in objects.items()]
        for _ in pool.map(_run, commands, [_COMPILE_TIMEOUT] * len(commands)):
            pass
        library = Path(temporary, "library.so")
        _run([*compiler, *flags, "-shared", *objects.values(), "-o", str(library)], _COMPILE_TIMEOUT)
        return library.read_bytes()


def _run(command: Sequence[str], seconds: int) -> bytes:
    """Return the standard output of a command. Raises BuildError if it fails or takes longer than `seconds`."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            output, errors = process.communicate(timeout=seconds)
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also the compiler's own child processes
            if isinstance(error, subprocess.TimeoutExpired):
                raise BuildError(f"{shlex.join(command)[:200]} did not finish within {counted(seconds, 'second')}") from error
            raise
    if process.returncode:
        lines = errors.decode(errors="replace").strip().splitlines() or [f"exit status {process.returncode}"]
        reason = next((line for line in lines if "error" in line), lines[0])
        raise BuildError(f"{command[0]} failed: {reason[:300]}")
    return output


def _store(folder: int, name: str, content: bytes) -> None:
    """Write the library and its hash, atomically."""
    temporary = f".{name}.{os.getpid()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600, dir_fd=folder)
    try:
        with open(descriptor, "wb") as file:
            file.write(content + hashlib.sha256(content).digest())
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise


def _delete_unused(folder: int) -> None:
    """Delete libraries that no process has loaded for 30 days: those of earlier versions and compilers."""
    for name in os.listdir(folder):
        with suppress(OSError):
            if time.time() - os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime > _MAX_UNUSED:
                os.unlink(name, dir_fd=folder)
