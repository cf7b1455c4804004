"""FCMAE: the published loss on a given mask, and that nothing hidden reaches the encoder."""

import pytest
import torch
import torch.nn.functional as F
from helpers import randomise, relative_error

import convnext
from convnext.errors import UsageError
from convnext.models.pretraining.fcmae import hidden_patches, images_of, patches
from convnext.tasks.pretrain.loss import losses_of

SMALL = {"depths": (1, 2, 1, 1), "widths": (8, 12, 16, 24)}


def network(**arguments):
    return randomise(convnext.create_model("fcmae_convnextv2_atto", **SMALL | arguments)).double().eval()


def images(count=2, side=96):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# The published code, for one image: features of the visible positions alone, as rows (positions, channels).


def sparse_block(rows, seen, of):
    x = torch.zeros(len(seen), rows.shape[1], dtype=rows.dtype)
    x[seen] = rows  # a sparse convolution: what is hidden counts for nothing, and only visible positions have an output
    side = int(len(seen) ** 0.5)
    x = F.conv2d(x.T.reshape(1, -1, side, side), of["dwconv.weight"], of["dwconv.bias"], padding=3, groups=rows.shape[1])
    x = x.flatten(2)[0].T[seen]
    x = F.layer_norm(x, x.shape[1:], of["norm.weight"], of["norm.bias"], 1e-6)
    x = F.gelu(F.linear(x, of["pwconv1.weight"], of["pwconv1.bias"]))
    gx = torch.norm(x, p=2, dim=0, keepdim=True)
    nx = gx / (gx.mean(dim=-1, keepdim=True) + 1e-6)
    x = of["grn.gamma"] * (x * nx) + of["grn.beta"] + x
    return rows + F.linear(x, of["pwconv2.weight"], of["pwconv2.bias"])


def below(state, prefix):
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def sparse_encoder(image, mask, state):
    """Return the rows of the visible patches."""
    state = below(state, "backbone.")
    side = image.shape[-1] // 4
    x = F.conv2d(image[None], state["downsample_layers.0.0.weight"], state["downsample_layers.0.0.bias"], stride=4)
    rows = x.flatten(2)[0].T
    rows = F.layer_norm(rows, rows.shape[1:], state["downsample_layers.0.1.weight"], state["downsample_layers.0.1.bias"], 1e-6)
    seen = torch.ones(side * side, dtype=torch.bool)
    for i, depth in enumerate(SMALL["depths"]):
        if i:
            of = below(state, f"downsample_layers.{i}.")
            rows = F.layer_norm(rows, rows.shape[1:], of["0.weight"], of["0.bias"], 1e-6)
            x = torch.full((side * side, rows.shape[1]), float("nan"), dtype=rows.dtype)  # a visible 2 x 2 has no hidden position
            x[seen] = rows
            side //= 2
            x = F.conv2d(x.T.reshape(1, -1, 2 * side, 2 * side), of["1.weight"], of["1.bias"], stride=2)
            rows = x.flatten(2)[0].T
        scale = side // mask.shape[0]
        seen = mask.repeat_interleave(scale, 0).repeat_interleave(scale, 1).flatten() == 0
        rows = rows[seen]
        for j in range(depth):
            rows = sparse_block(rows, seen, below(state, f"stages.{i}.{j}."))
    return rows


def published_loss(image, mask, state):
    rows, gone, side = sparse_encoder(image, mask, state), mask.flatten() == 1, mask.shape[0]
    x = state["mask_token"].flatten().repeat(len(gone), 1)
    x[~gone] = F.linear(rows, state["proj.weight"].flatten(1), state["proj.bias"])
    x = sparse_block(x, torch.ones_like(gone), below(state, "decoder."))
    pred = F.linear(x, state["pred.weight"].flatten(1), state["pred.bias"])
    target = torch.einsum("chpwq->hwpqc", image.reshape(3, side, 32, side, 32)).reshape(side * side, -1)
    target = (target - target.mean(dim=-1, keepdim=True)) / (target.var(dim=-1, keepdim=True) + 1.0e-6) ** 0.5
    loss = ((pred - target) ** 2).mean(dim=-1)
    return (loss * gone).sum() / gone.sum()


