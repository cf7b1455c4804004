"""Networks that can't answer: exported ones, broken ones, and work that nobody waits for any more."""

import asyncio
import json
import threading
import time

import pytest
import torch
from export.test_export import written
from helpers import random_model, sample_image
from service import encoded, running, started
from tiny_models import classifier, detector, segmenter, write

import convnext
from convnext.cli import app as command_line
from convnext.errors import ConvnextError, NotFiniteError, TooLargeError, UsageError
from convnext.export.export import export
from convnext.serve.app import create_app
from convnext.serve.limits import Limits
from convnext.serve.served import LoadedVersion, PredictRequest, RequestOptions, ServedModel
from convnext.serve.service import Service
from convnext.serve.watched import Watched

GOOD = encoded(sample_image(size=(64, 64)))
MAKERS = {"classify": classifier, "detect": detector, "segment": segmenter}


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_an_exported_classifier_is_served_and_has_no_maps(tmp_path, to):
    path = tmp_path / f"out.{'onnx' if to == 'onnx' else 'xml'}"
    export(written(tmp_path, "classify"), to, path)
    with running(path, "--optimize", "off") as service:
        service.wait()  # until it is ready, which it never was
        (model,) = service.client.get("/models").json()
        assert (model["explains"], model["ready"]) == (False, True)
        assert service.client.post("/predict", content=GOOD).json()["top"]
        refused = service.client.post("/explain", content=GOOD)
        assert (refused.status_code, "no activation maps" in refused.json()["detail"]) == (422, True)
    sample_image().save(tmp_path / "p.png")
    for options in ([], ["--class", "ant"], ["--features"], ["--neighbours", str(tmp_path)]):
        with pytest.raises((UsageError, ConvnextError)) as found:
            command_line(
                ["explain", str(path), str(tmp_path / "p.png"), "--output", str(tmp_path / "why"), *options], standalone_mode=False
            )
        assert "Classifier" not in str(found.value)  # a message, not an attribute that is missing


@pytest.mark.slow
def test_every_exported_task_becomes_ready(tmp_path):
    paths = {}
    for task in ("segment", "detect"):
        paths[task] = tmp_path / f"{task}.onnx"
        export(written(tmp_path, task), "onnx", paths[task])
    loaded = {task: convnext.load(path, device="cpu") for task, path in paths.items()}

    async def ask():
        async with started(create_app(loaded)) as client:
            assert [(one["explains"], one["ready"]) for one in (await client.get("/models")).json()] == [(False, True)] * 2
            for task in paths:
                assert (await client.post(f"/predict?model={task}", content=GOOD)).json()["task"] == task
            found = (await client.post("/predict?model=detect&masks=0", content=GOOD)).json()["objects"]
            assert not any("mask" in one for one in found)

    asyncio.run(ask())


