"""Tests of images against plain computations that hold everything at once, written after mmsegmentation's code."""

import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from convnext.errors import UsageError
from convnext.models.backbones.convnext import ConvNeXt
from convnext.models.registry import find
from convnext.models.segmentation import inference
from convnext.models.segmentation.inference import Mode, mode_of, predict
from convnext.models.segmentation.upernet import UperNet


def segmenter(num_classes=7):
    torch.manual_seed(0)
    backbone = ConvNeXt((1, 1, 1, 1), (8, 8, 8, 8), layer_scale=1.0)
    model = UperNet(backbone, num_classes, output_norm=True, channels=8, auxiliary_channels=4).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=parameter[0].numel() ** -0.5)
    with torch.no_grad():  # every class wins somewhere
        logits, last = model.logits(image(256, 256)[None]), model.decode_head.conv_seg
        last.weight.mul_(3 / logits.std())
        last.bias.sub_(3 / logits.std() * logits.mean((0, 2, 3)))
    return model


def image(height, width, seed=0):
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))


MODEL = segmenter()


def slide(model, x, window, stride):
    """mmsegmentation's sliding windows over (1, 3, H, W), as its documentation and code describe them."""
    height, width = x.shape[-2:]
    total, count = torch.zeros(1, model.num_classes, height, width), torch.zeros(1, 1, height, width)
    for i in range(max(height - window + stride - 1, 0) // stride + 1):
        for j in range(max(width - window + stride - 1, 0) // stride + 1):
            bottom, right = min(i * stride + window, height), min(j * stride + window, width)
            top, left = max(bottom - window, 0), max(right - window, 0)
            total[:, :, top:bottom, left:right] += model(x[:, :, top:bottom, left:right])
            count[:, :, top:bottom, left:right] += 1
    return total / count


def plain(model, x, mode):
    """Probabilities (classes, H, W) by the plainest way; the resize rule is mmcv's `imrescale`."""
    height, width = x.shape[-2:]
    views = []
    for scale in mode.scales:
        if mode.within is None:
            factor = scale
        else:
            edges = [int(side * scale) for side in mode.within]
            factor = min(max(edges) / max(height, width), min(edges) / min(height, width))
        size = (int(height * factor + 0.5), int(width * factor + 0.5))
        resized = F.interpolate(x[None], size, mode="bilinear", align_corners=False)
        for flip in (False, True) if mode.mirror else (False,):
            view = resized.flip(3) if flip else resized
            logits = model(view) if mode.window is None else slide(model, view, mode.window, mode.stride)
            logits = logits.flip(3) if flip else logits
            views.append(F.interpolate(logits, (height, width), mode="bilinear", align_corners=False).softmax(1))
    return torch.stack(views).mean(0)[0]


@torch.no_grad()
def agrees(model, x, mode):
    """The class found is at every pixel the best of the plain computation, or as good within rounding."""
    found, wanted = predict(model, x, mode), plain(model, x, mode)
    assert found.shape == x.shape[1:]
    chosen = wanted.gather(0, found.long()[None])[0]
    assert (wanted.amax(0) - chosen).max() < 1e-5
    assert len(found.unique()) > 2


@settings(deadline=None, max_examples=25)
@given(height=st.integers(33, 150), width=st.integers(33, 150), window=st.integers(32, 80), data=st.data())
def test_sliding_windows(height, width, window, data):
    stride = data.draw(st.integers(window // 3, window))
    agrees(MODEL, image(height, width), Mode(window=window, stride=stride))


@pytest.mark.parametrize("within", [None, (200, 60), (90, 90)])
@pytest.mark.parametrize(("height", "width"), [(75, 131), (131, 75), (64, 64)])
def test_one_size(height, width, within):
    agrees(MODEL, image(height, width), Mode(within=within))
    agrees(MODEL, image(height, width), Mode(within=within, window=48, stride=32))


@pytest.mark.parametrize(("height", "width"), [(75, 131), (180, 96)])
def test_several_scales_with_mirror_images(height, width):
    agrees(MODEL, image(height, width), Mode(within=(256, 96), scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), mirror=True))
    agrees(MODEL, image(height, width), Mode(scales=(0.6, 1.0, 1.3), mirror=True, window=48, stride=31))


@pytest.mark.parametrize("strip", [1, 3000, 20000])
@pytest.mark.parametrize(
    "mode", [Mode(), Mode(window=48, stride=31), Mode((200, 70), scales=(0.7, 1.6), mirror=True, window=48, stride=48)]
)
def test_strips_of_any_height_give_the_same(mode, strip, monkeypatch):
    x = image(123, 101)
    whole = predict(MODEL, x, mode)
    monkeypatch.setattr(inference, "_STRIP", strip)
    assert torch.equal(predict(MODEL, x, mode), whole)


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor of floats has that any operator makes."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self.numbers = max(self.numbers, tensor.numel())
        return result


@pytest.mark.parametrize("mode", [Mode(window=48, stride=32), Mode(scales=(0.7, 1.2), mirror=True, window=48, stride=48)])
def test_no_tensor_grows_with_the_area(mode, monkeypatch):
    monkeypatch.setattr(inference, "_STRIP", 2**16)
    model, largest = segmenter(num_classes=40), []
    for height in (96, 384):
        x = image(height, 96)
        with Largest() as operations:
            predict(model, x, mode)
        largest.append(operations.numbers)
    assert largest[1] == largest[0] < 40 * 384 * 96 / 10


def test_windows_that_no_strip_needs_any_more_are_let_go(monkeypatch):
    monkeypatch.setattr(inference, "_STRIP", 2**12)
    held = []
    advance = inference._View._advance
    monkeypatch.setattr(inference._View, "_advance", lambda view, *rows: (advance(view, *rows), held.append(len(view.rows))))
    predict(MODEL, image(700, 64), Mode(window=64, stride=43))
    assert max(held) <= 3  # rows that overlap, and the last, which is moved back


def test_progress_counts_windows_to_the_end():
    reported = []
    mode = Mode(scales=(1.0, 1.5), mirror=True, window=48, stride=32)
    predict(MODEL, image(100, 230), mode, lambda *counts: reported.append(counts))
    total = 2 * (3 * 7 + 5 * 11)  # rows x columns of windows over 100 x 230 and 150 x 345
    assert [done for done, _ in reported] == sorted({done for done, _ in reported})
    assert reported[-1] == (total, total)


def test_the_published_tests():
    (at_512, _), (at_640, _) = (find("upernet_convnext_base").published(tag) for tag in ("fb_in1k_512", "fb_in22k_640"))
    assert mode_of(at_512) == Mode(within=(2048, 512), window=512, stride=341)
    assert mode_of(at_640) == Mode(within=(2560, 640), window=640, stride=426)
    several = at_512.multi_scale()
    assert mode_of(several) == Mode(within=(2048, 512), scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), mirror=True)
    assert type(several).from_json(json.loads(json.dumps(several.to_json()))) == several


@pytest.mark.parametrize(("classes", "dtype"), [(255, torch.uint8), (256, torch.uint16), (300, torch.uint16)])
def test_the_map_is_as_small_as_the_classes_allow(classes, dtype):
    model = segmenter(classes)
    model.decode_head.conv_seg.bias.data[classes - 1] = 1e6
    found = predict(model, image(40, 50))
    assert found.dtype == dtype
    assert (found.int() == classes - 1).all()


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UsageError, match="training mode.*model.eval"):
        predict(segmenter().train(), image(64, 64))
    with pytest.raises(UsageError, match="one image.*1, 3, 64, 64"):
        predict(MODEL, image(64, 64)[None])
    with pytest.raises(UsageError, match="20 x 32 pixels is too small"):
        predict(MODEL, image(20, 32))
    with pytest.raises(UsageError, match="window 64 with stride None: give both or neither"):
        Mode(window=64)
    with pytest.raises(UsageError, match="do not cover"):
        Mode(window=64, stride=65)
    with pytest.raises(UsageError, match="positive"):
        Mode(scales=())
