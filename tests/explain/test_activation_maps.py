import numpy as np
import pytest
import torch
import torchvision.transforms.functional as vision
from baseline_networks import build, telling
from helpers import random_model, sample_image
from PIL import Image

from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.data.transforms.resizing import fitting_size
from convnext.errors import UsageError
from convnext.explain import activation_maps
from convnext.inference.predictor import Predictor
from convnext.models.load import Loaded


def _predictor(name="convnext_atto", **how):
    model = random_model(name, num_classes=3) if name == "convnext_atto" else telling(build(name, num_classes=3)).eval()
    return Predictor(Loaded(model, ClassifyPreprocessing(**{"image_size": 96} | how), classes=["ant", "bee", "wasp"]), torch.device("cpu"))


@pytest.mark.parametrize(("size", "stage"), [(128, 3), (96, 2), (32, 1)])
def test_activation_maps_are_captums_of_the_last_map_that_is_fine_enough(size, stage):
    attr = pytest.importorskip("captum.attr")
    predictor, image = _predictor(image_size=size, warp=True), sample_image(size=(size, size))
    batch = predictor.preprocessing.transform()(image)[None]
    layer = predictor.model.stages[stage][-1]
    wanted = attr.LayerGradCam(predictor.model, layer).attribute(batch, 1, relu_attributions=True)[0, 0].detach().numpy()
    assert len(wanted) >= 4
    assert wanted.max() > 0
    np.testing.assert_allclose(activation_maps._grad_cam(predictor, image, 1), wanted / wanted.max(), atol=1e-5)


@pytest.mark.parametrize("name", ["swin_tiny", "resnet50", "efficientnet_lite0", "convnext_isotropic_small"])
def test_other_families_have_maps_too(name):
    predictor, image = _predictor(name, image_size=64, warp=True), sample_image(size=(64, 64))
    rows, columns = activation_maps._grad_cam(predictor, image, 2).shape  # of positions: the axis of channels is none of them
    assert rows == columns < 16
    found = activation_maps.activation_map(predictor, image, "bee")
    assert found.shape == (64, 64)
    assert found.min() >= 0
    assert 0 < found.max() <= 1


def test_a_map_lies_over_what_the_network_saw():
    predictor = _predictor(crop_ratio=0.5)
    wide = sample_image(size=(200, 100))
    found = activation_maps.activation_map(predictor, wide, "bee")
    seen = found[25:75, 75:125]  # the centre, half as wide and high as the short side
    assert seen.max() > 0
    assert found.sum() == pytest.approx(seen.sum())
    alone = activation_maps.activation_map(_predictor(warp=True), vision.center_crop(wide, 50), "bee")
    assert np.abs(seen - alone).mean() < 0.05  # but for resampling: first cut, then enlarged


def test_the_class_asked_for_is_explained_by_default_the_likeliest():
    predictor, image = _predictor(), sample_image()
    likeliest = predictor(image).top(1)[0][0]
    maps = {name: activation_maps.activation_map(predictor, image, name) for name in (None, *predictor.classes)}
    assert np.array_equal(maps[None], maps[likeliest])
    assert not np.allclose(maps["ant"], maps["bee"], atol=0.05)
    with pytest.raises(UsageError, match="'wasp'"):
        activation_maps.activation_map(predictor, image, "wsp")


def test_drawn_maps_cover_more_where_they_are_higher():
    drawn = activation_maps.coloured(np.linspace(0, 1, 5, dtype=np.float32)[None])
    alpha = np.asarray(drawn)[0, :, 3].tolist()
    assert alpha[0] == 0
    assert alpha == sorted(alpha)
    assert activation_maps.draw(_predictor(), sample_image(size=(1600, 800))).size == (512, 256)


@pytest.mark.parametrize("name", ["alexnet", "deit_small"])
def test_networks_without_such_a_map_are_refused(name):
    predictor = Predictor(Loaded(build(name, num_classes=3).eval(), ClassifyPreprocessing()), torch.device("cpu"))
    assert not activation_maps.can_explain(predictor)
    with pytest.raises(UsageError, match="activation maps are for"):
        activation_maps.activation_map(predictor, Image.new("RGB", (224, 224)))


@pytest.mark.parametrize(("size", "shape"), [((200, 100), (64, 64)), ((50, 120), (48, 80)), ((64, 64), (32, 96))])
def test_a_map_of_a_letterboxed_image_leaves_out_the_ground(size, shape):
    predictor, image = _predictor(image_size=shape, letterbox=True), sample_image(size=size)
    found = activation_maps.activation_map(predictor, image, "bee")
    height, width = fitting_size(size[1], size[0], shape)
    top, left = (shape[0] - height) // 2, (shape[1] - width) // 2
    cam = Image.fromarray(activation_maps._grad_cam(predictor, image, 1)).resize(shape[::-1], Image.Resampling.BICUBIC)
    inner = Image.fromarray(np.asarray(cam).clip(0, 1)[top : top + height, left : left + width]).resize(size, Image.Resampling.BILINEAR)
    assert found.shape == (size[1], size[0])
    assert np.abs(found - np.asarray(inner)).mean() < 0.04


def test_a_map_of_a_rectangle_lies_over_what_the_network_saw():
    found = activation_maps.activation_map(_predictor(image_size=(48, 96), crop_ratio=0.5), sample_image(size=(200, 200)), "bee")
    assert found[75:125, 50:150].max() > 0
    assert found.sum() == pytest.approx(found[75:125, 50:150].sum())
