"""Class weights, balanced sampling and the remark on classes of very different sizes."""

import pytest
import torch
import torch.nn.functional as F
from helpers import image_folder
from safetensors.torch import load_file

import convnext
from convnext import tasks
from convnext.errors import UsageError
from convnext.recipe import load_recipe
from convnext.tasks.classify.imbalance import class_weights, remarks


def recipe(**keys):
    return load_recipe("digits", {"data.train": "photos"} | {key.replace("__", "."): value for key, value in keys.items()})


def weights(counts, **keys):
    return class_weights(recipe(**keys), [f"class {i}" for i in range(len(counts))], counts).tolist()


def test_balanced_weights_are_inverse_to_the_counts_and_average_to_one_over_the_images():
    found = weights([90, 10, 0], train__class_weights="balanced")
    assert found[:2] == pytest.approx([100 / (2 * 90), 100 / (2 * 10)])
    assert 90 * found[0] + 10 * found[1] == pytest.approx(100)


def test_weights_by_name_keep_their_ratio_and_average_to_one_over_the_images_of_an_epoch():
    found = weights([90, 10], train__class_weights={"class 1": 3})
    assert found[1] / found[0] == pytest.approx(3)
    assert 90 * found[0] + 10 * found[1] == pytest.approx(100)
    found = weights([90, 10], train__class_weights={"class 1": 3}, data__sampler="balanced")
    assert found == pytest.approx([0.5, 1.5])
    found = weights([90, 10], train__class_weights={"class 1": 3}, data__sampler="repeat_factor", data__repeat_threshold=0.4)
    assert 90 * found[0] + 20 * found[1] == pytest.approx(110)  # images of the second come twice as often


def test_an_unknown_class_is_refused_with_the_nearest_name(tmp_path):
    where = str(image_folder(tmp_path / "photos"))
    with pytest.raises(UsageError, match=r"train\.class_weights: the data have no class 'wsp'; did you mean 'wasp'\?"):
        tasks.get("classify").open(load_recipe("finetune", {"data.train": where, "train.class_weights": {"wsp": 2}}))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"train__class_weights": "balance"}, r"train\.class_weights"),
        ({"train__class_weights": {"ant": 0}}, "the weight of 'ant' must be a number above 0, not 0"),
        ({"train__class_weights": {"ant": float("inf")}}, "the weight of 'ant' must be a number above 0"),
        ({"train__class_weights": "balanced", "data__sampler": "balanced"}, "data.sampler=balanced balances already"),
        ({"train__focal_gamma": -1}, "greater than or equal to 0"),
        (
            {"data__sampler": "balanced", "task": "regress"},
            "data.sampler=balanced has no effect: task regress does not use it, only classify, multilabel, detect, segment",
        ),
    ],
)
def test_mistakes_are_reported(keys, message):
    with pytest.raises(UsageError, match=message):
        recipe(**keys)


def test_a_recipe_with_weights_by_name_survives_a_round_trip(tmp_path):
    found = load_recipe("digits", ["train.class_weights={3: 2, no tail: 0.5}"])
    assert found.train.class_weights == {"3": 2.0, "no tail": 0.5}
    path = tmp_path / "recipe.yaml"
    path.write_text(found.to_yaml(), encoding="utf-8")
    assert load_recipe(str(path)) == found


def test_counts_that_differ_tenfold_are_reported_once_and_only_where_nothing_is_done():
    (line,) = remarks(recipe(), ["ant", "bee", "wasp", "fly"], [100, 10, 40, 0])
    assert line.startswith("the classes differ 10-fold in training images: bee 10, ant 100; data.sampler=balanced, ")
    assert "(2 classes have at most a tenth of the most)" in remarks(recipe(), ["ant", "bee", "wasp"], [100, 10, 9])[0]
    assert remarks(recipe(), ["ant", "bee"], [99, 10]) == []
    for keys in ({"train__class_weights": "balanced"}, {"data__sampler": "balanced"}, {"train__focal_gamma": 2}):
        assert remarks(recipe(**keys), ["ant", "bee"], [100, 10]) == []


def test_a_run_is_told_at_its_start(tmp_path):
    photos = image_folder(tmp_path / "photos", classes=("ant", "bee"), each=10)
    for path in sorted((photos / "bee").iterdir())[1:]:
        path.unlink()
    found = tasks.get("classify").open(load_recipe("finetune", {"data.train": str(photos), "data.val": str(photos)})).remarks
    assert [line for line in found if "10-fold in training images: bee 1, ant 10" in line] == [found[-1]]


def test_a_run_with_weights_focal_loss_mixing_and_balanced_sampling_resumes_to_the_bit(tmp_path):
    photos = image_folder(tmp_path / "photos", each=6)
    for path in sorted((photos / "bee").iterdir())[1:]:
        path.unlink()
    settings = {
        "data.train": str(photos), "data.val": str(photos), "data.image_size": 32, "data.workers": 0, "data.sampler": "balanced",
        "model.name": "convnext_tiny", "model.depths": [1, 1, 1, 1], "model.widths": [4, 8, 8, 8], "train.epochs": 2,
        "train.batch_size": 4, "train.warmup_epochs": 0, "train.class_weights": {"wasp": 2}, "train.focal_gamma": 1.5,
        "augment.mixup": 0.8, "train.checkpoint_every": 2, "train.keep_checkpoints": 9,
    }  # fmt: skip
    whole, part = tmp_path / "whole", tmp_path / "part"
    for folder in (whole, part):
        convnext.train("from_scratch_small", settings, output=folder, device="cpu")
    for path in sorted((part / "checkpoints").glob("step-*.pt"))[1:]:
        path.unlink()  # back to step 2, in the middle of the first epoch
    convnext.train("from_scratch_small", settings, output=part, device="cpu", resume=True)
    resumed, calm = load_file(part / "last.safetensors"), load_file(whole / "last.safetensors")
    assert all(torch.equal(resumed[name], value) for name, value in calm.items())


def test_weights_reach_the_loss_of_a_run(tmp_path):
    photos = image_folder(tmp_path / "photos", each=4)
    where = {"data.train": str(photos), "data.val": str(photos), "data.image_size": 32}
    weighted = load_recipe("finetune", where | {"train.label_smoothing": 0, "train.class_weights": {"ant": 4}})
    task = tasks.get("classify")
    data = task.open(weighted)
    batch = task.collate([data.train[0, index] for index in range(len(data.train))])
    logits = torch.randn(len(batch), 3, generator=torch.Generator().manual_seed(0))
    found = task.criterion(weighted, data)(lambda images: logits, batch)["loss"]
    wanted = F.cross_entropy(logits, batch.labels, weight=torch.tensor([2.0, 0.5, 0.5]), reduction="none").mean()
    assert torch.allclose(found, wanted)
