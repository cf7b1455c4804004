"""Untrained networks of each task, in weight files as a run leaves them, small enough to run hundreds of times."""

import torch
from helpers import randomise, sample_image

import convnext
from convnext.data.transforms.detect import DetectPreprocessing
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.data.transforms.segment import SegmentPreprocessing
from convnext.models.weights.files import write_weights

SMALL = {"depths": (1, 1, 1, 1), "widths": (8, 16, 24, 32)}
CLASSES = ["ant", "bee", "wasp"]


def create(name, **more):
    # Not by way of the meta device, which would leave the means and variances of BatchNorm as the memory happens to be.
    return randomise(convnext.create_model(name, num_classes=len(CLASSES), **{"layer_scale": 1.0} | SMALL | more)).eval()


def write(path, task, how, model, class_ids=None):
    """A weight file; returns it with its network in evaluation mode and how that wants its images."""
    about = {"task": task, "model": model.spec, "classes": CLASSES, "preprocessing": how.to_json()}
    write_weights(path, model.state_dict(), about | ({"class_ids": class_ids} if class_ids else {}))
    return path, model, how


def classifier(folder):
    return write(folder / "classify.safetensors", "classify", ClassifyPreprocessing(image_size=32), create("convnext_tiny"))


def several(folder):
    return write(folder / "several.safetensors", "multilabel", ClassifyPreprocessing(image_size=32), create("convnext_tiny"))


def regressor(folder):
    model = randomise(convnext.create_model("convnext_tiny", num_classes=1, layer_scale=1.0, **SMALL)).eval()
    path = folder / "regress.safetensors"
    how = ClassifyPreprocessing(image_size=32, unit=(40.0, 10.0))
    write_weights(path, model.state_dict(), {"task": "regress", "model": model.spec, "classes": ["value"], "preprocessing": how.to_json()})
    return path, model, how


def detector(folder, class_ids=None, **more):
    how = DetectPreprocessing(short=64, longest=96)
    model = create("mask_rcnn_convnext_tiny", channels=16, fc_channels=32, **more)
    return write(folder / "detect.safetensors", "detect", how, model, class_ids)


def segmenter(folder, class_ids=None, **test):
    how, model = SegmentPreprocessing(**test), create("upernet_convnext_tiny", channels=16, auxiliary_channels=8)
    with torch.no_grad():  # or else one class would be everywhere
        model.decode_head.conv_seg.bias -= model(how.transform()(sample_image())[None]).mean((0, 2, 3))
    return write(folder / "segment.safetensors", "segment", how, model, class_ids)
