"""The demos' own promises, on the machine at hand."""

import json
import subprocess
import sys

import pytest


def demo(tmp_path, *arguments):
    done = subprocess.run([sys.executable, "-m", "convnext", "demo", *arguments], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "images/s" in done.stderr
    assert "left" in done.stderr
    run = next((tmp_path / "runs").iterdir())
    names = {path.name for path in run.iterdir()}
    assert {"report.html", "predictions.png", "recipe.yaml", "metrics.jsonl", "best.safetensors", "checkpoints"} <= names
    return done.stdout, json.loads((run / "evaluation.json").read_text())["metrics"]


@pytest.mark.slow
def test_classification_reaches_its_accuracy(tmp_path):
    printed, metrics = demo(tmp_path)
    assert metrics["top1"] >= 98.5
    assert "of 360) on the held-out images" in printed


@pytest.mark.slow
def test_detection_reaches_its_precision(tmp_path):
    printed, metrics = demo(tmp_path, "--task", "detect")
    assert metrics["box_ap"] >= 70
    assert metrics["mask_ap"] >= 60
    assert "(200 images) on the held-out images" in printed


@pytest.mark.slow
def test_segmentation_reaches_its_overlap(tmp_path):
    printed, metrics = demo(tmp_path, "--task", "segment")
    assert metrics["miou"] >= 80
    assert "(200 images) on the held-out images" in printed
