"""The reference pages that are generated from the code hold all of it."""

import ast
import importlib.util
import re

import pytest
from documented import ROOT
from typed import CLI

from convnext.models.weights.description import Description
from convnext.recipe import keys, load_recipe
from convnext.recipe.checks import BEST_METRICS, tasks_that_use
from convnext.training.folder.environment import Environment


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("mkdocs_hooks", ROOT / "mkdocs_hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def generated(hooks, page):
    text = hooks.on_page_markdown((ROOT / "docs" / "reference" / page).read_text())
    assert "<!-- generated" not in text
    return text


def entries(text):
    """Return the definition of each term."""
    return dict(re.findall(r"^(`[^\n]*)\n:   (.*)$", text, re.MULTILINE))


def test_every_command_with_its_options(hooks):
    sections = dict(re.findall(r"^### convnext ([\w ]+)\n(.*?)(?=^##|\Z)", generated(hooks, "cli.md"), re.MULTILINE | re.DOTALL))
    commands = CLI.commands | {f"data {name}": one for name, one in CLI.commands["data"].commands.items()}
    commands |= {f"recipes {name}": one for name, one in CLI.commands["recipes"].commands.items()}
    assert sections.keys() == commands.keys() - {"data", "recipes"}
    for name, section in sections.items():
        assert len(entries(section)) == len([one for one in commands[name].params if one.name != "help"])
        for option in (one for parameter in commands[name].params for one in parameter.opts if one.startswith("--") and one != "--help"):
            assert re.search(rf"^`.*{option}\b", section, re.MULTILINE), f"{name} {option}"
    found = entries(sections["predict"])
    assert found["`--top`"].endswith("*whole number · at least 1*")
    assert found["`--tta`"].endswith("*`flip`*")
    assert entries(sections["export"])["`--to`"].endswith("*required · text*")
    assert entries(sections["bench"])["`--rounds`"].endswith("*whole number · at least 3 · default `7`*")


def test_every_key_with_its_default_range_and_tasks(hooks):
    found = entries(generated(hooks, "recipe.md"))
    assert [term.split("`")[1] for term in found] == sorted(keys(), key=lambda key: "." in key)
    entry = lambda key: found[f"`{key}`{{ #{key} }}"]  # noqa: E731
    assert entry("train.label_smoothing").endswith("*number at least 0 and below 1 · default `0.1` · tasks: classify, multilabel*")
    assert entry("data.mean").endswith("*list of numbers or `auto` · default `[0.485, 0.456, 0.406]`*")
    assert entry("train.iterations").endswith("*whole number at least 1 or `auto` or `null` · default `null`*")
    assert entry("data.train").endswith("*text · required*")
    recipe = load_recipe("digits", [])
    assert tasks_that_use("segment.window") == ("segment",)
    assert entry("seed").endswith(f"default `{recipe.seed}`*")


def test_the_files_page_names_what_files_hold():
    text = (ROOT / "docs" / "reference" / "files.md").read_text()
    weights, exported = text.split("\n## Weights\n")[1].split("\n## Exported files\n")
    named = lambda part: set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`[^|]*) \|", part, re.MULTILINE))))  # noqa: E731
    assert named(weights) | named(exported) == set(Description.__annotations__)
    metrics = text.split("\n## Metrics\n")[1].split("\n## evaluation.json\n")[0]
    missing = {name for names in BEST_METRICS.values() for name in names if not name.startswith("mask_") and f"`{name}`" not in metrics}
    assert not missing
    environment = text.split("\n## environment.json\n")[1].split("\n## metrics.jsonl\n")[0]
    assert named(environment) == Environment.__annotations__.keys() | {"weights"}


def messages(source):
    """Return the texts in a file of code, with `…` for what a program fills in."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def holds(text, parts):
    """Return whether a text has these parts, one behind the other."""
    position = 0
    for part in parts:
        position = text.find(part, position)
        if position < 0:
            return False
        position += len(part)
    return True


def test_quoted_errors_are_those_of_the_code():
    quoted = re.findall(r"^`([^`\n]+)`\n:   ", (ROOT / "docs" / "reference" / "errors.md").read_text(), re.MULTILINE)
    assert len(quoted) > 30
    left = {one: re.findall(r"\w{4,}", one) for one in quoted}  # with words to find its file by
    for path in sorted((ROOT / "convnext").rglob("*.py")):
        source = path.read_text()
        asked = [one for one, words in left.items() if all(word in source for word in words)]
        for text in messages(source) if asked else ():
            for one in asked:
                if one in left and holds(text, one.split("…")):
                    del left[one]
    assert not left, "no message of the code reads so"
