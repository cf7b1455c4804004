"""LAMB and Muon against their references, and every optimizer through what a run does with it: resume, change, fp16, EMA, clipping."""

import pytest
import torch
from helpers import image_folder, randomise, relative_error

import convnext
from convnext.recipe import Optim, load_recipe
from convnext.tasks.classify.batch import ClassifyBatch
from convnext.tasks.classify.loss import ClassifyCriterion
from convnext.training.optim import build_optimizer, parameter_names, set_learning_rate
from convnext.training.optimizers import Float32Muon, hidden_matrices
from convnext.training.state import new_state
from convnext.training.step import TrainStep

SMALL = {"depths": (1, 1, 1, 1), "widths": (4, 4, 8, 8), "layer_scale": 1.0}
NAMES = ["adamw", "sgd", "lamb", "muon"]


def network(name="convnext_atto", **more):
    return randomise(convnext.create_model(name, num_classes=3, **(SMALL | more)))


def gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def by_name(model, optimizer):
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    return {name: groups[id(parameter)] for name, parameter in model.named_parameters()}


def test_lamb_is_timms():
    from timm.optim import Lamb as TimmLamb

    ours, theirs = network(), network()
    made = build_optimizer(ours, Optim(name="lamb", lr=0.01, weight_decay=0.1, betas=(0.9, 0.99), eps=1e-6))
    exempt = theirs.no_weight_decay()
    groups = [
        {"params": [p for name, p in theirs.named_parameters() if (name in exempt) == bare], "weight_decay": 0.0 if bare else 0.1}
        for bare in (False, True)
    ]
    reference = TimmLamb(groups, lr=0.01, betas=(0.9, 0.99), eps=1e-6, max_grad_norm=None)
    with torch.no_grad():  # a norm of zero leaves the update as it is
        for model in (ours, theirs):
            model.head.weight.zero_()
    for seed in range(4):
        for model, optimizer in ((ours, made), (theirs, reference)):
            gradients(model, seed)
            optimizer.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_muon_in_float32_is_torchs_but_for_rounding():
    """PyTorch's orthogonalises in bfloat16, whose rounding its iteration amplifies."""
    torch.manual_seed(0)
    for shape in ((6, 40), (40, 6), (12, 12)):
        start, gradients_of = torch.randn(shape), [torch.randn(shape) for _ in range(3)]
        moved = []
        for kind in (torch.optim.Muon, Float32Muon):
            weight = torch.nn.Parameter(start.clone())
            optimizer = kind([weight], lr=0.1, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
            for gradient in gradients_of:
                weight.grad = gradient
                optimizer.step()
            moved.append(weight.detach() - start)
        assert relative_error(moved[1], moved[0]) < 0.05
        assert not torch.equal(*moved)


def test_without_fast_bfloat16_muon_is_in_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    model = network()
    made = build_optimizer(model, Optim(name="muon", lr=0.01))
    assert type(made._muon) is Float32Muon
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    gradients(model, 0)
    made.step()
    assert not any(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    assert all("momentum_buffer" in made.state[parameter] for name, parameter in model.named_parameters() if name in hidden_matrices(model))


def test_muon_is_torchs_on_matrices_and_adamw_on_the_rest(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    ours, theirs = network(), network()
    made = build_optimizer(ours, Optim(name="muon", lr=0.01, weight_decay=0.1))
    names, exempt = hidden_matrices(theirs), theirs.no_weight_decay()
    named = dict(theirs.named_parameters())
    flat = {name: named[name].detach().view(len(named[name]), -1) for name in names}
    muon = torch.optim.Muon(flat.values(), lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    rest = [[p for name, p in named.items() if name not in names and (name in exempt) == bare] for bare in (False, True)]
    adamw = torch.optim.AdamW([{"params": rest[0], "weight_decay": 0.1}, {"params": rest[1], "weight_decay": 0.0}], lr=0.01, fused=True)
    for seed in range(3):
        gradients(ours, seed)
        gradients(theirs, seed)
        for name, matrix in flat.items():
            matrix.grad = named[name].grad.view(matrix.shape)
        made.step()
        muon.step()
        adamw.step()
    assert all(torch.equal(one, other) for one, other in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "more", "matrices", "others"),
    [
        ("convnext_atto", {}, ("pwconv1.weight", "pwconv2.weight", "downsample_layers.0.0.weight"), ("dwconv.weight", "head.weight")),
        ("mask_rcnn_convnext_atto", {"channels": 8, "fc_channels": 8}, ("pwconv1.weight", "fpn_convs.0.conv.weight"), ("fc_cls.weight",)),
        ("upernet_convnext_atto", {"channels": 8, "auxiliary_channels": 8}, ("bottleneck.conv.weight",), ("conv_seg.weight",)),
        ("resnet50", {"depths": None}, ("layer1.0.conv2.weight",), ("fc.weight", "bn1.weight")),
        ("deit_base", {"depths": None}, ("attn.qkv.weight", "patch_embed.proj.weight"), ("pos_embed", "cls_token", "head.weight")),
        ("efficientnet_lite0", {"depths": None}, ("conv_pw.weight",), ("conv_dw.weight", "classifier.weight")),
    ],
)
def test_muon_takes_hidden_matrices_and_no_head_embedding_or_depthwise_filter(name, more, matrices, others):
    with torch.device("meta"):
        model = convnext.create_model(name, num_classes=3, **({} if "depths" in more else SMALL | more))
    names, every = hidden_matrices(model), [key for key, _ in model.named_parameters()]
    for ending in matrices:
        found = [key for key in every if key.endswith(ending)]
        assert found
        assert names.issuperset(found)
    for ending in others:
        found = [key for key in every if key.endswith(ending)]
        assert found
        assert names.isdisjoint(found)
    assert names <= set(every)


@pytest.mark.parametrize("name", NAMES)
def test_decay_exemptions_and_layer_decay_hold_for_every_optimizer(name):
    model = network()
    optimizer = build_optimizer(model, Optim(name=name, lr=1.0, weight_decay=0.1, layer_decay=0.5))
    set_learning_rate(optimizer, 1.0)
    last, exempt = model.layer_group("head.weight"), model.no_weight_decay()
    for key, group in by_name(model, optimizer).items():
        assert group["weight_decay"] == (0.0 if key in exempt else 0.1)
        assert group["lr"] == 0.5 ** (last - model.layer_group(key))
    assert sorted(parameter_names(model, optimizer)) == sorted(key for key, _ in model.named_parameters())


def test_momentum_defaults_and_is_the_recipes():
    model = network()
    for name, default in (("sgd", 0.9), ("muon", 0.95)):
        for momentum in (None, 0.5):
            groups = build_optimizer(model, Optim(name=name, momentum=momentum)).param_groups
            found = {group["momentum"] for group in groups if group["rule"] == name}
            assert found == {default if momentum is None else momentum}
    plain = build_optimizer(model, Optim(name="sgd", momentum=0.0))
    assert {(group["momentum"], group["nesterov"]) for group in plain.param_groups} == {(0.0, False)}


# What a run does with them

DEVICE = torch.device("cpu")


def stepper(name, *more):
    """A step of a small network with an EMA, in fp16, accumulated over two micro-batches, its gradient clipped."""
    settings = ["train.precision=fp16", "train.ema=0.9", "optim.clip=1.0", "optim.layer_decay=0.8", "train.device_batch_size=4"]
    recipe = load_recipe("digits", [*settings, f"optim.name={name}", *more])
    return TrainStep(new_state(network(drop_path=0.2), recipe, DEVICE), ClassifyCriterion(recipe, 3), recipe, 8, DEVICE)


def steps(made, first, count):
    for number in range(first, first + count):
        generator = torch.Generator().manual_seed(number)
        images = torch.randn(8, 3, 32, 32, generator=generator)
        batch = ClassifyBatch(images, torch.arange(8) % 3, list(range(8)), [])
        assert made.run(iter([batch[:4], batch[4:]]), 1e-2).fault is None


def same(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def saved(made, path):
    torch.save(made.state.to_save(), path)
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_restored_state_continues_with_the_same_bits(name, tmp_path):
    whole, resumed = stepper(name), stepper(name)
    initial = [parameter.clone() for parameter in whole.state.model.parameters()]
    steps(whole, 0, 3)
    resumed.state.restore(saved(whole, tmp_path / "state.pt"))
    for made in (whole, resumed):
        steps(made, 3, 2)
    assert same(whole.state.model, resumed.state.model)
    assert same(whole.state.ema, resumed.state.ema)
    assert not any(torch.equal(now, before) for now, before in zip(whole.state.model.parameters(), initial, strict=True))


@pytest.mark.parametrize(("before", "name"), [("adamw", "muon"), ("muon", "sgd"), ("sgd", "lamb")])
def test_another_optimizer_continues_with_the_moments_that_it_shares(before, name, tmp_path):
    first, second = (stepper(one, "train.precision=float32") for one in (before, name))
    steps(first, 0, 2)
    second.state.restore(saved(first, tmp_path / "state.pt"))
    steps(second, 2, 1)
    moments = dict(zip(parameter_names(second.state.model, second.state.optimizer), range(999), strict=False))
    state = second.state.optimizer.state_dict()["state"]
    bias, matrix = state[moments["head.bias"]], state[moments["stages.0.0.pwconv1.weight"]]
    if name == "muon":  # what AdamW kept of the biases stays
        assert bias["step"] == 3
        assert set(matrix) == {"momentum_buffer"}
    elif name == "sgd":
        assert set(bias) == set(matrix) == {"momentum_buffer"}
    else:
        assert bias["step"] == matrix["step"] == 1


def test_a_changed_optimizer_is_reported_and_resumes(tmp_path, capsys):
    tiny = {"data.train": str(image_folder(tmp_path / "photos", each=4)), "data.val": None, "data.workers": 0, "train.batch_size": 4}
    tiny |= {"model.depths": [1, 1, 1, 1], "model.widths": [4, 4, 8, 8], "train.epochs": 1, "train.warmup_epochs": 0}
    convnext.train("digits", tiny, output=tmp_path / "run")
    convnext.train("digits", tiny | {"train.epochs": 2, "optim.name": "muon"}, output=tmp_path / "run", resume=True, change=True)
    assert "the moments that muon needs and adamw did not keep begin at zero" in capsys.readouterr().err
    assert load_recipe(str(tmp_path / "run" / "recipe.yaml")).optim.name == "muon"
