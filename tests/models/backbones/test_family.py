"""Every ConvNeXt of timm against timm itself; its names, formats and tensors; and what stands on it."""

import json

import pytest
import timm
import torch
from helpers import random_model, randomise, relative_error, sample_image
from torch import nn

import convnext
from convnext import ops
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.errors import ConvnextError, UsageError
from convnext.explain.activation_maps import activation_map
from convnext.export.export import export
from convnext.export.load import load as load_exported
from convnext.inference.predictor import Predictor
from convnext.models import load
from convnext.models.backbones.convnext import Block
from convnext.models.backbones.norms import GlobalResponseNorm
from convnext.models.load import Loaded
from convnext.models.weights import configuration
from convnext.models.weights.complete import with_last_norm
from convnext.models.weights.configuration import Shape
from convnext.models.weights.download import Downloaded
from convnext.models.weights.files import write_weights
from convnext.models.weights.formats import from_native, recognise, to_native
from convnext.models.weights.identify import FUNCTION, identify

TIMMS = [name for name in timm.list_models("*convnext*") if not name.startswith("inception")]
TESTED_BY_TIMM = ["test_convnext", "test_convnext2", "test_convnext3"]  # their activations are another: no tensor shows it
V2 = "convnextv2_atto"
OTHERS = [
    V2,
    "convnext_atto_ols",
    "convnext_zepto_rms_ols",
    "convnext_atto_rms",
    "convnext_tiny_hnf",
    "convnext_large_mlp",
    "test_convnext3",
]
SIZES = {"depths": (1, 1, 2, 1), "widths": (16, 24, 32, 48)}
WITHOUT_SCALE = {"layer_scale": 0.0}  # `random_model` gives one, which V2 does not have


def small(name, **more):
    scale = WITHOUT_SCALE if "v2" in name else {}
    hidden = {"head_hidden_size": 40} if name.endswith("_mlp") else {}
    return random_model(name, **SIZES | {"num_classes": 5} | scale | hidden | more)


def small_of_timm(name):
    hidden = {"head_hidden_size": 40} if name.endswith("_mlp") else {}
    return randomise(timm.create_model(name, num_classes=5, depths=SIZES["depths"], dims=SIZES["widths"], **hidden)).eval()


def images(count=2, height=64, width=96):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(3))


def on_meta(create, name, **arguments):
    with torch.device("meta"):
        return create(name, **arguments)


@torch.no_grad()
def agree(ours, theirs, x, bound=1e-5):
    assert relative_error(ours(x), theirs(x)) < bound
    maps = theirs.forward_intermediates(x, intermediates_only=True)
    assert max(map(relative_error, ours.features(x), maps)) < bound
    last = theirs.forward_features(x)
    assert relative_error(ours.forward_head(ours.features(x)[-1], pre_logits=True), theirs.forward_head(last, pre_logits=True)) < bound


def test_every_architecture_has_its_name():
    assert len(TIMMS) >= 31
    assert set(TIMMS) <= set(convnext.list_models())


@pytest.mark.parametrize("name", TIMMS)
def test_same_function_as_timm(name):
    """Of the smallest depths and widths; the weights go to and fro bit for bit, in timm's shapes."""
    theirs, ours = small_of_timm(name), small(name)
    state = theirs.state_dict()
    native = to_native(state, "timm")
    ours.load_state_dict(native)
    agree(ours, theirs, images())
    assert recognise(state) == "timm"
    back = from_native(ours.state_dict(), "timm", conv_mlp=state["stages.0.blocks.0.mlp.fc1.weight"].ndim == 4)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize("name", ["convnextv2_atto", "convnext_zepto_rms_ols", "convnext_pico_ols"])
@pytest.mark.parametrize("size", [(33, 47), (65, 127)])
def test_same_function_at_odd_sizes(name, size):
    theirs, ours = small_of_timm(name), small(name)
    ours.load_state_dict(to_native(theirs.state_dict(), "timm"))
    agree(ours, theirs, images(1, *size))


@pytest.mark.parametrize("name", TIMMS)
def test_names_and_shapes_are_timms(name):
    theirs, ours = (on_meta(create, name) for create in (timm.create_model, convnext.create_model))
    native, own = to_native(theirs.state_dict(), "timm"), ours.state_dict()
    assert {key: value.shape for key, value in native.items()} == {key: value.shape for key, value in own.items()}
    named = identify(native, load.find(name))
    assert named["name"] == name
    assert named["num_classes"] == 1000
    found = identify(native)
    assert (found["name"] == name) == (name not in TESTED_BY_TIMM)
    again = on_meta(lambda spec: convnext.create_model(**spec), found)
    assert {key: value.shape for key, value in again.state_dict().items()} == {key: value.shape for key, value in own.items()}
    assert {module.eps for module in ours.modules() if hasattr(module, "eps") and not isinstance(module, GlobalResponseNorm)} == {
        1e-5 if "xxlarge" in name or name in TESTED_BY_TIMM else 1e-6
    }


