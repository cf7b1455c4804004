"""The command that lists networks and their published weights, and chooses among them: models."""

import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from convnext.cli.common import Json, add_command, print_json, size_text
from convnext.errors import ConvnextError, UsageError, nearest

if TYPE_CHECKING:
    from convnext.models.weights.tags.choose import Choice
    from convnext.models.weights.tags.table import PublishedWeights


@add_command("Look up", "convnext models convnext_tiny", "convnext models --best --under 5G --licence free")
def models(
    pattern: Annotated[str | None, typer.Argument(help="A shell pattern, for instance 'upernet_*'; '*' for all.")] = None,
    best: Annotated[bool, typer.Option("--best", help="The most accurate published weights, best first, without what is beaten.")] = False,
    under: Annotated[str | None, typer.Option(help="For --best: the largest cost in multiply-adds, for instance 10G or 500M.")] = None,
    licence: Annotated[Literal["any", "free"], typer.Option(help="For --best: free, for licences that permit any use.")] = "any",
    as_json: Json = False,
) -> None:
    """List models with their cost and published weights.

    The cost is that at the size of the paper's tables. Of one model, list all that is known of its weights.
    """
    from convnext.models.registry import HEADS, list_models

    names = list_models(pattern or "*")
    if not names:
        raise UsageError(f"no model matches {pattern!r}{nearest(str(pattern), list_models())}")
    if best:
        _choose(names, under, licence, as_json)
        return
    if under is not None or licence != "any":
        raise UsageError("--under and --licence are for --best")
    if pattern is None:
        others = ["roadmap_", *(f"{head}_" for head in HEADS)]
        names = [name for name in names if not name.startswith(tuple(others))]
        print(f"classifiers; there are also {', '.join(f'{other}*' for other in others)}", file=sys.stderr)
    _list(names, as_json)


def _list(names: Sequence[str], as_json: bool) -> None:
    from convnext.models.load import cost_of  # loads PyTorch
    from convnext.models.registry import find
    from convnext.models.weights.published import licence_of

    if not as_json:
        print(f"{'name':34} {'parameters':>10} {'multiply-adds':>14} {'at':>8}  weights")
    rows: list[dict[str, object]] = []
    for name in names:
        entry, cost = find(name), cost_of(name)
        licences = {tag: licence_of(address) for tag, address in entry.weights.items()}
        if as_json:
            published = {tag: _facts(row) for tag, row in _published(name).items()}
            rows.append({"name": name} | asdict(cost) | {"weights": list(licences), "licences": licences, "published": published})
        else:
            numbers = f"{cost.parameters / 1e6:8.1f} M {cost.macs / 1e9:12.2f} G {size_text(cost.image_size):>8}"
            print(f"{name:34} {numbers}  {' '.join(_marked(tag, found) for tag, found in licences.items())}", flush=True)
    if as_json:
        print_json(rows)
    elif len(names) == 1 and (found := _published(names[0])):
        _print_weights(found)


def _published(name: str) -> "dict[str, PublishedWeights]":
    """Return what the table says of the weights of a name, by tag: of a head over a backbone, those of the backbone."""
    from convnext.models.registry import find
    from convnext.models.weights.tags.table import of_network

    entry = find(name)
    return {tag: row for tag, row in of_network((entry.backbone or entry).name).items() if entry.weights.get(tag) == row.address}


def _marked(tag: str, licence: str | None) -> str:
    from convnext.models.weights.tags.table import FREE

    return tag if licence is None or licence in FREE else f"{tag} ({licence})"


def _print_weights(weights: "dict[str, PublishedWeights]") -> None:
    from convnext.models.weights.tags.table import terms

    print(f"\n{'tag':40} {'classes':>7} {'at':>5}  {'top-1 % at pixels':28} {'trained on':50} licence")
    for tag, row in weights.items():
        accuracy = ", ".join(f"{value:.2f} at {size}" for size, value in row.top1.items()) or "-"
        print(f"{tag:40} {row.classes:>7} {row.size:>5}  {accuracy:28} {row.training:50} {terms(row.licence)}")


def _facts(row: "PublishedWeights") -> dict[str, object]:
    return asdict(row) | {"free": row.is_free}


def _choose(names: Sequence[str], under: str | None, licence: str, as_json: bool) -> None:
    """Print the best published weights of these names."""
    from convnext.models.weights.tags.choose import best

    found = best(names, None if under is None else _billions(under), licence == "free")
    if not found:
        limits = (f" under {under}" if under else "") + (" with a free licence" if licence == "free" else "")
        raise ConvnextError(f"none of these models has published weights with a known accuracy{limits}: raise --under, or omit --licence")
    if as_json:
        print_json([_facts(one.weights) | {"size": one.size, "top1": one.top1, "gmacs": one.gmacs} for one in found])
        return
    print(f"{'top-1 %':>7} {'multiply-adds':>13} {'parameters':>10} {'at':>5}  {'take':60} licence")
    for one in found:
        print(f"{one.top1:7.2f} {one.gmacs:11.2f} G {one.weights.parameters:8.1f} M {one.size:>5}  {_take(one):60} {one.weights.licence}")


def _take(choice: "Choice") -> str:
    row = choice.weights
    return f"{row.network} --weights {row.tag}" + (f" --size {choice.size}" if choice.size != row.size else "")


def _billions(text: str) -> float:
    """Return multiply-adds in billions. Raises UsageError for text that is no such number."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MG])(?:MACs)?", text, re.IGNORECASE)
    if found is None:
        raise UsageError(f"--under {text!r} is no cost: give multiply-adds, for instance 10G or 500M")
    return float(found[1]) / (1000 if found[2].upper() == "M" else 1)
