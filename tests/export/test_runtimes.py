"""Exported files opened again: what is refused and reported, and the golden inputs through the runtimes."""

import importlib.util

import numpy as np
import pytest
import torch
from export.test_export import written
from helpers import relative_error, shared
from models.detection.test_golden import Golden

import convnext
from convnext.data.transforms.detect import DetectPreprocessing
from convnext.data.transforms.segment import SegmentPreprocessing
from convnext.errors import ConvnextError, UsageError, need
from convnext.export.export import export
from convnext.export.load import load
from convnext.models.load import load_weights
from convnext.models.weights.files import write_weights
from convnext.tasks.exported import ExportedNetwork

ENDING = {"onnx": ".onnx", "openvino": ".xml"}


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runtimes")
    export(written(folder, "classify"), "onnx", folder / "out.onnx")
    return folder / "out.onnx"


def test_an_archive_that_could_run_code_is_not_opened_unasked(tmp_path, monkeypatch):
    monkeypatch.delenv("CONVNEXT_TRUST_PT2", raising=False)
    (tmp_path / "x.pt2").write_bytes(b"")
    with pytest.raises(UsageError, match="CONVNEXT_TRUST_PT2=1"):
        load(tmp_path / "x.pt2")


@pytest.mark.parametrize("ending", [".onnx", ".xml", ".pt2"])
def test_what_is_missing_or_damaged_is_named(tmp_path, monkeypatch, ending):
    monkeypatch.setenv("CONVNEXT_TRUST_PT2", "1")
    with pytest.raises(ConvnextError, match="no exported network"):
        load(tmp_path / f"none{ending}")
    (tmp_path / f"bad{ending}").write_bytes(b"not a network")
    with pytest.raises(ConvnextError, match=rf"bad\{ending} is damaged"):
        load(tmp_path / f"bad{ending}")


def test_a_file_that_others_wrote_is_refused(onnx_file, tmp_path):
    import onnx

    model = onnx.load(onnx_file)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(ConvnextError, match="does not describe itself"):
        load(tmp_path / "foreign.onnx")


def test_an_exported_network_has_what_callers_ask_of_one(onnx_file):
    import copy

    loaded = load(onnx_file, None)
    model = loaded.model
    assert isinstance(model, ExportedNetwork)
    assert not model.training
    assert (model.num_classes, model.spec["name"]) == (3, "convnext_atto")
    assert next(model.to("cpu").parameters()).device.type == "cpu"
    assert torch.equal(copy.deepcopy(model)(torch.ones(1, 3, 40, 40)), model(torch.ones(1, 3, 40, 40)))
    with pytest.raises(UsageError, match="gives logits only"):
        model.forward_features(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ConvnextError, match=r"out\.onnx could not be run on images of 8 x 8 pixels"):
        model(torch.zeros(1, 3, 8, 8))
    with pytest.raises(UsageError, match="holds a convnext_atto, not a convnext_tiny"):
        load("convnext_tiny", str(onnx_file))
    with pytest.raises(UsageError, match="export the checkpoint"):
        export(onnx_file, "onnx", onnx_file.with_name("again.onnx"))


def test_a_missing_library_is_named_with_its_extra():
    with pytest.raises(UsageError, match=r"pip install '.\[export\]'"):
        need("no_such_runtime", "export")


@pytest.mark.slow
@pytest.mark.parametrize("to", list(ENDING))
@pytest.mark.parametrize("kind", ["mask_rcnn", "cascade"])
def test_golden_detections(tmp_path, kind, to):
    """Boxes, classes, scores and masks as mmdetection computed them, through the exported file."""
    golden = Golden(kind)
    model = golden.model
    description = {"task": "detect", "model": model.spec, "classes": None, "preprocessing": DetectPreprocessing().to_json()}
    write_weights(tmp_path / "w.safetensors", model.state_dict(), description)
    output = tmp_path / f"out{ENDING[to]}"
    export(tmp_path / "w.safetensors", to, output, size=128)
    (found,), (ours,) = load(output).model.predict([golden.image]), model.predict([golden.image])
    assert torch.equal(found["labels"], golden.values["labels"])
    # The 1e-3 that is asked of runtimes: OpenVINO is 1.3e-4 off in one of the hundred scores of Mask R-CNN.
    torch.testing.assert_close(found["scores"], golden.values["scores"], atol=1e-3, rtol=0)
    torch.testing.assert_close(found["boxes"], golden.values["boxes"], atol=0.05, rtol=0)
    wanted = golden.values["mask_area"]
    assert ((found["masks"].sum((1, 2, 3)) - wanted).abs() <= (wanted * 0.01).clamp(min=1)).all()
    assert (found["masks"] ^ ours["masks"]).float().mean() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("to", list(ENDING))
@torch.no_grad()
def test_golden_segmentation(tmp_path, to):
    """Logits as mmsegmentation computed them, through the exported file."""
    spec = importlib.util.spec_from_file_location("fill", shared("golden/fill.py"))
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    state = fill.fill(fill.read_keys(shared("reference/keys/upernet_convnext_tiny.mmseg.txt")))
    with torch.device("meta"):
        model = convnext.create_model("upernet_convnext_tiny")
    load_weights(model, state)
    how = SegmentPreprocessing((2048, 512), 512, 341)
    description = {"task": "segment", "model": model.spec, "classes": None, "preprocessing": how.to_json()}
    write_weights(tmp_path / "w.safetensors", model.state_dict(), description)
    output = tmp_path / f"out{ENDING[to]}"
    export(tmp_path / "w.safetensors", to, output, size=128)
    logits = load(output).model.logits(fill.picture(128, 160))
    with np.load(shared("golden/upernet_convnext_tiny_128x160.npz")) as kept:
        assert relative_error(logits[:, ::10], torch.from_numpy(kept["logits"])) < 1e-3
