"""What every registered task offers, from a recipe to a drawn prediction, on the embedded data."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers import randomise
from PIL import Image

import convnext
from convnext import tasks
from convnext.data.loader import Sample
from convnext.data.sampling.order import EVALUATION
from convnext.errors import UsageError
from convnext.evaluate import evaluate, evaluation_loader
from convnext.extend import TASKS
from convnext.recipe import load_recipe
from convnext.tasks.shared import prepare, total

CPU = torch.device("cpu")
SMALL = {"depths": (1, 1, 1, 1), "widths": (4, 8, 8, 16)}
NETWORKS = {
    "classify": ("convnext_atto", SMALL),
    "multilabel": ("convnext_atto", SMALL),
    "regress": ("convnext_atto", SMALL),
    "detect": ("mask_rcnn_convnext_atto", SMALL | {"channels": 8, "fc_channels": 16}),
    "segment": ("upernet_convnext_atto", SMALL | {"channels": 8, "auxiliary_channels": 8}),
    "pretrain": ("fcmae_convnextv2_atto", SMALL | {"patch_size": 1}),
}
OVERRIDES = {
    "classify": {"augment.mixup": 0.5},
    "multilabel": {"augment.mixup": 0.5},
    "regress": {"augment.mixup": 0.5},
    "detect": {"detect.short": [64], "detect.crop_short": [72], "detect.crop": [48, 64], "detect.test_short": 96, "model.name": "mask_rcnn_convnext_atto", "model.width": None},
    "segment": {"data.image_size": 64, "model.name": "upernet_convnext_atto", "model.width": None},
    "pretrain": {},
}  # fmt: skip


@pytest.fixture(scope="module", params=tasks.names())
def one(request):
    """A task with the opened data of its demo, and a small network for them."""
    task = tasks.get(request.param)
    recipe = load_recipe(task.demo_recipe, OVERRIDES[task.name])
    data, (name, arguments) = task.open(recipe), NETWORKS[task.name]
    model = randomise(convnext.create_model(name, num_classes=len(data.classes), **arguments)).eval()
    return SimpleNamespace(task=task, recipe=recipe, data=data, model=model, how=data.how or task.preprocessing(recipe))


def training_batch(one, count=4):
    return one.task.collate([one.data.train[0, index] for index in range(count)])


def evaluation_batch(one, indices):
    return one.task.collate([one.data.val[EVALUATION, index] for index in indices])


def tensors(value):
    """All tensors in a batch."""
    if isinstance(value, torch.Tensor):
        return [value]
    values = (
        value.values()
        if isinstance(value, dict)
        else value
        if isinstance(value, list)
        else vars(value).values()
        if hasattr(value, "indices")
        else ()
    )
    return [tensor for part in values for tensor in tensors(part)]


def test_an_unknown_task_is_refused_and_a_known_one_is_one_object():
    with pytest.raises(UsageError, match="unknown task 'clasify'; did you mean 'classify'"):
        tasks.get("clasify")
    assert all(tasks.get(name) is tasks.get(name) for name in tasks.names())
    own = [name for name in tasks.names() if name not in TASKS.origins]  # another test may have registered one
    assert [tasks.get(name).name for name in own] == own == list(NETWORKS)


def test_names_come_without_torch_and_other_libraries_when_they_are_needed():
    code = """if True:
        import sys, convnext.tasks as tasks
        names = tasks.names()
        assert "torch" not in sys.modules
        tasks.get("classify")
        assert "torch._dynamo" not in sys.modules  # which torchvision's detectors import
        for name in names:
            tasks.get(name)
        import convnext.models.load, convnext.data.sources.coco, convnext.tasks.detect.metric, convnext.training.watch
        convnext.models.load.create_model("convnext_atto")
        libraries = ("matplotlib", "timm", "faster_coco_eval", "sklearn", "tensorboard", "wandb", "trackio")
        print([name for name in libraries if name in sys.modules])
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_data_are_described(one):
    task, source = one.task, one.data.val.source
    assert len(one.data.train) > 0
    assert list(source.classes) == one.data.classes
    assert task.counts(source).startswith(f"{len(source)} images, ")
    assert one.data.remarks[0].startswith("train: ")
    assert task.overview(one.recipe.data.val)[0] == task.counts(source)
    assert task.remarks_on(source) == list(source.remarks)
    assert task.check(one.recipe.data.val) == []
    assert list(task.open_labelled(one.recipe.data.val, None, len(source.classes)).classes) == list(source.classes)
    assert type(one.how).from_json(json.loads(json.dumps(one.how.to_json()))) == one.how


def test_a_batch_is_sliced_moved_and_says_what_was_corrupt(one):
    batch = training_batch(one)
    assert (len(batch), batch.indices, batch.corrupt) == (4, [0, 1, 2, 3], [])
    part = batch[1:3]
    assert (len(part), part.indices) == (2, [1, 2])
    for found, wanted in zip(tensors(part.to(CPU)), tensors(part), strict=True):
        assert torch.equal(found, wanted)
    assert {tensor.device.type for tensor in tensors(part.to(torch.device("meta")))} == {"meta"}
    samples = [one.data.val[EVALUATION, 0], Sample(torch.empty(0), None, 5, [(5, "it is damaged")])]
    batch = one.task.collate(samples)
    assert (batch.indices, batch.corrupt) == ([0], [(5, "it is damaged")])
    none = one.task.collate(samples[1:])
    assert (len(none), none.corrupt) == (0, [(5, "it is damaged")])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a CUDA device")
