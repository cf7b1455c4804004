"""The command that shares a trained network: push."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from convnext.cli.common import app


@app.command()
def push(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="A repository on the Hugging Face hub, made if it is not there.")],
    license_name: Annotated[str, typer.Option("--license", help="Of the weights, as the hub knows it: apache-2.0, mit, …")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository for you alone.")] = False,
    dry_run: Annotated[Path | None, typer.Option(help="Write what would be sent into this folder, and send nothing.")] = None,
) -> None:
    """Upload a run's best weights to the Hugging Face hub, with a model card."""
    from convnext.export.push import push as run_push

    print(run_push(run, repository, license_name, private, dry_run))
    if dry_run is not None:
        print("nothing was sent; README.md is the card, and recipe.yaml names your data as you did", file=sys.stderr)
