"""Pre-training without labels: a run from images to weights that are fine-tuned."""

import json

import numpy as np
import pytest
import torch
from command import run
from helpers import image_folder, randomise, sample_image
from safetensors.torch import load_file

import convnext
from convnext import tasks
from convnext.data.sampling.order import EVALUATION
from convnext.errors import ConvnextError, UsageError
from convnext.recipe import load_recipe
from convnext.tasks.pretrain.metric import decoded
from convnext.training.callbacks import Callback

SIZES = {"model.depths": [1, 1, 1, 1], "model.widths": [8, 8, 16, 16], "model.patch_size": 1}
TINY = SIZES | {
    "data.image_size": 32, "data.val_fraction": 0.2, "data.workers": 0, "train.epochs": 2, "train.warmup_epochs": 0, "train.batch_size": 4,
    "train.eval_every": 1, "train.checkpoint_every": 2,
}  # fmt: skip
BACKBONE = {"depths": (1, 1, 1, 1), "widths": (8, 8, 16, 16), "patch_size": 1}


class Killed(BaseException):
    """The process ends."""


class KillAfter(Callback):
    def __init__(self, step):
        self.step = step

    def on_step(self, moment):
        if moment.step == self.step:
            raise Killed


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    """Images beside folders of images, one of them nested."""
    root = image_folder(tmp_path_factory.mktemp("pretrain") / "unlabelled", classes=("a", "b/c"), each=7)
    for i in range(3):
        sample_image(i).save(root / f"{i}.png")
    (root / "notes.txt").write_text("no image")
    return root


def train(unlabelled, output, **more):
    return convnext.train("fcmae/convnextv2_atto", TINY | {"data.train": str(unlabelled)}, output=output, device="cpu", **more)


