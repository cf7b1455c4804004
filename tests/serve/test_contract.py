"""What clients rely on: addresses, types, headers, and which weights answered."""

import asyncio
import json
import re

import pytest
from helpers import sample_image
from pydantic import TypeAdapter, ValidationError
from service import encoded, started
from tiny_models import classifier, detector, segmenter

import convnext
from convnext.serve.answers import ModelInfo, prediction_type
from convnext.serve.app import create_app

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
IMAGE = encoded(sample_image(size=(80, 60)))


@pytest.fixture(scope="module")
def predictors(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    paths = {"classify": classifier(root)[0], "detect": detector(root)[0], "segment": segmenter(root)[0]}
    return {name: convnext.load(path, device="cpu") for name, path in paths.items()}


def ask(predictors, talk, **options):
    """What `talk` returns of a service in this process, and the lines of its access log."""
    lines = []

    async def run():
        async with started(create_app(predictors, write=lines.append, **options)) as client:
            return await talk(client)

    return asyncio.run(run()), [json.loads(line) for line in lines]


def test_answers_have_the_types_of_the_description_and_name_their_weights(predictors):
    async def talk(client):
        answers = {name: (await client.post(f"/v1/predict?model={name}", content=IMAGE)).json() for name in predictors}
        return answers, (await client.get("/v1/models")).json()

    (answers, models), _ = ask(predictors, talk)
    for name, answer in answers.items():
        assert answer == prediction_type().model_validate(answer, strict=True).model_dump(mode="json", exclude_unset=True)
        with pytest.raises(ValidationError):
            prediction_type().model_validate({**answer, "task": "another"})
        assert answer.keys() - {"model", "task", "weights"} == predictors[name](IMAGE).to_json().keys()
    assert models == [one.model_dump(mode="json") for one in TypeAdapter(list[ModelInfo]).validate_python(models)]
    digests = {one["name"]: one["weights"]["digest"] for one in models}
    assert digests == {name: answer["weights"]["digest"] for name, answer in answers.items()}
    assert len(set(digests.values())) == 3
    assert all(re.fullmatch("sha256:[0-9a-f]{64}", one) for one in digests.values())
    shares = [one["share"] for one in answers["segment"]["classes"]]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)


def test_addresses_without_a_version_stay(predictors):
    async def talk(client):
        pairs = [(await client.post(f"{prefix}/predict?top=2", content=IMAGE)).json() for prefix in ("/v1", "")]
        return pairs, [await client.head(f"{prefix}/models") for prefix in ("/v1", "")]

    ((new, old), heads), _ = ask(predictors, talk)
    assert new == old
    assert [(head.status_code, head.content) for head in heads] == [(200, b"")] * 2


def test_each_request_has_a_number_and_a_line_of_the_log(predictors):
    async def talk(client):
        named = await client.post("/v1/predict?model=detect", content=IMAGE, headers={"X-Request-ID": "order-7", "traceparent": TRACE})
        strange = await client.get("/v1/models", headers={"X-Request-ID": "a b\tc", "traceparent": "00-xyz-1-01"})
        return named, strange, await client.post("/v1/predict?model=detected", content=IMAGE)

    (named, strange, wrong), lines = ask(predictors, talk)
    assert (named.headers["x-request-id"], named.headers["traceparent"]) == ("order-7", TRACE)
    assert re.fullmatch("[0-9a-f]{32}", strange.headers["x-request-id"])
    assert "traceparent" not in strange.headers
    written = {line["request_id"]: line for line in lines}
    line = written["order-7"]
    assert (line["trace_id"], line["method"], line["path"], line["model"]) == (TRACE[3:35], "POST", "/v1/predict", "detect")
    assert (line["status"], line["bytes"]) == (200, len(named.content))
    assert 0 < line["seconds"] < 60
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT[\d:.]+\+00:00", line["time"])
    refused = written[wrong.headers["x-request-id"]]
    assert (refused["status"], refused["model"]) == (404, None)


def test_web_pages_from_elsewhere_may_call_only_where_it_is_allowed(predictors):
    origin = {"Origin": "https://shop.example"}
    asked = origin | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}

    async def talk(client):
        return await client.options("/v1/predict", headers=asked), await client.post("/v1/predict", content=IMAGE, headers=origin)

    (before, answer), _ = ask(predictors, talk, origins=["https://shop.example"])
    assert before.status_code == 200
    assert before.headers["access-control-allow-origin"] == answer.headers["access-control-allow-origin"] == "https://shop.example"
    assert "X-Request-ID" in answer.headers["access-control-expose-headers"]
    for origins in ((), ["https://other.example"]):
        (_, answer), _ = ask(predictors, talk, origins=origins)
        assert "access-control-allow-origin" not in answer.headers