@pytest.mark.parametrize("name", [*OTHERS, "convnext_xxlarge", "test_convnext"])
def test_what_no_tensor_shows_is_what_timm_builds(tmp_path, name):
    """As the configuration beside a file gives it."""
    entry = load.find(name)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name, "pretrained_cfg": {}}))
    found = configuration.of(
        Downloaded(tmp_path / "model.safetensors"), Shape(1000, depths=entry.fixed["depths"], widths=entry.fixed["widths"])
    )
    assert found.function == {"norm_eps": 1e-6} | {key: value for key, value in entry.fixed.items() if key in FUNCTION}


@pytest.mark.parametrize("damaged", ["head.weight", "pre_logits.weight", "stages.0.0.norm.weight", "stages.1.0.dwconv.weight"])
def test_damaged_weights_are_reported(damaged):
    state = small("convnext_large_mlp").state_dict()
    state[damaged] = torch.tensor(1.0)
    with pytest.raises(ConvnextError):
        convnext.create_model("convnext_large_mlp", **SIZES, num_classes=5, weights=state)


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMMS)
def test_same_function_as_timm_at_full_size(name):
    theirs = on_meta(timm.create_model, name).to_empty(device="cpu")
    randomise(theirs).eval()
    ours = on_meta(convnext.create_model, name)
    ours.load_state_dict(to_native(theirs.state_dict(), "timm"), assign=True)
    agree(ours.eval(), theirs, images(1))


@pytest.mark.parametrize("name", ["convnext_large_mlp", "convnext_tiny_hnf", V2])
def test_a_state_without_head_gets_a_new_one(name, caplog):
    """As FCMAE's, which lack the last norm, too."""
    full = small(name).state_dict()
    bare = {key: value for key, value in full.items() if not key.startswith(("norm", "pre_logits", "head"))}
    ours = convnext.create_model(name, **SIZES, num_classes=3, weights=from_native(bare, "timm"))
    assert "no last norm" in caplog.text or "has no head" in caplog.text
    assert all(torch.equal(value, full[key]) for key, value in ours.state_dict().items() if key in bare)
    last = ours.norm_pre if name.endswith("hnf") else ours.norm
    assert last.weight.eq(1).all()
    assert last.bias.eq(0).all()
    if ours.pre_logits is not None:
        assert ours.pre_logits.weight.std() > 0
    untouched = dict(full)
    assert with_last_norm(untouched, full, "here") == untouched


def test_the_published_v2_has_its_shapes_and_reads_back():
    ours = small(V2)
    official = from_native(ours.state_dict(), "official")
    assert official["stages.0.0.grn.gamma"].shape == official["stages.0.0.grn.beta"].shape == (1, 1, 1, 64)
    assert recognise(official) == "official"
    for state in (official, {key: value.reshape(-1) if ".grn." in key else value for key, value in official.items()}):
        again = convnext.create_model(V2, **SIZES, num_classes=5, weights=state).state_dict()
        assert all(torch.equal(value, again[key]) for key, value in ours.state_dict().items())
    with pytest.raises(ConvnextError, match="torchvision format has no name"):
        from_native(ours.state_dict(), "torchvision")


def test_v1_and_v2_are_not_taken_for_each_other():
    for name, other in ((V2, "convnext_atto"), ("convnext_atto", V2)):
        state = small(name).state_dict()
        assert identify(state)["name"] == ("convnextv2_tiny" if "v2" in name else "convnext_tiny")  # of other sizes
        with pytest.raises(ConvnextError, match=r"(unexpected|missing): .*grn|gamma"):
            convnext.create_model(other, **SIZES, num_classes=5, weights=state)


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_of_ours_describes_it(tmp_path, name):
    model, x = small(name, activation="quick_gelu"), images(1)
    about = {"task": "classify", "model": model.spec, "classes": list("abcde"), "preprocessing": ClassifyPreprocessing().to_json()}
    write_weights(tmp_path / "it.safetensors", model.state_dict(), about)
    with torch.no_grad():
        assert torch.equal(load.load(tmp_path / "it.safetensors").model(x), model(x))


@pytest.mark.parametrize("name", OTHERS)
def test_fast_operators_are_not_taken_for_another_function(name):
    model, x = small(name), images(3)
    with torch.no_grad():
        with ops.using(False):
            wanted = model(x)
        with ops.using(True):
            assert relative_error(model(x), wanted) < 1e-5
        published = all(block.is_published for block in model.modules() if isinstance(block, Block))
        assert published == (name in (V2, "convnext_atto_ols", "convnext_tiny_hnf", "convnext_large_mlp"))
        if published:
            assert relative_error(convnext.optimize(model, "float32")(x), wanted) < 1e-4
            return
    with pytest.raises(UsageError, match="another norm or activation"):
        convnext.optimize(model)


