"""Upload a trained network to the Hugging Face hub, with a card that describes it, its results and how to load it."""

import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NotRequired, TypedDict, cast

import huggingface_hub
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.errors import HTTPError as NetworkError  # type: ignore[attr-defined]  # httpx's, or its successor's
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from convnext import tasks
from convnext.data import hub
from convnext.data.download import without_secrets
from convnext.errors import ConvnextError, UsageError, nearest, writing
from convnext.models.load import weights_of_run
from convnext.models.registry import BACKBONES, find
from convnext.models.weights.convert import convert, is_in_transformers
from convnext.models.weights.download import OWN_FILE
from convnext.models.weights.files import read_weights
from convnext.models.weights.published import licence_of
from convnext.models.weights.tags.table import FREE, terms
from convnext.recipe import Recipe, load_recipe
from convnext.recipe.load import FITTED
from convnext.text import counted

log = logging.getLogger("convnext")

# The libraries that `push` can also write for, with what loads a repository there.
LIBRARIES = {
    "timm": 'import timm\n\nmodel = timm.create_model("hf-hub:{repository}", pretrained=True)',
    "transformers": "from transformers import pipeline\n\n"
    'classify = pipeline("image-classification", model="{repository}")\nprint(classify("photo.jpg"))',
}
_COPIED = ("recipe.yaml", "evaluation.json")
_MAX_CLASSES = 100  # that a card lists


class RunDescription(TypedDict):
    """What the weight file of a finished run says of itself, as far as a card needs it."""

    model: Mapping[str, object]
    classes: list[str]
    metrics: dict[str, float]
    step: int
    source: NotRequired[str]
    calibration: NotRequired[dict[str, object] | None]


def push(
    run: Path, repository: str, license_name: str, private: bool = False, dry_run: Path | None = None, library: str | None = None
) -> str:
    """Upload a run's best weights with a model card, or write the folder that would be uploaded.

    Args:
        run: a run folder.
        repository: `owner/name` on the hub; created if it does not exist.
        license_name: the licence of the weights, by the hub's name: apache-2.0, mit, cc-by-nc-4.0, …
        private: create the repository so that only its owner sees it; an existing one stays as it is.
        dry_run: a new or empty folder to write into; nothing is uploaded.
        library: "timm" or "transformers", to add the same weights with all that this library needs to load them by the repository's name.

    Returns: the address of the repository, or the folder.

    Raises UsageError for a name that the hub refuses and a folder that is in use, ConvnextError for a run that is not finished
    and if the hub refuses.
    """
    if library is not None and library not in LIBRARIES:
        raise UsageError(f"unknown format {library!r}{nearest(library, LIBRARIES)}")
    repository = repository.removeprefix("hf://")
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UsageError(f"{repository!r} is not a valid name on the hub: {str(error).splitlines()[0]}") from error
    if repository.count("/") != 1:
        raise UsageError(f"{repository!r} is not a valid name on the hub: give owner/name")
    if dry_run is not None:
        if dry_run.exists() and (not dry_run.is_dir() or any(dry_run.iterdir())):
            raise UsageError(f"{dry_run} is in use: name a new folder")
        _fill(dry_run, run, repository, license_name, library)
        return str(dry_run)
    with tempfile.TemporaryDirectory() as folder:
        _fill(Path(folder), run, repository, license_name, library)
        try:
            api = huggingface_hub.HfApi(library_name="convnext")
            address = api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Weights, recipe and results by convnext push")
        except (HfHubHTTPError, NetworkError, OSError, ValueError) as error:  # ValueError: a card that it refuses
            reason = " ".join(str(error).split())
            raise ConvnextError(f"the hub did not accept {repository}: {reason}; `hf auth login` logs this machine in") from error
    return str(address)


def _fill(folder: Path, run: Path, repository: str, license_name: str, library: str | None) -> None:
    weights = weights_of_run(run)
    _, about = read_weights(weights)
    missing = [name for name in _COPIED if not (run / name).is_file()]
    if missing or "metrics" not in about:
        raise ConvnextError(f"{run} is not a finished run: it lacks {missing[0] if missing else f'results in {weights.name}'}")
    recipe = load_recipe(str(run / "recipe.yaml"), written=True)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(weights, folder / OWN_FILE)
        for name in _COPIED:
            (folder / name).write_text(without_secrets((run / name).read_text(encoding="utf-8")), encoding="utf-8")
        (folder / "README.md").write_text(
            card(cast(RunDescription, about), recipe, repository, license_name, (run / FITTED).is_file(), library), encoding="utf-8"
        )
        if library is not None:
            convert(str(run), folder, library)
    given = _restricting(cast(RunDescription, about), recipe)
    if given is not None and given != license_name:
        log.warning("%s starts from weights with the licence %s, and --license says %s: see the card", run, terms(given), license_name)


