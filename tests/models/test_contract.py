"""Every name in the registry keeps the contract of `convnext.models.network`."""

import inspect
import pickle
import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from torch import nn

import convnext
from convnext.data.transforms.preprocessing import Preprocessing
from convnext.errors import UsageError
from convnext.models.arguments import Argument, arguments_of
from convnext.models.backbones.dropping import DropPath, split_of
from convnext.models.entry import Entry, resolve
from convnext.models.load import create_model
from convnext.models.network import Backbone, Network
from convnext.models.registry import BACKBONES, HEADS, find, names
from convnext.models.weights.description import parse

SMALL = ("convnext_atto", "convnext_isotropic_small", "lenet5", "alexnet", "resnet50", "swin_tiny", "deit_small", "roadmap_t_07_moved_up")


LABELLED = [head for head, entry in HEADS.items() if entry.num_classes]  # heads of classes, over any backbone
OURS = [name for name, entry in BACKBONES.items() if not entry.is_own]  # another test may have registered one of its own
OUR_NAMES = [name for name in names() if not any(entry.is_own for entry in (find(name), find(name).backbone) if entry is not None)]


def empty(name, **arguments):
    with torch.device("meta"):
        return create_model(name, **arguments)


def size_of(name):
    return BACKBONES[name].image_size


