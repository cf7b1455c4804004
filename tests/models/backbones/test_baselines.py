"""The paper's baselines: timm's arithmetic under our contract."""

import copy
import math
import re

import pytest
import timm
import torch
import torch.nn.functional as F
from baseline_networks import build, numbers, telling
from helpers import relative_error
from torch import nn

import convnext
from convnext.data.randomness import seed_everything
from convnext.errors import UsageError
from convnext.models.backbones import baselines
from convnext.models.backbones.dropping import DropPath, split_of
from convnext.models.registry import BACKBONES

BASELINES = [name for name, entry in BACKBONES.items() if entry.format == "timm"]
# Ours, timm's name, the image that timm's own takes: of each family a network that is quick on a CPU.
FAMILIES = {
    "resnet50": ("resnet50", 64),
    "regnety_4g": ("regnety_040", 64),
    "efficientnet_b3": ("tf_efficientnet_b3", 75),
    "bit": ("resnetv2_50x1_bit", 65),
    "deit_small": ("deit_small_patch16_224", 224),
    "swin_tiny": ("swin_tiny_patch4_window7_224", 224),
}
# And the smallest there is, for what depends on how we build it alone.
SMALLEST = ("resnet26", "regnety_002", "tf_efficientnet_b0", "resnetv2_50x1_bit", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224")


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_and_maps_are_timms_to_the_bit(family):
    name, size = FAMILIES[family]
    ours = telling(build(family if family in BACKBONES else name, num_classes=7)).eval()
    theirs, x = timm.create_model(name, num_classes=7).eval(), numbers(size, 1)
    theirs.load_state_dict(ours.state_dict())  # strict: the names are timm's own
    logits = ours(x)
    assert logits.isfinite().all()
    assert logits.std() > 1e-3
    assert torch.equal(logits, theirs(x))
    wanted = theirs.forward_intermediates(x, indices=len(ours.strides), intermediates_only=True)
    assert len(wanted) == len(ours.strides)
    assert all(torch.equal(found, want) for found, want in zip(ours.features(x), wanted, strict=True))


@torch.no_grad()
def test_maps_are_those_that_timm_extracts_for_detectors():
    ours, x = telling(convnext.create_model("resnet50")).eval(), numbers(64, 1)
    theirs = timm.create_model("resnet50", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    theirs.load_state_dict({key: tensor for key, tensor in ours.state_dict().items() if not key.startswith("fc.")})
    assert all(torch.equal(found, want) for found, want in zip(ours.features(x), theirs(x), strict=True))
    assert (ours.channels, ours.strides) == (tuple(theirs.feature_info.channels()), tuple(theirs.feature_info.reduction()))


@torch.no_grad()
def test_resnet50_is_torchvisions():
    from torchvision.models import resnet50

    ours, theirs, x = telling(convnext.create_model("resnet50")).eval(), resnet50().eval(), numbers(64, 1)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("name", BASELINES)
def test_contract(name):
    with torch.device("meta"):
        model, x = convnext.create_model(name, drop_path=0.2), torch.empty(1, 3, 97, 64)
    shapes = [(1, c, math.ceil(97 / s), 64 // s) for c, s in zip(model.channels, model.strides, strict=True)]
    assert model.strides == ((16,) if name.startswith(("vit", "deit")) else (4, 8, 16, 32))
    assert [tuple(m.shape) for m in model.eval().features(x)] == shapes
    drops = [module.rate for module in model.modules() if isinstance(module, DropPath)]
    assert drops == sorted(drops)
    assert 0.18 < drops[-1] < 0.2 + 1e-6  # EfficientNet's last stays one step, of at least 16, below
    names = [parameter_name for parameter_name, _ in model.named_parameters()]
    groups = [model.layer_group(parameter_name) for parameter_name in names]
    assert set(groups) == set(range(max(groups) + 1))
    assert groups[0] == 0
    assert groups[names.index(f"{model.head_name}.weight")] == max(groups)
    plain = model.no_weight_decay()
    assert {key for key, parameter in model.named_parameters() if parameter.ndim == 1} <= plain <= set(names)
    assert not any(key.endswith("weight") and model.get_parameter(key).ndim > 1 for key in plain)


def test_embeddings_are_not_decayed():
    with torch.device("meta"):
        assert {"pos_embed", "cls_token"} <= convnext.create_model("deit_small").no_weight_decay()
        swin = convnext.create_model("swin_tiny")
    assert "layers.2.blocks.3.attn.relative_position_bias_table" in swin.no_weight_decay()
    assert "layers.2.blocks.3.attn.qkv.weight" not in swin.no_weight_decay()
    blocks = [swin.layer_group(f"layers.{stage}.blocks.0.attn.qkv.weight") for stage in range(4)]
    assert blocks == [1, 3, 5, 11]  # each block of its 2, 2, 6 and 2


@pytest.mark.parametrize("network", SMALLEST)
def test_a_step_reaches_every_parameter_and_does_not_depend_on_the_split(network):
    model, x = telling(build(network, num_classes=5, drop_path=0.5)).train(), numbers(64, 4)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # its statistics do depend on the split
    seed_everything(0)
    whole = model(x)
    F.cross_entropy(whole, torch.arange(4)).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    parts = []
    with torch.no_grad():
        for first in (0, 2):
            seed_everything(0)
            with split_of(4, torch.arange(first, first + 2)):
                parts.append(model(x[first : first + 2]))
        assert relative_error(torch.cat(parts), whole) < 1e-4
        seed_everything(1)
        assert relative_error(model(x), whole) > 1e-2  # paths are indeed dropped


@pytest.mark.parametrize("network", SMALLEST)
def test_without_its_head_every_parameter_serves_the_maps(network):
    model, x = telling(build(network)).eval(), numbers(64, 1)
    before = [found.detach() for found in model.features(x)]
    model.drop_head()
    after = model.features(x)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    sum(found.square().mean() for found in after).backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not unused
    assert model.num_classes == 0


@pytest.mark.parametrize("network", ["regnety_002", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_gradient_checkpointing_gives_the_same_gradients(network):
    x, found, saved = numbers(64), [], []
    for on in (False, True):
        model = telling(build(network, drop_path=0.3, grad_checkpointing=on)).train()
        seed_everything(0)
        count = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, count=count: count.append(t.numel()) or t, lambda t: t):
            loss = model(x).square().mean()
        loss.backward()
        found.append([parameter.grad for parameter in model.parameters()])
        saved.append(sum(count))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert saved[1] < saved[0]


def test_a_copy_is_a_network_of_its_own():
    """As the moving average makes one."""
    model = telling(baselines.build("regnety_002", num_classes=3)).eval()
    other, x = copy.deepcopy(model), numbers(64, 1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
        assert not other.features(x)[0].any()
        assert model.features(x)[0].any()


def test_heads():
    weights = []
    for scale in (1.0, 0.001):
        torch.manual_seed(0)
        weights.append(baselines.build("resnetv2_50x1_bit", num_classes=4, head_init_scale=scale).get_classifier().weight)
    assert torch.allclose(weights[1], 0.001 * weights[0])
    model = baselines.build("regnety_002", num_classes=4).eval()
    model.reset_classifier(6)
    assert model(numbers(64, 1)).shape == (1, 6)
    model.reset_classifier(0)
    assert model(numbers(64, 1)).shape == (1, model.num_features)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet50", {"image_size": 96}, "resnet50 has no argument 'image_size'"),
        ("swin_tiny", {"layer_scale": 1.0}, "swin_tiny has no argument 'layer_scale'"),
        ("deit_small", {"network": "resnet50"}, "deit_small has no argument 'network'"),
        ("swin_tiny", {"drop_path": 1.0}, "probability below 1"),
        ("efficientnet_b3", {"weights": "aa_in22k"}, "efficientnet_b3 has no weights called 'aa_in22k'.*did you mean 'aa_in1k'"),
    ],
)
def test_what_a_family_lacks_is_refused(name, arguments, message):
    with torch.device("meta"), pytest.raises(UsageError, match=message):
        convnext.create_model(name, **arguments)


def transformers_swin(state):
    """timm's names to transformers'."""
    renamed = {}
    for key, tensor in state.items():
        key = re.sub(r"layers\.(\d)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", key)
        for old, new in (
            (r"^patch_embed\.proj", "embeddings.patch_embeddings.projection"),
            (r"^patch_embed", "embeddings"),
            (r"^norm\.", "layernorm."),
            (r"^layers", "encoder.layers"),
            ("norm1", "layernorm_before"),
            ("norm2", "layernorm_after"),
            (r"attn\.proj", "attention.o_proj"),
            (r"attn\.relative", "attention.relative_position_bias.relative"),
        ):
            key = re.sub(old, new, key)
        if "attn.qkv" in key:
            renamed |= {key.replace("attn.qkv", f"attention.{n}_proj"): part for n, part in zip("qkv", tensor.chunk(3), strict=True)}
        elif not key.startswith("head"):
            renamed[key] = tensor
    return renamed


@torch.no_grad()
def test_swins_maps_at_a_detectors_sizes_are_those_of_its_authors():
    """No side a multiple of the windows. timm's own differ by 30 % here; transformers follows the authors' detectors."""
    from transformers import SwinConfig, SwinModel

    ours = telling(convnext.create_model("swin_tiny")).eval()
    theirs = SwinModel(SwinConfig(), add_pooling_layer=False).eval()
    theirs.load_state_dict(transformers_swin(ours.state_dict()))
    for height, width in ((256, 288), (257, 333)):
        x = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
        how = {"output_hidden_states": True, "output_hidden_states_before_downsampling": True, "always_partition": True}
        wanted = theirs(x, **how).reshaped_hidden_states[1:]
        assert all(relative_error(found, want) < 1e-5 for found, want in zip(ours.features(x), wanted, strict=True))


@torch.no_grad()
def test_any_image_gives_maps():
    for name in ("swin_tiny", "deit_small"):
        model = convnext.create_model(name).eval()
        for height, width in ((1, 1), (31, 100), (224, 100)):
            maps = model.features(torch.randn(1, 3, height, width))
            assert [m.shape[-2:] for m in maps] == [(math.ceil(height / s), math.ceil(width / s)) for s in model.strides]


def test_the_mask_of_shifted_windows_is_timms():
    block = convnext.create_model("swin_tiny").layers[0].blocks[1]
    mask = baselines._shift_mask((8, 8), (7, 7), (3, 3), torch.empty(0))
    assert torch.equal(mask, block.attn_mask)