def test_optimize_leaves_blocks_of_another_function_alone():
    """Beside those of ConvNeXt and of ConvNeXt V2, which become fast."""
    model, x = small("convnext_tiny"), images(2)
    model.stages[1] = randomise(nn.Sequential(Block(24, 7, 0.0, 0.0, grn=True), Block(24, 7, 0.0, 0.0, activation="silu"))).eval()
    with torch.no_grad(), ops.using(False):
        wanted = model(x)
    with torch.no_grad():
        assert relative_error(convnext.optimize(model, "float32")(x), wanted) < 1e-4


@pytest.mark.parametrize("name", OTHERS)
def test_groups_stages_and_decay_know_the_new_parts(name):
    model = small(name)
    spared, stages = model.no_weight_decay(), model.stages_of_parameters()
    for key, parameter in model.named_parameters():
        assert (key in spared) == (parameter.ndim == 1)
        part = key.split(".")[0]
        group = model.layer_group(key)
        assert group == 5 if part in ("norm", "norm_pre", "pre_logits", "head") else group <= 4
        assert (key in stages) == (part in ("stages", "downsample_layers"))
        if key.startswith("downsample_layers.0."):
            assert stages[key] == group == 0
    if name == V2:
        assert {"stages.0.0.grn.gamma", "stages.0.0.grn.beta"} <= spared


@pytest.mark.parametrize("head", ["mask_rcnn", "cascade_mask_rcnn", "upernet"])
@pytest.mark.parametrize("name", [V2, "convnext_zepto_rms_ols", "convnext_large_mlp", "convnext_tiny_hnf"])
def test_under_a_head_by_name(head, name):
    """Weights of the backbone alone; all of it is trained."""
    backbone = small(name)
    channels = {"channels": 16} | ({"auxiliary_channels": 8} if head == "upernet" else {"fc_channels": 32})
    weights = from_native(backbone.state_dict(), "timm")
    model = convnext.create_model(f"{head}_{name}", **SIZES, num_classes=3, weights=weights, **channels)
    with torch.no_grad():
        maps = zip(model.backbone.eval().features(x := images(1)), backbone.features(x), strict=True)
        assert all(torch.equal(one, other) for one, other in maps)
    inside = {key for key, _ in model.backbone.named_parameters()}
    assert not any(key.startswith(("pre_logits", "norm_pre", "head", "norm.")) for key in inside)
    assert all(model.layer_group(key) >= 0 for key, _ in model.named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", [V2, "convnext_zepto_rms_ols", "convnext_tiny_hnf"])
@torch.no_grad()
def test_an_exported_member_agrees(tmp_path, name):
    model = small(name)
    about = {"task": "classify", "model": model.spec, "classes": list("abcde"), "preprocessing": ClassifyPreprocessing(64).to_json()}
    write_weights(tmp_path / "it.safetensors", model.state_dict(), about)
    assert export(tmp_path / "it.safetensors", "onnx", tmp_path / "it.onnx").relative_error < 1e-5
    exported = load_exported(tmp_path / "it.onnx")
    for x in (images(1, 64, 64), images(3, 71, 45)):
        assert relative_error(exported.model(x), model(x)) < 1e-4


@pytest.mark.parametrize("name", ["convnextv2_atto", "convnext_tiny_hnf", "convnext_large_mlp"])
def test_predictions_are_explained(name):
    predictor = Predictor(Loaded(small(name), ClassifyPreprocessing(64, warp=True), classes=list("abcde")), torch.device("cpu"))
    found = activation_map(predictor, sample_image(size=(64, 64)), "b")
    assert found.shape == (64, 64)
    assert 0 < found.max() <= 1


@torch.no_grad()
def test_grn_is_that_of_the_paper():
    grn, x = randomise(GlobalResponseNorm(6)), torch.randn(2, 3, 4, 6)
    norms = x.square().sum((1, 2), keepdim=True).sqrt()
    wanted = x + grn.gamma * x * norms / (norms.mean(-1, keepdim=True) + 1e-6) + grn.beta
    assert torch.allclose(grn(x), wanted, atol=1e-6)
    assert torch.equal(GlobalResponseNorm(6)(x), x)
    loud = 300 * wanted - 299 * grn.beta  # squares overflow in float16
    assert relative_error(grn(300 * x.half()).float(), loud) < 2e-3


def test_grn_has_gradients_where_a_channel_is_silent():
    grn, x = randomise(GlobalResponseNorm(6)), torch.randn(2, 3, 4, 6)
    x[..., 2] = 0
    grn(x.requires_grad_()).square().sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm_layer": "rms"}, "unknown norm_layer 'rms'.*did you mean 'rmsnorm'"),
        ({"activation": "gelutanh"}, "unknown activation 'gelutanh'.*did you mean 'gelu_tanh'"),
        ({"stem": "overlaps"}, "unknown stem 'overlaps'.*did you mean 'overlap'"),
        ({"stem": "overlap", "patch_size": 2}, "patch_size=2 needs the stem 'patch'"),
        ({"kernel_size": (7, 7, 5)}, "one entry for each of the four stages"),
        ({"kernel_size": (7, 7, 5, 4)}, "must be odd"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(UsageError, match=message):
        convnext.create_model("convnext_atto", **arguments)
