"""The pages on coming from other software: each of our keys is one of the recipe that its section names, and numbers agree with theirs."""

import math
import re

import pytest
import torch
from documented import ROOT
from timm.data import constants
from timm.scheduler import CosineLRScheduler

from convnext.recipe import load_recipe
from convnext.training.optim import learning_rate

PAGES = sorted((ROOT / "docs" / "migrate").glob("*.md"))
OVERRIDE = re.compile(r"[a-z]+(\.[a-z_]+)?=\S+")


def rows():
    """The overrides of each row of a table, with the recipe that the text before it names."""
    for page in PAGES:
        recipe = None
        for line in page.read_text().splitlines():
            if found := re.search(r"overrides of `convnext train (\S+) ", line):
                recipe = found[1]
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if recipe and len(cells) == 3:
                given = [word for span in re.findall(r"`([^`]+)`", cells[1]) for word in span.split() if OVERRIDE.fullmatch(word)]
                if given:
                    yield pytest.param(recipe, given, id=f"{page.stem}: {' '.join(given)}")


@pytest.mark.parametrize(("recipe", "given"), rows())
def test_our_keys_are_taken(recipe, given):
    load_recipe(recipe, given)


def test_timms_cosine_has_the_same_values_after_the_warm_up():
    steps, warmup, peak, final = 60, 20, 4e-3, 1e-6
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    theirs = CosineLRScheduler(optimizer, steps - warmup, final, warmup_t=warmup, warmup_prefix=True, t_in_epochs=False)
    for step in range(warmup, steps):
        theirs.step_update(step)
        assert math.isclose(learning_rate(step, warmup, steps, peak, final), optimizer.param_groups[0]["lr"], rel_tol=1e-9)


def test_images_are_normalised_as_timm_does():
    data = load_recipe("imagenet1k/convnext_tiny").data
    assert (data.mean, data.std) == (constants.IMAGENET_DEFAULT_MEAN, constants.IMAGENET_DEFAULT_STD)
