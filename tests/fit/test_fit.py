"""`convnext fit`: from images to a run folder that every command takes, and what it refuses."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from command import run
from helpers import image_folder, sample_image
from tiny_models import classifier

import convnext
from convnext.data.sources.digits import Digits
from convnext.errors import ConvnextError, UsageError
from convnext.fit import tune
from convnext.fit.network import default_model


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return str(classifier(tmp_path_factory.mktemp("weights"))[0])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("photos") / "all", each=12)


@pytest.fixture(scope="module")
def fitted(weights, photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "mine"
    said = []
    result = convnext.fit(photos, output=folder, model=weights, report=said.append)
    return folder, result, said


class Own:
    """A dataset from Python: images of one brightness per class."""

    def __init__(self, labels, classes):
        self.labels, self.classes = labels, classes

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        image = rng.normal(255 * (self.labels[index] + 0.5) / len(self.classes), 2, (32, 32, 3))
        return image.clip(0, 255).astype(np.uint8), self.labels[index]


def test_it_leaves_a_run_that_predicts_as_its_head_on_features(fitted, photos):
    folder, result, said = fitted
    predictor = convnext.load(folder)
    assert predictor.classes == ["ant", "bee", "wasp"]
    image = next((photos / "bee").iterdir())
    head = predictor.model.head
    by_hand = (head.weight @ predictor.features(image)[0] + head.bias).softmax(0)
    torch.testing.assert_close(predictor(image).probabilities, by_hand.detach(), atol=1e-6, rtol=0)
    assert result.metrics["count"] == 36
    assert result.metrics["top1"] > 80
    assert any(line.startswith("head: ") for line in said)
    assert said[-1].startswith("done: top-1 accuracy")


def test_the_folder_holds_what_a_training_leaves(fitted):
    folder, result, _ = fitted
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "best.safetensors",
        "last.safetensors",
        "recipe.yaml",
        "environment.json",
        "evaluation.json",
        "report.html",
        "fit.json",
    }
    facts = json.loads((folder / "fit.json").read_text())
    assert facts["images"] == 36
    assert [one["name"] for one in facts["tried"] if one["chosen"]] == [result.head]
    assert "Heads compared" in (folder / "report.html").read_text()


def test_its_cross_validation_is_what_fresh_heads_measure(fitted, photos, weights, tmp_path):
    # Fitted without some images, the same kind of head classifies these about as often as was said.
    part = image_folder(tmp_path / "part", each=9)
    result = convnext.fit(part, output=tmp_path / "run", val=str(photos), model=weights)
    assert result.val_metrics["count"] == 36
    assert result.val_metrics["top1"] > 80


def test_eval_asks_for_images_that_were_not_fitted_on(fitted, photos):
    folder, result, _ = fitted
    with pytest.raises(UsageError, match="all images of .* were fitted on"):
        convnext.evaluate(folder)
    assert convnext.evaluate(folder, photos, workers=0).result.metrics["top1"] >= result.metrics["top1"]


def test_the_card_says_what_was_measured_on_what(fitted, weights, tmp_path):
    folder, result, _ = fitted
    run("push", folder, "me/photos", "--license", "apache-2.0", "--dry-run", tmp_path / "card")
    text = (tmp_path / "card" / "README.md").read_text()
    assert "a head fitted by `convnext fit`" in text
    assert f"top-1 accuracy {result.metrics['top1']:.2f} % " in text
    assert "cross-validation over " in text
    image_folder(tmp_path / "photos" / "train", each=6)
    image_folder(tmp_path / "photos" / "val", each=3)
    held_out = convnext.fit(tmp_path / "photos", output=tmp_path / "run", model=weights)
    run("push", tmp_path / "run", "me/photos", "--license", "apache-2.0", "--dry-run", tmp_path / "other")
    assert f"{held_out.val_metrics['top1']:.2f} % (" in (tmp_path / "other" / "README.md").read_text()


def test_a_second_call_replaces_the_run_and_computes_only_new_images(weights, tmp_path):
    photos = image_folder(tmp_path / "photos", each=6)
    assert convnext.fit(photos, output=tmp_path / "run", model=weights).computed == 18
    for number in range(10):
        sample_image(seed=500 + number).save(photos / "ant" / f"more-{number}.png")
    result = convnext.fit(photos, output=tmp_path / "run", model=weights)
    assert result.computed == 10
    assert result.metrics["count"] == 28


def test_parts_of_a_folder_are_fitted_on_and_evaluated_on(weights, tmp_path):
    image_folder(tmp_path / "photos" / "train", each=6)
    image_folder(tmp_path / "photos" / "val", each=3)
    result = convnext.fit(tmp_path / "photos", output=tmp_path / "run", model=weights)
    assert (result.metrics["count"], result.val_metrics["count"]) == (18, 9)
    assert convnext.evaluate(tmp_path / "run", workers=0).result.metrics["top1"] == pytest.approx(result.val_metrics["top1"])


def test_labels_of_a_table_say_the_task(weights, tmp_path):
    image_folder(tmp_path / "photos", each=6)
    rows = [(path.relative_to(tmp_path), index) for index, path in enumerate(sorted((tmp_path / "photos").rglob("*.jpg")))]
    names = ["ant", "bee", "wasp"]
    (tmp_path / "sets.csv").write_text("image,labels\n" + "\n".join(f"{path},{names[i // 6]}|flying" for path, i in rows))
    (tmp_path / "numbers.csv").write_text("image,value\n" + "\n".join(f"{path},{1.5 * (i // 6) + 0.01 * i}" for path, i in rows))
    several = convnext.fit(tmp_path / "sets.csv", output=tmp_path / "sets", model=weights)
    assert several.metrics["map"] > 70
    assert "ant" in convnext.load(tmp_path / "sets")(tmp_path / rows[0][0]).to_text()
    numbers = convnext.fit(tmp_path / "numbers.csv", output=tmp_path / "numbers", model=weights)
    assert numbers.metrics["r2"] > 0
    assert convnext.load(tmp_path / "numbers").task == "regress"


def test_a_dataset_of_ones_own(weights, tmp_path):
    result = convnext.fit(Own([0, 1] * 15, ["dark", "light"]), output=tmp_path / "run", model=weights)
    assert result.metrics["top1"] == 100
    assert convnext.load(tmp_path / "run").classes == ["dark", "light"]


def test_many_classes_and_a_class_of_three(weights, tmp_path):
    labels = [index // 3 for index in range(150)]
    result = convnext.fit(Own(labels, [f"shade {i}" for i in range(50)]), output=tmp_path / "many", model=weights)
    assert result.metrics["count"] == 150
    uneven = convnext.fit(Own([0] * 17 + [1] * 3, ["dark", "light"]), output=tmp_path / "few", model=weights)
    assert uneven.metrics["count"] == 20


def test_digits_have_a_network_of_their_own(tmp_path):
    result = convnext.fit("digits", output=tmp_path / "run")
    assert "no mirror images" in result.head  # a mirrored 2 is not a 2
    assert result.metrics["top1"] > 96.5
    assert result.val_metrics["top1"] > 98


def test_the_whole_network_is_trained_where_a_trial_helps(tmp_path, monkeypatch):
    # Small networks gain nothing in the few epochs that a test has, so the trial's answer stands in for one that knows every label.
    def helpful(start, held, folds, epochs, folder):
        labels = np.array([held.label(index) for index in range(len(held))])
        return tune.Trial(4.0 * np.eye(10)[labels], 1)

    monkeypatch.setattr(tune, "run_trial", helpful)
    said = []
    result = convnext.fit("digits", output=tmp_path / "run", minutes=20, report=said.append)
    assert result.head.startswith("whole network, 1 epoch behind logistic regression")
    assert any("the loss falls by" in line for line in said)
    loaded = convnext.load(tmp_path / "run")
    head = convnext.load(default_model("digits")).model.state_dict()
    assert any(not torch.equal(tensor, head[name]) for name, tensor in loaded.model.state_dict().items() if name in head)  # it was trained
    measured = convnext.evaluate(tmp_path / "run", workers=0).result.metrics
    assert measured["top1"] == pytest.approx(result.val_metrics["top1"])
    assert loaded(Digits("val").read(0), coverage=0.9).prediction_set()


def test_what_it_refuses(weights, photos, tmp_path):
    one = image_folder(tmp_path / "one", classes=("ant",))
    with pytest.raises(ConvnextError, match="one class|two classes"):
        convnext.fit(one, output=tmp_path / "run", model=weights)
    few = image_folder(tmp_path / "few", each=1)
    with pytest.raises(ConvnextError, match="3 images to fit are too few"):
        convnext.fit(few, output=tmp_path / "run", model=weights)
    with pytest.raises(UsageError, match="no task 'detect'"):
        convnext.fit(photos, output=tmp_path / "run", model=weights, task="detect")
    with pytest.raises(UsageError, match="lies inside the data"):
        convnext.fit(photos, output=photos / "run", model=weights)
    with pytest.raises(UsageError, match="--weights belongs to a model's name"):
        convnext.fit(photos, output=tmp_path / "run", model=weights, weights="best")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty and holds no run"):
        convnext.fit(photos, output=tmp_path / "used", model=weights)


def test_a_run_of_a_training_is_not_replaced(fitted, photos, weights, tmp_path):
    convnext.train(
        "digits", ["train.iterations=1", "train.warmup_steps=0", "model.widths=[8,8,8,8]"], output=tmp_path / "run", device="cpu"
    )
    with pytest.raises(UsageError, match="holds a run of a training"):
        convnext.fit(photos, output=tmp_path / "run", model=weights)


def test_the_command_prints_one_json_value(weights, photos, tmp_path):
    done = run("fit", photos, "--output", tmp_path / "run", "--model", weights, "--json")
    found = json.loads(done.stdout)
    assert found["metrics"]["count"] == 36
    assert "features: 36 computed" in done.stderr


@pytest.mark.slow
def test_a_call_that_was_killed_is_resumed_by_the_next(tmp_path):
    command = [sys.executable, "-m", "convnext", "fit", "digits", "--output", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    record = 16 + 2 * 4 * 96  # bytes of an image's embeddings
    while sum(file.stat().st_size for file in (tmp_path / "run").glob("features/*")) < 200 * record:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    result = convnext.fit("digits", output=tmp_path / "run")
    assert 0 < result.computed < 1437 - 150
    assert result.metrics["count"] == 1437
