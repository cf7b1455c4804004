import asyncio
import base64
import json
import re
import socket
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from itertools import pairwise
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import torch
from helpers import sample_image
from PIL import Image
from service import encoded, running
from tiny_models import CLASSES, classifier, detector, segmenter

import convnext
from convnext.cli.serve import faster
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.errors import ConvnextError, UsageError
from convnext.inference.predictor import Predictor
from convnext.models.backbones.convnext import Block
from convnext.models.load import Loaded
from convnext.serve import _listen, named
from convnext.serve.app import create_app
from convnext.serve.limits import Limits
from convnext.serve.served import LoadedVersion
from convnext.serve.service import Service

TIMEOUT = 2.0
MAX_BYTES = 100_000


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return classifier(tmp_path_factory.mktemp("serve"))[0]


@pytest.fixture(scope="module")
def others(weights):
    return detector(weights.parent)[0], segmenter(weights.parent)[0]


@pytest.fixture(scope="module")
def service(weights, others):
    limits = ("--timeout", TIMEOUT, "--max-bytes", MAX_BYTES, "--max-pixels", 1_000_000, "--max-wait-ms", 50)
    with running(f"insects={weights}", *others, *limits) as service:
        yield service.wait()


def test_a_image_gets_the_predictors_answer_however_it_is_sent(service, weights):
    image = sample_image(size=(90, 70))
    content = encoded(image)
    wanted = convnext.load(weights, device="cpu")(image).to_json()["top"]
    ways = [
        {"content": content, "headers": {"Content-Type": "image/png"}},
        {"content": content, "headers": {"Content-Type": "application/x-www-form-urlencoded"}},  # what curl --data-binary says
        {"files": {"file": ("p.png", content)}},
        {"json": {"image": base64.b64encode(content).decode()}},
        {"json": {"image": f"data:image/png;base64,{base64.encodebytes(content).decode()}"}},
    ]
    for way in ways:
        answer = service.client.post("/predict", **way).json()
        assert answer["model"] == "insects"
        assert answer["task"] == "classify"
        assert [one["class"] for one in answer["top"]] == [one["class"] for one in wanted]
        assert [one["probability"] for one in answer["top"]] == pytest.approx([one["probability"] for one in wanted], abs=1e-5)
    assert len(service.client.post("/predict?model=insects&top=1", content=content).json()["top"]) == 1


def test_all_tasks_are_served(service, others):
    image = sample_image(size=(80, 60))
    for path, task in zip(others, ("detect", "segment"), strict=True):
        answer = service.client.post(f"/predict?model={task}", content=encoded(image)).json()
        wanted = convnext.load(path, device="cpu").optimize("float32")(image).to_json()
        assert (answer.pop("model"), answer.pop("task")) == (task, task)
        assert answer.pop("weights")["digest"].startswith("sha256:")
        assert answer == wanted
        assert answer.get("objects") or len(answer.get("classes")) > 1


def test_an_image_of_more_than_eight_bits_is_scaled_as_in_training_or_refused(service, weights):
    grey = np.linspace(0, 1, 90 * 70, dtype=np.float32).reshape(70, 90)
    wanted = convnext.load(weights, device="cpu")(grey).to_json()["top"]
    found = service.client.post("/predict", content=encoded(Image.fromarray(grey), "TIFF")).json()["top"]
    assert [one["probability"] for one in found] == pytest.approx([one["probability"] for one in wanted], abs=1e-5)
    for path in ("/predict", "/explain"):
        answer = service.client.post(path, content=encoded(Image.fromarray(1.5 * grey), "TIFF"))
        assert answer.status_code == 422
        assert "values up to 1.5, beyond 1: set data.range=1.5" in answer.text


def test_a_detector_leaves_out_masks_and_objects_that_are_not_asked_for(service):
    content = encoded(sample_image(size=(80, 60)))

    def objects(option=""):
        return service.client.post(f"/predict?model=detect{option}", content=content).json()["objects"]

    whole = objects()
    boxes = objects("&masks=0")
    assert [one | {"mask": same["mask"]} for one, same in zip(boxes, whole, strict=True)] == whole
    assert not any("mask" in one for one in boxes)
    scores = [one["score"] for one in whole]
    middle = next((high + low) / 2 for high, low in pairwise(scores[5:]) if high - low > 1e-4)  # they are rounded
    bees = objects(f"&classes=bee&threshold={middle}&masks=0")
    assert bees == [one for one in boxes if one["class"] == "bee" and one["score"] > middle]
    sure = objects(f"&threshold={middle}")
    assert 0 < len(sure) < len(whole)
    assert sure == [one for one in whole if one["score"] > middle]
    assert objects("&threshold=1") == []
    with ThreadPoolExecutor() as threads:  # in one batch or two, each its own
        options = ["", "&masks=0", f"&threshold={middle}", "&threshold=1"]
        assert list(threads.map(objects, options)) == [whole, boxes, sure, []]


