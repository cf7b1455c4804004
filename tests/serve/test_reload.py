"""A new version of a model takes over from the old one, and no request is lost."""

import asyncio
import os
import signal
import threading
import time

import httpx
import pytest
import torch
from helpers import sample_image
from service import encoded, running, started
from tiny_models import classifier

import convnext
from convnext.errors import ConvnextError
from convnext.serve.app import create_app
from convnext.serve.served import LoadedVersion

IMAGE = encoded(sample_image(size=(80, 60)))
SESAME = {"Authorization": "Bearer sesame"}


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """Two networks that answer differently, and one whose answers are not finite."""
    made = []
    for name in ("first", "second", "broken"):
        folder = tmp_path_factory.mktemp(name)
        predictor = convnext.load(classifier(folder)[0], device="cpu")
        with torch.no_grad():
            predictor.model.head.bias += {"first": 0, "second": torch.tensor([0, 5, 0]), "broken": torch.nan}[name]
        made.append(LoadedVersion(predictor, predictor))
    return dict(zip(("first", "second", "broken"), made, strict=True))


def talk_to(versions, talk, *later, **options):
    """What `talk` returns of a service that has the first version and loads the later ones in turn."""
    turns = iter(later)

    def load(_):
        found = next(turns)
        if isinstance(found, Exception):
            raise found
        return found

    async def run():
        first = versions["first"].predictor
        async with started(create_app({"insects": first}, load=load, token="sesame", **options), headers=SESAME) as client:
            return await talk(client)

    return asyncio.run(run())


def test_requests_are_answered_by_one_version_or_the_other_and_none_is_lost(versions):
    async def talk(client):
        answers, stop = [], asyncio.Event()

        async def send():
            while not stop.is_set():
                answers.append(await client.post("/v1/predict", content=IMAGE))

        senders = [asyncio.create_task(send()) for _ in range(4)]
        await asyncio.sleep(0.1)
        done = await client.post("/v1/models/insects")
        after = len(answers)
        while len(answers) < after + 20:
            await asyncio.sleep(0.01)
        stop.set()
        await asyncio.gather(*senders)
        return done, answers, await client.post("/v1/predict", content=IMAGE)

    done, answers, last = talk_to(versions, talk, versions["second"])
    wanted = {}
    for version in ("first", "second"):
        predictor = versions[version].predictor
        wanted[version] = predictor(IMAGE).top()[0]
    assert [one.status_code for one in answers] == [200] * len(answers)
    found = [one.json() for one in answers]
    by_digest = {}
    for one in found:
        by_digest.setdefault(one["weights"]["digest"], set()).add((one["top"][0]["class"], round(one["top"][0]["probability"], 4)))
    assert len(by_digest) == 2
    assert list(by_digest.values()) == [{(name, round(share, 4))} for name, share in wanted.values()]  # in the order of the answers
    assert done.status_code == 200
    assert done.json()["weights"] == last.json()["weights"] == found[-1]["weights"]


def test_a_version_that_does_not_work_never_answers(versions):
    async def talk(client):
        failed = [await client.post("/v1/models/insects") for _ in range(2)]
        return failed, (await client.get("/ready")).status_code, (await client.post("/v1/predict", content=IMAGE)).json()

    before = versions["first"].predictor(IMAGE).to_json()["top"]
    (missing, broken), ready, answer = talk_to(versions, talk, ConvnextError("w.safetensors is cut off"), versions["broken"])
    assert (missing.status_code, broken.status_code, ready) == (500, 500, 200)
    assert missing.json()["detail"] == "insects was not loaded again: w.safetensors is cut off; its present version stays"
    assert "failed on a first image" in broken.json()["detail"]
    assert [one["class"] for one in answer["top"]] == [one["class"] for one in before]


def test_who_may_load_again(versions):
    async def talk(client):
        nobody = await client.post("/v1/models/insects", headers={"Authorization": "Bearer sesam"})
        return nobody, await client.post("/v1/models/birds")

    nobody, unknown = talk_to(versions, talk)
    assert (nobody.status_code, unknown.status_code) == (401, 404)

    async def run():
        async with started(create_app({"insects": versions["first"].predictor}, load=lambda _: versions["second"])) as client:
            return await client.post("/v1/models/insects")

    refused = asyncio.run(run())
    assert refused.status_code == 403
    assert "--token, or send SIGHUP" in refused.json()["detail"]


@pytest.mark.slow
def test_a_new_file_takes_over_on_sighup_under_load(tmp_path):
    weights = classifier(tmp_path)[0]
    with running(f"insects={weights}", "--access-log") as service:
        client, stop, answers = service.wait().client, threading.Event(), []

        def send():
            with httpx.Client(base_url=service.url, timeout=30) as own:
                while not stop.is_set():
                    answers.append(own.post("/v1/predict", content=IMAGE))

        threads = [threading.Thread(target=send) for _ in range(4)]
        for thread in threads:
            thread.start()
        before = client.get("/v1/models").json()[0]["weights"]["digest"]
        (tmp_path / "new").mkdir()
        torch.manual_seed(7)
        fresh = convnext.load(weights, device="cpu")
        with torch.no_grad():
            fresh.model.head.bias += torch.randn(3)
        _write_like(weights, fresh.model.state_dict())
        os.kill(service.process.pid, signal.SIGHUP)
        until = time.monotonic() + 60
        while client.get("/v1/models").json()[0]["weights"]["digest"] == before:
            assert time.monotonic() < until, service.said
            time.sleep(0.05)
        time.sleep(0.3)
        stop.set()
        for thread in threads:
            thread.join()
        assert {one.status_code for one in answers} == {200}
        assert len({one.json()["weights"]["digest"] for one in answers}) == 2
        weights.write_bytes(b"cut off")
        os.kill(service.process.pid, signal.SIGHUP)
        while "its present version stays" not in service.said:
            assert time.monotonic() < until, service.said
            time.sleep(0.05)
        assert client.post("/v1/predict", content=IMAGE).status_code == 200
        assert service.stop() == 0
    assert '"path": "/v1/predict"' in service.said


def _write_like(path, state):
    """Replace the tensors of a weight file; its description stays."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, "pt") as opened:
        description = opened.metadata()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path.with_suffix(".new"), description)
    path.with_suffix(".new").replace(path)
