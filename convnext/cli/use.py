"""Commands that use a trained network: predict."""

import json
import sys
from typing import Annotated, Any

import typer

from convnext.cli.common import MODEL, Device, Json, Weights, app
from convnext.errors import ConvnextError


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help=MODEL)],
    pictures: Annotated[list[str], typer.Argument(help="Pictures, or folders of them.")],
    weights: Weights = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 3,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Say what is in pictures."""
    from convnext.deploy.predict import find_pictures, load, predict_files

    paths = list(find_pictures(pictures))
    predictor = load(model, weights, device=device)
    rows: list[dict[str, Any]] = []
    for path, found in predict_files(predictor, paths):
        if isinstance(found, str):
            print(f"left out: {found}", file=sys.stderr)
            rows.append({"picture": str(path), "error": found})
            continue
        best = [{"class": name, "probability": probability} for name, probability in found.top(top)]
        rows.append({"picture": str(path), "top": best})
        if not as_json:
            print(f"{path}  " + "  ".join(f"{one['class']} {one['probability']:.1%}" for one in best), flush=True)
    if as_json:
        print(json.dumps(rows))
    if all("error" in row for row in rows):
        raise ConvnextError(f"none of {len(rows)} pictures could be read")
