"""One version, wherever it is written down."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("CITATION.cff", r"^version: (.+)$"), ("mkdocs.yml", r"^site_name: convnext (.+)$"), ("README.md", r"^Alpha, version (.+)\.$")],
)
def test_a_file_names_the_version_of_the_package(name, pattern):
    assert re.findall(pattern, (ROOT / name).read_text(), re.MULTILINE) == [VERSION]
