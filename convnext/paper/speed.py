"""What `convnext bench` measured, for a terminal. Takes the plain values of its report."""

from collections.abc import Mapping
from typing import Any

from convnext.report import tables
from convnext.report.tables import Column

_COLUMNS = [
    Column("name", "network"),
    Column("library", "from"),
    Column("mode", "mode"),
    Column("batch_size", "batch"),
    Column("speed", "images/s"),
    Column("rounds", "rounds"),
    Column("memory", "MiB", 0),
    Column("ratio", "times the speed of"),
    Column("error", "outputs differ"),
]


def plain(report: Mapping[str, Any]) -> str:
    """Where and how it was measured, a line a result, remarks below."""
    setting, rows = report["setting"], []
    for result in report["results"]:
        ratio, memory, error = result["ratio"], result["peak_memory"], result["relative_error"]
        told = {
            "speed": _spread(result["images_per_second"], 1),
            "memory": None if memory is None else memory / 2**20,
            "ratio": None if ratio is None else f"{_spread(ratio, 2)} {result['ratio_to']}",
            "error": None if error is None else f"{error:.1e}",
        }
        rows.append({**result, **told})
    layout, compiled = "channels-last" if setting["channels_last"] else "contiguous", ", compiled" if setting["compile"] else ""
    how = f"{setting['image_size']} pixels, {setting['dtype']}, {layout}{compiled}; median of the rounds (least to most)"
    return "\n".join([*machine(report["environment"]), how, "", tables.plain(_COLUMNS, rows), *report["remarks"]])


def machine(environment: Mapping[str, Any]) -> list[str]:
    """Hardware and versions of a run's environment, a line each."""
    hardware, versions = environment["hardware"], environment["versions"]
    where = f"{hardware['gpu'] or hardware['cpu']}, {hardware['cores']} cores, {hardware['threads']} threads, on {hardware['device']}"
    return [where, ", ".join(f"{name} {number}" for name, number in versions.items())]


def _spread(spread: Mapping[str, float], digits: int) -> str:
    return f"{spread['median']:.{digits}f} ({spread['least']:.{digits}f} to {spread['most']:.{digits}f})"
