"""What a caller can say of how to detect, and how many objects are found."""

import json

import pytest
import torch
from command import run
from helpers import sample_image
from tiny_models import CLASSES, create, detector, segmenter, write
from torchvision.ops import batched_nms, box_iou

import convnext
from convnext.data.sources.coco import CocoSource
from convnext.data.transforms.detect import DetectPreprocessing
from convnext.errors import UsageError
from convnext.recipe import load_recipe
from convnext.tasks.detect.limits import limit_remarks
from convnext.tasks.detect.options import labels_of


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return convnext.load(detector(tmp_path_factory.mktemp("weights"))[0], device="cpu")


@pytest.fixture(scope="module")
def image():
    return sample_image(size=(80, 60))


def highest_iou(found, same_class):
    overlap = box_iou(found.boxes, found.boxes) - torch.eye(len(found.boxes))
    return float((overlap * (found.labels == found.labels[:, None]) if same_class else overlap).max())


def test_suppression_is_that_of_the_options(predictor, image):
    usual, strict, any_class = predictor(image), predictor(image, nms=0.2), predictor(image, class_agnostic=True)
    assert 0.2 < highest_iou(usual, True) <= 0.5 < highest_iou(usual, False)
    assert highest_iou(strict, True) <= 0.2
    assert highest_iou(any_class, False) <= 0.5
    assert min(len(strict.scores), len(any_class.scores)) > 1
    loose = predictor(image, nms=1.0)
    assert highest_iou(loose, True) > 0.5
    kept = batched_nms(loose.boxes, loose.scores, loose.labels, 0.5)
    assert torch.equal(loose.boxes[kept][:5], usual.boxes[:5])


def test_only_the_classes_that_are_named_are_found(predictor, image):
    usual = predictor(image, threshold=0.55)
    for classes, labels in (("bee", [1]), ("wasp, bee", [1, 2]), (["ant", "wasp"], [0, 2])):
        found, wanted = predictor(image, threshold=0.55, classes=classes), torch.isin(usual.labels, torch.tensor(labels))
        assert torch.equal(found.boxes, usual.boxes[wanted])
        assert len(found.masks) == int(wanted.sum()) > 0
    with pytest.raises(UsageError, match="classes: the network has no class 'bees'; did you mean 'bee'"):
        predictor.with_options(classes="ant,bees")
    with pytest.raises(UsageError, match="name at least one class"):
        predictor.with_options(classes=[])
    assert labels_of("x, y", ["x", "x, y", "y"]) == (1,)
    with pytest.raises(UsageError, match=r"nms=1\.5 must be from 0 to 1"):
        predictor.with_options(nms=1.5)


def test_a_segmenter_says_why_it_omits_no_class(tmp_path):
    with pytest.raises(UsageError, match="a segmenter gives every pixel a class"):
        convnext.load(segmenter(tmp_path)[0]).with_options(classes="ant")


def test_the_command_takes_them_and_resumes_only_with_the_same(tmp_path):
    weights, output = detector(tmp_path)[0], tmp_path / "found.jsonl"
    for i in range(2):
        sample_image(i, (80, 60)).save(tmp_path / f"{i}.png")
    given = ("--threshold", "0.2", "--nms", "0.3", "--class-agnostic", "--classes", "bee,ant", "--output", output)
    run("predict", weights, tmp_path / "0.png", *given)
    (row,) = map(json.loads, output.read_text().splitlines())
    wanted = convnext.load(weights, device="cpu")(tmp_path / "0.png", threshold=0.2, nms=0.3, class_agnostic=True, classes=["ant", "bee"])
    assert row["objects"] == wanted.to_json()["objects"]
    assert {one["class"] for one in row["objects"]} <= {"ant", "bee"}
    assert all(one["score"] > 0.2 for one in row["objects"])
    told = run("predict", weights, tmp_path / "1.png", "--output", output, code=2).stderr
    assert "--class-agnostic, --classes bee,ant, --nms 0.3, --threshold 0.2" in told
    assert "no class 'be'; did you mean 'bee'" in run("predict", weights, tmp_path / "1.png", "--classes", "be", code=2).stderr
    run("predict", weights, tmp_path / "1.png", *given)
    assert len(output.read_text().splitlines()) == 2


@pytest.mark.parametrize("most", [3, 150])
def test_the_number_of_objects_travels_with_the_weights(tmp_path, image, most):
    how = DetectPreprocessing(short=64, longest=96, most=most)
    model = create("mask_rcnn_convnext_tiny", channels=16, fc_channels=32)
    found = convnext.load(write(tmp_path / "detect.safetensors", "detect", how, model)[0], device="cpu")(image, nms=1.0)
    assert len(found.scores) == most
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


def full_source(tmp_path, count, crowds=0):
    objects = [
        {"id": i + 1, "image_id": 1, "category_id": 1, "bbox": [i % 16 * 4, i // 16 * 4, 3, 3], "iscrowd": int(i >= count)}
        for i in range(count + crowds)
    ]
    images = [{"id": key, "file_name": f"{key}.png", "height": 80, "width": 80} for key in (1, 2)]
    for one in images:
        sample_image(size=(80, 80)).save(tmp_path / one["file_name"])
    path = tmp_path / f"{count}.json"
    path.write_text(json.dumps({"images": images, "annotations": objects, "categories": [{"id": 1, "name": CLASSES[0]}]}))
    return CocoSource(path, tmp_path)


def test_images_with_more_objects_are_reported_with_the_keys_to_set(tmp_path):
    recipe = load_recipe("detect_digits", {"model.proposals": 300})
    full, usual = full_source(tmp_path, 180), full_source(tmp_path, 100, crowds=9)
    assert full.object_counts.tolist() == [180, 0]
    (first, second) = limit_remarks(recipe, {"train": full, "val": usual})
    assert first == (
        "train: 1 image has more than 100 objects, the fullest 180, and at most 100 are found in an image: add detect.most=180"
    )
    assert second == ("an image has 180 objects, and the network looks at 300 proposals in an image: add model.proposals=720")
    assert convnext.tasks.get("detect").preprocessing(load_recipe("detect_digits", {"detect.most": 180})).most == 180
    enough = load_recipe("detect_digits", {"model.proposals": 720, "detect.most": 180})
    assert limit_remarks(enough, {"train": full, "val": usual}) == []
