"""A calibration holds what it states on images that nothing was fitted on, and is exact by hand; files with others are refused."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fitted import embeddings, fitted, images, labels, write_fitted
from helpers import sample_image
from safetensors.torch import load_file, save_file
from tiny_models import classifier

from convnext.errors import ConvnextError, UsageError
from convnext.models.calibration import REFERENCE, Calibration, calibrate, mean_distances, novelty, prediction_set, threshold
from convnext.models.load import load
from convnext.models.weights.files import read_weights, write_weights
from convnext.models.weights.open import open_weights

TENTHS = [i / 10 for i in range(1, 10)]


@pytest.mark.parametrize(
    ("scores", "coverage", "wanted"),
    [
        (TENTHS, 0.9, 0.9),  # 9 of 9
        (TENTHS, 0.8, 0.8),
        (TENTHS, 0.81, 0.9),
        (TENTHS, 0.1, 0.1),
        (TENTHS, 0.91, 1.0),  # more than there are
        ([i / 100 for i in range(1, 100)], 0.07, 0.07),  # 100 * 0.07 is above 7 in floating point
        ([0.5] * 19, 0.95, 0.5),
        ([0.5] * 18, 0.95, 1.0),
        ([], 0.5, 1.0),
    ],
)
def test_the_threshold_is_the_quantile_of_split_conformal_prediction(scores, coverage, wanted):
    assert threshold(scores, coverage) == wanted


@pytest.mark.parametrize("coverage", [0.0, 1.0, -0.1, 95.0, float("nan")])
def test_a_coverage_that_is_no_fraction_is_refused(coverage):
    with pytest.raises(UsageError, match="between 0 and 1"):
        threshold(TENTHS, coverage)


def test_a_set_has_every_class_up_to_the_threshold_and_is_never_empty():
    probabilities = torch.tensor([0.125, 0.5, 0.375])
    assert prediction_set(probabilities, 0.5) == [1]
    assert prediction_set(probabilities, 0.625) == [1, 2]
    assert prediction_set(probabilities, 0.1) == [1]
    assert prediction_set(probabilities, 1.0) == [1, 2, 0]


def test_quantiles_of_many_scores_never_make_a_set_smaller():
    scores = np.sort(np.random.default_rng(0).random(4321)).tolist()
    kept = calibrate(scores).scores
    assert len(kept) == 1000
    assert kept[-1] == scores[-1]
    for coverage in np.linspace(0.01, 0.99, 99):
        exact, found = threshold(scores, coverage), threshold(kept, coverage)
        assert exact <= found
        assert sum(score <= found for score in scores) / len(scores) < coverage + 0.003


def test_distances_are_those_of_the_definition():
    rows = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    known = calibrate([], rows, neighbours=3)
    near = F.cosine_similarity(rows[:, None].double(), rows[None].double(), dim=2)
    near.fill_diagonal_(-2)
    by_hand = (1 - near.topk(3).values.mean(1)).sort().values
    assert torch.tensor(known.distances).allclose(by_hand.float(), atol=2e-3)  # the reference is float16
    assert known.reference.float().norm(dim=1).allclose(torch.ones(50), atol=1e-3)


def test_novelty_is_the_fraction_of_training_images_that_are_nearer():
    reference = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), dim=1).half()
    known = Calibration((), (0.25, 0.5, 0.5, 1.0), 2, reference)
    half, none = [1.0, math.sqrt(3)], [-3.0, 0.0]
    assert mean_distances(torch.tensor([half, none, [1.0, 0.0]]), reference, 2).tolist() == pytest.approx(
        [(0.5 + 1 - math.sqrt(0.75)) / 2, 1.5, 0.0], abs=1e-6
    )
    assert novelty(known, torch.tensor([half, none, [1.0, 0.0]])) == [0.25, 1.0, 0.0]


def test_a_reference_of_many_images_is_thinned_and_its_own_rows_are_no_neighbours():
    rows = torch.randn(4500, 8, generator=torch.Generator().manual_seed(1))
    known = calibrate([], rows, neighbours=1)
    assert known.reference.shape == (2000, 8)
    assert len(known.distances) == 1000
    assert known.distances[0] > 1e-4


def test_too_few_images_have_no_reference():
    assert calibrate([0.5], torch.eye(2)).reference is None
    assert calibrate([0.5], torch.eye(3)).neighbours == 2


def test_sets_of_digits_cover_what_they_state():
    """Over 100 splits of the digits that the head was not fitted on into those with the scores and those that are predicted."""
    model, _ = fitted()
    rows = torch.cat([embeddings(model, images("train"))[958:], embeddings(model, images("val"))])
    known = torch.tensor(np.concatenate([labels("train")[958:], labels("val")]))
    with torch.no_grad():
        probabilities = model.head(rows).softmax(1)
    scores = 1 - probabilities[torch.arange(len(known)), known].double()
    generator = torch.Generator().manual_seed(0)
    for coverage in (0.8, 0.9, 0.95):
        found = []
        for _ in range(100):
            order = torch.randperm(len(known), generator=generator)
            largest = threshold(sorted(scores[order[:420]].tolist()), coverage)
            found.append((scores[order[420:]] <= largest).double().mean().item())
        assert coverage - 0.005 < np.mean(found) < coverage + 0.01


def test_nineteen_of_twenty_digits_are_known_and_other_images_are_not():
    model, known = fitted()
    digits = novelty(known, embeddings(model, images("val")))
    others = novelty(known, embeddings(model, [sample_image(seed, (8, 8)) for seed in range(60)]))
    assert np.mean([value <= 0.95 for value in digits]) > 0.92
    assert np.mean([value > 0.95 for value in others]) > 0.9


def test_a_calibration_travels_in_the_weights_file(tmp_path):
    path = write_fitted(tmp_path / "digits.safetensors")
    model, known = fitted()
    loaded = load(path)
    assert (loaded.calibration.scores, loaded.calibration.distances) == (known.scores, known.distances)
    assert loaded.calibration.neighbours == known.neighbours
    assert torch.equal(loaded.calibration.reference, known.reference)
    assert REFERENCE not in open_weights(path).state
    assert loaded.model.state_dict().keys() == model.state_dict().keys()
    write_weights(tmp_path / "again.safetensors", *read_weights(path))
    assert torch.equal(load(tmp_path / "again.safetensors").calibration.reference, known.reference)
    assert load(write_fitted(tmp_path / "plain.safetensors", calibration=False)).calibration is None


def test_weights_of_a_calibrated_network_train_on(tmp_path):
    import convnext

    path = write_fitted(tmp_path / "digits.safetensors")
    spec = {key: value for key, value in fitted()[0].spec.items() if key not in ("name", "num_classes")}
    model = convnext.create_model("convnext_tiny", num_classes=10, weights=str(path), **spec)
    assert torch.equal(model.head.weight, fitted()[0].head.weight)


@pytest.mark.parametrize(("name", "about"), [("w.pth", {"a": 1}), ("w.safetensors", None)])
def test_a_file_that_holds_no_description_is_not_written_with_a_calibration(tmp_path, name, about):
    with pytest.raises(UsageError, match=r"a calibration needs a \.safetensors file with a description"):
        write_weights(tmp_path / name, {"a": torch.ones(1)}, about, calibrate([0.5]))


ROWS = F.normalize(torch.randn(40, 32, generator=torch.Generator().manual_seed(0)), dim=1).half()
GOOD = {"scores": [0.0, 0.5, 1.0], "distances": [0.1, 2.0], "neighbours": 5}


@pytest.mark.parametrize(
    ("described", "reference", "message"),
    [
        ({"scores": [0.5, 0.4]}, ROWS, "scores must be sorted"),
        ({"scores": [-0.1]}, ROWS, "scores"),
        ({"scores": [1.1]}, ROWS, "scores"),
        ({"scores": [float("nan")]}, ROWS, "scores"),
        ({"scores": [0.5] * 1001}, ROWS, "scores"),
        ({"scores": ["0.5"]}, ROWS, "scores"),
        ({"scores": None}, ROWS, "scores"),
        ({"distances": [0.2, 0.1]}, ROWS, "distances must be sorted"),
        ({"distances": [2.1]}, ROWS, "distances"),
        ({"distances": [0.1] * 1001}, ROWS, "distances"),
        ({"distances": [float("inf")]}, ROWS, "distances"),
        ({"distances": []}, ROWS, "no distances"),
        ({"neighbours": 0}, ROWS, "neighbours"),
        ({"neighbours": -1}, ROWS, "neighbours"),
        ({"neighbours": 41}, ROWS, "41 neighbours of 40 rows"),
        ({"neighbours": 10**9}, ROWS, "neighbours"),
        ({"neighbours": 2.5}, ROWS, "neighbours"),
        ({"surprise": 1}, ROWS, "surprise"),
        ({}, None, "distances and no tensor"),
        ({}, ROWS.float(), "float32"),
        ({}, ROWS[0], "two dimensions"),
        ({}, ROWS[:0], "two dimensions"),
        ({}, torch.zeros(2001, 32).half(), "at most 2000 rows"),
        ({}, ROWS[:, :31], "31 columns, and the network's embeddings 32"),
        ({}, torch.full((40, 32), float("nan")).half(), "not finite"),
        ({}, 2 * ROWS, "longer than 1"),
    ],
)
def test_a_calibration_that_can_not_be_is_refused_in_one_line(tmp_path, described, reference, message):
    path, model, _ = classifier(tmp_path)
    about = read_weights(path)[1] | {"calibration": GOOD | described}
    tensors = model.state_dict() | ({} if reference is None else {REFERENCE: reference.contiguous()})
    save_file(tensors, path, {"convnext": json.dumps(about)})
    with pytest.raises(ConvnextError, match=f"classify.safetensors was not loaded.*{message}") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_the_same_file_with_a_good_calibration_is_loaded(tmp_path):
    path, model, _ = classifier(tmp_path)
    about = read_weights(path)[1] | {"calibration": GOOD}
    save_file(model.state_dict() | {REFERENCE: ROWS}, path, {"convnext": json.dumps(about)})
    assert load(path).calibration.neighbours == 5


def test_a_reference_without_a_description_and_one_that_is_cut_off_are_refused(tmp_path):
    path = write_fitted(tmp_path / "digits.safetensors")
    about = {key: value for key, value in read_weights(path)[1].items() if key != "calibration"}
    save_file(load_file(path), tmp_path / "bare.safetensors", {"convnext": json.dumps(about)})
    with pytest.raises(ConvnextError, match="its description has no calibration"):
        load(tmp_path / "bare.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConvnextError, match="truncated or damaged"):
        load(path)
