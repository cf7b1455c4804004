"""The results of `convnext bench` for a terminal."""

from convnext.data.transforms.preprocessing import size_text
from convnext.paper.bench import BenchReport, BenchResult, Spread
from convnext.report import tables
from convnext.report.tables import Column
from convnext.training.folder.environment import Environment

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


def plain(report: BenchReport) -> str:
    """Return where and how the speeds were measured, one line per result, and remarks below."""
    setting = report.setting
    layout, compiled = "channels-last" if setting.channels_last else "contiguous", ", compiled" if setting.compile else ""
    how = f"{size_text(setting.image_size)} pixels, {setting.dtype}, {layout}{compiled}; median of the rounds (min to max)"
    rows = [_row(result) for result in report.results]
    return "\n".join([*machine(report.environment), how, "", tables.plain(_COLUMNS, rows), *report.remarks])


def machine(environment: Environment) -> list[str]:
    """Return hardware and versions of a run's environment, one line each."""
    hardware, versions = environment["hardware"], environment["versions"]
    where = f"{hardware['gpu'] or hardware['cpu']}, {hardware['cores']} cores, {hardware['threads']} threads, on {hardware['device']}"
    return [where, ", ".join(f"{name} {number}" for name, number in versions.items())]


def _row(result: BenchResult) -> dict[str, object]:
    ratio, memory, error = result.ratio, result.peak_memory, result.relative_error
    return {
        "name": result.name,
        "library": result.library,
        "mode": result.mode,
        "batch_size": result.batch_size,
        "speed": _spread(result.images_per_second, 1),
        "rounds": result.rounds,
        "memory": None if memory is None else memory / 2**20,
        "ratio": None if ratio is None else f"{_spread(ratio, 2)} {result.ratio_to}",
        "error": None if error is None else f"{error:.1e}",
    }


def _spread(spread: Spread, digits: int) -> str:
    return f"{spread.median:.{digits}f} ({spread.least:.{digits}f} to {spread.most:.{digits}f})"
