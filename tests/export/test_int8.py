"""Files of 8 bits: which values are quantized, what the file says and computes, and what is refused."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from export.test_export import CLASSES, SMALL, written
from helpers import image_folder, sample_image

import convnext
from convnext.errors import ConvnextError, UsageError
from convnext.export import int8, qdq
from convnext.export.export import export
from convnext.export.load import load
from convnext.export.triton import write_config
from convnext.tasks.classify.graph import ClassifyExport
from convnext.tasks.classify.prediction import ClassifyPrediction
from convnext.tasks.detect.graph import DetectExport
from convnext.tasks.detect.prediction import DetectPrediction
from convnext.tasks.multilabel.graph import MultilabelExport
from convnext.tasks.multilabel.prediction import MultilabelPrediction
from convnext.tasks.regress.graph import ValueExport
from convnext.tasks.regress.prediction import ValuePrediction
from convnext.tasks.segment.graph import SegmentExport
from convnext.tasks.segment.prediction import SegmentPrediction


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A classifier, its file of 8 bits under a name with spaces and letters of two alphabets, and what was said of it."""
    patch = pytest.MonkeyPatch()
    patch.setattr(int8, "_SECONDS", 0.0)
    folder = tmp_path_factory.mktemp("int8")
    photos = sorted(image_folder(folder / "photos", CLASSES, each=5).rglob("*.jpg"))
    (folder / "broken.jpg").write_bytes(b"no image")
    source, output = written(folder, "classify"), folder / "Ameisen und 蜂.onnx"
    found = export(
        source, "onnx", output, precision="int8", calibration=[*photos, folder / "broken.jpg"], data=str(folder / "photos"), triton=True
    )
    patch.undo()
    return source, output, found


def test_what_is_written_says_what_it_loses_and_gains(exported):
    _, output, found = exported
    assert (found.precision, found.size, found.bytes) == ("int8", None, output.stat().st_size)
    assert found.int8 is not None
    assert (found.int8.calibrated, found.int8.compared) == (10, 5)  # the sixteenth can't be read
    assert found.int8.agreement >= int8.AGREEMENT
    assert found.bytes < found.int8.float32_bytes
    assert "top-1" in found.int8.metrics
    assert [path.name for path in output.parent.iterdir() if path.name.startswith((".", "float32"))] == []


def test_the_file_computes_nearly_what_the_network_does_and_describes_itself(exported):
    import onnx

    source, output, _ = exported
    description = json.loads({one.key: one.value for one in onnx.load(output).metadata_props}["convnext"])
    assert (description["graph"]["precision"], description["labels"]) == ("int8", CLASSES)
    original, quantized = load(source).model, load(output).model
    x = torch.stack([load(source).preprocessing.transform()(sample_image(seed)) for seed in range(4)])
    with torch.no_grad():
        error = (quantized(x) - original(x)).abs().max() / original(x).abs().max()
    assert 0 < error < 0.1


def test_products_are_quantized_by_output_and_nothing_else_is(exported):
    import onnx

    graph = onnx.load(exported[1]).graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    weights = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMul"]
    large = [node for node in products if makers.get(node.input[1]) == "DequantizeLinear"]
    assert len(products) == 8
    assert len(large) == 6  # of the others the weights have less than 1024 numbers
    for node in large:
        assert makers[node.input[0]] == "DequantizeLinear"
        name = node.input[1].removesuffix("_float")
        assert (weights[f"{name}_quantized"].dtype, weights[f"{name}_quantized"].shape[1:]) == (np.int8, weights[f"{name}_scale"].shape)
    for node in graph.node:
        if node.op_type in ("LayerNormalization", "Gelu", "Add", "ReduceMean"):
            assert "DequantizeLinear" not in [makers.get(name) for name in node.input]
    assert Counter(makers.values())["QuantizeLinear"] == len(large)
    depthwise = [node for node in graph.node if node.op_type == "Conv" and node.attribute and makers.get(node.input[1]) == "Mul"]
    stored = [weights[name] for node in graph.node if node.op_type == "Cast" for name in node.input]
    assert len(depthwise) == len(stored) == 4  # of 24 and 32 channels, and two of the convolutions between stages
    assert {one.dtype for one in stored} == {np.dtype("int8")}
    axes = [dimension.dim_param for dimension in graph.input[0].type.tensor_type.shape.dim]
    assert axes == ["batch", "", "height", "width"]


