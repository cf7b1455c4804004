"""Runs as plain values of their folders' files. Nothing here knows of training."""

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from convnext.errors import ConvnextError, UsageError
from convnext.report import metrics
from convnext.report.lines import LogLine, number, points, read_file, read_lines

NONE = "–"  # where a run has no such value
Values = Mapping[str, object]


@dataclass(frozen=True)
class RunData:
    """A run, read from its folder."""

    name: str
    recipe: Values
    environment: Values
    lines: Sequence[LogLine]  # of metrics.jsonl
    remarks: Sequence[str] = field(default_factory=list)  # what the reader should know of them

    def section(self, name: str) -> Values:
        """Return a section of the recipe; an empty one where the recipe has none."""
        found = self.recipe.get(name)
        return found if isinstance(found, Mapping) else {}

    def points(self, kind: str, key: str) -> list[tuple[float, float]]:
        """Return (epoch, value) of each "train" or "eval" line that has a number under the key."""
        return points(self.lines, kind, key)

    def best(self, headline: str) -> tuple[float, float] | None:
        """Return (epoch, value) of the best evaluation, the first of several; None without evaluations."""
        found = self.points("eval", headline)
        wanted = metrics.best(headline, [value for _, value in found]) if found else None
        return next((point for point in found if point[1] == wanted), None)

    def end(self, key: str) -> float:
        """Return the largest "epoch" or "step" that was logged."""
        return max((found for line in self.lines if (found := number(line, key)) is not None), default=0)

    def speed(self) -> float | None:
        """Return images per second in training, the median of what was logged; None without training lines."""
        speeds = [value for _, value in self.points("train", "images_per_second")]
        return statistics.median(speeds) if speeds else None

    def validation_count(self, headline: str) -> float | None:
        """Return the number of images of the last evaluation; None where it is not known."""
        counts = [number(line, "count") for line in self.lines if line["kind"] == "eval" and headline in line]
        return counts[-1] if counts else None

    def validation_set(self) -> tuple[object, ...]:
        """Return what the validation images were, as the recipe names them: equal for runs that were evaluated on the same ones."""
        data = self.section("data")
        if (named := data.get("val")) is not None:
            return (named,)
        chosen = (data.get("val_fraction"), self.recipe.get("seed") if data else None) if data.get("fold") is None else (data["fold"],)
        return data.get("train"), *chosen, data.get("group_column"), data.get("group")

    def fold(self) -> tuple[str, str] | None:
        """Return the fold of a cross-validation that was held out and the number of folds, as the recipe has them: ("2", "5")."""
        number, slash, count = str(self.section("data").get("fold")).partition("/")
        return (number, count) if slash else None

    def model(self) -> str:
        """Return the model's name."""
        return str(self.section("model").get("name", NONE))

    def hardware(self) -> str:
        """Return the GPU's name, or the CPU's where there is no GPU."""
        found = self.environment.get("hardware")
        hardware = found if isinstance(found, Mapping) else {}
        return str(hardware.get("gpu") or hardware.get("cpu") or NONE)


def read_runs(paths: Sequence[Path]) -> list[RunData]:
    """Return the runs of these folders, each once, in this order. Folders of the same name are named with their parents."""
    folders = list(dict.fromkeys(path.resolve() for path in paths))
    depth = dict.fromkeys(folders, 1)
    while True:
        names = {folder: "/".join(folder.parts[-depth[folder] :]) for folder in folders}
        shared = [folder for folder in folders if Counter(names.values())[names[folder]] > 1]
        if not shared:
            return [replace(read_run(folder), name=names[folder]) for folder in folders]
        for folder in shared:
            depth[folder] += 1


def read_run(path: Path) -> RunData:
    """Return the run of a folder, named after it.

    A last line of metrics.jsonl that is cut short, because the run was killed while it wrote, is skipped and noted in `remarks`.

    Raises UsageError if there is no such run, ConvnextError that names the file if one is missing or damaged.
    """
    path = path.resolve()
    if not (path / "recipe.yaml").is_file():
        raise UsageError(f"{path} holds no run: it has no recipe.yaml")
    try:
        recipe = yaml.safe_load(read_file(path / "recipe.yaml"))
    except yaml.YAMLError as error:
        raise ConvnextError(f"{path / 'recipe.yaml'} is damaged: {error}") from error
    try:
        environment = json.loads(read_file(path / "environment.json"))
    except ValueError as error:
        raise ConvnextError(f"{path / 'environment.json'} is damaged: {error}") from error
    for name, values in (("recipe.yaml", recipe), ("environment.json", environment)):
        if not isinstance(values, dict):
            raise ConvnextError(f"{path / name} is damaged: it holds no table of keys")
    lines, remarks = read_lines(path / "metrics.jsonl")
    return RunData(path.name, recipe, environment, lines, remarks)


def flat(values: Values, prefix: str = "") -> dict[str, str]:
    """Return dotted keys and their values as a recipe writes them."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return found
