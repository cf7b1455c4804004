"""Requests for prediction sets and unknown images: answered like the predictor's, in batches of mixed options; refused with the reason."""

import asyncio

import pytest
from fitted import images, write_fitted
from helpers import sample_image
from service import encoded, started

import convnext
from convnext.serve.app import create_app


@pytest.fixture(scope="module")
def predictors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("known")
    paths = {name: write_fitted(folder / f"{name}.safetensors", name == "digits") for name in ("digits", "plain")}
    return {name: convnext.load(path, device="cpu") for name, path in paths.items()}


def served(predictors, *requests):
    """The answers of a service to requests (address, image), sent at once."""

    async def answers():
        async with started(create_app(predictors, max_wait=1.0)) as client:
            listed = (await client.get("/models")).json()
            return listed, await asyncio.gather(*(client.post(path, content=encoded(image)) for path, image in requests))

    return asyncio.run(answers())


def test_answers_are_the_predictors_whatever_their_batch_was_asked(predictors):
    digit, other = images("val")[1], sample_image(3)
    asked = [({}, digit), ({"coverage": 0.95}, digit), ({"coverage": 0.99, "unknown": True}, digit), ({"unknown": True}, other)]
    addresses = ["/predict?" + "&".join(f"{name}={value}" for name, value in options.items()) for options, _ in asked]
    _, found = served(predictors, *zip(addresses, (image for _, image in asked), strict=True))
    for (options, image), answer in zip(asked, found, strict=True):
        ours, theirs = predictors["digits"](image, **options).to_json(), answer.json()
        assert theirs.keys() == {"model", "task", "weights"} | ours.keys()
        assert [one["class"] for one in theirs.get("set", [])] == [one["class"] for one in ours.get("set", [])]
        assert theirs.get("novelty") == pytest.approx(ours.get("novelty"), abs=0.003)
        assert theirs.get("unknown") == ours.get("unknown")
    assert found[3].json()["unknown"]


def test_the_models_say_what_they_answer_and_refuse_the_rest(predictors):
    image = images("val")[0]
    bad = ["coverage=0", "coverage=1", "coverage=1.5", "coverage=nan", "coverage=high", "unknown=perhaps"]
    requests = [(f"/predict?model=plain&{option}", image) for option in ("coverage=0.9", "unknown=1")]
    listed, found = served(predictors, *requests, *((f"/predict?{option}", image) for option in bad))
    assert {one["name"]: one["options"] for one in listed} == {"digits": ["coverage", "unknown"], "plain": []}
    assert [answer.status_code for answer in found] == [422] * len(found)
    assert "plain can't answer coverage: these weights have no calibration" in found[0].json()["detail"]
    assert "`convnext fit SOURCE --output RUN` makes weights that have one" in found[1].json()["detail"]
