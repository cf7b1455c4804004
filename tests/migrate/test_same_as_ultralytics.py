"""The keys and values in docs/migrate/ultralytics.md beside the library, where it is installed."""

import re

import pytest
import yaml
from migrate_tables import rows, spans


def given():
    """The `key=value` words of the left column."""
    for page, section, _, _, cell, _ in rows():
        if page == "ultralytics" and section.startswith("yolo"):
            yield from (word.partition("=")[::2] for span in spans(cell) for word in span.split() if re.fullmatch(r"\w+=\S+", word))


def test_the_library_takes_every_key_with_its_value(tmp_path, monkeypatch):
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))  # where it writes its settings
    cfg = pytest.importorskip("ultralytics.cfg")
    words = dict(given())
    assert len(words) > 50
    for key, value in words.items():
        cfg.get_cfg(overrides={key: yaml.safe_load(value)})
