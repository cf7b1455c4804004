"""Which parameters are frozen in each kind of network, and that training leaves them and their statistics alone."""

import pytest
import torch
from helpers import image_folder, randomise
from safetensors.torch import load_file

import convnext
from convnext.errors import UsageError
from convnext.models.freeze import count_trained, eval_frozen, freeze
from convnext.recipe import load_recipe
from convnext.tasks import get
from convnext.training.state import new_state
from convnext.training.step import TrainStep

DEVICE = torch.device("cpu")


def network(name, **more):
    with torch.device("meta"):
        return convnext.create_model(name, num_classes=3, **more)


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("name", "stages", "first", "second"),
    [
        ("convnext_tiny", 4, ("downsample_layers.0.", "stages.0."), ("downsample_layers.1.", "stages.1.")),
        ("convnext_isotropic_small", 18, ("stem.", "blocks.0."), ("blocks.1.",)),
        ("roadmap_t_01_modern_training", 4, ("stem.", "stages.0."), ("stages.1.",)),
        ("roadmap_t_16_separate_downsampling", 4, ("downsample_layers.0.", "stages.0."), ("downsample_layers.1.", "stages.1.")),
        ("resnet50", 4, ("conv1.", "bn1.", "layer1."), ("layer2.",)),
        ("swin_tiny", 4, ("patch_embed.", "layers.0."), ("layers.1.",)),
        ("deit_base", 12, ("cls_token", "pos_embed", "patch_embed.", "blocks.0."), ("blocks.1.",)),
        ("efficientnet_lite0", 7, ("conv_stem.", "bn1.", "blocks.0."), ("blocks.1.",)),
        ("mask_rcnn_convnext_tiny", 4, ("backbone.downsample_layers.0.", "backbone.stages.0."), ("backbone.stages.1.",)),
        ("mask_rcnn_swin_tiny", 4, ("backbone.patch_embed.", "backbone.layers.0."), ("backbone.layers.1.",)),
        ("upernet_convnext_tiny", 4, ("backbone.downsample_layers.0.", "backbone.stages.0."), ("backbone.stages.1.",)),
        ("upernet_resnet50", 4, ("backbone.conv1.", "backbone.bn1.", "backbone.layer1."), ("backbone.layer2.",)),
        ("lenet5", 3, ("body.0.", "body.3."), ("body.6.",)),
    ],
)
def test_stages_are_frozen_from_the_stem_upwards(name, stages, first, second):
    model = network(name)
    every = trained(model)
    freeze(model, 1)
    assert every - trained(model) == {key for key in every if key.startswith(first)}
    freeze(model, 2)
    assert {key for key in every if key.startswith(second)} <= every - trained(model)
    freeze(model, stages)
    rest = trained(model)
    assert rest
    assert not any(key.startswith((*first, *second)) for key in rest)
    freeze(model, "head_only")
    assert trained(model) <= rest
    assert count_trained(model) == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) > 0
    with pytest.raises(UsageError, match=f"model.freeze={stages + 1}: {name} has {stages} stages; give at most {stages}, or"):
        freeze(model, stages + 1)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("convnext_tiny", ("head.",)),
        ("resnet50", ("fc.",)),
        ("efficientnet_lite0", ("classifier.",)),
        ("deit_base", ("head.",)),
        ("mask_rcnn_convnext_tiny", ("neck.", "rpn_head.", "roi_head.", *(f"backbone.norm{i}." for i in range(4)))),
        ("upernet_swin_tiny", ("decode_head.", "auxiliary_head.", *(f"backbone.norm{i}." for i in range(4)))),
    ],
)
def test_head_only_leaves_the_head_alone_to_train(name, head):
    model = network(name)
    every = trained(model)
    freeze(model, "head_only")
    assert trained(model) == {key for key in every if key.startswith(head)}


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("mask_rcnn_convnext_tiny", ("rpn_head.", "roi_head.")),
        ("cascade_mask_rcnn_resnet50", ("rpn_head.", "roi_head.")),
        ("upernet_swin_tiny", ("decode_head.fpn_bottleneck.", "decode_head.conv_seg.", "auxiliary_head.")),
    ],
)
def test_a_frozen_neck_leaves_the_heads_to_train(name, heads):
    model = network(name)
    every = trained(model)
    freeze(model, "neck")
    assert trained(model) == {key for key in every if key.startswith(heads)}
    freeze(model, "backbone")
    whole = trained(model)
    freeze(model, "head_only")
    assert trained(model) == whole
    with pytest.raises(UsageError, match="model.freeze=neck: convnext_tiny has no feature pyramid; give model.freeze=backbone"):
        freeze(network("convnext_tiny"), "neck")


