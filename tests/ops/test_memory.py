"""The scratch buffers of the compiled operators: each thread has its own, which is freed when it ends."""

import shutil
import subprocess
import sys

import pytest

from convnext.ops import build
from convnext.ops.compile import SOURCES

PROGRAM = """
#include "memory.h"
#include <string.h>
extern "C" int touch(size_t bytes) {
    void *memory = scratch_buffer(bytes);
    if (!memory) return 1;
    memset(memory, 1, bytes);
    return scratch_buffer(bytes / 2) == memory && scratch_buffer<1>(64) != memory ? 0 : 2;
}
"""


# In a process of its own: in this one other tests have tuned the C library and filled its heap.
GROWN = '''
import ctypes, sys
from pathlib import Path
from threading import Thread


def resident():
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def grown(run, threads):
    """Return by how many bytes so many threads, one after the other, have grown the process."""
    before = resident()
    for _ in range(threads):
        thread = Thread(target=run)
        thread.start()
        thread.join()
    return resident() - before
'''

TOUCHED = (
    GROWN
    + """
touch = ctypes.CDLL(sys.argv[1]).touch
touch.argtypes = [ctypes.c_size_t]
found = []
growth = grown(lambda: found.append(touch(8 << 20)), 40)
assert growth < 64 << 20, growth  # of 320
assert set(found) == {0}
assert touch(1 << 60) == 1  # more than there is
assert touch(100) == 0  # and the next call works
"""
)

COMPUTED = (
    GROWN
    + """
import torch
import convnext
from convnext import ops

x, networks, found = torch.randn(2, 3, 64, 64), [convnext.create_model("convnext_atto", depths=(1, 1, 1, 1)).eval()], []


def run():
    with torch.inference_mode():
        found.append([bool(network(x).isfinite().all()) for network in networks])


with ops.using(True):
    networks.append(convnext.optimize(networks[0], "float32"))
    grown(run, 5)
    growth = grown(run, 40)
assert growth < 32 << 20, growth  # 4 MB a thread would be 160
assert found == [[True, True]] * 45
"""
)


def check(script, *arguments):
    done = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("c++") is None, reason="needs Linux and a C++ compiler")
def test_a_thread_leaves_nothing_behind(tmp_path):
    (tmp_path / "one.cpp").write_text(PROGRAM)
    command = ["c++", "-std=gnu++17", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-I", str(SOURCES)]
    subprocess.run([*command, str(tmp_path / "one.cpp"), "-o", str(tmp_path / "one.so")], check=True)
    check(TOUCHED, tmp_path / "one.so")


@pytest.mark.skipif(build.library() is None, reason=f"no compiled operators here: {build.reason()}")
def test_a_thread_that_ran_operators_leaves_nothing_behind():
    check(COMPUTED)
