"""What a run runs on."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TypedDict

import torch

from convnext.data.download import without_secrets


class Hardware(TypedDict):
    """The machine."""

    cpu: str
    cores: int | None  # that this process may use
    memory_gib: float | None  # None where the system does not say it
    gpu: str | None
    device: str
    threads: int


class Environment(TypedDict):
    """What a run runs on, as environment.json holds it."""

    date: str
    versions: dict[str, str]
    hardware: Hardware
    system: str
    command: str
    commit: str | None


def environment(device: torch.device) -> Environment:
    """Return what a run on that device runs on, as plain values."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"convnext": version("convnext"), "python": platform.python_version(), "torch": torch.__version__},
        "hardware": {
            "cpu": _cpu_name(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "memory_gib": _memory_gib(),
            "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            "device": str(device),
            "threads": torch.get_num_threads(),
        },
        "system": platform.platform(),
        "command": without_secrets(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
        "commit": _commit(),
    }


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf, and not every system these names
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str | None:
    # Of this package if it runs from a checkout; an installed one is identified by its version.
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        tracked = subprocess.run([*command[:3], "ls-files", "--error-unmatch", __file__], capture_output=True, check=False)
        if tracked.returncode:
            return None
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    except OSError:
        return None
    return done.stdout.strip() or None