def card(
    about: RunDescription, recipe: Recipe, repository: str, license_name: str, fitted: bool = False, library: str | None = None
) -> str:
    """Return the model card: the hub's metadata as YAML, then Markdown.

    Args:
        about: the description in the weight file.
        recipe: of the run.
        repository: owner/name.
        license_name: by the hub's name.
        fitted: whether `convnext fit` made the run.
        library: another library that can load the repository, see `push`.
    """
    task, name = tasks.get(recipe.task), str(about["model"]["name"])
    held_out = f"cross-validation over {recipe.data.train}" if fitted else f"{recipe.data.val_fraction:.0%} of {recipe.data.train}"
    metrics, data = about["metrics"], recipe.data.val or held_out
    how = "a head fitted by `convnext fit`" if fitted else "trained with convnext by the recipe in `recipe.yaml`"
    where = (
        f"with the weights in `{OWN_FILE}`" if fitted else f"at step {about['step']}, with the weights in `{OWN_FILE}`, the best of the run"
    )
    start = about.get("source") or _started_from(recipe)
    header = ModelCardData(
        license=license_name,
        library_name=library or "convnext",
        pipeline_tag=task.hub_pipeline,
        tags=["convnext", "pytorch", name],
        base_model=hub.parse(start).repository if start and start.startswith("hf://") else None,
        model_name=repository.split("/")[1],
        eval_results=[EvalResult(task.hub_pipeline, data, data, key, round(value, 4)) for key, value in metrics.items() if key != "count"],
    )
    rows = "\n".join(f"| {key} | {value:.4g} |" if key != "count" else f"| images | {value} |" for key, value in metrics.items())
    classes = about["classes"]
    listed = ", ".join(map(str, classes[:_MAX_CLASSES])) + (
        f" and {len(classes) - _MAX_CLASSES} more" if len(classes) > _MAX_CLASSES else ""
    )
    given, calibration = _restricting(about, recipe), about.get("calibration")
    parts = [
        f"---\n{header.to_yaml()}\n---",
        f"# {repository.split('/')[1]}",
        f"A `{name}`, {how}" + (f", from the weights `{start}`" if start else ", from random weights") + ".",
        f"## Results\n\n{task.summary_line(metrics)} on {data}, {where}. `evaluation.json` has all of the run's last evaluation."
        f"\n\n| | |\n| --- | --- |\n{rows}",
        *([f"## Licence\n\n{_warning(given)}"] if given is not None else []),
        f"## Data\n\nTrained on {recipe.data.train}, tested on {data}. {counted(len(classes), 'class')}: {listed}.",
        f"## Use\n\n{_use(repository, name, library)}",
        *([f"## What it knows of its predictions\n\n{_known(repository, calibration)}"] if calibration else []),
    ]
    return "\n\n".join(parts) + "\n"


def _restricting(about: RunDescription, recipe: Recipe) -> str | None:
    """Return the licence of the weights that training started from, if it restricts their use."""
    start = about.get("source") or _started_from(recipe)
    licence = None if start is None else licence_of(start)
    return None if licence in FREE else licence


def _warning(licence: str) -> str:
    return (
        f"The weights that training started from have the licence {terms(licence)}. Its terms may bind the weights in this repository too: "
        "read them before you use these."
    )


def _started_from(recipe: Recipe) -> str | None:
    weights = recipe.model.weights
    return without_secrets(find(recipe.model.name).weights.get(weights, weights)) if weights is not None else None


def _known(repository: str, calibration: Mapping[str, object]) -> str:
    """Return what the options for a calibrated network give; `calibration` has its lists."""
    options = {
        "--coverage 0.95": "a set of classes, which holds the true one for at least 95 % of images like those of the training data",
        "--unknown": "whether an image is unlike the training images",
    }
    has = [option for option, key in zip(options, ("scores", "distances"), strict=True) if calibration[key]]
    listed = "\n".join(f"- `{option}` prints {options[option]}." for option in has)
    return f"The weights are calibrated:\n\n{listed}\n\n```\nconvnext predict hf://{repository} photo.jpg {' '.join(has)}\n```"


def _use(repository: str, name: str, library: str | None) -> str:
    ours = f'```python\nimport convnext\n\npredictor = convnext.load("hf://{repository}")\nprint(predictor("photo.jpg").to_text())\n```'
    if library is not None:
        return f"{ours}\n\nThe same weights in {library}:\n\n```python\n{LIBRARIES[library].format(repository=repository)}\n```"
    targets: tuple[str, ...] = ()
    if (entry := BACKBONES.get(name)) is not None and entry.has_pyramid:  # no other library has these networks under our names
        targets = {None: ("timm", "transformers"), "timm": ("timm",)}.get(entry.format, ())
        if not is_in_transformers(entry):
            targets = targets[:1]
    if not targets:
        return ours
    outputs = {"timm": "model.safetensors", "transformers": "folder-for-from_pretrained"}
    commands = "\n".join(f"convnext convert hf://{repository} {outputs[target]} --to {target}" for target in targets)
    return f"{ours}\n\nTo convert it for other libraries:\n\n```\n{commands}\n```"
