"""Files for other runtimes: each is opened in its runtime and compared with the network that it was made of."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import image_folder, random_model, relative_error, sample_image

import convnext
from convnext.data.transforms.detect import DetectPreprocessing
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.data.transforms.segment import SegmentPreprocessing
from convnext.errors import ConvnextError, UsageError
from convnext.evaluate import evaluate_loaded
from convnext.export import check
from convnext.export.export import export
from convnext.export.load import load
from convnext.models.detection.fixed import FixedDetector
from convnext.models.detection.postprocess import Selection
from convnext.models.weights.files import write_weights
from convnext.paper.bench import Setting, bench
from convnext.tasks.detect.graph import ExportedDetector

CLASSES = ["ant", "bee", "wasp"]
SMALL = {
    "classify": ("convnext_atto", {"depths": (1, 1, 1, 1), "widths": (8, 16, 24, 32)}, ClassifyPreprocessing(image_size=64)),
    "segment": (
        "upernet_convnext_atto",
        {"depths": (1, 1, 1, 1), "widths": (8, 16, 24, 32), "channels": 16, "auxiliary_channels": 8},
        SegmentPreprocessing(None, 64, 42),
    ),
    "detect": (
        "mask_rcnn_convnext_atto",
        {"depths": (1, 1, 1, 1), "widths": (8, 16, 24, 32), "channels": 16, "fc_channels": 32},
        DetectPreprocessing(96, 160),
    ),
}


def written(folder, task, change=lambda model: None, **more):
    """A weight file of a small network of that task."""
    name, arguments, how = SMALL[task]
    model = random_model(name, num_classes=3, **arguments, **more)
    for key, buffer in model.named_buffers():
        buffer.fill_(0 if key.endswith("mean") else 1)
    change(model)
    description = {"task": task, "model": model.spec, "classes": CLASSES, "preprocessing": how.to_json()}
    write_weights(folder / f"{task}.safetensors", model.state_dict(), description)
    return folder / f"{task}.safetensors"


def random_images(*sizes):
    how = ClassifyPreprocessing(image_size=64, warp=True)
    return [how.transform()(sample_image(seed, size=(width, height))) if height == width == 64 else torch.nn.functional.interpolate(
        how.transform()(sample_image(seed))[None], (height, width), mode="bilinear")[0] for seed, (height, width) in enumerate(sizes)]  # fmt: skip


@pytest.mark.parametrize("to", ["onnx", "torch", pytest.param("openvino", marks=pytest.mark.slow)])
@torch.no_grad()
def test_a_classifier_of_any_batch_and_size(tmp_path, monkeypatch, to):
    monkeypatch.setenv("CONVNEXT_TRUST_PT2", "1")
    source, output = written(tmp_path, "classify"), tmp_path / f"out.{ {'onnx': 'onnx', 'openvino': 'xml', 'torch': 'pt2'}[to] }"
    side = 32 if to == "torch" else 64  # at 32 the last map has one position
    found = export(source, to, output, size=side)
    assert found.size is None
    assert found.relative_error < 1e-5
    original, exported = load(source), load(output)
    assert (exported.task, exported.classes, exported.preprocessing) == ("classify", CLASSES, ClassifyPreprocessing(image_size=side))
    for batch, height, width in ((1, 32, 32), (3, 71, 45)):
        x = torch.randn(batch, 3, height, width)
        assert relative_error(exported.model(x), original.model(x)) < 1e-4
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino"])
@torch.no_grad()
def test_a_segmenter_of_any_size(tmp_path, to):
    source, output = written(tmp_path, "segment"), tmp_path / f"out.{'onnx' if to == 'onnx' else 'xml'}"
    assert export(source, to, output).size is None
    original, exported = load(source).model, load(output).model
    for height, width in ((32, 32), (64, 97), (200, 130)):  # a map of one position, and others
        x = torch.randn(1, 3, height, width)
        assert relative_error(exported(x), original(x)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino"])
@torch.no_grad()
def test_a_detector_of_any_size(tmp_path, to):
    source, output = written(tmp_path, "detect"), tmp_path / f"out.{'onnx' if to == 'onnx' else 'xml'}"
    export(source, to, output, size=96)
    original, exported = load(source).model, load(output).model
    images, sizes = random_images((90, 150), (128, 64)), [(45, 75), (256, 128)]
    for one, size in zip(images, sizes, strict=True):
        (wanted,), (found,) = original.predict([one], [size]), exported.predict([one], [size])
        assert len(wanted["scores"]) == len(found["scores"]) > 5
        torch.testing.assert_close(found["scores"], wanted["scores"], atol=1e-4, rtol=0)
        assert found["masks"].shape == (len(found["scores"]), 1, *size)
    for one, other in zip(exported(images), original(images), strict=True):  # padded to one size
        assert len(one["scores"]) == len(other["scores"]) > 5
        torch.testing.assert_close(one["scores"], other["scores"], atol=1e-4, rtol=0)


@pytest.mark.slow
@torch.no_grad()
def test_a_detector_says_its_axes_and_its_threshold_and_pastes_masks(tmp_path):
    import onnxruntime

    source, output = written(tmp_path, "detect"), tmp_path / "out.onnx"
    export(source, "onnx", output, size=96, paste_masks=True)
    session = onnxruntime.InferenceSession(str(output), providers=["CPUExecutionProvider"])
    shapes = {one.name: one.shape for one in (*session.get_inputs(), *session.get_outputs())}
    assert shapes["images"] == ["batch", 3, "height", "width"]
    assert shapes["sizes"] == ["batch", 2]
    assert shapes["boxes"] == ["batch", 100, 4]
    assert shapes["pasted"] == ["batch", 100, "height", "width"]
    graph = json.loads(session.get_modelmeta().custom_metadata_map["convnext"])["graph"]
    assert (graph["inputs"], graph["defaults"]) == (["images", "sizes", "threshold"], {"threshold": pytest.approx(0.05)})
    images = torch.stack(random_images((96, 96), (96, 96), (96, 96)))
    *_, masks, pasted = session.run(
        None, {"images": images.numpy(), "sizes": np.array([[96, 96]] * 3), "threshold": np.array(0.05, np.float32)}
    )
    assert (masks.shape, pasted.shape, pasted.dtype) == ((3, 100, 28, 28), (3, 100, 96, 96), bool)
    (wanted, *_) = load(source).model.predict(list(images))
    count = len(wanted["scores"])
    assert (torch.from_numpy(pasted[0, :count]) ^ wanted["masks"][:, 0]).float().mean() < 1e-3


@torch.no_grad()
def test_a_file_of_a_detector_that_takes_one_image_opens_as_ever(tmp_path):
    model = load(written(tmp_path, "detect")).model
    fixed, taken = FixedDetector(model), []

    def runner(image, size, threshold):
        taken.append((image.shape, size.shape))
        return [one[0] for one in fixed(image, size[None], threshold)]

    graph = {"precision": "float32", "pixels": False, "size": None, "num_classes": 3, "outputs": ["boxes", "labels", "scores", "masks"]}
    old = ExportedDetector(runner, {"task": "detect", "model": model.spec, "graph": graph}, tmp_path / "old.onnx")
    images = random_images((90, 150), (64, 64))
    for found, image in zip(old.predict(images), images, strict=True):
        (wanted,) = model.predict([image])
        torch.testing.assert_close(found["scores"], wanted["scores"], atol=1e-4, rtol=0)
    assert taken == [((1, 3, 96, 160), (2,)), ((1, 3, 64, 64), (2,))]
    (some,) = old.predict(images[:1], selection=Selection(most=3, labels=(1, 2)))
    assert len(some["labels"]) == 3
    assert set(some["labels"].tolist()) <= {1, 2}
    with pytest.raises(UsageError, match="non-maximum suppression is a part of .*old.onnx"):
        old.predict(images, selection=Selection(nms=0.3))


def test_masks_are_pasted_for_detectors_alone(tmp_path):
    with pytest.raises(UsageError, match="--paste-masks is for detectors with a mask head"):
        export(written(tmp_path, "classify"), "onnx", tmp_path / "out.onnx", paste_masks=True)


@pytest.mark.slow
@torch.no_grad()
def test_a_detector_of_boxes_alone(tmp_path):
    source, output = written(tmp_path, "detect", masks=False), tmp_path / "out.onnx"
    export(source, "onnx", output, size=96)
    (wanted,), (found,) = (load(file).model.predict(random_images((90, 150)), [(45, 75)]) for file in (source, output))
    assert found.keys() == wanted.keys() == {"boxes", "labels", "scores"}
    assert len(wanted["scores"]) > 5
    torch.testing.assert_close(found["scores"], wanted["scores"], atol=1e-4, rtol=0)
    torch.testing.assert_close(found["boxes"], wanted["boxes"], atol=1e-2, rtol=0)


@pytest.mark.parametrize("task", ["classify", pytest.param("detect", marks=pytest.mark.slow)])
@torch.no_grad()
def test_pixels_are_normalised_inside(tmp_path, task):
    """The file takes uint8 images with the channels last; what opens it here prepares exactly those."""
    import onnxruntime

    source, output = written(tmp_path, task), tmp_path / "out.onnx"
    export(source, "onnx", output, with_preprocessing=True, size=64)
    session = onnxruntime.InferenceSession(str(output), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].type == "tensor(uint8)"
    assert session.get_inputs()[0].shape[-1] == 3
    description = json.loads(session.get_modelmeta().custom_metadata_map["convnext"])
    assert description["labels"] == CLASSES
    assert description["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    original, exported = load(source), load(output)
    one = sample_image(size=(70, 90))
    theirs, ours = original.preprocessing.transform()(one), exported.preprocessing.transform()(one)
    if task == "classify":
        assert relative_error(exported.model(ours[None]), original.model(theirs[None])) < 1e-4
    else:
        (wanted,), (found,) = original.model.predict([theirs]), exported.model.predict([ours])
        assert torch.equal(found["labels"], wanted["labels"])


@pytest.mark.slow
def test_fp16_is_half_as_large_and_near(tmp_path):
    source = written(tmp_path, "classify")
    half, whole = export(source, "onnx", tmp_path / "half.onnx", precision="fp16"), export(source, "onnx", tmp_path / "whole.onnx")
    assert half.bytes < 0.8 * whole.bytes
    assert 1e-5 < half.relative_error < 2e-2
    with pytest.raises(UsageError, match="float32 only"):
        export(written(tmp_path, "detect"), "onnx", tmp_path / "d.onnx", precision="fp16")


@pytest.mark.slow
@torch.no_grad()
def test_bf16_is_for_pytorch_and_near(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVNEXT_TRUST_PT2", "1")
    source, output = written(tmp_path, "classify"), tmp_path / "out.pt2"
    found = export(source, "torch", output, precision="bf16", size=32)
    assert 1e-4 < found.relative_error < 5e-2
    network = load(output).model
    assert network(torch.randn(2, 3, 32, 32)).dtype == torch.float32
    with pytest.raises(UsageError, match="float32 only"):
        export(written(tmp_path, "detect"), "torch", tmp_path / "d.pt2", precision="bf16")


def test_overflow_of_fp16_is_found_and_named_and_nothing_is_written(tmp_path):
    def swell(model):
        model.stages[2][0].pwconv1.weight.data.mul_(5e4)

    source = written(tmp_path, "classify", swell)
    with pytest.raises(ConvnextError, match=r"stages\.2\.0\.pwconv1 gives inf in fp16.*--precision float32, or with bf16"):
        export(source, "onnx", tmp_path / "out.onnx", precision="fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["classify.safetensors"]
    export(source, "onnx", tmp_path / "out.onnx")


@pytest.mark.slow
def test_a_file_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    (tmp_path / "out.onnx").write_text("before")
    monkeypatch.setitem(check.TOLERANCE, "float32", 1e-12)
    with pytest.raises(ConvnextError, match="computes something else than the network: relative error"):
        export(written(tmp_path, "classify"), "onnx", tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_text() == "before"


def test_weights_as_safetensors_describe_themselves(tmp_path):
    source = written(tmp_path, "segment")
    export(source, "safetensors", tmp_path / "out.safetensors")
    ours, theirs = load(source), load(tmp_path / "out.safetensors")
    assert (theirs.classes, theirs.preprocessing, theirs.model.spec["name"]) == (CLASSES, ours.preprocessing, "upernet_convnext_atto")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "onx"}, "did you mean 'onnx'"),
        ({"output": "out.bin"}, r"ends in \.onnx"),
        ({"precision": "fp15"}, "did you mean 'fp16'"),
        ({"to": "safetensors", "output": "o.safetensors", "precision": "fp16"}, "as they are"),
        ({"precision": "bf16"}, "not for --to onnx: ONNX Runtime has no products in bf16 on CPUs: use"),
        ({"to": "openvino", "output": "o.xml", "precision": "bf16"}, "not for --to openvino: .*fp16 halves the file"),
    ],
)
def test_mistakes(tmp_path, options, message):
    given = {"to": "onnx", "output": "out.onnx"} | options
    with pytest.raises(UsageError, match=message):
        export("nowhere.pth", given["to"], tmp_path / given["output"], precision=given.get("precision", "float32"))


def test_no_compiler_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    with pytest.raises(UsageError, match=r"install g\+\+"):
        export(written(tmp_path, "classify"), "aoti", tmp_path / "out.pt2")


@pytest.mark.slow
def test_the_command_and_what_takes_its_file(tmp_path):
    source, output = written(tmp_path, "classify"), tmp_path / "out.onnx"
    command = [sys.executable, "-m", "convnext", "export", source, "--to", "onnx", "--output", output, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bytes"] == output.stat().st_size
    one = sample_image(size=(70, 90))
    wanted, found = (convnext.load(path, device="cpu")(one).top(3) for path in (source, output))
    assert [name for name, _ in wanted] == [name for name, _ in found]
    photos = str(image_folder(tmp_path / "photos", CLASSES, each=2))
    accuracies = [evaluate_loaded(load(path), photos, 4, 0, 0.0, torch.device("cpu")).result.metrics for path in (source, output)]
    assert accuracies[0]["loss"] == pytest.approx(accuracies[1]["loss"], rel=1e-4)
    setting = Setting(image_size=32, seconds=0.1)
    (timed,) = bench([str(output)], setting, torch.device("cpu"), batch_sizes=[2]).results
    assert timed.images_per_second.median > 0
    with pytest.raises(UsageError, match="can't be trained"):
        bench([str(output)], setting, torch.device("cpu"), train=True)


@pytest.mark.slow
@pytest.mark.parametrize("task", list(SMALL))
@torch.no_grad()
def test_compiled_ahead_of_time(tmp_path, monkeypatch, task):
    monkeypatch.setenv("CONVNEXT_TRUST_PT2", "1")
    source = written(tmp_path, task)
    assert export(source, "aoti", tmp_path / "out.pt2", size=64).relative_error < 1e-3
    assert load(tmp_path / "out.pt2").classes == CLASSES


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino"])
@pytest.mark.parametrize("size", ["tiny", "small", "base", "large", "xlarge"])
def test_published_sizes_agree(tmp_path, size, to):
    model = random_model(f"convnext_{size}")
    write_weights(tmp_path / "w.safetensors", model.state_dict())
    del model
    found = export(tmp_path / "w.safetensors", to, tmp_path / f"out.{'onnx' if to == 'onnx' else 'xml'}")
    assert found.size is None
    assert found.relative_error < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin_tiny", "alexnet", "resnet50", "deit_small"])
def test_other_families_are_exported_and_a_fixed_size_is_reported(tmp_path, name):
    torch.manual_seed(0)
    model = convnext.create_model(name, num_classes=3)
    description = {"task": "classify", "model": model.spec, "classes": CLASSES, "preprocessing": ClassifyPreprocessing().to_json()}
    write_weights(tmp_path / "w.safetensors", model.eval().state_dict(), description)
    found = export(tmp_path / "w.safetensors", "onnx", tmp_path / "out.onnx")
    assert found.relative_error < 1e-3
    assert (found.size is not None) == (name == "swin_tiny") == bool(found.remarks)
    if found.size is not None:
        with pytest.raises(UsageError, match="takes images of 224 x 224 pixels, not of 256 x 224"):
            load(tmp_path / "out.onnx").model(torch.zeros(1, 3, 256, 224))


@torch.no_grad()
def test_a_network_of_rectangles_is_exported_for_rectangles(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVNEXT_TRUST_PT2", "1")
    monkeypatch.setitem(SMALL, "classify", (*SMALL["classify"][:2], ClassifyPreprocessing(image_size=(32, 48), letterbox=True)))
    source, output = written(tmp_path, "classify"), tmp_path / "out.pt2"
    export(source, "torch", output, size=(32, 64))
    exported, original = load(output), load(source)
    assert exported.preprocessing == ClassifyPreprocessing(image_size=(32, 64), letterbox=True)
    image = exported.preprocessing.transform()(sample_image())[None]
    assert image.shape == (1, 3, 32, 64)
    assert relative_error(exported.model(image), original.model(image)) < 1e-4