@pytest.fixture(scope="module")
def finished(unlabelled, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "pre"
    return train(unlabelled, output)


def lines(folder):
    kept = ("kind", "step", "loss", "lr")
    return [{key: one.get(key) for key in kept} for one in map(json.loads, (folder / "metrics.jsonl").read_text("utf-8").splitlines())]


def test_every_image_below_a_folder_is_used_without_its_label(unlabelled):
    data = tasks.get("pretrain").open(load_recipe("fcmae/convnextv2_atto", TINY | {"data.train": str(unlabelled)}))
    names = {data.train.source.key(i) for i in range(len(data.train))} | {data.val.source.key(i) for i in range(len(data.val))}
    assert len(names) == len(data.train) + len(data.val) == 17
    assert {"0.png", "a/000.jpg", "b/c/006.jpg"} <= names
    assert data.classes == []
    assert data.remarks[0] == "train: 17 images, labels not used"
    assert any("notes.txt" in remark for remark in data.remarks)


@pytest.mark.parametrize(("where", "count"), [("digits:val", 360), ("digit-values:val", 360)])
def test_labelled_data_are_taken_without_their_labels(where, count):
    source = tasks.get("pretrain").open_labelled(where, None, 0)
    assert (len(source), source.classes, source.label(3), source.label_bytes(3)) == (count, [], 0, b"")


def test_what_is_hidden_is_drawn_for_each_epoch_in_training_and_fixed_in_evaluation(unlabelled):
    task, recipe = tasks.get("pretrain"), load_recipe("fcmae/convnextv2_atto", TINY | {"data.train": str(unlabelled)})
    data, how = task.open(recipe), task.preprocessing(recipe)
    seeds = [[data.train[epoch, index].label for index in range(4)] for epoch in (0, 1, 0)]
    assert seeds[0] == seeds[2]
    assert len({*seeds[0], *seeds[1]}) == 8
    model = randomise(convnext.create_model("fcmae_convnextv2_atto", **BACKBONE)).eval()
    samples = [data.val[EVALUATION, index] for index in range(3)]
    with torch.no_grad():
        whole = task.predict(model, task.collate(samples), how)
        alone = task.predict(model, task.collate(samples[2:]), how)
    assert whole[2][0].item() == pytest.approx(alone[0][0].item(), rel=1e-5)


def test_a_report_shows_what_was_seen_the_reconstruction_and_the_image(unlabelled, finished):
    """Side by side, of the held-out images; the reconstruction is the image where nothing was hidden."""
    shown = json.loads((finished.folder / "evaluation.json").read_text("utf-8"))["shown"]
    source = tasks.get("pretrain").open(load_recipe("fcmae/convnextv2_atto", TINY | {"data.train": str(unlabelled)})).val.source
    assert [row["image"] for row in shown] == [source.name(i) for i in range(len(source))]
    how, network = convnext.load(finished.folder, device="cpu").preprocessing, convnext.load(finished.folder, device="cpu").model
    for row in shown:
        seen, filled, original = (np.asarray(decoded(row["sheet"]))[:, 36 * i : 36 * i + 32] for i in range(3))
        x = how.transform()(source.read(row["index"]))[None]
        pixels = x[0] * torch.tensor(how.std).view(3, 1, 1) + torch.tensor(how.mean).view(3, 1, 1)
        assert np.array_equal(original, (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())
        with torch.no_grad():
            _, hidden = network(x, torch.tensor([row["index"]]))
        gone = np.kron(hidden[0].numpy(), np.ones((8, 8))) == 1
        assert np.array_equal(filled[~gone], original[~gone])
        assert np.array_equal(seen[~gone], original[~gone])
        assert (seen[gone] == 128).all()
        assert not np.array_equal(filled[gone], original[gone])
    page = (finished.folder / "report.html").read_text("utf-8")
    assert page.index("Reconstructions") < page.index("Hardest images")
    assert page.partition("Hardest images")[0].count("data:image/jpeg") == len(shown)


def test_a_killed_run_resumes_bit_for_bit(unlabelled, finished, tmp_path):
    with pytest.raises(Killed):
        train(unlabelled, tmp_path / "run", callbacks=[KillAfter(5)])
    assert not (tmp_path / "run" / "report.html").exists()
    train(unlabelled, tmp_path / "run", resume=True)
    found, wanted = (load_file(folder / "last.safetensors") for folder in (tmp_path / "run", finished.folder))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert lines(tmp_path / "run") == lines(finished.folder)


def test_micro_batches_hide_the_same(unlabelled, finished, tmp_path):
    given = TINY | {"data.train": str(unlabelled), "train.device_batch_size": 2}
    convnext.train("fcmae/convnextv2_atto", given, output=tmp_path / "run", device="cpu")
    found, wanted = (lines(folder)[0]["loss"] for folder in (tmp_path / "run", finished.folder))
    assert found == pytest.approx(wanted, rel=1e-5)


def test_a_run_is_reported_evaluated_and_shown(unlabelled, finished, capsys):
    assert finished.best == min(line["loss"] for line in lines(finished.folder) if line["kind"] == "eval")
    report = (finished.folder / "report.html").read_text("utf-8")
    assert "Hardest images" in report
    assert "0 classes" not in report
    found = json.loads(run("eval", finished.folder, "--workers", "0", "--json").stdout)
    assert found["loss"] == pytest.approx(finished.best, rel=1e-4)
    run("eval", finished.folder, "--data", unlabelled, "--workers", "0")
    (answer,) = json.loads(run("predict", finished.folder, unlabelled / "0.png", "--json").stdout)
    assert 0 < answer["loss"] < 10
    assert "no probabilities to average" in run("eval", finished.folder, "--tta", "flip", code=2).stderr
    run("report", finished.folder, finished.folder, "--output", finished.folder / "both.html")
    both = (finished.folder / "both.html").read_text("utf-8")
    assert f"{finished.best:.4g}" in both
    assert "Validation loss (%)" not in both
    with pytest.raises(UsageError, match="is not exported, because it answers nothing yet: train a recipe such as finetune"):
        convnext.export(finished.folder, "onnx", finished.folder / "out.onnx")


@pytest.mark.parametrize("name", ["last.safetensors", ""])
def test_a_backbone_takes_the_encoder_alone(finished, name, caplog):
    torch.manual_seed(0)
    model = convnext.create_model("convnextv2_atto", num_classes=3, weights=finished.folder / name, **BACKBONE)
    theirs = load_file(finished.folder / (name or "best.safetensors"))
    own = model.state_dict()
    fresh = {key for key in own if f"backbone.{key}" not in theirs}
    assert fresh == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert all(torch.equal(own[key], theirs[f"backbone.{key}"]) for key in own.keys() - fresh)
    assert (own["norm.weight"] == 1).all()
    assert "has no last norm: the network's is new" in caplog.text
    assert "has no head: the model's head for 3 classes is new" in caplog.text


def test_a_segmenter_takes_the_encoder_too_and_an_autoencoder_all(finished):
    file = finished.folder / "last.safetensors"
    theirs = load_file(file)
    small = {"channels": 8, "auxiliary_channels": 8}
    model = convnext.create_model("upernet_convnextv2_atto", num_classes=3, weights=file, **BACKBONE, **small)
    assert torch.equal(model.state_dict()["backbone.stages.3.0.grn.gamma"], theirs["backbone.stages.3.0.grn.gamma"])
    again = convnext.create_model("fcmae_convnextv2_atto", weights=file, **BACKBONE)
    assert all(torch.equal(value, theirs[key]) for key, value in again.state_dict().items())
    with pytest.raises(ConvnextError, match="do not fit convnext_atto: .*unexpected: stages.0.0.grn"):
        convnext.create_model("convnext_atto", weights=file, **BACKBONE)


def test_fine_tuning_begins_with_its_weights(finished, tmp_path):
    given = SIZES | {
        "data.train": str(image_folder(tmp_path / "photos", each=5)), "data.image_size": 32, "data.workers": 0, "train.epochs": 1,
        "train.warmup_epochs": 0, "train.batch_size": 4, "augment.rand_augment": None, "optim.lr": 1e-12, "optim.min_lr": 0,
        "optim.weight_decay": 0, "model.name": "convnextv2_atto", "model.weights": str(finished.folder),
    }  # fmt: skip
    convnext.train("finetune", given, output=tmp_path / "run", device="cpu")
    found, theirs = load_file(tmp_path / "run" / "last.safetensors"), load_file(finished.folder / "best.safetensors")
    assert torch.allclose(found["stages.2.0.pwconv1.weight"], theirs["backbone.stages.2.0.pwconv1.weight"], atol=1e-9)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model.name": "convnextv2_atto", "model.mask_ratio": None}, "task pretrain trains networks such as fcmae_convnextv2_atto"),
        ({"data.image_size": 36}, "data.image_size must be a multiple of 8, the size of fcmae_convnextv2_atto's patches, not 36 x 36"),
        ({"data.train": "nowhere"}, "no folder nowhere: data must be a folder of images"),
    ],
)
def test_what_it_can_not_train_is_refused_before_the_run_begins(given, message, unlabelled, tmp_path):
    with pytest.raises(UsageError, match=message):
        convnext.train("fcmae/convnextv2_atto", TINY | {"data.train": str(unlabelled)} | given, output=tmp_path / "run")
    assert not (tmp_path / "run" / "recipe.yaml").exists()


@pytest.mark.parametrize("key", ["augment.mixup=0.8", "train.label_smoothing=0", "train.loss=mse"])
def test_keys_of_labelled_data_are_refused(key):
    with pytest.raises(UsageError, match="has no effect: task pretrain does not use it"):
        load_recipe("fcmae/convnextv2_atto", [key])


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(ConvnextError, match="holds no images"):
        tasks.get("pretrain").check(str(tmp_path))
