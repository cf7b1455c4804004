"""A small network of random features with a fitted head for the embedded digits, calibrated as `convnext fit` leaves its weights."""

import functools

import numpy as np
import torch
from helpers import random_model
from sklearn.linear_model import LogisticRegression

from convnext.data.sources.digits import Digits
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.models.calibration import calibrate
from convnext.models.weights.files import write_weights
from convnext.tasks.classify.prediction import embed

HOW = ClassifyPreprocessing(image_size=16, crop_ratio=1.0, mean=(0.5,) * 3, std=(0.5,) * 3)
CPU = torch.device("cpu")
ON_HEAD = 958  # images of the 1,437 that the head is fitted on; the scores are of the others


def images(part):
    """The digits of a part, opened."""
    source = Digits(part)
    return [source.read(index) for index in range(len(source))]


def labels(part):
    source = Digits(part)
    return np.array([source.label(index) for index in range(len(source))])


def embeddings(model, opened):
    return torch.cat([embed(model, opened[start : start + 240], HOW, CPU) for start in range(0, len(opened), 240)])


@functools.cache
def fitted():
    """The network in evaluation mode, and its calibration."""
    model = random_model("convnext_tiny", num_classes=10, depths=(1, 1, 1, 1), widths=(16, 24, 32, 64), patch_size=1)
    features, known = embeddings(model, images("train")), labels("train")
    mean, std = features[:ON_HEAD].mean(0), features[:ON_HEAD].std(0)
    head = LogisticRegression(C=0.3, max_iter=500).fit(((features - mean) / std)[:ON_HEAD].numpy(), known[:ON_HEAD])
    weight = torch.tensor(head.coef_, dtype=torch.float32) / std
    with torch.no_grad():
        model.head.weight.copy_(weight)
        model.head.bias.copy_(torch.tensor(head.intercept_, dtype=torch.float32) - weight @ mean)
        probabilities = model.head(features[ON_HEAD:]).softmax(1)
    scores = 1 - probabilities[torch.arange(len(probabilities)), known[ON_HEAD:]].double()
    return model, calibrate(scores.tolist(), features)


def write_fitted(path, calibration=True):
    """Write the network as a weights file, calibrated or not; returns the path."""
    model, known = fitted()
    about = {"task": "classify", "model": model.spec, "classes": [str(digit) for digit in range(10)], "preprocessing": HOW.to_json()}
    write_weights(path, model.state_dict(), about, known if calibration else None)
    return path
