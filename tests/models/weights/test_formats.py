"""Live parity with timm, torchvision and transformers, and the official key layout."""

import re

import pytest
import timm
import torch
import torchvision
import transformers
from helpers import random_model, randomise, relative_error, shared
from safetensors.torch import load_file

import convnext
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.errors import ConvnextError
from convnext.models import load
from convnext.models.weights.files import write_weights
from convnext.models.weights.formats import from_native, recognise, to_native

BELOW_TINY = ["atto", "femto", "pico", "nano"]
SLOW = [pytest.param(size, marks=pytest.mark.slow) for size in ("large", "xlarge")]
SIZES = [*BELOW_TINY, "tiny", "small", "base", *SLOW]


def image(size=(64, 96)):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))


def agree(ours, logits, maps, x):
    """Logits and four maps within 1e-4 relative."""
    with torch.no_grad():
        assert relative_error(ours(x), logits) < 1e-4
        found = ours.features(x)
    assert len(maps) == 4
    assert max(map(relative_error, found, maps)) < 1e-4


def round_trips(native, name, **how):
    """Through the format and back, bit for bit."""
    foreign = from_native(native, name, **how)
    assert recognise(foreign) == name
    back = to_native(foreign, name)
    assert back.keys() == native.keys()
    assert all(torch.equal(back[key], native[key]) for key in native)
    return foreign


def like(build):
    """Build a foreign network without paying for its random weights."""
    with torch.device("meta"):
        return build().eval()


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_same_function_as_timm(size):
    ours, x = random_model(f"convnext_{size}"), image()
    state = round_trips(ours.state_dict(), "timm", conv_mlp=size in BELOW_TINY)
    theirs = like(lambda: timm.create_model(f"convnext_{size}"))
    theirs.load_state_dict(state, assign=True)
    maps = theirs.forward_intermediates(x, intermediates_only=True)
    agree(ours, theirs(x), maps, x)


@pytest.mark.parametrize("size", ["tiny", "small", "base", SLOW[0]])
@torch.no_grad()
def test_same_function_as_torchvision(size):
    ours, x = random_model(f"convnext_{size}"), image()
    theirs = like(getattr(torchvision.models, f"convnext_{size}"))
    theirs.load_state_dict(round_trips(ours.state_dict(), "torchvision"), assign=True)
    maps, y = [], x
    for i, part in enumerate(theirs.features):
        y = part(y)
        if i % 2:
            maps.append(y)
    agree(ours, theirs(x), maps, x)


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_same_function_as_transformers(size):
    ours, x = random_model(f"convnext_{size}"), image()
    sizes = {"depths": [len(stage) for stage in ours.stages], "hidden_sizes": list(ours.channels), "num_labels": 1000}
    theirs = like(lambda: transformers.ConvNextForImageClassification(transformers.ConvNextConfig(**sizes)))
    theirs.load_state_dict(round_trips(ours.state_dict(), "transformers"), assign=True)
    out = theirs(x, output_hidden_states=True)
    agree(ours, out.logits, out.hidden_states[1:], x)


@pytest.mark.parametrize("size", [(33, 47), (65, 127)])
@torch.no_grad()
def test_same_function_at_odd_sizes(size):
    ours, x = random_model("convnext_atto"), image(size)
    theirs = timm.create_model("convnext_atto").eval()
    theirs.load_state_dict(from_native(ours.state_dict(), "timm", conv_mlp=True))
    agree(ours, theirs(x), theirs.forward_intermediates(x, intermediates_only=True), x)


@pytest.mark.parametrize("library", ["timm", "torchvision", "transformers"])
def test_names_and_shapes_are_those_listed(library):
    lines = shared(f"reference/keys/convnext_tiny.{library}.txt").read_text().splitlines()
    listed = {name: () if shape == "scalar" else tuple(map(int, shape.split("x"))) for name, shape in map(str.split, lines)}
    ours = from_native(convnext.create_model("convnext_tiny").state_dict(), library)
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == listed


