"""The command for small data: fit."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from convnext.cli.common import Device, Json, MaxPixels, add_command, bar, check_data, check_model, print_json
from convnext.text import printable


@add_command("Start", "convnext fit photos --output runs/fitted", "convnext fit labels.csv --output runs/fitted --minutes 1")
def fit(
    source: Annotated[
        str, typer.Argument(help="A folder of images by class, labels.csv, digits:train, or other names of labelled images.")
    ],
    output: Annotated[Path, typer.Option(help="The run folder to make; one of an earlier fit is replaced, its features are used again.")],
    val: Annotated[str | None, typer.Option(help="Images to evaluate on; by default the val part of SOURCE, if it has one.")] = None,
    model: Annotated[str | None, typer.Option(help="A name, run folder, weight file or address; by default convnext_tiny.")] = None,
    weights: Annotated[str | None, typer.Option(help="Of a model's name; by default the most accurate of a free licence.")] = None,
    task: Annotated[
        Literal["classify", "multilabel", "regress"] | None, typer.Option(help="What to learn; by default as the labels are.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="For all, by default 5; what the head leaves of it is for fine-tuning, if that helps.")
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="Images alike in what this regular expression finds in their paths stay together.")
    ] = None,
    max_corrupt: Annotated[float, typer.Option(min=0, max=1, help="The fraction of the images that may be unreadable.")] = 0.01,
    max_pixels: MaxPixels = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Fit a classifier to few images: fixed features, a chosen head.

    The features are those of a network as it is; cross-validation chooses the head.
    """
    check_data(source)
    if val is not None:
        check_data(val)
    if model is not None:
        check_model(model)
    from convnext.fit.fit import fit as run

    with bar("features") as progress:
        result = run(
            source,
            output=output,
            val=val,
            model=model,
            weights=weights,
            task=task,
            minutes=minutes,
            group=group,
            max_corrupt=max_corrupt,
            max_pixels=max_pixels,
            device=device,
            progress=progress,
            report=lambda line: print(printable(line), file=sys.stderr, flush=True),
        )
    if as_json:
        print_json(result.to_json())