def test_frozen_modules_are_in_evaluation_mode_and_the_others_train():
    model = convnext.create_model("convnext_atto", num_classes=3, depths=(1, 1, 1, 1), widths=(4, 4, 8, 8), drop_path=0.5)
    freeze(model, 2)
    model.train()
    eval_frozen(model)
    assert [stage.training for stage in model.stages] == [False, False, True, True]
    assert [layer.training for layer in model.downsample_layers] == [False, False, True, True]
    assert not model.stages[1][0].drop_path.training
    assert model.stages[2][0].drop_path.training
    assert model.training
    assert model.head.training


# Training

SMALL = {"depths": (1, 1, 1, 1), "layer_scale": 1.0}
CASES = {
    "digits": ("roadmap_t_01_modern_training", {"width": 4, "depths": (1, 1, 1, 1), "drop_path": 0.3}, 3),
    "detect_digits": (
        "mask_rcnn_convnext_atto",
        SMALL | {"widths": (4, 4, 8, 8), "channels": 8, "fc_channels": 8, "drop_path": 0.3, "proposals": 10, "regions": 8},
        2,
    ),
    "segment_digits": (
        "upernet_roadmap_t_01_modern_training",
        {"width": 4, "depths": (1, 1, 1, 1), "channels": 8, "auxiliary_channels": 8, "drop_path": 0.3},
        "head_only",
    ),
}


@pytest.mark.parametrize("recipe_name", CASES)
def test_frozen_parameters_statistics_and_their_averages_do_not_move(recipe_name):
    """With weight decay, an EMA, stochastic depth, and BatchNorm or LayerNorm."""
    name, arguments, what = CASES[recipe_name]
    recipe = load_recipe(recipe_name, ["train.ema=0.5", "optim.weight_decay=0.5", "model.drop_path=0.3"])
    task = get(recipe.task)
    data = task.open(recipe)
    model = randomise(convnext.create_model(name, num_classes=len(data.classes), **arguments))
    freeze(model, what)
    state = new_state(model, recipe, DEVICE)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.train()
    eval_frozen(model)
    batch = task.collate([data.train[0, index] for index in range(4)])
    step = TrainStep(state, task.criterion(recipe, data), recipe, 4, DEVICE)
    for _ in range(2):
        assert step.run(iter([batch]), 1e-2).fault is None
    free = trained(model)
    for weights in (model.state_dict(), state.ema_or_model.state_dict()):
        moved = {key for key, tensor in weights.items() if not torch.equal(tensor, before[key])}
        frozen_modules = [key for key, module in model.named_modules() if key and not module.training]
        assert free & moved
        assert not moved & (before.keys() - free - {key for key in before if "running" in key or "num_batches" in key})
        assert not any(key.startswith(tuple(f"{module}." for module in frozen_modules)) for key in moved)
    assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)
    assert sum(len(group["params"]) for group in state.optimizer.param_groups) == len(free)


def test_a_run_reports_what_trains_resumes_and_refuses_too_many_stages(tmp_path, capsys):
    photos = image_folder(tmp_path / "photos", each=4)
    tiny = {"data.train": str(photos), "data.val": str(photos), "data.workers": 0, "train.batch_size": 4, "train.warmup_epochs": 0}
    tiny |= {"model.name": "roadmap_t_01_modern_training", "model.widths": None, "model.width": 4, "model.depths": [1, 1, 1, 1]}
    tiny |= {"train.checkpoint_every": 1, "train.keep_checkpoints": 9, "train.ema": 0.5, "model.freeze": 3, "train.epochs": 1}
    with pytest.raises(UsageError, match="roadmap_t_01_modern_training has 4 stages"):
        convnext.train("digits", tiny | {"model.freeze": 5}, output=tmp_path / "run")
    assert not list((tmp_path / "run").glob("*"))
    convnext.train("digits", tiny, output=tmp_path / "run")
    assert " of them trained, the others frozen)" in capsys.readouterr().err
    whole = load_file(tmp_path / "run" / "last.safetensors")
    for path in sorted((tmp_path / "run" / "checkpoints").iterdir())[1:]:
        path.unlink()
    convnext.train("digits", tiny, output=tmp_path / "run", resume=True)
    again = load_file(tmp_path / "run" / "last.safetensors")
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_what_may_be_frozen_is_said():
    for value in ("true", "head", "-1", "1.5"):
        with pytest.raises(UsageError, match="model.freeze: must be backbone, neck, head_only or a number of stages, as in model.freeze=2"):
            load_recipe("digits", [f"model.freeze={value}"])
    assert load_recipe("digits", ["model.freeze=0"]).model.freeze == 0
    assert load_recipe("detect_digits", ["model.freeze=neck"]).model.freeze == "neck"
    assert load_recipe("digits", ["model.freeze=head_only"]).model.freeze == "head_only"