def test_own_names_are_the_official_ones():
    """As `formats.md` describes them."""
    layout = (
        r"downsample_layers\.0\.[01]\.(weight|bias)|downsample_layers\.[123]\.[01]\.(weight|bias)|"
        r"stages\.[0-3]\.\d+\.((dwconv|norm|pwconv1|pwconv2)\.(weight|bias)|gamma)|(norm|head)\.(weight|bias)"
    )
    state = convnext.create_model("convnext_tiny").state_dict()
    assert len(state) == 182
    assert all(re.fullmatch(layout, key) for key in state)
    assert state["downsample_layers.0.0.weight"].shape == (96, 3, 4, 4)
    assert state["downsample_layers.1.1.weight"].shape == (192, 96, 2, 2)
    assert state["stages.0.0.gamma"].shape == (96,)
    assert state["stages.0.0.pwconv1.weight"].shape == (384, 96)
    round_trips(state, "official")


def test_official_isotropic_names():
    state = convnext.create_model("convnext_isotropic_large", depth=2, width=8).state_dict()
    assert {"stem.weight", "blocks.1.dwconv.weight", "blocks.0.gamma", "norm.weight", "head.bias"} <= state.keys()
    round_trips(state, "official-isotropic")
    assert from_native(state, "official").keys() == state.keys()
    with pytest.raises(ConvnextError, match="timm format has no name for 'stem"):
        from_native(state, "timm")


def test_transformers_itself_reads_and_means_the_same(tmp_path):
    from convnext.models.weights.convert import convert

    ours, x = random_model("convnext_atto", num_classes=4), image()
    torch.save({"model": ours.state_dict()}, tmp_path / "atto.pth")
    convert(str(tmp_path / "atto.pth"), tmp_path / "hf", "transformers")
    theirs = transformers.ConvNextForImageClassification.from_pretrained(tmp_path / "hf").eval()
    assert theirs.config.layer_norm_eps == ours.norm.eps
    again = load.load(tmp_path / "hf" / "model.safetensors")
    assert again.preprocessing == load.load(tmp_path / "atto.pth").preprocessing
    assert transformers.ConvNextImageProcessor.from_pretrained(tmp_path / "hf").crop_pct == again.preprocessing.crop_ratio
    with torch.no_grad():
        assert relative_error(theirs(x).logits, ours(x)) < 1e-5


TINY = {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 16, 24, 32]}
# Of each class of transformers: how to build it, and what our forward pass computes.
OF_TRANSFORMERS = {
    "ConvNextModel": (transformers.ConvNextConfig(**TINY), lambda out: out.pooler_output),
    "ConvNextBackbone": (transformers.ConvNextConfig(**TINY), None),
    "ConvNextV2ForImageClassification": (transformers.ConvNextV2Config(**TINY, num_labels=5), lambda out: out.logits),
    "ConvNextV2Model": (transformers.ConvNextV2Config(**TINY, layer_norm_eps=1e-3), lambda out: out.pooler_output),
    "ConvNextV2Backbone": (transformers.ConvNextV2Config(**TINY), None),
    "DINOv3ConvNextModel": (transformers.DINOv3ConvNextConfig(**TINY, layer_norm_eps=1e-3), lambda out: out.pooler_output),
    "DINOv3ConvNextBackbone": (transformers.DINOv3ConvNextConfig(**TINY), None),
}


@pytest.mark.parametrize("kind", OF_TRANSFORMERS)
@pytest.mark.parametrize("prefix", ["", "backbone."])
@torch.no_grad()
def test_same_function_as_every_class_of_transformers(tmp_path, kind, prefix):
    """By the saved folder; and the state in memory, whose names may be others, in what wraps it."""
    config, pooled = OF_TRANSFORMERS[kind]
    theirs, x = randomise(getattr(transformers, kind)(config)).eval(), image()
    out = theirs(x, output_hidden_states=True)
    if prefix:
        state = {prefix + key: value for key, value in theirs.state_dict().items()}
        spec = {"layer_scale": 0.0} if "V2" in kind else {}
        ours = convnext.create_model(
            "convnextv2_tiny" if "V2" in kind else "convnext_tiny",
            **spec,
            depths=TINY["depths"],
            widths=TINY["hidden_sizes"],
            num_classes=5 if "Classification" in kind else 0,
            norm_eps=config.layer_norm_eps if "DINOv3" in kind else 1e-6,
            head_norm_eps=config.layer_norm_eps,
            weights=state,
        ).eval()
    else:
        theirs.save_pretrained(tmp_path)
        ours = load.load(tmp_path).model
    assert max(map(relative_error, ours.features(x), out.hidden_states[-4:])) < 1e-5
    if pooled is not None:
        assert relative_error(ours(x), pooled(out)) < 1e-5


