"""Features: equal to the predictor's, computed once per image, and safe against kills and changed files."""

import shutil

import numpy as np
import pytest
import torch
from helpers import image_folder, random_model, sample_image

from convnext.data.sources.open import open_source
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.errors import ConvnextError
from convnext.fit.features import compute
from convnext.tasks.classify.prediction import embed
from convnext.tasks.classify.task import ClassifyTask

CPU = torch.device("cpu")
HOW = ClassifyPreprocessing(image_size=32, crop_ratio=1.0)


@pytest.fixture(scope="module")
def network():
    return random_model("convnext_tiny", num_classes=3, depths=(1, 1, 1, 1), widths=(8, 16, 24, 32))


@pytest.fixture
def photos(tmp_path):
    return image_folder(tmp_path / "photos", each=5)


def features(network, photos, folder, **more):
    return compute(network, ClassifyTask(), open_source(str(photos)), HOW, folder, CPU, **more)


def test_they_are_what_the_head_sees_of_each_image_and_of_its_mirror_image(network, photos, tmp_path):
    found, source = features(network, photos, tmp_path / "kept"), open_source(str(photos))
    images = [source.read(index) for index in range(len(source))]
    mirrored = [image.transpose(0) for image in images]  # Pillow's FLIP_LEFT_RIGHT
    np.testing.assert_allclose(found.plain, embed(network, images, HOW, CPU), atol=1e-5)
    np.testing.assert_allclose(found.mirrored, embed(network, mirrored, HOW, CPU), atol=1e-5)
    assert found.indices.tolist() == list(range(15))


def test_a_second_call_computes_only_what_is_new(network, photos, tmp_path):
    first = features(network, photos, tmp_path / "kept")
    assert first.computed == 15
    for number in range(10):
        sample_image(seed=100 + number).save(photos / "wasp" / f"more-{number}.png")
    (photos / "ant").rename(photos / "an ant")  # moved, and the same images
    second = features(network, photos, tmp_path / "kept")
    assert (len(second), second.computed) == (25, 10)
    np.testing.assert_array_equal(second.plain[:5], first.plain[:5])


def test_an_image_that_changed_is_computed_again(network, photos, tmp_path):
    first = features(network, photos, tmp_path / "kept")
    changed = next((photos / "bee").iterdir())
    sample_image(seed=99).save(changed)
    second = features(network, photos, tmp_path / "kept")
    assert second.computed == 1
    assert (np.abs(second.plain - first.plain).max(1) > 0).sum() == 1


def test_a_record_that_was_cut_off_is_computed_again(network, photos, tmp_path):
    first = features(network, photos, tmp_path / "kept")
    (file,) = (tmp_path / "kept").iterdir()
    file.write_bytes(file.read_bytes()[:-7])
    second = features(network, photos, tmp_path / "kept")
    assert second.computed == 1
    np.testing.assert_allclose(second.plain, first.plain, atol=1e-5)  # alone in its batch, an image is rounded otherwise


def test_the_head_does_not_matter_and_other_weights_do(network, photos, tmp_path):
    features(network, photos, tmp_path / "kept")
    shutil.copytree(tmp_path / "kept", tmp_path / "other")
    with torch.no_grad():
        network.head.bias.add_(1)
    assert features(network, photos, tmp_path / "kept").computed == 0
    with torch.no_grad():
        network.norm.bias.add_(1)
    assert features(network, photos, tmp_path / "kept").computed == 15


def test_unreadable_images_have_no_row_and_too_many_stop_it(network, photos, tmp_path):
    broken = sorted((photos / "ant").iterdir())[1]
    broken.write_bytes(b"no image")
    found = features(network, photos, tmp_path / "kept", max_corrupt=0.1)
    assert found.indices.tolist() == [0, *range(2, 15)]
    assert len(found.unreadable) == 1
    assert str(broken) in found.unreadable[0]
    with pytest.raises(ConvnextError, match="can't be read, more than 1.0%"):
        features(network, photos, tmp_path / "kept")
