"""The example of docs/extend/index.md trains what it defines, in at most 60 lines."""

import runpy
import sys
from pathlib import Path

import pytest
import yaml

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_everything.py"


def test_the_example_is_short():
    assert len(EXAMPLE.read_text().splitlines()) <= 60


@pytest.mark.slow
def test_the_example_learns(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(tmp_path / "run")])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    printed = capsys.readouterr()
    metrics = eval(printed.out.splitlines()[-1], {})
    assert metrics["top1"] > 75
    assert "good enough" in printed.err
    assert "missed" in metrics
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert str(recipe).count("'own:") == 6


def test_the_pages_show_the_files_as_they_are():
    pages = "".join(page.read_text() for page in (EXAMPLE.parents[1] / "docs" / "extend").glob("*.md"))
    for name in ("my_module.py", "my_recipe.yaml", "own_block.py", "own_head.py", "own_detector.py", "own_task.py"):
        assert EXAMPLE.with_name(name).read_text() in pages, name
