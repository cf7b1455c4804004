import pytest
import torch
from helpers import random_model, randomise, relative_error
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import convnext
from convnext import ops
from convnext.errors import UsageError
from convnext.models.backbones.convnext import Block, ConvNeXt, LayerNorm2d
from convnext.ops import build

TINY = {"depths": (1, 1, 2, 1), "widths": (8, 16, 24, 32), "num_classes": 5, "layer_scale": 1.0}


def tiny(**arguments):
    return randomise(ConvNeXt(**TINY | arguments)).eval()


class Operations(TorchDispatchMode):
    """Records the names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("name", convnext.list_models("convnext_*"))
def test_features_have_the_promised_channels_and_strides(name):
    with torch.device("meta"):
        model, x = convnext.create_model(name), torch.empty(1, 3, 96, 64)
    maps = model.features(x)
    shapes = [(1, c, 96 // s, 64 // s) for c, s in zip(model.channels, model.strides, strict=True)]
    assert [tuple(m.shape) for m in maps] == shapes
    assert model(x).shape == (1, 1000)


def test_forward_is_head_of_forward_features_of_features():
    model, x = tiny(), torch.randn(2, 3, 64, 64)
    assert torch.equal(model.features(x)[-1], model.forward_features(x))
    assert torch.equal(model.forward_head(model.forward_features(x)), model(x))
    assert model.forward_head(model.forward_features(x), pre_logits=True).shape == (2, 32)


@pytest.mark.parametrize("size", [32, 33, 47, 63, 95])
def test_odd_sizes_drop_what_fills_no_position(size):
    model, x = tiny(), torch.randn(1, 3, size, 64)
    whole = size // 32 * 32
    assert [m.shape[2] for m in model.features(x)] == [size // 4, size // 8, size // 16, size // 32]
    if size == 33:
        assert torch.equal(model(x), model(x[:, :, :whole]))


def test_an_image_too_small_is_reported_with_the_remedy():
    with pytest.raises(UsageError, match=r"31 x 40 pixels is too small .* at least 32 x 32.*patch_size"):
        tiny()(torch.randn(1, 3, 31, 40))
    assert tiny(patch_size=1)(torch.randn(1, 3, 8, 8)).shape == (1, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"kernel_size": 4}, "odd"), ({"drop_path": 1.0}, "probability"), ({"depths": (1, 2)}, "four stages")],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        ConvNeXt(**arguments)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("fast", [False, True])
def test_no_layout_copies_inside_the_blocks(memory_format, fast):
    if fast and build.library() is None:
        pytest.skip(f"no compiled operators here: {build.reason()}")
    model = tiny()
    x = torch.randn(2, 3, 64, 64).to(memory_format=memory_format)
    entered = model.downsample_layers[0](x)
    for stage, downsample in zip(model.stages, [None, *model.downsample_layers[1:]], strict=True):
        entered = downsample(entered) if downsample else entered
        assert entered.is_contiguous(memory_format=torch.channels_last)
        with Operations() as operations, torch.no_grad(), ops.using(fast):
            entered = stage(entered)
        copies = {"clone", "copy_", "contiguous", "_to_copy", "_reshape_copy"} & set(operations.names)
        assert ("convolution" in operations.names) != fast
        assert not copies
        assert entered.is_contiguous(memory_format=torch.channels_last)


def test_isotropic_blocks_copy_nothing_either():
    model = random_model("convnext_isotropic_small", depth=2, width=16)
    x = model.stem(torch.randn(2, 3, 64, 64)).contiguous(memory_format=torch.channels_last)
    with Operations() as operations, torch.no_grad():
        model._run(model.blocks, x)
    assert not {"clone", "copy_", "contiguous", "_to_copy"} & set(operations.names)


def test_the_norm_survives_float16_autocast():
    norm, x = LayerNorm2d(64, eps=1e-6), 1000 * torch.randn(1, 64, 4, 4)
    with torch.autocast("cpu", dtype=torch.float16):
        y = norm(x.half())
    assert relative_error(y.float(), norm(x)) < 1e-2  # by hand in float16, 1000 squared is infinite


def test_bfloat16_autocast_stays_near():
    model, x = tiny(), torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
    assert relative_error(y.float(), model(x)) < 0.05


@pytest.mark.parametrize("grn", [False, True])
def test_compiles_without_graph_breaks(grn):
    model, x = tiny(grn=grn), torch.randn(2, 3, 64, 64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(x), model(x)) < 1e-6
    with torch.no_grad():
        assert relative_error(compiled(x), model(x)) < 1e-6
    model.train()
    loss = torch.compile(model, fullgraph=True, backend="aot_eager")(x).sum()
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_exports_with_dynamic_batch_and_size():
    model, x = tiny(), torch.randn(2, 3, 64, 64)
    auto = torch.export.Dim.AUTO
    program = torch.export.export(model, (x,), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    other = torch.randn(3, 3, 96, 64)
    assert relative_error(program.module()(other), model(other)) < 1e-6


@pytest.mark.parametrize(("fast", "part"), [(False, 0.5), (True, 0.65)])  # fast blocks keep little as it is
def test_gradient_checkpointing_gives_the_same_gradients_with_fewer_saved_activations(fast, part):
    x, gradients, saved = torch.randn(2, 3, 64, 64), [], []
    for on in (False, True):
        model = tiny(drop_path=0.3).train()
        model.set_grad_checkpointing(on)
        count = []
        torch.manual_seed(1)
        counting = torch.autograd.graph.saved_tensors_hooks(lambda t, count=count: count.append(t.numel()) or t, lambda t: t)
        with ops.using(fast):
            with counting:
                loss = model(x).square().sum()
            loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        saved.append(sum(count))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert saved[1] < saved[0] * part


@pytest.mark.skipif(build.library() is None, reason="no compiled operators here")
@pytest.mark.parametrize("part", ["dwconv", "norm", "pwconv1", "pwconv2"])
def test_a_hook_on_a_part_of_a_block_is_called(part):
    model, seen, x = tiny(), [], torch.randn(2, 3, 64, 64)
    whole = model(x)
    model.stages[1][0].get_submodule(part).register_forward_hook(lambda *_: seen.append(part))
    assert relative_error(model(x), whole) < 1e-5
    assert seen == [part]


@pytest.mark.skipif(build.library() is None, reason="no compiled operators here")
def test_an_adapter_in_the_place_of_a_layer_is_called():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model, x = tiny(), torch.randn(2, 3, 64, 64)
    block = model.stages[0][0]
    with torch.no_grad():
        before = model(x)
        adapter = Doubled(*block.pwconv2.weight.shape[::-1])
        adapter.load_state_dict(block.pwconv2.state_dict())
        block.pwconv2 = adapter
        changed = model(x)
        block.pwconv2 = nn.Linear(*block.pwconv2.weight.shape[::-1])
        block.pwconv2.load_state_dict({key: 2 * value for key, value in adapter.state_dict().items()})
        assert relative_error(changed, model(x)) < 1e-5
    assert relative_error(changed, before) > 1e-3


def test_stochastic_depth_rises_linearly_and_keeps_the_mean():
    model = ConvNeXt(depths=(1, 1, 2, 1), widths=(8, 8, 8, 8), drop_path=0.4)
    rates = [module.drop_path.rate for module in model.modules() if isinstance(module, Block)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    drop = Block(8, 7, drop_path=0.25, layer_scale=1.0).train().drop_path
    torch.manual_seed(0)
    y = drop(torch.ones(20000, 1, 1, 1)).flatten()
    assert y.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert y.mean().item() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(drop.eval()(torch.ones(4, 1, 1, 1)), torch.ones(4, 1, 1, 1))


def test_initialisation_is_the_published_one():
    torch.manual_seed(0)
    model = ConvNeXt(num_classes=1000, head_init_scale=0.001)
    weight = model.stages[2][4].pwconv1.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert weight.abs().max() <= 2.0  # truncated normal
    assert model.head.weight.std().item() == pytest.approx(0.02 * 0.001, rel=0.02)
    assert torch.equal(model.stages[0][0].gamma, torch.full((96,), 1e-6))
    assert not any(p.any() for name, p in model.named_parameters() if name.endswith("bias") and "norm" not in name)


def test_layer_scale_is_off_as_published_in_isotropic_small_and_base():
    with torch.device("meta"):
        gammas = {n: [k for k in convnext.create_model(n).state_dict() if "gamma" in k] for n in convnext.list_models("*isotropic*")}
    assert [len(found) for found in gammas.values()] == [0, 0, 36]


def test_no_weight_decay_names_all_one_dimensional_parameters():
    model = tiny()
    named = model.no_weight_decay()
    assert {"norm.weight", "head.bias", "stages.2.1.gamma", "downsample_layers.0.1.weight"} <= named
    assert "stages.0.0.dwconv.weight" not in named


def test_reset_classifier():
    model, x = tiny(), torch.randn(1, 3, 32, 32)
    model.reset_classifier(7)
    assert model(x).shape == (1, 7)
    model.reset_classifier(0)
    assert torch.equal(model(x), model.forward_head(model.forward_features(x), pre_logits=True))


def test_other_kernels_patches_and_channels():
    model = tiny(kernel_size=3, patch_size=2, in_channels=1)
    assert [m.shape[-1] for m in model.features(torch.randn(1, 1, 32, 32))] == [16, 8, 4, 2]


@pytest.mark.parametrize("name", ["convnext_atto", "convnext_isotropic_small"])
def test_without_its_head_every_parameter_serves_the_maps(name):
    model = random_model(name)
    image = torch.randn(1, 3, 64, 64)
    before = model.features(image)
    model.drop_head()
    after = model.features(image)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    sum(found.square().mean() for found in after).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
