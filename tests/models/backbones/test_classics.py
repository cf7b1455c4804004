import pytest
import torch
from helpers import relative_error
from torch import nn

import convnext
from convnext.data.randomness import seed_everything
from convnext.errors import UsageError
from convnext.models import load
from convnext.models.backbones.classics import Dropout
from convnext.models.backbones.dropping import split_of
from convnext.models.weights.files import write_weights


@torch.no_grad()
def test_alexnet_is_torchvisions_and_loads_its_files(tmp_path):
    from torchvision.models import AlexNet, AlexNet_Weights

    theirs, x = AlexNet(num_classes=6).eval(), torch.randn(1, 3, 96, 80)
    write_weights(tmp_path / "alexnet.pth", theirs.state_dict())
    loaded = load.load("alexnet", weights=str(tmp_path / "alexnet.pth"))
    assert torch.equal(loaded.model(x), theirs(x))
    noted = AlexNet_Weights.IMAGENET1K_V1.transforms()
    how = loaded.preprocessing
    assert ([int(how.image_size / how.crop_ratio)], [how.image_size]) == (noted.resize_size, noted.crop_size)
    assert (how.interpolation, list(how.mean), list(how.std)) == (noted.interpolation.value, noted.mean, noted.std)
    assert load.find("alexnet").weights["tv_in1k"] == AlexNet_Weights.IMAGENET1K_V1.url


def test_dropout_is_the_usual_one_and_does_not_depend_on_the_split():
    drop, x = Dropout(0.25), torch.ones(8, 1000)
    seed_everything(0)
    whole = drop(x)
    assert whole.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert whole.mean().item() == pytest.approx(1.0, abs=0.03)
    seed_everything(0)
    with split_of(8, torch.tensor([2, 5])):
        assert torch.equal(drop(x[:2]), whole[[2, 5]])
    assert torch.equal(drop.eval()(x), x)


def test_alexnet_keeps_its_dropout():
    model = convnext.create_model("alexnet", num_classes=2)
    assert [module.rate for module in model.modules() if isinstance(module, Dropout)] == [0.5, 0.5]
    assert not any(isinstance(module, nn.Dropout) for module in model.modules())


@pytest.mark.parametrize(("name", "size"), [("lenet5", 32), ("alexnet", 63)])
def test_contract(name, size):
    model, x = convnext.create_model(name, num_classes=4, in_channels=1), torch.randn(2, 1, size, size + 20)
    model(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    names = [key for key, _ in model.named_parameters()]
    assert [model.layer_group(key) for key in names] == [i // 2 for i in range(len(names))]
    assert model.no_weight_decay() == set(names[1::2])
    assert (model.channels, model.strides) == ((), ())
    with pytest.raises(UsageError, match=f"{size - 1} x {size} pixels is too small for {name}: resize it to at least {size} x {size}"):
        model(torch.randn(1, 1, size - 1, size))
    for call in (lambda: model.features(x), model.drop_head):
        with pytest.raises(UsageError, match="no detector or segmenter can use it"):
            call()
    model.reset_classifier(0)
    assert model(x).shape == (2, model.num_features)


def test_lenet_reads_larger_images_position_by_position():
    model, x = convnext.create_model("lenet5", num_classes=3).eval(), torch.randn(1, 3, 32, 36)
    narrow = torch.stack([model.body[:8](x[..., left : left + 32]) for left in (0, 4)]).mean(0)
    assert relative_error(model.body[:9](x).flatten(), model.body[8](narrow).flatten()) < 1e-5


@pytest.mark.parametrize("name", ["lenet5", "alexnet"])
@pytest.mark.parametrize("arguments", [{"drop_path": 0.1}, {"grad_checkpointing": True}])
def test_what_they_lack_is_refused(name, arguments):
    with torch.device("meta"), pytest.raises(UsageError, match=f"{name} has no .* to "):
        convnext.create_model(name, **arguments)
    with pytest.raises(UsageError, match=f"{name} has no argument 'layer_scale'"):
        convnext.create_model(name, layer_scale=0.1)


def test_the_head_can_start_small():
    torch.manual_seed(0)
    plain = convnext.create_model("lenet5").head.weight
    torch.manual_seed(0)
    assert torch.allclose(convnext.create_model("lenet5", head_init_scale=0.001).head.weight, 0.001 * plain)


def test_lenets_own_files_say_nothing_and_are_read_at_its_size(tmp_path):
    write_weights(tmp_path / "digits.safetensors", convnext.create_model("lenet5", num_classes=10).state_dict())
    loaded = load.load("lenet5", weights=str(tmp_path / "digits.safetensors"))
    assert (loaded.model.num_classes, loaded.preprocessing.image_size) == (10, 32)


def test_without_published_weights_the_error_says_what_to_give():
    with pytest.raises(UsageError, match="lenet5 is a name without weights: add --weights with one of no tags, so a file"):
        load.load("lenet5")