def _png(width, height):
    """The head of a PNG of that size, and hardly any pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def _many_scans():
    content = encoded(sample_image(), "JPEG", progressive=True)
    return content[:-2] + 200 * content[content.rindex(b"\xff\xda") : -2] + content[-2:]


def _endless():
    for _ in range(1000):
        yield bytes(1000)


GOOD = encoded(sample_image())
FORM = {"Content-Type": "multipart/form-data; boundary=x"}
PART = b'--x\r\nContent-Disposition: form-data; name="file"; filename="p"\r\n\r\n'
HOSTILE = {
    "truncated": (422, {"content": encoded(sample_image(size=(300, 200)), "JPEG")[:2000]}),
    "damaged": (422, {"content": GOOD[:60] + bytes(200) + GOOD[260:]}),
    "no image": (415, {"content": b"hello, image"}),
    "a program that Pillow would start": (415, {"content": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}),
    "nothing": (422, {"content": b""}),
    "too long": (413, {"content": bytes(MAX_BYTES + 5000)}),
    "too long and not saying so": (413, {"content": _endless()}),
    "too many pixels": (413, {"content": _png(2000, 600)}),
    "far too many pixels": (413, {"content": _png(60_000, 60_000)}),
    "fewer pixels than it says": (422, {"content": _png(900, 900)}),
    "a line": (422, {"content": encoded(sample_image(size=(2000, 3)), "PNG")}),
    "hundreds of scans": (422, {"content": _many_scans()}),
    "JSON without image": (422, {"json": {"photo": "abcd"}}),
    "JSON with no base 64": (422, {"json": {"image": "?"}}),
    "damaged JSON": (422, {"content": b"[" * 50_000, "headers": {"Content-Type": "application/json"}}),
    "form without end": (422, {"content": PART + GOOD, "headers": FORM}),
    "form with two files": (422, {"content": 2 * (PART + GOOD + b"\r\n") + b"--x--\r\n", "headers": FORM}),
    "JSON of brackets": (422, {"content": b"[" + b"{}," * 30_000 + b"{}]", "headers": {"Content-Type": "application/json"}}),
    "form of fields": (422, {"content": PART.replace(b'; filename="p"', b"\r\n\r\n") * 1500, "headers": FORM}),
    "form without boundary": (422, {"content": PART, "headers": {"Content-Type": "multipart/form-data"}}),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_cannot_be_answered_is_refused_with_a_reason(service, case):
    status, request = HOSTILE[case]
    answer = service.client.post("/predict", **request)
    assert answer.status_code == status
    assert answer.json()["detail"]
    assert service.client.post("/predict", content=GOOD).status_code == 200


def test_models_and_options_that_do_not_exist_are_refused(service):
    answer = service.client.post("/predict?model=insect", content=GOOD)
    assert answer.status_code == 404
    assert "'insects'" in answer.json()["detail"]
    assert service.client.post("/predict?top=0", content=GOOD).status_code == 422
    for option in (
        "masks=2",
        "threshold=nan",
        "threshold=inf",
        "threshold=-0.1",
        "threshold=1.1",
        "threshold=high",
        "threshold=",
        "nms=1.1",
        "classes=be",
    ):
        assert service.client.post(f"/predict?model=detect&{option}", content=GOOD).status_code == 422, option
    for option in ("masks=0", "masks=1", "threshold=0.5"):
        for model, task in (("insects", "classify"), ("segment", "segment")):
            answer = service.client.post(f"/predict?model={model}&{option}", content=GOOD)
            assert answer.status_code == 422
            assert f"{model} can't answer {option.partition('=')[0]}: the task '{task}' has no such option" in answer.json()["detail"]
    assert service.client.post("/explain?class=be", content=GOOD).status_code == 422
    for address, message in (
        ("/v1/predict?model=detect&thresh=0.9", "unknown parameter 'thresh'; did you mean 'threshold'?"),
        ("/explain?top=1", "unknown parameter 'top'; known: class, model"),
        ("/predict?model=detect&masks=0&" + 99 * "x", "unknown parameter 'xxx"),
    ):
        answer = service.client.post(address, content=GOOD)
        assert (answer.status_code, message in answer.json()["detail"]) == (422, True), answer.text
    assert service.client.get("/predict").status_code == 405


def _dribble(address, *parts):
    """Send parts, one every tenth of the limit, until something comes back or the connection is closed; that."""
    with socket.create_connection(address, timeout=TIMEOUT / 10) as connection:
        for part in parts:
            connection.sendall(part)
            with suppress(TimeoutError):
                return connection.recv(65536)
    raise AssertionError("it went on for ever")


def _wait_until(is_so, seconds=5):
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.02)


HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


def test_slow_senders_are_given_up_and_hold_up_nobody(service):
    def one_by_one(content):
        return [content[i : i + 1] for i in range(50)]

    cases = [one_by_one(HEAD), [HEAD % len(GOOD), *one_by_one(GOOD)], 50 * [b""]]
    with ThreadPoolExecutor() as threads:
        waiting = [threads.submit(_dribble, service.address, *case) for case in cases]
        assert service.client.post("/predict", content=GOOD).status_code == 200
        assert not any(one.done() for one in waiting)
        head, body, silence = (one.result() for one in waiting)
    assert head.startswith(b"HTTP/1.1 408")
    assert body.startswith(b"HTTP/1.1 408")
    assert silence == b""


def test_clients_that_hang_up_leave_nothing_behind(service):
    gone = 'convnext_requests_total{path="/predict",status="499"}'
    before = service.metric(gone)
    for count in (len(GOOD) // 2, len(GOOD)):
        for _ in range(10):
            with socket.create_connection(service.address) as connection:
                connection.sendall(HEAD % len(GOOD) + GOOD[:count])
    assert service.client.post("/predict", content=GOOD).status_code == 200
    _wait_until(lambda: service.metric('convnext_queue_length{model="insects"}') == 0)
    assert service.metric(gone) >= before + 10  # all that hung up half-way; some of the others were answered before they did


def test_requests_at_the_same_time_share_batches_and_each_gets_its_own_answer(service, weights):
    images = [sample_image(seed=i) for i in range(24)]
    predictor = convnext.load(weights, device="cpu")
    wanted = [predictor(image).top(1)[0] for image in images]
    assert len({probability for _, probability in wanted}) == len(images)
    name = 'convnext_batch_size_bucket{le="1.0",model="insects"}'
    all_of = 'convnext_batch_size_count{model="insects"}'
    before = service.metric(name), service.metric(all_of)
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda image: service.client.post("/predict", content=encoded(image)).json()["top"][0], images))
    for answer, (label, probability) in zip(answers, wanted, strict=True):
        assert answer["class"] == label
        assert answer["probability"] == pytest.approx(probability, abs=1e-5)
    alone, batches = service.metric(name) - before[0], service.metric(all_of) - before[1]
    assert alone < batches < len(images)


def test_activation_maps_come_in_the_proportions_of_the_image(service):
    answer = service.client.post("/explain?class=bee", content=encoded(sample_image(size=(900, 300)), "JPEG"))
    assert answer.headers["content-type"] == "image/png"
    found = Image.open(BytesIO(answer.content))
    assert (found.mode, found.size) == ("RGBA", (512, 171))
    assert not found.getchannel("A").crop((0, 0, 150, 171)).getextrema()[1]  # beside the centre, which is all that the network saw


def test_the_service_describes_itself_without_anything_from_elsewhere(service):
    get = service.client.get
    wanted = [("insects", "classify", CLASSES, True), ("detect", "detect", CLASSES, False), ("segment", "segment", CLASSES, False)]
    assert [(one["name"], one["task"], one["classes"], one["explains"]) for one in get("/models").json()] == wanted
    assert service.client.post("/explain?model=detect", content=GOOD).status_code == 422
    assert get("/health").json() == {"status": "alive"}
    assert "anyone who reaches" not in service.said  # nobody can from elsewhere
    for path in ("/", "/health", "/ready"):
        assert service.client.head(path).status_code == 200
        assert service.client.head(path).content == b""
    assert set(get("/openapi.json").json()["paths"]) == {
        "/v1/predict", "/v1/explain", "/v1/preview", "/v1/models", "/v1/models/{name}", "/health", "/ready", "/metrics",
    }  # fmt: skip
    for path in ("/", "/docs", "/page.css", "/page.js"):
        answer = get(path)
        assert answer.status_code == 200
        assert not re.search(r"(https?:)?//[a-z]", answer.text)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "POST /v1/predict" in get("/docs").text
    metrics = get("/metrics").text
    assert "process_resident_memory_bytes" in metrics
    assert 'convnext_request_seconds_bucket{le="0.05",path="/predict"}' in metrics
    get("/no/such/page")
    assert 'convnext_requests_total{path="other",status="404"}' in get("/metrics").text


def _stuck(weights, **options):
    """A client of a service in this process whose models never answer: they are never started."""
    app = create_app({"stuck": convnext.load(weights, device="cpu")}, Limits(queue=2, timeout=0.3), batch_size=1, **options)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x")


def test_a_full_queue_and_a_stuck_model_refuse_and_keep_nothing(weights):
    async def ask():
        async with _stuck(weights) as client:
            assert (await client.get("/ready")).status_code == 503
            for _ in range(2):  # the second time there is as much room as the first
                answers = await asyncio.gather(*(client.post("/predict", content=GOOD) for _ in range(5)))
                assert sorted(answer.status_code for answer in answers) == [503, 503, 504, 504, 504]
                assert all("Retry-After" in answer.headers for answer in answers if answer.status_code == 503)

    asyncio.run(ask())


def test_without_the_token_nothing_is_read(weights):
    async def unread():
        pytest.fail("the image was read")
        yield b""

    async def ask():
        async with _stuck(weights, token="sesame") as client:
            for given in ({}, {"Authorization": "Bearer sesam"}, {"Authorization": "Bearer sesamé".encode()}, {"Authorization": "sesame"}):
                for path in ("/predict", "/explain"):
                    answer = await client.post(path, content=unread(), headers=given)
                    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
                for path in ("/models", "/metrics"):
                    assert (await client.get(path, headers=given)).status_code == 401
            assert (await client.get("/models", headers={"Authorization": "Bearer sesame"})).status_code == 200
            for path in ("/", "/page.js", "/health", "/docs"):
                assert (await client.get(path)).status_code == 200

    asyncio.run(ask())


def test_a_cpu_decodes_between_its_batches_and_a_gpu_has_the_next_one_ready(weights):
    predictor = convnext.load(weights, device="cpu")
    elsewhere = SimpleNamespace(device=torch.device("cuda"))
    service = Service(
        {"here": LoadedVersion(predictor, predictor), "there": LoadedVersion(predictor, elsewhere)}, Limits(), batch_size=8, max_wait=0
    )
    assert {name: model.budgets[model.predictions].images._value for name, model in service.models.items()} == {"here": 8, "there": 16}


@pytest.mark.parametrize("precision", ["off", pytest.param("bf16", marks=pytest.mark.slow)])
def test_an_optimized_network_predicts_and_the_original_explains(service, weights, precision):
    with running(weights, "--optimize", precision) as other:
        other.wait()
        found, wanted = (one.client.post("/predict", content=GOOD).json() for one in (other, service))
        assert [one["class"] for one in found["top"]] == [one["class"] for one in wanted["top"]]
        assert found["top"][0]["probability"] == pytest.approx(wanted["top"][0]["probability"], abs=1e-2 if precision == "bf16" else 1e-4)
        maps = [np.asarray(Image.open(BytesIO(one.client.post("/explain", content=GOOD).content)), float) for one in (other, service)]
        assert np.abs(maps[0] - maps[1]).max() <= 1


def test_by_default_what_can_be_optimized_is(weights):
    network = faster(convnext.load(weights, device="cpu"), None, None).model
    assert not any(isinstance(module, Block) for module in network.modules())
    baseline = Predictor(Loaded(convnext.create_model("resnet50", num_classes=3), ClassifyPreprocessing()), torch.device("cpu"))
    assert faster(baseline, None, None) is baseline
    with pytest.raises(UsageError, match="--calibration is for --optimize int8"):
        faster(baseline, "float32", ["photos"])


def test_sigterm_ends_the_service_after_what_was_begun(service):  # the last that needs it
    with socket.create_connection(service.address, timeout=10) as connection, ThreadPoolExecutor() as threads:
        connection.sendall(HEAD % len(GOOD) + GOOD[:100])
        time.sleep(0.1)
        ending = threads.submit(service.stop)
        _wait_until(lambda: socket.socket().connect_ex(service.address))
        assert not ending.done()
        connection.sendall(GOOD[100:])
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert ending.result() == 0
    assert answer.startswith(b"HTTP/1.1 200")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["top"]
    assert "Traceback" not in service.said


def test_names_come_from_paths_or_are_given():
    assert named(["runs/ants", "b/best.safetensors", "hf://me/bees", "x=y.pth"]) == {
        "ants": "runs/ants",
        "best": "b/best.safetensors",
        "bees": "hf://me/bees",
        "x": "y.pth",
    }
    with pytest.raises(UsageError, match=r"other=b/best\.pth"):
        named(["a/best.pth", "b/best.pth"])


def test_a_name_from_a_path_prints_on_one_line():
    assert list(named(["esc\x1b]0;title\x07.pth", "two\nlines"])) == [r"esc\x1b]0;title\x07", r"two\nlines"]


def test_a_port_that_is_taken_is_an_error_with_a_remedy():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConvnextError, match="another --port"):
        _listen(*taken.getsockname())
