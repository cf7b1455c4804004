"""Resuming when the data, the recipe or the version changed since the run was stopped: what continues, how, and what is refused."""

import json
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import image_folder, sample_image
from PIL import Image
from safetensors.torch import load_file
from shard_files import samples, shard

import convnext
from convnext.data.contents import contents, differences
from convnext.data.sources.open import hold_out, open_detection, open_segmentation, open_source
from convnext.errors import UsageError
from convnext.recipe import load_recipe
from convnext.training.state import new_state

TINY = {
    "model.name": "convnext_atto",
    "model.depths": [1, 1, 1, 1],
    "model.widths": [4, 4, 8, 8],
    "model.drop_path": 0.0,
    "data.val": None,
    "data.image_size": 32,
    "data.workers": 0,
    "train.epochs": 4,
    "train.warmup_epochs": 1,
    "train.batch_size": 4,
    "train.log_every": 1,
    "train.eval_every": 4,
    "train.checkpoint_every": 1,
    "train.keep_checkpoints": 100,
    "augment.rand_augment": None,
}


def tiny(output, more, **how):
    return convnext.train("digits", TINY | more, output=output, **how)


def stopped(run, *, after):
    """The run as if it had been killed after that step: without the checkpoints that come later."""
    for path in (run / "checkpoints").iterdir():
        if int(path.stem.partition("-")[2]) > after:
            path.unlink()
    for name in ("report.html", "evaluation.json", "last.safetensors", "best.safetensors"):
        (run / name).unlink(missing_ok=True)
    return run


def lines(run, kind):
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def files(run):
    """Every file of a run folder with its content."""
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def final_state(run):
    return torch.load(max((run / "checkpoints").iterdir()), weights_only=True)


def equal(a, b):
    one, two = load_file(a / "last.safetensors"), load_file(b / "last.safetensors")
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("data") / "photos")  # 3 classes x 8: 6 steps an epoch


