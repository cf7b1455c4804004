"""The command that explains predictions: explain."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from convnext.cli.common import MODEL, Device, Json, MaxPixels, Weights, add_command, bar, check_images, check_model, print_json
from convnext.errors import ConvnextError, UsageError
from convnext.text import counted, printable


@add_command(
    "Use",
    "convnext explain runs/mine photo.jpg --output why",
    "convnext explain runs/mine photos --output why --neighbours photos",
)
def explain(
    model: Annotated[str, typer.Argument(help=MODEL)],
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Images, folders, patterns, shards; as for predict.")],
    output: Annotated[Path, typer.Option(help="The folder to write images and index.html into.")],
    weights: Weights = None,
    name: Annotated[str | None, typer.Option("--class", help="The class to show evidence for; by default the likeliest.")] = None,
    features: Annotated[bool, typer.Option("--features", help="Also draw the maps of the network's stages.")] = False,
    neighbours: Annotated[str | None, typer.Option(help="A dataset whose nearest images to show: a folder, shards, digits:train.")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many of them.")] = 8,
    max_pixels: MaxPixels = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Show the evidence for a class, feature maps and similar images."""
    check_images(images)
    check_model(model)
    from convnext.data.sources.open import open_source
    from convnext.explain.explainer import Explainer
    from convnext.inference.inputs import find_items
    from convnext.inference.predictor import load

    if output.suffix or output.is_file():
        raise UsageError(f"--output {output}: name a folder")
    items = find_items(images)
    source = open_source(neighbours) if neighbours is not None else None
    explainer = Explainer(load(model, weights, device=device, max_pixels=max_pixels), items, output, name, features, source, count)
    if not explainer.has_map:
        print("no activation maps: they need a classifier in PyTorch that pools a map", file=sys.stderr)
    with bar("comparing") as progress:
        found = explainer.run(progress)
    errors = [one.error for one in found if one.error is not None]
    for error in [*errors, *explainer.skipped.values()]:
        print(f"skipped: {printable(error)}", file=sys.stderr)
    if len(errors) == len(items):
        raise ConvnextError(f"none of {counted(len(items), 'image')} could be explained")
    page = explainer.write_page(found, model)
    if as_json:
        print_json({"page": str(page), "images": [one.to_json() for one in found]})
    else:
        print(printable(str(page)))
