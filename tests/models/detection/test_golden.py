"""The published detectors' functions: what mmdetection 3.3.0 computed from the same weights and image (`formats.md`)."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from helpers import relative_error, shared
from models.detection.detectors import BUILDERS

import convnext
from convnext import ops
from convnext.models.detection.targets import Sampler
from convnext.models.load import load_weights


class Golden:
    """A detector with the golden weights, and what mmdetection computed with them."""

    def __init__(self, kind):
        name = {"mask_rcnn": "mask_rcnn", "cascade": "cascade_mask_rcnn"}[kind]
        spec = importlib.util.spec_from_file_location("fill", shared("golden/fill.py"))
        fill = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(fill)
        with np.load(shared(f"golden/{name}_convnext_tiny_256x320.npz")) as file:
            self.values = {key: torch.from_numpy(value) for key, value in file.items() if key != "meta"}
            self.meta = json.loads(str(file["meta"]))
        state = fill.fill(fill.read_keys(shared(f"reference/keys/{name}_convnext_tiny.mmdet.txt")))
        with torch.device("meta"):
            self.model = convnext.create_model(f"{name}_convnext_tiny", num_classes=80)
        load_weights(self.model, state)
        self.model.eval()
        self.image = fill.picture(self.meta["height"], self.meta["width"], self.meta["seed"])[0]
        self.size = (self.meta["height"], self.meta["width"])
        with torch.no_grad():
            self.levels = self.model.pyramid([self.image])

    def target(self):
        height, width = self.size
        masks = torch.from_numpy(np.unpackbits(self.values["gt_masks"].numpy()).reshape(-1, height, width))
        return {"boxes": self.values["gt_boxes"], "labels": self.values["gt_labels"], "masks": masks}


@pytest.fixture(scope="module", params=list(BUILDERS))
def golden(request):
    # PyTorch's operators: the fast ones are held to these by tests/ops, and add in another order, at which a mask's pixel may turn.
    with ops.using(False):
        yield Golden(request.param)


def test_number_of_parameters(golden):
    assert sum(parameter.numel() for parameter in golden.model.parameters()) == golden.meta["params"]


def test_pyramid(golden):
    for i, level in enumerate(golden.levels):
        assert relative_error(level[0, :8, :2, :2], golden.values[f"level{i}_corner"]) < 1e-4
        assert level.abs().mean().item() == pytest.approx(golden.values["level_abs_mean"][i].item(), rel=1e-4)


def test_proposals(golden):
    (found,) = golden.model.propose(golden.levels, [golden.size])
    assert found.boxes.shape == (1000, 4)
    distance = (found.boxes[:, None] - golden.values["proposals"]).abs().amax(2).amin(0)
    assert (distance < 0.01).sum() >= 995
    torch.testing.assert_close(found.objectness, golden.values["objectness"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("golden", ["mask_rcnn", pytest.param("cascade", marks=pytest.mark.slow)], indirect=True)
def test_detections(golden):
    (found,) = golden.model([golden.image])
    assert torch.equal(found["labels"], golden.values["labels"])
    torch.testing.assert_close(found["scores"], golden.values["scores"], atol=1e-4, rtol=0)
    torch.testing.assert_close(found["boxes"], golden.values["boxes"], atol=0.05, rtol=0)
    # The smallest masks have a handful of pixels, of which one is more than 1 %.
    wanted = golden.values["mask_area"]
    assert ((found["masks"].sum((1, 2, 3)) - wanted).abs() <= (wanted * 0.01).clamp(min=1)).all()


@pytest.mark.parametrize("golden", ["mask_rcnn", pytest.param("cascade", marks=pytest.mark.slow)], indirect=True)
def test_losses(golden):
    model = golden.model
    model.rpn_head.sampler = model.roi_head.sampler = Sampler(10**7, 0.5)  # all that there are
    with torch.no_grad():
        losses = model.losses([golden.image], [golden.target()])
    assert losses.keys() == golden.meta["losses"].keys()
    for name, wanted in golden.meta["losses"].items():
        assert losses[name].item() == pytest.approx(wanted, rel=1e-3), name
