"""The tables of docs/migrate: each of our keys is one of the recipe that its section names, each of theirs is in the other program.

The names of the others are in `keys/`: one in a line, followed by its default. The first line says where they were read.
"""

import importlib
import re
from functools import cache
from pathlib import Path

import pytest
from migrate_tables import PAGES, rows, spans

from convnext.recipe import load_recipe

KEYS = Path(__file__).parent / "keys"
OVERRIDE = re.compile(r"[a-z]+(\.[a-z_]+)?=\S+")
OPTION = re.compile(r"(?<![\w-])--?[a-z][\w-]*")

# By the beginning of the section: the file of names.
SOURCES = {
    "timm": {"train.py": "timm", "Other scripts": "timm-validate"},
    "official": {"main.py": "official", "V2: main_pretrain": "official-v2-pretrain", "V2: main_finetune": "official-v2-finetune"},
    "torchvision": {f"references/{task}": f"torchvision-{task}" for task in ("classification", "detection", "segmentation")},
    "openmmlab": {"mmdetection": "mmdetection", "mmsegmentation": "mmsegmentation"},
    "ultralytics": {"yolo": "ultralytics"},
}
OF_LAUNCHERS = {"-m", "--nproc_per_node"}
NO_NAMES = {"True", "FILE", "IMG", "CONFIG", "D"}  # in cells of Python's syntax
FORMER = {"half"}  # of versions before, as the page says


def overrides():
    for page, _, recipe, _, _, ours in rows():
        given = [word for span in spans(ours) if "convnext" not in span for word in span.split() if OVERRIDE.fullmatch(word)]
        if recipe and given:
            yield pytest.param(recipe, given, id=f"{page}: {' '.join(given)}")


@pytest.mark.parametrize(("recipe", "given"), list(overrides()))
def test_our_keys_are_taken(recipe, given):
    load_recipe(recipe, given)


def source(page, section):
    """The file of names of a section; None where its tables name no options."""
    return next((name for start, name in SOURCES[page].items() if section.startswith(start)), None)


@cache
def listed(name):
    """The names of a file of `keys/`, each with its default."""
    lines = (KEYS / f"{name}.txt").read_text().splitlines()[1:]
    return {word: default for word, _, default in (line.partition(" ") for line in lines)}


def named(page, cell):
    """The names of the other program in one of its cells."""
    found = set()
    for span in spans(cell):
        if page == "ultralytics":
            found |= set(re.findall(r"(\w+)=", span)) - FORMER
            continue
        found |= set(OPTION.findall(span)) - OF_LAUNCHERS
        if page == "openmmlab":
            found |= set(re.findall(r"[A-Za-z_][\w.]*(?==)|\b[A-Z]\w*\b", span)) - NO_NAMES
            found |= {span} if re.fullmatch(r"[a-z_.]+", span) else set()
    return {name for name in found if name.rpartition(".")[2] != "type"}


@pytest.mark.parametrize("page", SOURCES)
def test_their_names_exist(page):
    cells = [(name, cell) for of, section, _, _, cell, _ in rows() if of == page and (name := source(page, section))]
    assert len(cells) > 30
    for name, cell in cells:
        unknown = named(page, cell) - listed(name).keys()
        assert not unknown, f"{name} has no {', '.join(sorted(unknown))} ({cell})"


def test_a_misspelt_name_is_found():
    assert named("timm", "`--lr 4e-3 --mixed 1`") - listed("timm").keys() == {"--mixed"}
    assert named("openmmlab", "`train_cfg.max_epoch=36`, `MultistepLR`") - listed("mmdetection").keys() == {
        "train_cfg.max_epoch",
        "MultistepLR",
    }
    assert named("ultralytics", "`epochs=3 patient=5`") - listed("ultralytics").keys() == {"patient"}


def defaults():
    for page, section, _, title, cell, _ in rows():
        for option, _, value in (span.partition(" ") for span in spans(cell)):
            if title.endswith("default") and not cell.startswith("neither"):
                yield pytest.param(source(page, section), option, value, id=f"{page}: {option}")


@pytest.mark.parametrize(("name", "option", "value"), list(defaults()))
def test_what_the_page_calls_their_default_is_it(name, option, value):
    assert listed(name)[option] == value


def test_every_name_of_python_exists():
    """Of timm and torchvision, which are installed."""
    found = {name for page in PAGES for name in re.findall(r"(?<![-\w])((?:timm|torchvision)(?:\.[a-zA-Z_]\w*)+)\(?", page.read_text())}
    assert {"timm.create_model", "torchvision.models.convnext_tiny"} <= found
    for name in found:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name
