"""Command lines read as the real command line reads them, and the names in them looked up, without running anything."""

import re

from typer.main import get_command

from convnext import cli
from convnext.cli.common import app
from convnext.export import export
from convnext.export.load import ENDINGS
from convnext.extend import TASKS
from convnext.models.registry import BACKBONES, find, list_models, names
from convnext.models.weights import convert
from convnext.paper import bench, contestants, published
from convnext.paper.roadmap import parse_steps
from convnext.recipe import load_recipe

CLI = get_command(app)


def parsed(words):
    """Return the name of the command and its parsed parameters. Raises for what the command line would refuse."""
    name, command, words = "", CLI, cli.without_imports(list(words))
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        word = words.pop(0)
        assert word in command.commands, f"convnext has no command {name} {word}"
        name, command = f"{name} {word}".strip(), command.commands[word]
    return name, command.make_context(name, words, resilient_parsing=not name).params


def check_model(source, weights=None):
    """Accept a model name with a tag, or what looks like a file, a run folder or an address."""
    if source in names():
        assert weights is None or weights in find(source).weights or "/" in weights or "." in weights, f"{source} has no weights {weights}"
    else:
        assert re.search(r"[/.]", source), f"{source} is neither a model name nor a file"


def check_recipe(name, overrides):
    """The recipe loads, and the network that it names takes its arguments."""
    recipe = load_recipe(name, overrides or [])
    entry = find(recipe.model.name)
    assert recipe.task in entry.tasks or recipe.task in TASKS.origins  # those of examples/
    given = recipe.model.model_dump(exclude_defaults=True, exclude_none=True).keys() - {"name", "weights", "keep_head", "freeze"}
    assert given <= entry.arguments.keys(), f"{recipe.model.name} takes no {given - entry.arguments.keys()}"
    if recipe.model.weights is not None:
        check_model(recipe.model.name, recipe.model.weights)


def check_values(name, given):
    """Check what the parser leaves to the command itself: names of recipes, models, formats, tables."""
    if name == "train":
        check_recipe(given["recipe"], given["overrides"])
    elif name == "recipes show":
        load_recipe(given["name"], given["overrides"] or [])
    elif name == "roadmap":
        load_recipe("roadmap/small" if given["scale"] == "small" else f"roadmap/regime_{given['regime']}", given["overrides"] or [])
        assert given["steps"] is None or parse_steps(given["steps"])
    elif name == "fit":
        assert given["model"] is None or check_model(given["model"], given["weights"]) is None
    elif name in ("eval", "predict", "export"):
        check_model(given["model"], given["weights"])
        assert name != "export" or given["to"] in export.TARGETS
    elif name == "bench":
        assert all(one in BACKBONES or one.endswith(ENDINGS) for one in given["names"])
        assert given["dtype"] in bench.DTYPES
        assert given["against"] in (None, *contestants.LIBRARIES)
    elif name == "models":
        assert list_models(given["pattern"] or "*"), f"no model matches {given['pattern']}"
    elif name == "cost":
        find(given["name"])
    elif name == "table":
        published.read(given["name"])
    elif name == "convert":
        assert given["to"] in convert.TARGETS
