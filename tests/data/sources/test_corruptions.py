"""The corruptions of ImageNet-C, generated where its files are not there (convnext[robustness])."""

import sys
from io import BytesIO

import numpy as np
import pytest
from helpers import sample_image
from PIL import Image
from torchvision.transforms import v2

from convnext.data.loader import Samples, make_loader
from convnext.data.sampling.order import EVALUATION, InOrder
from convnext.data.sources.corruptions import CORRUPTIONS, open_corrupted
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.errors import UsageError

CLASSES = ["n01440764", "n01443537"]


@pytest.fixture
def validation(tmp_path):
    for label, name in enumerate(CLASSES):
        (tmp_path / name).mkdir()
        sample_image(label, (300, 260)).save(tmp_path / name / f"ILSVRC2012_val_{label:08d}.JPEG", quality=95)
    return tmp_path


@pytest.fixture
def generated(validation):
    pytest.importorskip("imagecorruptions", reason="needs convnext[robustness]")
    source, remarks = open_corrupted(str(validation), "c", CLASSES)
    assert "are not the published files: imagecorruptions-imaug 1" in remarks[0]
    return source


def test_every_corruption_is_made_at_every_severity_and_depends_on_the_position_alone(generated):
    assert len(generated) == 150
    before = np.asarray(v2.CenterCrop(224)(v2.Resize(256)(generated.sources[0].source.read(0)))).astype(float)
    for number, name in enumerate(CORRUPTIONS["c"]):
        changed = []
        for severity in (1, 5):
            index = number * 10 + (severity - 1) * 2
            first = generated.read(index)
            np.random.seed(severity)
            assert first.size == (224, 224)
            assert generated.read(index).tobytes() == first.tobytes(), name
            assert generated.name(index).endswith(f"val_00000000.JPEG ({name} {severity})")
            changed.append(np.abs(np.asarray(first) - before).mean())
        assert min(changed) > 0.2, name
        assert changed[1] > changed[0] or name == "frost", name  # of six kinds of frost each image gets one
    assert [generated.label(i) for i in (0, 1, 148, 149)] == [0, 1, 0, 1]


def test_images_are_made_as_the_published_ones(generated):
    """Short side to 256 and the central 224 pixels, corrupted, saved as JPEG of quality 85. Contrast draws no random numbers."""
    from imagecorruptions import corrupt

    index = CORRUPTIONS["c"].index("contrast") * 10 + 2 * 2
    whole = generated.sources[0].source.read(0)
    assert whole.size == (300, 260)
    resized = whole.resize((295, 256), Image.Resampling.BILINEAR)
    left = round((295 - 224) / 2)
    saved = BytesIO()
    Image.fromarray(corrupt(np.asarray(resized.crop((left, 16, left + 224, 240))), 3, "contrast")).save(
        saved, "JPEG", quality=85, optimize=True
    )
    assert generated.read(index).tobytes() == Image.open(saved).tobytes()


def test_workers_change_nothing(generated):
    samples = Samples(generated, ClassifyPreprocessing(warp=True).transform(), 0)
    alone = [samples[EVALUATION, i].image for i in range(40, 50)]  # glass blur, whose generator is Numba's
    order = InOrder(len(generated), 10)
    order.indices = order.indices[40:50]
    (batch,) = make_loader(samples, order, lambda found: [sample.image for sample in found], 2, pin=False)
    assert all(np.array_equal(one, two) for one, two in zip(alone, batch, strict=True))


def test_without_the_library_it_is_said_what_to_install(validation, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(
        UsageError, match=r"pip install '\.\[robustness\]' in a clone of convnext, or name the folder of the published files"
    ):
        open_corrupted(str(validation), "c", CLASSES)