def test_a_batch_is_pinned_as_a_whole(one):
    for batch in (training_batch(one), evaluation_batch(one, [0, 1])):
        pinned = batch.pin_memory()
        assert all(tensor.is_pinned() for tensor in tensors(pinned))
        assert all(torch.equal(*pair) for pair in zip(tensors(pinned), tensors(batch), strict=True))
        assert pinned.indices == batch.indices


def test_a_criterion_gives_named_losses_that_reach_every_parameter(one):
    one.model.train()
    criterion = one.task.criterion(one.recipe, one.data)
    losses = criterion(one.model, training_batch(one))
    assert all(loss.shape == () and loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    assert total(losses).item() == pytest.approx(sum(loss.item() for loss in losses.values()), rel=1e-6)
    total(losses).backward()
    assert [name for name, parameter in one.model.named_parameters() if parameter.grad is None] == []
    one.model.zero_grad()
    one.model.eval()


def test_processes_together_measure_what_one_does_and_it_is_reported(one):
    task, source, classes = one.task, one.data.val.source, one.data.classes
    parts, metrics = [[0, 2, 4], [1, 3, 5]], []
    with torch.no_grad():
        for batches in (parts, parts[:1], parts[1:]):
            metric = task.metric(len(classes), source)
            for batch in (evaluation_batch(one, indices) for indices in batches):
                outputs = task.predict(one.model, batch, one.how)
                assert len(outputs) == len(batch)
                metric.update(outputs, batch)
            metrics.append(metric)
    whole, first, second = metrics
    first.merge(second)
    found, details = whole.compute(), whole.details()
    assert first.compute() == pytest.approx(found)
    assert found["count"] == 6
    assert (0 if task.name != "regress" else -float("inf")) <= found[task.headline] <= 100
    assert json.loads(json.dumps(details)) == json.loads(json.dumps(first.details()))
    text = task.summary(found, details, classes)
    assert text.splitlines()[0] == task.summary_line(found)
    shown = f"{found[task.headline]:.4f}" if task.headline == "loss" else f"{found[task.headline]:.2f} %"
    assert shown in task.summary_line(found)
    sections = task.report(details, classes, source)
    assert all(section.title and section.body for section in sections)
    assert "data:image/" in "".join(section.body for section in sections)


def test_the_results_of_a_metric_are_cocos_or_refused(one):
    metric = one.task.metric(len(one.data.classes), one.data.val.source)
    if "coco" in one.task.formats:
        assert metric.results() == []
    else:
        with pytest.raises(UsageError, match="only detectors give results in COCO's format"):
            metric.results()


def test_an_evaluation_goes_through_a_loader(one):
    samples = one.task.evaluation_samples(one.data.val.source, one.how)
    loader = evaluation_loader(samples, one.task, 3, 0, CPU)
    assert loader.count == len(samples) == len(one.data.val)
    assert loader.samples is samples
    seen = []

    def stop(done, count):
        seen.append((done, count))
        raise UsageError("enough")

    with pytest.raises(UsageError, match="enough"):
        evaluate(one.model, one.task, loader, one.how, len(one.data.classes), CPU, progress=stop)
    assert seen == [(3, len(samples))]


def test_predictions_of_opened_and_prepared_images_are_the_same(one):
    task, source, classes = one.task, one.data.val.source, one.data.classes
    images = [source.read(index) for index in range(2)]
    ready = [prepare(image, one.how.transform()) for image in images]
    found, again = (task.infer(one.model, given, one.how, classes, CPU) for given in (images, ready))
    for prediction, same, image in zip(found, again, images, strict=True):
        assert json.loads(json.dumps(prediction.to_json(), allow_nan=False)) == json.loads(json.dumps(same.to_json()))
        assert prediction.to_text()
        assert "\n" not in prediction.to_text()
        rows = prediction.rows(3)
        assert 0 < len(rows) <= 3
        assert all(tuple(row) == task.columns for row in rows)
        drawn = prediction.draw(image if isinstance(image, Image.Image) else image.to_image())
        assert drawn.mode == "RGB"
        assert min(drawn.size) >= min(image.size)
    with pytest.raises(UsageError, match=f"the task '{task.name}' has no option 'treshold'"):
        task.infer(one.model, images, one.how, classes, CPU, treshold=0.5)
    embeddings = task.embed(one.model, images, one.how, CPU)
    assert (embeddings.shape, embeddings.dtype) == ((2, SMALL["widths"][-1]), torch.float32)
    assert torch.equal(embeddings, task.embed(one.model, ready, one.how, CPU))


def test_names_and_ids_of_classes_that_weights_do_not_name(one):
    names = one.task.class_names(7)
    assert names == [f"class {i}" for i in range(7)]
    assert one.task.class_ids(None, 7) is None
    assert one.task.possible_class_names(7) == []
    for count in (80, 150, 1000):
        assert len(one.task.class_names(count)) == count
        assert all(len(known) == count for known in one.task.possible_class_names(count))