@pytest.mark.parametrize("kind", ["ConvNextV2ForImageClassification", "DINOv3ConvNextModel"])
def test_transformers_reads_back_what_is_converted(tmp_path, kind):
    from convnext.models.weights.convert import convert

    theirs = randomise(getattr(transformers, kind)(OF_TRANSFORMERS[kind][0])).eval()
    theirs.save_pretrained(tmp_path / "there")
    convert(str(tmp_path / "there"), tmp_path / "again", "transformers-dinov3" if "DINOv3" in kind else "transformers")
    again, info = getattr(transformers, kind).from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not any(info.values())
    assert again.config.layer_norm_eps == theirs.config.layer_norm_eps
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in theirs.state_dict().items())


@pytest.mark.parametrize(
    ("name", "to", "message"),
    [
        ("convnextv2_atto", "torchvision", "no name for 'stages.0.0.grn"),
        ("convnextv2_atto", "transformers-dinov3", "no name for"),
        ("convnext_atto", "transformers-dinov3", "no name for 'head"),
        ("convnext_atto_rms", "official", "norms of the kind rmsnorm"),
        ("convnext_atto_rms", "transformers", "norms of the kind rmsnorm"),
        ("test_convnext", "official", "the activation gelu_tanh"),
        ("convnext_atto_ols", "official", "no name for 'downsample_layers.0.2"),
        ("convnext_tiny_hnf", "torchvision", "no name for 'norm_pre"),
    ],
)
def test_what_a_library_does_not_have_is_not_written(tmp_path, name, to, message):
    from convnext.models.weights.convert import convert

    model = random_model(name, num_classes=2, **({"layer_scale": 0.0} if "v2" in name else {}))
    how = ClassifyPreprocessing()
    about = {"task": "classify", "model": model.spec, "classes": ["a", "b"], "preprocessing": how.to_json()}
    write_weights(tmp_path / "it.safetensors", model.state_dict(), about)
    with pytest.raises(ConvnextError, match=message):
        convert(str(tmp_path / "it.safetensors"), tmp_path / "out.safetensors", to)
    convert(str(tmp_path / "it.safetensors"), tmp_path / "timm.safetensors", "timm")
    theirs = like(lambda: timm.create_model(name, num_classes=2))
    theirs.load_state_dict(load_file(tmp_path / "timm.safetensors"), assign=True)


@pytest.mark.parametrize("kind", ["dinov3", "eupe"])
def test_the_published_backbones_without_head(tmp_path, kind, caplog):
    """DINOv3's code saves the last norm under two names; EUPE's file also holds what it was distilled with."""
    ours = random_model("convnext_atto", num_classes=0)
    state = ours.state_dict() | {f"norms.3.{part}": ours.state_dict()[f"norm.{part}"] for part in ("weight", "bias")}
    if kind == "eupe":
        state |= {"projectors.0.weight": torch.ones(4, 4), "projectors.0.norm.bias": torch.ones(4)}
    torch.save(state, tmp_path / f"{kind}.pth")
    found = load.load(tmp_path / f"{kind}.pth").model
    assert all(torch.equal(value, found.state_dict()[key]) for key, value in ours.state_dict().items())
    assert "ignored: norms.3.bias, norms.3.weight" in caplog.text or "projectors.0" in caplog.text
    under = convnext.create_model("upernet_convnext_atto", num_classes=3, weights=tmp_path / f"{kind}.pth")
    assert torch.equal(under.backbone.stages[0][0].gamma, ours.stages[0][0].gamma)


def test_foreign_keys_are_reported_with_the_known_formats():
    with pytest.raises(
        ConvnextError,
        match=r"layer1\.0\.conv1\.weight.*official, official-isotropic, timm, timm-features, torchvision, transformers, transformers-v2",
    ):
        recognise({"layer1.0.conv1.weight": torch.zeros(1)})