def test_triton_gets_the_inputs_and_outputs_of_the_file(exported):
    lines = (exported[1].parent / "config.pbtxt").read_text(encoding="utf-8").splitlines()
    assert lines == [
        'backend: "onnxruntime"',
        'default_model_filename: "Ameisen und 蜂.onnx"',
        "max_batch_size: 16",
        "dynamic_batching { }",
        'input [ { name: "images" data_type: TYPE_FP32 dims: [3, -1, -1] } ]',
        'output [ { name: "logits" data_type: TYPE_FP32 dims: [3] } ]',
    ]


def test_triton_gets_numbers_alone_as_lists_of_one(tmp_path):
    import onnx
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 32, 32])]
    ends += [helper.make_tensor_value_info("threshold", TensorProto.FLOAT, [])]
    found = helper.make_tensor_value_info("labels", TensorProto.INT64, ["batch", 100])
    onnx.save(helper.make_model(helper.make_graph([], "g", ends, [found])), tmp_path / "model.onnx")
    assert write_config(tmp_path / "model.onnx").read_text().splitlines()[2:] == [
        "max_batch_size: 0",
        'input [ { name: "images" data_type: TYPE_FP32 dims: [-1, 3, 32, 32] } ]',
        'input [ { name: "threshold" data_type: TYPE_FP32 dims: [1] reshape { shape: [] } } ]',
        'output [ { name: "labels" data_type: TYPE_INT64 dims: [-1, 100] } ]',
    ]


def test_scales_that_move_into_the_weights_change_nothing_else():
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = {"norm": rng.random(16), "shift": rng.random(16), "weight": rng.normal(size=(16, 64))}
    nodes = [
        helper.make_node("LayerNormalization", ["x", "norm", "shift"], ["y"]),
        helper.make_node("MatMul", ["y", "weight"], ["z"]),
    ]
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name, size in (("x", 16), ("z", 64))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    x = rng.normal(size=(1, 16)).astype(np.float32)

    def product():
        return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]

    before, high = product(), np.linspace(1, 90, 16, dtype=np.float32)[None]
    smoothed = qdq.smooth(model, {"y": qdq.Observed(-high, high)})["y"].magnitudes()
    np.testing.assert_allclose(product(), before, rtol=1e-4, atol=1e-5)
    assert not np.array_equal(numpy_helper.to_array(model.graph.initializer[0]), weights["norm"].astype(np.float32))
    assert smoothed.max() / smoothed.min() < 0.2 * 90  # of 90, by the square root and the weights


def test_one_odd_image_does_not_coarsen_the_scale_of_all_others():
    low, high = np.full((300, 2), -1.0), np.full((300, 2), 4.1)
    high[7] = 1000
    scale, zero = qdq.Observed(low, high).scale()
    assert scale == pytest.approx(0.02)
    assert zero == 50


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"precision": "int8"}, "at least 10 images"),
        ({"precision": "float32", "calibration": ["a.jpg"]}, "are for --precision int8"),
        ({"triton": True, "to": "torch", "output": "o.pt2"}, "--triton is for --to onnx"),
        ({"precision": "int8", "to": "torch", "output": "o.pt2"}, "for --to onnx and openvino, not for torch"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, given, message):
    given = {"to": "onnx", "output": "o.onnx"} | given
    with pytest.raises(UsageError, match=message):
        export("nowhere.pth", given.pop("to"), tmp_path / given.pop("output"), **given)


