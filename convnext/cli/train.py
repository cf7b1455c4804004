"""Commands that train: demo, train, roadmap, recipes; and report, which compares what they left."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from convnext import tasks
from convnext.cli.common import Device, Json, add_command, app, check_data, print_json, recipe_keys
from convnext.errors import UsageError

recipes_app = typer.Typer(help="List recipes, show one as it resolves, list all keys.", invoke_without_command=True)
app.add_typer(recipes_app, name="recipes", rich_help_panel="Train")


def _recipe_names(incomplete: str) -> list[str]:
    from convnext.recipe import list_recipes

    return [name for name in list_recipes() if name.startswith(incomplete)]


@add_command("Start", "convnext demo", "convnext demo --task detect --output runs/scenes")
def demo(
    task: Annotated[str, typer.Option(help=f"What to show: {', '.join(tasks.names())}.", autocompletion=tasks.names)] = "classify",
    output: Annotated[Path | None, typer.Option(help="The run folder; by default a fresh one under runs/.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the last demo, if it was stopped.")] = False,
    device: Device = None,
) -> None:
    """Train, evaluate and predict on embedded data, in minutes."""
    from convnext.cli.demo import demo as run_demo

    result = run_demo(task, output, device, resume)
    print(f"{tasks.get(task).summary_line(result.metrics)} on the held-out images, in {result.seconds:.0f} s")
    print(f"report: {result.folder / 'report.html'}    image: {result.folder / 'predictions.png'}")
    print("next:")
    for command in tasks.get(task).demo_next:
        print(f"  {command.format(run=result.folder)}")


@add_command(
    "Train", "convnext train digits --output runs/digits", "convnext train finetune --output runs/mine data.train=photos train.epochs=5"
)
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (`convnext recipes`) or a YAML file.", autocompletion=_recipe_names)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Changes, as train.epochs=4; `convnext recipes keys` explains every key.", autocompletion=recipe_keys),
    ] = None,
    output: Annotated[Path, typer.Option(help="The run folder to make.")] = ...,  # type: ignore[assignment]
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the folder, if it holds one.")] = False,
    change: Annotated[bool, typer.Option("--change", help="Resume although the recipe or the data changed.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in the folder.")] = False,
    watch: Annotated[list[str] | None, typer.Option(help="Also send the metrics to tensorboard, trackio or wandb.")] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Train by a recipe, into a run folder: weights, metrics, a report."""
    from convnext.training.folder.run_paths import check_start

    check_start(recipe, overrides or [], output=output, resume=resume, overwrite=overwrite, device=device)
    from convnext.distributed import is_main, process_group
    from convnext.training.run import train as run  # loads PyTorch

    with process_group(device):
        result = run(
            recipe, overrides or [], output=output, resume=resume, change=change, overwrite=overwrite, watch=watch or [], device=device
        )
        if as_json and is_main():
            print_json(result.to_json())


@add_command(
    "Train",
    "convnext roadmap --data digits --scale small --seeds 1 train.epochs=4",
    "convnext roadmap --data imagenet --regime t --steps 1,16",
)
def roadmap(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Changes to the recipe, as train.epochs=4.", autocompletion=recipe_keys),
    ] = None,
    data: Annotated[str | None, typer.Option(help="A folder that holds train and val (folders or shards), or digits, cifar10, …")] = None,
    output: Annotated[Path, typer.Option(help="The folder of all runs; finished runs there are kept.")] = Path("runs/roadmap"),
    regime: Annotated[Literal["t", "b"], typer.Option(help="t: ResNet-50 to ConvNeXt-T; b: ResNet-200 to ConvNeXt-B.")] = "t",
    scale: Annotated[Literal["full", "small"], typer.Option(help="small: narrow networks for small images.")] = "full",
    steps: Annotated[str | None, typer.Option(help="Which steps, as 1,3,9-12; by default all.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs per step.")] = 3,
    device: Annotated[list[str] | None, typer.Option(help="Trains one run at a time; by default all CUDA devices.")] = None,
    as_json: Json = False,
) -> None:
    """Train each step from ResNet to ConvNeXt and compare the accuracy."""
    if data is not None:
        check_data(data)
    from dataclasses import asdict

    from convnext.data.sources.open import train_and_val
    from convnext.paper import ladder
    from convnext.paper.roadmap import parse_steps, walk

    where = [] if data is None else [f"data.{part}={source}" for part, source in zip(("train", "val"), train_and_val(data), strict=True)]
    found = walk(
        [*where, *(overrides or [])],
        output=output,
        regime=regime,
        small=scale == "small",
        steps=parse_steps(steps) if steps else None,
        seeds=seeds,
        devices=device or [],
        report=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if as_json:
        print_json(asdict(found))
    else:
        print(ladder.markdown(found))
        print(f"report: {output / 'report.html'}    figure: {output / 'roadmap.png'}")


@add_command("Train", "convnext report runs/first runs/second", "convnext report runs/* --output compared.html")
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, finished or not.")],
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
) -> None:
    """Compare runs on one page that opens offline."""
    for path in runs:
        if not (path / "recipe.yaml").is_file():
            raise UsageError(f"{path} holds no run: it has no recipe.yaml")
    from convnext.models.weights.files import write_text
    from convnext.recipe import Recipe
    from convnext.report.compare import compare
    from convnext.report.runs import read_runs

    found = read_runs(runs)
    kinds = {str(run.recipe.get("task", Recipe.model_fields["task"].default)) for run in found}
    if len(kinds) > 1:
        raise UsageError(f"runs of different tasks have no metric in common: {', '.join(sorted(kinds))}")
    page = compare(found, tasks.get(kinds.pop()).headline)
    write_text(output, page)
    print(output)


@recipes_app.callback()
def recipes(context: typer.Context) -> None:
    """List recipes."""
    if context.invoked_subcommand is None:
        from convnext.recipe import list_recipes, recipe_text

        for name in list_recipes():
            comment = recipe_text(name).split("\n", 1)[0].lstrip("# ")
            print(f"{name:30} {comment}")


@add_command(None, "convnext recipes show finetune", "convnext recipes show finetune train.epochs=5", name="show", of=recipes_app)
def show_recipe(
    name: Annotated[str, typer.Argument(help="A recipe's name or a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to it, for instance train.epochs=4.")] = None,
) -> None:
    """Print a recipe as it resolves, defaults included."""
    from convnext.recipe import load_recipe, recipe_text

    comments = [line for line in recipe_text(name).splitlines() if line.startswith("#")]
    print("\n".join([*comments, load_recipe(name, overrides or []).to_yaml()]), end="")


@add_command(None, "convnext recipes keys", "convnext recipes keys | grep augment", name="keys", of=recipes_app)
def list_keys() -> None:
    """List every key of a recipe with what it means."""
    from convnext.recipe import keys

    for key, description in keys().items():
        print(f"{key:26} {description}")
    print(f"{'model.…':26} every other argument of the model, for instance masks of mask_rcnn_convnext_tiny")
