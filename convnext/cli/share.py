"""The command that uploads a trained network: push."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from convnext.cli.common import add_command


@add_command(
    "Share",
    "convnext push runs/mine owner/name --license apache-2.0 --dry-run card",
    "convnext push runs/mine owner/name --license apache-2.0 --private",
)
def push(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="A repository on the Hugging Face hub; created if missing.")],
    license_name: Annotated[str, typer.Option("--license", help="The licence of the weights, by the hub's name: apache-2.0, mit, …")],
    private: Annotated[bool, typer.Option("--private", help="Create a repository that only you can see.")] = False,
    library: Annotated[
        str | None, typer.Option("--format", help="timm or transformers: add the files by which that library loads the repository.")
    ] = None,
    dry_run: Annotated[Path | None, typer.Option(help="Write what would be uploaded into this folder, and upload nothing.")] = None,
) -> None:
    """Upload the best weights of a run to the Hugging Face hub.

    A model card is uploaded with them.
    """
    from convnext.export.push import push as run_push

    print(run_push(run, repository, license_name, private, dry_run, library))
    if dry_run is not None:
        print("nothing was uploaded; README.md is the card, and recipe.yaml names your data as you did", file=sys.stderr)
