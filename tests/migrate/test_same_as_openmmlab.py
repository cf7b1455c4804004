"""What docs/migrate/openmmlab.md calls the same, beside mmengine, mmdetection and mmsegmentation where they are installed.

mmsegmentation imports with mmcv-lite. The lists of `keys/` are compared with the configs that are installed.
"""

import math
from pathlib import Path

import pytest
import torch

from convnext.models.load import create_model
from convnext.recipe import load_recipe
from convnext.training.optim import build_optimizer, scheduled_rate

MASK_RCNN, UPERNET = "coco/mask_rcnn_convnext_tiny_1k_3x", "ade20k/upernet_convnext_tiny_1k_512"
CONFIGS = {
    "mmdet": "convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py",
    "mmseg": "convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py",
}


def rates(schedulers, steps, per_epoch):
    """The rate of each step, as mmengine's runner makes it. A scheduler by epochs steps at the end of each."""
    kinds = pytest.importorskip("mmengine.optim")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    made = [(getattr(kinds, kind)(optimizer, **more), per_epoch if more["by_epoch"] else 1) for kind, more in schedulers]
    found = []
    for step in range(1, steps + 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler, every in made:
            if step % every == 0:
                scheduler.step()
    return found


def test_the_detectors_rates_are_the_same_at_every_step():
    warmup = "LinearLR", {"start_factor": 0.001, "by_epoch": False, "begin": 0, "end": 20}
    steps = "MultiStepLR", {"begin": 0, "end": 36, "by_epoch": True, "milestones": [27, 33], "gamma": 0.1}
    theirs = rates([warmup, steps], 360, 10)
    settings = load_recipe(MASK_RCNN, ["optim.lr=1e-4", "optim.warmup_start=0.001", "optim.milestones=[27,33]"]).optim
    for step in range(360):
        assert math.isclose(scheduled_rate(step, settings, 19, 360, 10), theirs[step], rel_tol=1e-9)


def test_the_segmenters_rate_after_the_warm_up_is_a_constant_part_of_theirs():
    warmup = "LinearLR", {"start_factor": 1e-6, "by_epoch": False, "begin": 0, "end": 1500}
    line = "PolyLR", {"power": 1.0, "begin": 1500, "end": 160_000, "eta_min": 0.0, "by_epoch": False}
    theirs = rates([warmup, line], 40_000, 1263)
    settings = load_recipe(UPERNET, ["optim.lr=1e-4"]).optim
    for step in range(1500, 40_000, 500):
        assert scheduled_rate(step, settings, 1499, 160_000, 1263) / theirs[step] == pytest.approx(0.9906, abs=1e-4)


GROUPS = [
    ("mask_rcnn_convnext_tiny", MASK_RCNN, {"decay_rate": 0.95, "decay_type": "layer_wise", "num_layers": 6}),
    ("cascade_mask_rcnn_convnext_small", "coco/cascade_mask_rcnn_convnext_small_1k_3x", {"decay_rate": 0.7, "decay_type": "layer_wise", "num_layers": 12}),
    ("upernet_convnext_tiny", UPERNET, {"decay_rate": 0.9, "decay_type": "stage_wise", "num_layers": 6}),
    ("upernet_convnext_base", "ade20k/upernet_convnext_base_22k_640", {"decay_rate": 0.9, "decay_type": "stage_wise", "num_layers": 12}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "recipe", "settings"), GROUPS)
def test_the_groups_of_layer_decay_are_theirs(name, recipe, settings):
    """mmdetection has the same function. It takes the backbone by the name of its class, which is ours, too."""
    pytest.importorskip("mmseg")
    from mmseg.engine.optimizers import LearningRateDecayOptimizerConstructor

    with torch.device("meta"):
        model = create_model(name, num_classes=3)
    constructor = LearningRateDecayOptimizerConstructor({"optimizer": {"type": "AdamW", "lr": 1.0, "weight_decay": 0.05}}, settings)
    theirs = []
    constructor.add_params(theirs, model)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    found, wanted = (
        {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
        for groups in (build_optimizer(model, load_recipe(recipe).optim).param_groups, theirs)
    )
    assert found.keys() == wanted.keys()
    for key, (scale, decay) in found.items():
        assert (scale, decay) == (pytest.approx(wanted[key][0]), wanted[key][1])


def config(package):
    """The config of a ConvNeXt that a package brings."""
    mmengine = pytest.importorskip("mmengine")
    from importlib.util import find_spec

    if (found := find_spec(package)) is None:
        pytest.skip(f"{package} is not installed")
    path = Path(found.submodule_search_locations[0]) / ".mim" / "configs" / CONFIGS[package]
    return mmengine.Config.fromfile(path, import_custom_modules=False)


def test_the_detectors_config_says_what_the_recipe_says():
    theirs, ours = config("mmdet"), load_recipe(MASK_RCNN, [])
    optimizer, decay = theirs.optim_wrapper.optimizer, theirs.optim_wrapper.paramwise_cfg
    assert (ours.optim.name, ours.optim.lr, ours.optim.weight_decay) == (optimizer.type.lower(), optimizer.lr, optimizer.weight_decay)
    assert ours.optim.layer_decay == decay.decay_rate
    warmup, steps = theirs.param_scheduler
    assert (list(ours.optim.milestones), ours.train.epochs, ours.optim.warmup_start) == (steps.milestones, steps.end, warmup.start_factor)
    assert ours.train.batch_size == 8 * theirs.train_dataloader.batch_size
    whole, cropped = theirs.train_pipeline[3].transforms
    assert [(short, ours.detect.longest) for short in ours.detect.short] == whole[0].scales
    assert [(short, ours.detect.longest) for short in ours.detect.crop_short] == cropped[0].scales
    assert ours.detect.crop == cropped[1].crop_size
    assert (ours.detect.test_longest, ours.detect.test_short) == theirs.test_pipeline[1].scale
    assert ours.detect.most == theirs.model.test_cfg.rcnn.max_per_img
    assert ours.model.drop_path == theirs.model.backbone.drop_path_rate


def test_the_segmenters_config_says_what_the_recipe_says():
    theirs, ours = config("mmseg"), load_recipe(UPERNET, [])
    optimizer = theirs.optim_wrapper.optimizer
    assert (ours.optim.name, ours.optim.lr, ours.optim.weight_decay) == (optimizer.type.lower(), optimizer.lr, optimizer.weight_decay)
    assert ours.optim.layer_decay == theirs.optim_wrapper.paramwise_cfg.decay_rate
    warmup, line = theirs.param_scheduler
    assert (ours.train.warmup_steps, ours.optim.warmup_start, ours.train.iterations) == (warmup.end, warmup.start_factor, line.end)
    resize, crop = theirs.train_pipeline[2], theirs.train_pipeline[3]
    assert (ours.segment.scale, ours.segment.ratio_range) == (resize.scale, resize.ratio_range)
    assert (ours.data.image_size, ours.segment.max_class_share) == (crop.crop_size[0], crop.cat_max_ratio)
    assert ((ours.segment.window,) * 2, (ours.segment.stride,) * 2) == (theirs.model.test_cfg.crop_size, theirs.model.test_cfg.stride)
    assert ours.train.batch_size == 8 * theirs.train_dataloader.batch_size
