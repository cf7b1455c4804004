"""Compile the CPU's fast operators: one library for each level of CPUs, when the package is installed.

`hatch_build.py` does so for a wheel and for an editable installation, `make` when a source is newer than the libraries, and so does
`python convnext/ops/compile.py`. This module needs the standard library only, and imports nothing of the package.
"""

import hashlib
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

SOURCES, LIBRARIES = Path(__file__).parent / "csrc", Path(__file__).parent / "lib"
RECORD = "build.json"  # beside the libraries: a digest of their sources, and why a level is missing
DETECTION = "cpu"  # reads the CPU's features: compiled for any CPU, so it is of no level

_AVX2 = ("-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2", "-mlzcnt", "-mmovbe", "-mpopcnt")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512cd", "-mavx512bw", "-mavx512dq", "-mavx512vl")
_AVX512_VNNI = (*_AVX512, "-mavx512vnni", "-mavx512vbmi")  # Ice Lake, Zen 4
# The instructions of each level, fastest last. A CPU runs a level if it has them all: build.FEATURES says how it reports each.
LEVELS = {
    "avx2": _AVX2,
    "avx2_vnni": (*_AVX2, "-mavxvnni"),  # Alder Lake and its successors
    "avx512": _AVX512,
    "avx512_vnni": _AVX512_VNNI,
    "amx": (*_AVX512_VNNI, "-mavx512bf16", "-mamx-tile", "-mamx-int8", "-mamx-bf16"),  # Sapphire Rapids
}
# Without GNU's unique symbols, variables in templates belong to one library: two levels can be loaded into one process.
_FLAGS = ("-O3", "-std=gnu++17", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-fopenmp", "-fno-gnu-unique")
# No -fopenmp here: OpenMP's functions stay undefined, and build.py finds them in the OpenMP that PyTorch has loaded.
_LINK = ("-shared", "-Wl,-Bsymbolic")
_TIMEOUT = 300  # seconds that the compiler may take for one file
_REMEDY = "install g++ 11 or newer, or name it in CXX, and reinstall"


class CompileError(Exception):
    """A library could not be compiled. The message continues "this installation has no compiled operators: "."""


def compile_all(folder: Path = LIBRARIES) -> dict[str, str]:
    """Compile all levels into a folder. Return for each level that is missing the reason; it is recorded in the folder too.

    No failure of a compiler raises an error: without compiled operators the package works with PyTorch's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="convnext-") as temporary, ThreadPoolExecutor(_cores()) as pool:
        try:
            compiler = _compiler()
            _compile(compiler, ("-O2", "-fPIC"), [SOURCES / f"{DETECTION}.cpp"], folder / f"{DETECTION}.so", Path(temporary), pool)
        except CompileError as error:
            missing = dict.fromkeys(LEVELS, str(error))
        else:
            files = [path for path in sorted(SOURCES.glob("*.cpp")) if path.stem != DETECTION]
            with ThreadPoolExecutor(len(LEVELS)) as levels:  # their threads only wait for those of the pool
                made = {
                    level: levels.submit(_compile, compiler, (*_FLAGS, *flags), files, folder / f"{level}.so", Path(temporary), pool)
                    for level, flags in LEVELS.items()
                }
            failed = {level: future.exception() for level, future in made.items()}
            missing = {level: str(error) for level, error in failed.items() if error is not None}
    for path in folder.glob("*.so"):
        if path.stem in missing or path.stem not in (*LEVELS, DETECTION) or len(missing) == len(LEVELS):
            path.unlink()
    _replace(folder / RECORD, json.dumps({"sources": digest(), "missing": missing}, indent=1).encode())
    return missing


def digest() -> str:
    """Return a hash of everything here that decides what the libraries contain."""
    files = [path for path in sorted(SOURCES.iterdir()) if path.suffix in (".h", ".cpp")]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in (*files, Path(__file__)))).hexdigest()


def recorded(folder: Path = LIBRARIES) -> tuple[str, dict[str, str]]:
    """Return the digest of the sources that the folder's libraries were compiled from, and the reason for each level that is missing."""
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
        return record["sources"], record["missing"]
    except (OSError, ValueError, KeyError, TypeError):  # never compiled, or damaged
        return "", dict.fromkeys(LEVELS, f"they are not compiled yet; in a source tree run make or python {Path(__file__)}, else reinstall")


def in_one_line(missing: dict[str, str]) -> str:
    """Return what to print about the levels that `compile_all` did not compile."""
    reasons = dict.fromkeys(missing.values())
    what = "no compiled operators" if len(missing) == len(LEVELS) else f"no compiled operators for {' and '.join(missing)}"
    return f"this installation has {what}: {'; '.join(reasons)}"


def _compiler() -> list[str]:
    """Return the command of the C++ compiler, with its arguments: CXX, or the first that is installed."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise CompileError("it was not built on Linux on x86-64, which they need")
    named = os.environ.get("CXX", "").strip()
    if not named:
        found = next(filter(shutil.which, ("g++", "c++")), None)
        if found is None:
            raise CompileError("it was built without a C++ compiler; install g++ and reinstall")
        return [found]
    try:
        command = [named] if shutil.which(named) else shlex.split(named)
    except ValueError as error:
        raise CompileError(f"CXX={named} can't be read ({error}); correct it and reinstall") from error
    if not command or shutil.which(command[0]) is None:
        raise CompileError(f"CXX={named} names a compiler that is not there; correct it, or unset CXX, and reinstall")
    return command


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1


def _compile(
    compiler: Sequence[str], flags: Sequence[str], sources: Sequence[Path], library: Path, temporary: Path, pool: ThreadPoolExecutor
) -> None:
    """Compile C++ files into one library, which appears at once as a whole. Raises CompileError."""
    objects = [str(temporary / f"{library.stem}-{source.stem}.o") for source in sources]
    commands = [[*compiler, *flags, "-c", str(source), "-o", made] for source, made in zip(sources, objects, strict=True)]
    running = [pool.submit(_run, command) for command in commands]
    try:
        for future in running:
            future.result()
    finally:
        for future in running:  # the first failure decides
            future.cancel()
    linked = temporary / library.name
    _run([*compiler, *_LINK, *objects, "-o", str(linked)])
    if not linked.exists():
        raise CompileError(f"{compiler[0]} made no library; {_REMEDY}")
    content = linked.read_bytes()
    if b"__kmpc_" in content:
        raise CompileError(f"{compiler[0]} compiles for LLVM's OpenMP, which is not PyTorch's; {_REMEDY}")
    _replace(library, content)


def _run(command: Sequence[str]) -> None:
    """Run a compiler. Raises CompileError if it fails or takes too long; then the processes that it started are ended too."""
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
    except OSError as error:
        raise CompileError(f"{command[0]} can't be run ({error.strerror}); {_REMEDY}") from error
    with process:
        try:
            errors = process.communicate(timeout=_TIMEOUT)[1]
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise CompileError(f"{command[0]} did not finish within {_TIMEOUT} s; {_REMEDY}") from error
            raise
    if process.returncode:
        lines = errors.decode(errors="replace").strip().splitlines() or [f"exit status {process.returncode}"]
        reason = next((line for line in lines if "error" in line), lines[0])
        raise CompileError(f"{command[0]} failed ({reason[:300]}); {_REMEDY}")


def _replace(path: Path, content: bytes) -> None:
    """Write a file, which appears at once as a whole. A process that has the earlier one loaded keeps it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def main() -> None:
    """Compile what is missing or older than its sources."""
    if recorded() == (digest(), {}) and all((LIBRARIES / f"{name}.so").exists() for name in (*LEVELS, DETECTION)):
        (LIBRARIES / f"{DETECTION}.so").touch()  # make compares times
        return
    print("== compiling the fast CPU operators (about 30 seconds on two cores)", flush=True)
    if missing := compile_all():
        print(f"convnext: {in_one_line(missing)}", file=sys.stderr)


if __name__ == "__main__":
    main()