def test_the_loss_is_that_of_the_published_code():
    model, x, seeds = network(), images(), torch.tensor([3, 4])
    masks = hidden_patches(seeds, 3, 3, 0.6)
    assert not torch.equal(*masks)
    with torch.no_grad():
        found = losses_of(model, x, seeds)
        wanted = torch.stack([published_loss(image, mask, model.state_dict()) for image, mask in zip(x, masks, strict=True)])
    assert torch.allclose(found.double(), wanted, rtol=1e-5)  # the loss is float32


@pytest.mark.parametrize("stem", ["patch", "overlap"])
def test_hidden_pixels_change_nothing_that_is_visible(stem):
    model, x = network(stem=stem), images()
    hidden = hidden_patches(torch.tensor([0, 1]), 3, 3, 0.6)
    gone = hidden.repeat_interleave(32, 1).repeat_interleave(32, 2)[:, None]
    with torch.no_grad():
        found, other = (model.encode(given, hidden) for given in (x, x + 100 * gone * torch.randn_like(x)))
        assert torch.equal(found, other)
        assert found[(hidden == 0)[:, None].expand_as(found)].abs().min() > 0
        assert found[(hidden == 1)[:, None].expand_as(found)].abs().max() == 0
        assert not torch.allclose(model.encode(x + 0.1 * (1 - gone), hidden), found)


def test_what_sees_everything_is_the_backbone():
    model, x = network(), images()
    with torch.no_grad():
        found, wanted = model.encode(x, torch.zeros(2, 3, 3)), model.backbone.features(x)[-1]
        assert relative_error(found, wanted) < 1e-6
        predicted, hidden = model(x)
    assert hidden.sum() == 0
    assert predicted.shape == (2, 3 * 32 * 32, 3, 3)


def test_recomputed_blocks_have_the_same_gradients():
    x, seeds, found = images(1).float(), torch.tensor([5]), []
    for recompute in (False, True):
        model = network(grad_checkpointing=recompute).float().train()
        losses_of(model, x, seeds).sum().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_what_is_hidden_depends_on_the_seed_alone():
    seeds = torch.tensor([0, 1, 2**62 - 1, 17])
    found = hidden_patches(seeds, 7, 5, 0.6)
    assert found.shape == (4, 7, 5)
    assert found.sum((1, 2)).tolist() == [35 - int(35 * 0.4)] * 4
    assert torch.equal(hidden_patches(seeds[2:], 7, 5, 0.6), found[2:])
    assert len({tuple(one.flatten().tolist()) for one in found}) == 4
    often = hidden_patches(torch.arange(4000), 4, 4, 0.6).flatten(1)
    assert (often.mean(0) - 10 / 16).abs().max() < 0.04  # five standard deviations
    pairs = (often.T @ often / 4000)[~torch.eye(16, dtype=torch.bool)]
    assert (pairs - 10 / 16 * 9 / 15).abs().max() < 0.04


def test_patches_are_put_together_again():
    x = images(2, 64)
    assert torch.equal(images_of(patches(x, 32), 32), x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_ratio": 1.0}, "mask_ratio must be a fraction between 0 and 1, not 1.0"),
        ({"num_classes": 3}, "has no output for 3 classes: it is for task=pretrain"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        network(**arguments)


def test_wrong_sizes_and_backbones_are_refused():
    model = network()
    with pytest.raises(UsageError, match=r"images of 80 x 96 pixels are not filled .* as a multiple of 32"):
        model(torch.zeros(1, 3, 80, 96, dtype=torch.float64))
    with pytest.raises(UsageError, match="1 x 2 patches has too few of them for mask_ratio=0.6"):
        model(torch.zeros(1, 3, 32, 64, dtype=torch.float64), torch.zeros(1, dtype=torch.long))
    with pytest.raises(UsageError, match="unknown model 'fcmae_resnet50'"):
        convnext.create_model("fcmae_resnet50")
    assert "fcmae_convnextv2_tiny" in convnext.list_models()
    assert not {"fcmae_convnext_tiny", "fcmae_swin_tiny"} & set(convnext.list_models())