@pytest.fixture(scope="module")
def original(photos, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    tiny(run, {"data.train": str(photos), "data.val": str(photos)})
    return run


@pytest.fixture
def cut(original, tmp_path):
    """A run killed after step 8 of 24: one epoch and a third."""
    return stopped(shutil.copytree(original, tmp_path / "cut"), after=8)


OWN = {"data.train": "own", "data.val": "own"}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A folder with data and a run on them, by a relative path."""
    folder = tmp_path_factory.mktemp("template")
    image_folder(folder / "own")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tiny(folder / "run", OWN)
    return folder


@pytest.fixture
def own(template, tmp_path, monkeypatch):
    """Data that may change, and a run on them that was killed after step 8 of 24."""
    shutil.copytree(template, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy" / "own", stopped(tmp_path / "copy" / "run", after=8)


# Data that changed


def refused(run, settings, match, **how):
    before = files(run)
    with pytest.raises(UsageError, match=match):
        tiny(run, settings, resume=True, **how)
    assert files(run) == before


def test_a_renamed_class_is_refused_for_good(own):
    root, run = own
    (root / "wasp").rename(root / "aawasp")
    match = r"data of .*run changed .*class wasp is no longer there; class aawasp is new.*3 classes.*--output"
    refused(run, OWN, match)
    refused(run, OWN, match, change=True)


def test_a_class_more_or_less_is_named_not_a_defect(own):
    root, run = own
    shutil.copytree(root / "ant", root / "mantis")
    refused(run, OWN, "class mantis is new", change=True)
    shutil.rmtree(root / "mantis")
    shutil.rmtree(root / "ant")
    refused(run, OWN, "class ant is no longer there", change=True)


def test_images_added_and_removed_are_named_and_accepted_with_change(own, capsys):
    root, run = own
    (root / "ant" / "003.jpg").unlink()
    for number in range(5):
        shutil.copy(root / "bee" / "000.jpg", root / "bee" / f"new{number}.jpg")
    match = r"train: 5 images \(bee/new0.jpg, .*\) added; train: 1 image \(ant/003.jpg\) removed; val: 5 .*add --change"
    refused(run, OWN, match)
    tiny(run, OWN, resume=True, change=True)
    printed = capsys.readouterr().err
    assert "data changed: train: 1 image (ant/003.jpg) removed" in printed
    assert "best weights are chosen again" in printed
    # 8 of 24 steps were a third of an epoch of 6 steps behind its first; of 7 steps that is the second, and no epoch is skipped.
    train = lines(run, "train")
    assert [line["step"] for line in train] == list(range(1, 8 + 5 + 2 * 7 + 1))
    assert train[8]["epoch"] == pytest.approx(1 + 3 / 7)
    assert train[-1]["epoch"] == 4
    assert lines(run, "eval")[-1]["count"] == 28


def test_a_deleted_image_leaves_every_other_in_its_part(tmp_path):
    root = image_folder(tmp_path / "photos")

    def now():
        train, val = hold_out(open_source(str(root)), 0.2, seed=0)
        return contents(train.classes, train, val)

    before = now()
    (root / "bee" / "005.jpg").unlink()
    assert differences(before, now()) in [[f"{part}: 1 image (bee/005.jpg) removed"] for part in ("train", "val")]


def test_moved_data_are_the_same_data(own, template):
    root, run = own
    root.rename(root.with_name("elsewhere"))
    tiny(run, {"data.train": "elsewhere", "data.val": "elsewhere"}, resume=True, change=True)
    assert equal(run, template / "run")


def test_other_labels_of_the_same_images_are_named(tmp_path):
    path = shard(tmp_path / "train-000.tar", samples(0, 12))
    settings = {"data.train": str(path), "data.val": str(path)}
    tiny(tmp_path / "run", settings)
    shard(path, samples(0, 12, lambda i: 0 if i == 7 else i % 3))
    refused(tmp_path / "run", settings, r"train: 1 image \(0007\) labelled differently; val: 1 image \(0007\) labelled differently")
    shard(path, [file for i in reversed(range(12)) for file in samples(i, 1)])
    refused(tmp_path / "run", settings, "train: the images are in another order")


def test_annotations_and_masks_that_changed_are_noticed(tmp_path):
    """Without decoding an image or a mask."""
    sample_image().save(tmp_path / "a.jpg")
    table = {
        "images": [{"id": i, "file_name": f"{name}.jpg", "height": 40, "width": 48} for i, name in enumerate("ab")],
        "categories": [{"id": 1, "name": "ant"}, {"id": 2, "name": "bee"}],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 2, 10, 12]} for i in range(2)],
    }

    def objects(**changed):
        table["annotations"][1] |= changed
        (tmp_path / "objects.json").write_text(json.dumps(table))
        return open_detection(f"coco:{tmp_path / 'objects.json'}:{tmp_path}")

    found = [contents(["ant", "bee"], source, source) for source in (objects(), objects(bbox=[1, 2, 10, 13]), objects(category_id=2))]
    for before, now in pairwise(found):
        assert differences(before, before) == []
        assert differences(before, now) == [f"{part}: 1 image (b.jpg) labelled differently" for part in ("train", "val")]

    root = tmp_path / "masks"
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    sample_image().save(root / "images" / "a.jpg")
    Image.new("L", (48, 40)).save(root / "masks" / "a.png")

    def masks(text):
        (root / "classes.txt").write_text(text)
        return contents(["sky", "road"], *[open_segmentation(str(root))] * 2)

    first = masks("sky\nroad\n(void)\n")
    assert differences(first, masks("sky\nroad\n(void)\n")) == []
    assert "train: 1 image (a.jpg) labelled differently" in differences(first, masks("(void)\nsky\nroad\n"))
    Image.fromarray(np.asarray(sample_image())[..., 0] % 2).save(root / "masks" / "a.png")
    assert "train: 1 image (a.jpg) labelled differently" in differences(first, masks("sky\nroad\n(void)\n"))


def test_of_a_large_data_set_counts_are_kept():
    class Large:
        def __init__(self, count):
            self.count = count

        def __len__(self):
            return self.count

        def key(self, index):
            return f"n{index % 10:02d}/{index}.jpg"

        def label_bytes(self, index):
            return b"%d" % (index % 10)

    before, now = (contents(["a"], Large(count), Large(3)) for count in (30_000, 30_001))
    assert len(json.dumps(before)) < 2000
    assert differences(before, now) == ["train: 30000 images before, 30001 now", "train: n00: 3000 before, 3001 now"]


def test_a_checkpoint_of_an_earlier_version_is_resumed_with_a_remark(cut, original, photos, capsys):
    newest = max((cut / "checkpoints").iterdir())
    old = torch.load(newest, weights_only=True)
    for name in ("data", "epoch", "seen", "count", "parameters"):
        del old[name]
    torch.save(old, newest)
    data = {"data.train": str(photos), "data.val": str(photos)}
    refused(cut, data | {"train.batch_size": 8}, "earlier version, so train.batch_size can't change", change=True)
    tiny(cut, data, resume=True)
    assert "whether they changed is not known" in capsys.readouterr().err
    assert equal(cut, original)


# A recipe that changed


def changed(cut, photos, more, **how):
    return tiny(cut, {"data.train": str(photos), "data.val": str(photos)} | more, resume=True, **how)


@pytest.mark.parametrize(("size", "steps"), [(8, 3), (2, 12)])
def test_another_batch_size_continues_where_the_run_was_in_the_data(cut, photos, size, steps):
    """Eight images of the second epoch were seen."""
    changed(cut, photos, {"train.batch_size": size}, change=True)
    train = lines(cut, "train")[8:]
    begun = 8 // size
    assert [line["epoch"] for line in train] == pytest.approx([1 + (begun + 1 + i) / steps for i in range(3 * steps - begun)])
    assert [line["step"] for line in train] == list(range(9, 9 + len(train)))
    assert train[-1]["lr"] < 0.2 * 2e-3  # the schedule reaches its end
    assert f"batch_size: {size}" in (cut / "recipe.yaml").read_text()
    assert lines(cut, "eval")[-1]["epoch"] == 4


def test_hyperparameters_of_the_new_recipe_are_used(cut, original, photos):
    more = {"optim.weight_decay": 0.5, "optim.betas": [0.8, 0.9], "optim.eps": 1e-6}
    changed(cut, photos, more, change=True)
    groups = final_state(cut)["optimizer"]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.5, 0.0}
    assert {(tuple(group["betas"]), group["eps"]) for group in groups} == {((0.8, 0.9), 1e-6)}
    assert not equal(cut, original)


def test_what_was_off_can_be_turned_on_and_off_again(cut, photos):
    more = {"train.ema": 0.9, "optim.layer_decay": 0.7, "train.precision": "fp16", "optim.clip": 1.0, "train.device_batch_size": 2}
    changed(cut, photos, more | {"train.epochs": 2}, change=True)
    assert lines(cut, "train")[-1]["step"] == 12
    assert "raw_top1" in lines(cut, "eval")[-1]
    saved = final_state(cut)
    assert saved["ema"]["n_averaged"] == 1 + 12 - 8
    assert len(saved["optimizer"]["param_groups"]) > 2
    changed(cut, photos, {"train.epochs": 3}, change=True)
    assert lines(cut, "train")[-1]["step"] == 18
    assert "raw_top1" not in lines(cut, "eval")[-1]


def test_moments_follow_their_parameters_into_other_groups(cut, photos):
    """Layer-wise decay regroups the parameters: after it each has the moments that it had."""
    before = torch.load(max((cut / "checkpoints").iterdir()), weights_only=True)
    model = convnext.create_model("convnext_atto", num_classes=3, depths=(1, 1, 1, 1), widths=(4, 4, 8, 8))
    state = new_state(model, load_recipe("digits", {"optim.layer_decay": 0.7}), torch.device("cpu"))
    state.restore(before)
    moments = {name: before["optimizer"]["state"][number]["exp_avg"] for number, name in enumerate(before["parameters"])}
    assert len(state.optimizer.param_groups) > len(before["optimizer"]["param_groups"])
    assert all(torch.equal(state.optimizer.state[p]["exp_avg"], moments[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"model.widths": [4, 4, 8, 16]}, "another network .*model.widths was"),
        ({"model.name": "convnext_femto"}, "can't be continued with another model.name"),
        ({"train.epochs": 1}, r"train.epochs=1 is too low: the run has already done 1.33"),
        ({"train.iterations": 7}, "train.iterations=7 is too low: the run has already done 8"),
        ({"train.device_batch_size": 1, "augment.mixup": 0.8}, "must be even"),
    ],
)
def test_what_can_not_continue_is_refused_before_anything_is_written(cut, photos, more, match):
    before = files(cut)
    with pytest.raises(UsageError, match=match):
        changed(cut, photos, more, change=True)
    assert files(cut) == before


def test_keys_without_influence_need_no_change(cut, original, photos):
    changed(cut, photos, {"data.workers": 1, "train.log_every": 3, "train.keep_checkpoints": 1, "train.checkpoint_every": None})
    assert equal(cut, original)
    assert len(list((cut / "checkpoints").iterdir())) == 1
    assert "log_every: 3" in (cut / "recipe.yaml").read_text()


def test_what_matters_at_the_start_alone_is_said_to(cut, photos, capsys):
    changed(cut, photos, {"model.layer_scale": 0.5}, change=True)
    assert "model.layer_scale: no effect on a run that has begun" in capsys.readouterr().err
