"""The command that shows why a network says what it says: explain."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from convnext.cli.common import MODEL, Device, Json, Weights, app, bar, print_json
from convnext.errors import ConvnextError, UsageError
from convnext.text import printable


@app.command()
def explain(
    model: Annotated[str, typer.Argument(help=MODEL)],
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Images, folders, patterns, shards; as for predict.")],
    output: Annotated[Path, typer.Option(help="The folder to write images and index.html into.")],
    weights: Weights = None,
    name: Annotated[str | None, typer.Option("--class", help="What speaks for this class; by default for the likeliest.")] = None,
    features: Annotated[bool, typer.Option("--features", help="Draw the maps of the network's stages too.")] = False,
    neighbours: Annotated[
        str | None, typer.Option(help="A data set whose most alike images to show: a folder, shards, digits:train.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many of them.")] = 8,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Show what in images speaks for a class, what the network's stages see, and what it takes to be alike."""
    from convnext.data.sources.open import open_source
    from convnext.explain.explainer import Explainer
    from convnext.inference.inputs import find_items
    from convnext.inference.predictor import load

    if output.suffix or output.is_file():
        raise UsageError(f"--output {output}: name a folder")
    items = find_items(images)
    source = open_source(neighbours) if neighbours is not None else None
    explainer = Explainer(load(model, weights, device=device), items, output, name, features, source, count)
    if not explainer.has_map:
        print("no activation maps: they are for classifiers in PyTorch that pool a map", file=sys.stderr)
    with bar("comparing") as progress:
        found = explainer.run(progress)
    errors = [one.error for one in found if one.error is not None]
    for error in [*errors, *explainer.left_out.values()]:
        print(f"left out: {printable(error)}", file=sys.stderr)
    if len(errors) == len(items):
        raise ConvnextError(f"none of {len(items)} images could be explained")
    page = explainer.write_page(found, model)
    if as_json:
        print_json({"page": str(page), "images": [one.to_json() for one in found]})
    else:
        print(page)
