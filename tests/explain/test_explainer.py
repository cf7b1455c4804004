"""`convnext explain` as a user starts it, and its parts against independent computations."""

import json
import sys

import numpy as np
import pytest
import torch
from helpers import image_folder, sample_image
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from tiny_models import classifier, detector

import convnext
from convnext.cli import main
from convnext.data.sources.open import open_source
from convnext.explain import activation_maps, feature_maps
from convnext.explain.neighbours import nearest_images


@pytest.fixture
def run(monkeypatch, capsys):
    """The command line, in this process: PyTorch takes seconds to start in another."""

    def explained(*arguments, code=0):
        monkeypatch.setattr(sys, "argv", ["convnext", "explain", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        done = capsys.readouterr()
        assert (stopped.value.code or 0) == code, done.err
        return done

    return explained


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A data set of which one file is damaged."""
    root = image_folder(tmp_path_factory.mktemp("explain") / "known", each=5)
    (root / "bee" / "003.jpg").write_text("no image")
    return root


def test_all_that_was_asked_for_is_written_printed_and_on_a_page_that_needs_nothing_else(run, known, tmp_path):
    path, out = classifier(tmp_path)[0], tmp_path / "why"
    photos = tmp_path / "photos"
    photos.mkdir()
    sample_image(1, (200, 100)).save(photos / "wide.png")
    (photos / "bad.png").write_text("no image")
    done = run(
        path, photos, "--output", out, "--class", "bee", "--features", "--neighbours", known, "--count", 3, "--device", "cpu", "--json"
    )
    bad, wide = json.loads(done.out)["images"]
    assert "not an image" in bad["error"]
    assert done.err.count("skipped: ") == 2  # the one to explain and the one of the data set
    assert wide["class"] == "bee"
    assert list(wide["files"]) == ["map", "features", "neighbours"]
    assert len(wide["neighbours"]) == 3
    for what, name in wide["files"].items():
        with Image.open(name) as image:
            assert np.asarray(image.convert("L")).std() > 10, what
    page = (out / "index.html").read_text()
    assert json.loads(done.out)["page"] == str(out / "index.html")
    assert page.count("data:image/jpeg;base64,") == 1  # the map over the image
    assert page.count("data:image/webp;base64,") == 2  # sheets, on a transparent ground
    assert 'src="http' not in page
    assert "bad.png: not an image" in page


def test_a_detector_has_no_map_but_what_its_stages_see(run, tmp_path):
    path = detector(tmp_path)[0]
    sample_image(1).save(tmp_path / "a.png")
    done = run(path, tmp_path / "a.png", "--output", tmp_path / "why", "--features", "--device", "cpu", "--json")
    assert "no activation maps" in done.err
    assert list(json.loads(done.out)["images"][0]["files"]) == ["features"]
    assert "for this network use --features or --neighbours" in run(path, tmp_path / "a.png", "--output", tmp_path / "no", code=2).err
    assert not (tmp_path / "no").exists()


def test_neighbours_are_scikit_learns_by_cosine_whatever_the_batches(known, tmp_path):
    predictor, source = convnext.load(classifier(tmp_path)[0], device="cpu"), open_source("digits:val")
    assert len(source) > 10 * 32  # so that many batches are merged
    wanted = [sample_image(i) for i in range(3)]
    found, errors = nearest_images(predictor, predictor.features(wanted), source, 6)
    assert errors == {}
    everything = predictor.features([source.read(i) for i in range(len(source))])
    far, found_indices = (
        NearestNeighbors(n_neighbors=6, metric="cosine", algorithm="brute").fit(everything).kneighbors(predictor.features(wanted))
    )
    for row, distances, indices in zip(found, far, found_indices, strict=True):
        assert np.allclose([one.cosine for one in row], 1 - distances, atol=1e-5)
        # Embeddings of tiny digits are all but equal, and rounding decides the order of some.
        assert len({one.index for one in row} & set(indices.tolist())) >= 5
        assert all(one.label == source.classes[source.label(one.index)] for one in row)
    # The data set's own image is the nearest to itself.
    (itself,), _ = nearest_images(predictor, predictor.features([source.read(7)]), source, 1)
    assert (itself[0].index, round(itself[0].cosine, 4)) == (7, 1)


def test_the_strongest_channels_are_those_of_the_largest_mean_absolute_value(tmp_path):
    predictor = convnext.load(classifier(tmp_path)[0], device="cpu")
    maps = feature_maps.stage_maps(predictor, sample_image())
    assert [tuple(one.shape) for one in maps] == [(8, 8, 8), (16, 4, 4), (24, 2, 2), (32, 1, 1)]
    with torch.no_grad():
        wanted = predictor.model.features(predictor.preprocessing.transform()(sample_image())[None])
    assert all(torch.equal(one, other[0]) for one, other in zip(maps, wanted, strict=True))
    values = torch.tensor([1.0, -3.0, 0.0, 2.0])[:, None, None].expand(-1, 2, 2)
    assert feature_maps.strongest(values, 3) == [1, 3, 0]


def test_a_map_lies_where_it_belongs_over_a_image_large_or_small(tmp_path):
    predictor = convnext.load(classifier(tmp_path)[0], device="cpu")
    small = Image.new("RGB", (8, 8))
    assert activation_maps.laid_over(predictor, small).size == (320, 320)
    wide = sample_image(1, (1024, 512))
    over = np.asarray(activation_maps.laid_over(predictor, wide, "bee"), np.float32)
    assert over.shape == (256, 512, 3)
    below = np.asarray(wide.resize((512, 256), Image.Resampling.LANCZOS), np.float32)
    strength = activation_maps.activation_map(predictor, wide, "bee", (512, 256))
    changed = np.abs(over - below).max(-1)
    assert changed[strength == 0].max() <= 1
    assert changed[strength > 0.9].mean() > 20
