"""The demo's own promises, on the machine at hand."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_demo_reaches_its_accuracy_and_leaves_its_report(tmp_path):
    done = subprocess.run([sys.executable, "-m", "convnext", "demo"], capture_output=True, text=True, check=True, cwd=tmp_path)
    accuracy = float(done.stdout.split(" %")[0])
    assert accuracy >= 98.5
    assert "360 held-out digits" in done.stdout
    assert "images/s" in done.stderr
    assert "left" in done.stderr
    names = {path.name for path in (tmp_path / "runs" / "demo").iterdir()}
    assert {"report.html", "predictions.png", "recipe.yaml", "metrics.jsonl", "best.safetensors", "checkpoints"} <= names