@pytest.mark.parametrize("name", OURS)
@torch.no_grad()
def test_a_backbone_keeps_the_contract(name):
    """On the meta device, each network built once: its logits and maps, the groups of its parameters, its head replaced and dropped."""
    entry, model, side = BACKBONES[name], empty(name, num_classes=7).eval(), size_of(name)
    assert isinstance(model, Backbone)
    assert model.spec == {"name": name, "num_classes": 7, "in_channels": 3}
    assert model.num_classes == 7
    image = torch.empty(2, 3, side, side, device="meta")
    assert model(image).shape == (2, 7)
    head = check_groups(model)
    assert {f"{model.head_name}.weight", f"{model.head_name}.bias"} == head

    with torch.device("meta"):
        model.reset_classifier(5)
    assert model.get_parameter(f"{model.head_name}.weight").shape[0] == 5
    assert (model.num_classes, model.spec["num_classes"]) == (5, 5)

    assert len(model.channels) == len(model.strides)
    assert entry.has_pyramid == (model.strides == (4, 8, 16, 32))
    if not model.strides:
        with pytest.raises(UsageError, match=name):
            model.drop_head()
        return
    model.drop_head()
    assert model.num_classes == 0
    assert not head & {key for key, _ in model.named_parameters()}
    maps = model.features(image)
    sizes = [(-(-side // stride), side // stride) for stride in model.strides]
    assert [tuple(found.shape[:2]) for found in maps] == [(2, width) for width in model.channels]
    assert all(found.shape[2] in size and found.shape[3] in size for found, size in zip(maps, sizes, strict=True))


@pytest.mark.parametrize("name", [f"{head}_{backbone}" for head in LABELLED for backbone in ("convnext_tiny", "swin_tiny", "resnet50")])
def test_a_head_over_a_backbone_keeps_the_contract(name):
    model = empty(name, num_classes=7)
    assert isinstance(model, Network)
    assert (model.num_classes, model.spec) == (7, {"name": name, "num_classes": 7, "in_channels": 3})
    assert isinstance(model.backbone, Backbone)
    last = [key for key, _ in model.named_parameters() if not key.startswith("backbone.") or key.startswith("backbone.norm0.")]
    groups = {model.layer_group(key) for key in last}
    assert groups == {max(model.layer_group(key) for key, _ in model.named_parameters())}
    check_groups(model)


def check_groups(model):
    """Every parameter is in a group, from the stem at 0 to the head in the last. Returns the names of a backbone's head."""
    parameters = dict(model.named_parameters())
    groups = {key: model.layer_group(key) for key in parameters}
    assert min(groups.values()) == 0
    assert all(isinstance(group, int) for group in groups.values())
    assert {key for key, parameter in parameters.items() if parameter.ndim <= 1} <= model.no_weight_decay() <= parameters.keys()
    head = {key for key in parameters if isinstance(model, Backbone) and key.startswith(f"{model.head_name}.")}
    assert {groups[key] for key in head} <= {max(groups.values())}
    return head


@pytest.mark.parametrize("name", SMALL)
def test_a_backbone_survives_pickling(name):
    torch.manual_seed(0)
    arguments = {"depths": (1, 1, 1, 1), "width": 8} if name.startswith("roadmap") else {}
    arguments |= {"depth": 1, "width": 8} if "isotropic" in name else {}
    model = create_model(name, num_classes=3, **arguments).eval()
    copy = pickle.loads(pickle.dumps(model))
    assert type(copy) is type(model)
    assert copy.spec == model.spec
    image = torch.randn(1, 3, size_of(name), size_of(name))
    with torch.no_grad():
        assert torch.equal(copy(image), model(image))


@pytest.mark.parametrize("head", LABELLED)
def test_a_head_over_a_backbone_survives_pickling(head):
    model = create_model(f"{head}_convnext_atto", num_classes=3, depths=(1, 1, 1, 1), widths=(8, 8, 8, 8), channels=16)
    copy = pickle.loads(pickle.dumps(model))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(copy.parameters(), model.parameters(), strict=True))
    assert (copy.num_classes, copy.spec) == (3, model.spec)


@pytest.mark.parametrize("name", [*OURS, *HEADS])
def test_arguments_are_those_of_the_real_constructor(name):
    """They are read from the source; here, the constructor itself is asked."""
    entry = BACKBONES.get(name) or HEADS[name]
    build = resolve(entry.build)
    read, real = arguments_of(entry.build), arguments_of(build)
    assert list(read) == list(real) == [key for key in inspect.signature(build).parameters if key != "self"]
    assert [argument.required for argument in read.values()] == [argument.required for argument in real.values()]
    optional = [key for key, argument in real.items() if not argument.required]  # the types of others are not plain
    assert [read[key] for key in optional] == [real[key] for key in optional]
    assert set(optional) <= entry.arguments.keys()


def test_arguments_of_an_entry_leave_out_what_the_entry_gives():
    assert not {"network", "step", "regime"} & {key for entry in map(find, OURS) for key in entry.arguments}
    assert {"num_classes", "in_channels", "drop_path", "grad_checkpointing"} <= find("alexnet").arguments.keys()
    upernet = find("upernet_convnext_tiny").arguments
    assert upernet.keys() == (find("convnext_tiny").arguments.keys() - {"head_init_scale"}) | {"channels", "auxiliary_channels", "dropout"}
    assert not {"backbone", "output_norm"} & find("mask_rcnn_resnet50").arguments.keys()


def test_an_argument_knows_which_values_it_takes():
    arguments = find("convnext_tiny").arguments
    assert arguments["depths"].accepts((1, 2, 3, 4))
    assert arguments["depths"].accepts([1, 2, 3, 4])
    assert not arguments["depths"].accepts("1234")
    assert not arguments["depths"].accepts([1.5])
    assert arguments["layer_scale"].accepts(1)
    assert not arguments["layer_scale"].accepts(True)
    assert not arguments["patch_size"].accepts(4.0)
    assert arguments["head_norm_eps"].accepts(None)
    assert not arguments["grad_checkpointing"].accepts(1)


def test_an_unknown_name_or_argument_is_answered_without_pytorch():
    code = (
        "import sys; from convnext.errors import UsageError; from convnext.models.registry import find, names\n"
        "for name in names(): find(name).arguments\n"
        "try: find('convnext_tny')\n"
        "except UsageError as error: print(error)\n"
        "print({'torch', 'timm', 'numpy', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "unknown model 'convnext_tny'; did you mean 'convnext_tiny'?\nset()\n", done.stderr


@pytest.mark.parametrize("name", OUR_NAMES)
def test_what_an_entry_names_exists(name):
    entry = find(name)
    assert entry.name == name
    assert callable(resolve(entry.build))
    assert callable(resolve(entry.cost_by))
    assert issubclass(entry.preprocessing(), Preprocessing)
    source = next(iter(entry.weights), "")
    preprocessing, num_classes = entry.published(source)
    assert isinstance(preprocessing, entry.preprocessing())
    assert num_classes > 0 or source in ("fcmae",)  # pre-trained without labels


@pytest.mark.parametrize(
    "name", ["convnext_tiny", "resnet50", "mask_rcnn_swin_tiny", "cascade_mask_rcnn_convnext_base", "upernet_resnet50"]
)
def test_a_description_of_each_task_comes_back_as_it_was(name, tmp_path):
    import json

    entry = find(name)
    how = entry.published("")[0]
    about = {
        "task": entry.task,
        "model": {"name": name, "num_classes": 2, "in_channels": 3},
        "preprocessing": how.to_json(),
        "classes": ["a", "b"],
    }
    found = parse(json.dumps(about), tmp_path / "weights.safetensors")
    assert found == json.loads(json.dumps(about))
    assert entry.preprocessing().from_json(found["preprocessing"]) == how


def test_an_entry_may_hold_a_constructor_of_ones_own(monkeypatch):
    class Own(nn.Module):
        def __init__(self, num_classes, in_channels=3, drop_path=0.0, *, size: int = 4):
            super().__init__()
            self.num_classes, self.head = num_classes, nn.Linear(in_channels * size, num_classes)

    monkeypatch.setitem(BACKBONES, "own", Entry(Own, {"size": 8}, name="own"))
    assert find("own").arguments == {
        "num_classes": Argument("object", required=True),
        "in_channels": Argument("object"),
        "drop_path": Argument("object"),
        "size": Argument("int"),
    }
    assert convnext.create_model("own", num_classes=2).head.in_features == 24
    assert convnext.create_model("own", num_classes=2, size=5).spec == {"name": "own", "num_classes": 2, "in_channels": 3, "size": 5}
    with pytest.raises(UsageError, match="own has no argument 'sise'; did you mean 'size'"):
        convnext.create_model("own", sise=5)
    assert {field.name for field in fields(Entry)} >= {"build", "fixed", "weights"}


def test_stochastic_depth_does_not_depend_on_the_split():
    drop, x = DropPath(0.5).train(), torch.ones(8, 3)
    torch.manual_seed(0)
    whole = drop(x)
    parts = []
    for first in (0, 2, 4, 6):
        torch.manual_seed(0)
        with split_of(8, torch.arange(first, first + 2)):
            parts.append(drop(x[first : first + 2]))
    assert torch.equal(torch.cat(parts), whole)
    assert 0 < int((whole == 0).sum()) < whole.numel()
    torch.manual_seed(0)
    assert torch.equal(drop(x[:3]), whole[:3]), "outside of the context it draws for the batch that it sees"


def test_a_recomputed_block_draws_what_the_forward_pass_drew():
    torch.manual_seed(0)
    arguments = {"depths": (1, 1, 1, 2), "widths": (8, 8, 8, 8), "num_classes": 2, "drop_path": 0.5, "layer_scale": 1.0}
    plain, recomputed = create_model("convnext_atto", **arguments), create_model("convnext_atto", grad_checkpointing=True, **arguments)
    recomputed.load_state_dict(plain.state_dict())
    image, gradients = torch.randn(2, 3, 32, 32), []
    for model in (plain, recomputed):
        torch.manual_seed(1)
        with split_of(6, torch.tensor([2, 3])):
            model(image).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
