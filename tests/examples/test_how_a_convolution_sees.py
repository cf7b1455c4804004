"""The tutorial shows what its script computes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))
import how_a_convolution_sees as example  # noqa: E402

PAGE = (ROOT / "docs" / "how-a-convolution-sees.md").read_text()


@pytest.mark.parametrize("name", example.DIGITS)
def test_the_page_prints_the_grids_that_are_computed(name):
    drawn, answered = example.grid(name), example.responses(example.grid(name))
    wanted = ndimage.correlate(drawn.numpy(), example.LOOP.numpy(), mode="constant")[1:-1, 1:-1]
    assert np.array_equal(answered.numpy(), wanted)
    assert f"{name}, drawn:\n{example.as_text(drawn)}\nresponse:\n{example.as_text(answered)}\n" in PAGE


@pytest.mark.parametrize("name", example.DIGITS)
def test_a_loop_is_found_where_a_hole_is_and_nowhere_else(name):
    """Holes: regions of ground that do not touch the border (4-connected)."""
    regions, count = ndimage.label(example.grid(name).numpy() == 0)
    border = {*regions[0], *regions[-1], *regions[:, 0], *regions[:, -1]}
    holes = [tuple(np.argwhere(regions == i)[0].tolist()) for i in range(1, count + 1) if i not in border]
    assert example.loops(name) == holes
    assert len(holes) == {"9": 1, "6": 1, "8": 2, "96": 2}[name]


@pytest.mark.slow
def test_the_figures_are_drawn_of_a_demo_trained_here(tmp_path):
    """By the commands on the page."""
    for command in ("-m convnext demo --output run --device cpu", f"{ROOT}/examples/how_a_convolution_sees.py run {tmp_path}"):
        subprocess.run([sys.executable, *command.split()], cwd=tmp_path, check=True, capture_output=True)
    for name in ("first_layer.png", "activation_maps.png"):
        with Image.open(tmp_path / name) as found, Image.open(ROOT / "docs" / "images" / name) as kept:
            assert np.asarray(found.convert("L")).std() > 10
            assert found.size == kept.size
