"""What can't be trained with the batch that a recipe, the data and the processes give."""

import pytest
import torch
from helpers import image_folder

import convnext
from convnext import distributed
from convnext.errors import UsageError
from convnext.models.freeze import freeze
from convnext.recipe import load_recipe
from convnext.training.sizes import batch_size_for, check_batch_norm, smallest_part

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def network(name="roadmap_t_01_modern_training"):
    with torch.device("meta"):
        return convnext.create_model(name, num_classes=3)


def check(model, *overrides, count=1000, device=CPU):
    check_batch_norm(model, load_recipe("digits", list(overrides)), count, device)


@pytest.mark.parametrize(
    ("overrides", "count", "message"),
    [
        (["train.batch_size=1"], 1000, "a process has 1 image of a batch: give fewer processes, or a larger train.batch_size"),
        (["train.batch_size=8"], 1, "a process has 1 image of a batch"),
        (
            ["train.batch_size=8", "train.device_batch_size=1"],
            1000,
            "has 8 images of a batch, of which 1 image at a time: give train.device_batch_size=2",
        ),
        (
            ["train.batch_size=9", "train.device_batch_size=4"],
            1000,
            "of which 4 images at a time leave 1 over: give train.device_batch_size=5",
        ),
        (["train.batch_size=3", "train.device_batch_size=2"], 1000, "give train.device_batch_size=3"),
        (["train.batch_size=64", "train.device_batch_size=4"], 9, "has 9 images of a batch, of which 4 images at a time leave 1 over"),
    ],
)
def test_batch_norm_needs_two_images_at_a_time(overrides, count, message):
    with pytest.raises(UsageError) as caught:
        check(network(), *overrides, count=count)
    assert str(caught.value).startswith("convnext_atto has BatchNorm (stem.1), which needs at least 2 images at a time, and a process has ")
    assert message in str(caught.value)


def test_the_default_part_of_a_gpu_may_leave_one_over_too():
    with pytest.raises(UsageError, match="of which 256 images at a time leave 1 over: give train.device_batch_size=257"):
        check(network(), "train.batch_size=257", device=CUDA)
    check(network(), "train.batch_size=257")


def test_each_process_has_its_share(monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 4)
    with pytest.raises(UsageError, match="has 1 image of a batch: give fewer processes"):
        check(network(), "train.batch_size=4")
    check(torch.nn.SyncBatchNorm.convert_sync_batchnorm(network()), "train.batch_size=4")
    with pytest.raises(UsageError, match="can't be shared by 4 processes of pairs"):
        batch_size_for(load_recipe("digits", ["augment.mixup=0.5", "train.batch_size=12"]), 1000)


def test_other_networks_and_frozen_statistics_may_see_one_image():
    for name in ("convnext_atto", "deit_base", "mask_rcnn_convnext_tiny", "cascade_mask_rcnn_convnext_tiny"):
        check(network(name), "train.batch_size=1")
    for name in ("resnet50", "efficientnet_lite0", "upernet_convnext_tiny", "mask_rcnn_resnet50"):
        with pytest.raises(UsageError, match="has BatchNorm"):
            check(network(name), "train.batch_size=1")
    frozen = network()
    freeze(frozen, "head_only")
    check(frozen, "train.batch_size=1")


def test_the_search_for_what_fits_keeps_pairs_where_they_are_needed():
    plain, mixed = load_recipe("digits"), load_recipe("digits", ["augment.cutmix=1"])
    assert [smallest_part(network(name), plain) for name in ("convnext_atto", "resnet50")] == [1, 2]
    assert smallest_part(network("convnext_atto"), mixed) == 2


def test_a_run_is_refused_before_its_folder_is_written(tmp_path):
    photos = image_folder(tmp_path / "photos", each=4)
    tiny = {"data.train": str(photos), "data.val": str(photos), "data.workers": 0, "train.batch_size": 4, "train.epochs": 2}
    batch_norm = {"model.name": "roadmap_t_01_modern_training", "model.widths": None, "model.width": 4, "model.depths": [1, 1, 1, 1]}
    for more, message in (
        ({"train.warmup_steps": 7}, "train.warmup_steps=7 is longer than the run: the warm-up takes 7 steps of 6"),
        ({"train.iterations": 5, "train.warmup_epochs": 2}, "train.warmup_epochs=2 is longer than the run: the warm-up takes 6 steps of 5"),
        (batch_norm | {"train.warmup_epochs": 0, "train.device_batch_size": 3}, "has BatchNorm"),
        ({"train.warmup_epochs": 0, "detect.longest": 7}, "detect.longest=7 has no effect"),
    ):
        with pytest.raises(UsageError, match=message):
            convnext.train("digits", tiny | more, output=tmp_path / "run")
        assert not list((tmp_path / "run").glob("*"))