def broken(folder, task, value):
    """The weights of a network that diverged."""
    path, model, how = MAKERS[task](folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(value)
    return write(path, task, how, model)[0]


@pytest.mark.parametrize("task", MAKERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_output_that_is_not_finite_is_no_prediction(tmp_path, capsys, task, value):
    path = broken(tmp_path, task, value)
    predictor = convnext.load(path, device="cpu")
    with pytest.raises(NotFiniteError):
        predictor(sample_image(size=(64, 64)))
    with pytest.raises(NotFiniteError):
        predictor.features(sample_image(size=(64, 64)))
    (tmp_path / "p.png").write_bytes(GOOD)
    with pytest.raises(ConvnextError, match="none of 1"):
        command_line(["predict", str(path), str(tmp_path / "p.png"), "--json"], standalone_mode=False)
    printed = capsys.readouterr()
    assert "not finite" in json.loads(printed.out, parse_constant=pytest.fail)[0]["error"]
    assert "not finite" in printed.err


def test_one_part_of_a_network_that_is_not_finite_is_enough(tmp_path):
    path = detector(tmp_path)[0]
    for part in ("neck", "rpn_head", "roi_head.bbox_head", "roi_head.mask_head"):
        predictor = convnext.load(path, device="cpu")
        with torch.no_grad():
            for parameter in predictor.model.get_submodule(part).parameters():
                parameter.fill_(float("nan"))
        with pytest.raises(NotFiniteError):
            predictor(sample_image(size=(80, 60)))


def test_the_service_says_that_an_output_is_not_finite(tmp_path):
    predictor = convnext.load(classifier(tmp_path)[0], device="cpu")

    async def ask():
        async with started(create_app({"one": predictor})) as client:
            with torch.no_grad():
                predictor.model.head.weight.fill_(float("nan"))
            for path in ("/predict", "/explain"):
                answer = await client.post(path, content=GOOD)
                assert answer.status_code == 500
                assert "not finite" in answer.json()["detail"]

    asyncio.run(ask())


def test_activation_maps_that_fail_keep_no_predictions_back(tmp_path):
    predictor = convnext.load(classifier(tmp_path)[0], device="cpu")
    fast = convnext.load(tmp_path / "classify.safetensors", device="cpu")
    predictor.model.head = torch.nn.Linear(5, 3)  # of which the maps alone know: `fast` predicts

    async def ask():
        async with started(create_app({"one": predictor}, fast={"one": fast})) as client:
            assert (await client.post("/predict", content=GOOD)).status_code == 200
            assert (await client.get("/models")).json()[0]["explains"] is False
            answer = await client.post("/explain", content=GOOD)
            assert answer.status_code == 500
            assert "failed when they were tried" in answer.json()["detail"]

    asyncio.run(ask())


def test_masks_of_more_pixels_than_are_drawn_are_refused_with_a_remedy(tmp_path):
    predictor = convnext.load(detector(tmp_path)[0], device="cpu")
    image = sample_image(size=(400, 300))
    whole = predictor(image)
    pixels = float((whole.boxes[:, 2:] - whole.boxes[:, :2]).prod(1).sum())
    few, enough = 0.9 * pixels, 1.1 * pixels  # the service's network differs by rounding, by which objects can change
    assert pixels > 100 * 64 * 64  # more than the first image has in any case

    async def ask(limit, option=""):
        async with started(create_app({"one": predictor}, Limits(mask_pixels=int(limit)))) as client:
            answer = await client.post(f"/predict{option}", content=encoded(image))
            return answer.status_code, answer.json()

    status, answer = asyncio.run(ask(few))
    assert status == 413
    assert f"masks of {len(whole.labels)} objects" in answer["detail"]
    assert "?masks=0" in answer["detail"]
    assert asyncio.run(ask(enough))[0] == 200
    assert len(asyncio.run(ask(few, "?masks=0"))[1]["objects"]) == len(whole.labels)
    assert asyncio.run(ask(few, "?threshold=0.5"))[0] == 200


def test_an_image_whose_masks_are_refused_costs_the_others_of_its_batch_no_masks(tmp_path):
    predictor = convnext.load(detector(tmp_path)[0], device="cpu")
    small, large = sample_image(size=(40, 30)), sample_image(size=(400, 300))
    pixels = sum(float((one.boxes[:, 2:] - one.boxes[:, :2]).prod(1).sum()) for one in predictor([small, large])) / 2
    model = ServedModel("one", LoadedVersion(predictor, predictor), Limits(mask_pixels=int(pixels)), 8, 0.1, print)
    asked = []
    with pytest.raises(TooLargeError):
        predictor.infer([small, large], max_pixels=int(pixels), check=lambda: asked.append(1))
    assert asked == []
    requests = [PredictRequest(model.prepare(small)), PredictRequest(model.prepare(large), RequestOptions(nms=0.4))]
    answered, refused = model._predict(requests, lambda: None)
    assert answered.masks
    assert isinstance(refused, TooLargeError)


def test_images_for_one_model_keep_none_for_another_waiting(tmp_path):
    predictor = convnext.load(classifier(tmp_path)[0], device="cpu")
    service = Service({name: LoadedVersion(predictor, predictor) for name in ("busy", "idle")}, Limits(), 8, 0.1)
    go = threading.Event()

    async def decode():
        stuck = [asyncio.create_task(service._in_thread(service.model("busy"), lambda: go.wait(20))) for _ in range(9)]
        found = await asyncio.wait_for(service._in_thread(service.model("idle"), lambda: "decoded"), 10)
        go.set()
        await asyncio.gather(*stuck)
        return found

    assert asyncio.run(decode()) == "decoded"
    assert service.close()


def test_a_watched_network_is_asked_before_each_call(tmp_path):
    asked = []
    network = convnext.load(segmenter(tmp_path, window=32, stride=16)[0], device="cpu").model
    watched = Watched(network, lambda: asked.append(1))
    x = torch.zeros(1, 3, 32, 32)
    assert torch.equal(watched(x), network(x))
    assert torch.equal(watched.logits(x), network.logits(x))
    assert watched.num_classes == 3
    assert len(asked) == 2
    Watched(random_model("convnext_atto", num_classes=3), lambda: asked.append(1)).forward_features(x)
    assert len(asked) == 3


def endless(folder):
    """A segmenter whose test of a large image takes minutes: a hundred thousand windows."""
    return segmenter(folder, window=32, stride=2)[0]


@pytest.mark.slow
def test_work_that_nobody_waits_for_is_given_up_and_sigterm_ends_in_time(tmp_path):
    large = encoded(sample_image(size=(1000, 800)))
    small = encoded(sample_image(size=(32, 32)))  # one window
    with running(endless(tmp_path), "--timeout", "2", "--batch-size", "1") as service:
        service.wait()
        assert service.client.post("/predict", content=large).status_code == 504
        answers = [service.client.post("/predict", content=small).status_code for _ in range(3)]
        assert 200 in answers  # not after all windows of the large one
        assert service.client.post("/predict", content=large).status_code == 504
        assert service.stop() == 0
        assert "Traceback" not in service.said


STUCK = """
import sys, time, convnext
from convnext.serve import serve
from convnext.serve.limits import Limits

def slow(predictor):
    forward = predictor.model.forward
    predictor.model.forward = lambda x: forward(x) if x.mean() < 1 else time.sleep(600)
    return predictor

serve([sys.argv[1]], Limits(timeout=0.5), host="127.0.0.1", port=0, token=None, batch_size=1, max_wait=0, device="cpu", optimize=slow)
"""


def test_sigterm_ends_a_service_whose_network_is_stuck_in_one_call(tmp_path):
    white = encoded(sample_image().point(lambda value: 255))
    path = classifier(tmp_path)[0]
    with running(path, code=STUCK) as service:
        service.wait()
        assert service.client.post("/predict", content=white).status_code == 504
        started_at = time.monotonic()
        assert service.stop() == 0  # within the 30 seconds that `stop` waits, and not the 600 of the network
        assert time.monotonic() - started_at < 30
        assert "abandoned" in service.said
