"""The reference pages that are generated from the code hold all of it."""

import importlib.util
import re

import pytest
from documented import ROOT
from typed import CLI

from convnext.recipe import keys, load_recipe
from convnext.recipe.checks import tasks_that_use


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