def test_a_network_without_products_is_refused(exported, tmp_path):
    import onnx
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in ("images", "logits")]
    graph = helper.make_graph([helper.make_node("Relu", ["images"], ["logits"])], "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="convnext_atto has no linear layers .*: use --precision fp16 or float32"):
        int8._write(load(exported[0]), tmp_path / "model.onnx", "onnx", tmp_path / "out.onnx", [])


@pytest.mark.slow
def test_a_file_that_agrees_too_little_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(int8, "AGREEMENT", 1.1)
    photos = sorted(image_folder(tmp_path / "photos", CLASSES, each=4).rglob("*.jpg"))
    with pytest.raises(ConvnextError, match=r"agree with the network's to \d+\.\d%, and 110% is required: calibrate with more"):
        export(written(tmp_path, "classify"), "onnx", tmp_path / "out.onnx", precision="int8", calibration=photos)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("task", "to"), [("classify", "openvino"), ("segment", "onnx"), ("segment", "openvino"), ("detect", "onnx")])
def test_every_task_and_both_formats(tmp_path, monkeypatch, task, to):
    if task == "detect":  # of random weights: some of the objects that they see in noise change their class
        monkeypatch.setattr(int8, "AGREEMENT", 0.5)
    photos = sorted(image_folder(tmp_path / "photos", CLASSES, each=4).rglob("*.jpg"))
    output = tmp_path / f"out{'.onnx' if to == 'onnx' else '.xml'}"
    found = export(written(tmp_path, task), to, output, precision="int8", calibration=photos, size=96)
    assert found.bytes < 0.9 * found.int8.float32_bytes
    assert convnext.load(output, device="cpu")(photos[0]).to_text()


@pytest.mark.slow
def test_most_of_a_network_is_quarter_the_size(tmp_path):
    from helpers import random_model

    from convnext.models.weights.files import write_weights

    model = random_model("convnext_tiny", num_classes=3)
    description = {"task": "classify", "model": model.spec, "classes": CLASSES, "preprocessing": SMALL["classify"][2].to_json()}
    write_weights(tmp_path / "w.safetensors", model.state_dict(), description)
    photos = sorted(image_folder(tmp_path / "photos", CLASSES, each=4).rglob("*.jpg"))
    found = export(tmp_path / "w.safetensors", "onnx", tmp_path / "out.onnx", precision="int8", calibration=photos)
    assert found.bytes <= 0.27 * found.int8.float32_bytes


def test_predictions_agree_as_a_user_sees_them():
    probabilities = torch.tensor([0.6, 0.7, 0.1])
    assert ClassifyExport().agreement(*(ClassifyPrediction(p, CLASSES) for p in (probabilities, probabilities.flip(0)))) == 1
    assert ClassifyExport().agreement(*(ClassifyPrediction(p, CLASSES) for p in (probabilities, probabilities.roll(1)))) == 0
    assert MultilabelExport().agreement(*(MultilabelPrediction(p, CLASSES) for p in (probabilities, probabilities.flip(0)))) == 1 / 3
    assert ValueExport().agreement(*(ValuePrediction(torch.tensor([p]), ["value"]) for p in (4.0, 5.0))) == pytest.approx(0.8)
    masks = torch.tensor([[0, 1], [2, 2]]), torch.tensor([[0, 1], [2, 0]])
    assert SegmentExport().agreement(*(SegmentPrediction(mask, CLASSES) for mask in masks)) == 0.75
    boxes, labels = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [5, 5, 9, 9]]), torch.tensor([0, 1, 1])
    one = DetectPrediction(boxes, labels, torch.tensor([0.9, 0.8, 0.3]), None, CLASSES)
    other = DetectPrediction(boxes[:1] + 1, labels[:1], torch.tensor([0.7]), None, CLASSES)
    assert DetectExport().agreement(one, other) == pytest.approx(2 / 3)
