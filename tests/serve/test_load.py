"""Ten thousand requests, a tenth of them hostile, within the memory that docs/kubernetes.yaml gives the service."""

import asyncio
import itertools
import statistics
import struct
import time
import zlib
from pathlib import Path

import httpx
import pytest
import torch
import yaml
from helpers import sample_image
from service import encoded, running
from tiny_models import classifier, detector, write

REQUESTS, AT_ONCE = 10_000, 32
HEAD = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n"
PHOTO = encoded(sample_image(size=(400, 300)), "JPEG")
GOOD = [encoded(sample_image(seed, (160, 120)), "JPEG") for seed in range(8)]


def _limit():
    """The bytes of memory that docs/kubernetes.yaml allows."""
    text = Path(__file__).parents[2].joinpath("docs/kubernetes.yaml").read_text("utf-8")
    (pod,) = list(yaml.safe_load_all(text))[1]["spec"]["template"]["spec"]["containers"]
    return int(pod["resources"]["limits"]["memory"].removesuffix("Gi")) * 2**30


def _crowded(folder):
    """A mask detector that finds about twenty objects as large as the image in any image, and a hundred without suppression."""
    path, model, how = detector(folder)
    with torch.no_grad():
        model.roi_head.bbox_head.fc_reg.bias.view(-1, 4)[:, 2:] = 20  # width and height of its boxes
    return write(path, "detect", how, model)[0]


def _black(side):
    """A well-formed black PNG of side x side pixels, in a thousandth of their bytes."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = zlib.compressobj()
    pixels = b"".join(rows.compress(bytes(side + 1)) for _ in range(side)) + rows.flush()
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", pixels)
        + chunk(b"IEND", b"")
    )


async def _raw(address, *parts, pause=0.0, listen=True):
    """The status of what comes back for bytes over a connection of its own."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            if pause and await _comes(reader, pause):
                break
        return int((await asyncio.wait_for(reader.read(12), 20))[9:12]) if listen else None
    finally:
        writer.close()


async def _comes(reader, seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until and not reader._buffer:
        await asyncio.sleep(seconds / 4)
    return bool(reader._buffer)


def _hostile(client, address):
    """Kinds of hostile requests, each a function to the status that it got, and the status that it must get."""

    async def post(content, model="classify", **options):
        return (await client.post(f"/v1/predict?model={model}", content=content, **options)).status_code

    async def too_long():  # and not said so; not by much, as httpx looks for an answer only after it has sent all
        for _ in range(60):
            yield bytes(20_000)

    bomb, large = _black(20_000), _black(5000)
    brackets = b"[" * 400_000
    fields = b"".join(b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n' for _ in range(8000)) + b"--x--\r\n"
    head = HEAD.format(len(PHOTO)).encode()
    drops = [PHOTO[i : i + 20] for i in range(0, 800, 20)]
    return [
        (lambda: post(PHOTO[: len(PHOTO) // 2]), 422),
        (lambda: post(b"not an image at all"), 415),
        (lambda: post(bomb), 413),
        (lambda: post(b"", headers={"Content-Type": "application/json"}), 422),
        (lambda: post(brackets, headers={"Content-Type": "application/json"}), 422),
        (lambda: post(fields, headers={"Content-Type": "multipart/form-data; boundary=x"}), 422),
        (lambda: post(large, "detect&nms=1"), 413),  # a hundred masks of 25 megapixels each
        (lambda: post(large, "detect"), 200),  # fewer of them: 190 of the 400 megapixels that an answer may have
        (lambda: _raw(address, HEAD.format(10**9).encode(), bytes(5000)), 413),
        (lambda: post(too_long()), 413),
        (lambda: _raw(address, *(head[i : i + 1] for i in range(40)), pause=0.1), 408),
        (lambda: _raw(address, head, *drops, pause=0.1), 408),
        (lambda: _raw(address, head, PHOTO[:1000], listen=False), None),
        (lambda: _raw(address, head, PHOTO, listen=False), None),
    ]


async def _storm(service, count, with_hostile):
    """So many requests; seconds of the good ones, memory over time, and what went wrong."""
    seconds, memory, wrong = [], [], []
    limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
    async with httpx.AsyncClient(base_url=service.url, limits=limits, timeout=60) as client:
        wanted = [(await client.post("/predict", content=content)).json()["top"] for content in GOOD]
        hostile = itertools.cycle(_hostile(client, service.address))
        numbers = iter(range(count))

        async def work():
            for number in numbers:
                if with_hostile and number % 10 == 5:
                    run, status = next(hostile)
                    found = await run()
                else:
                    started, status = time.perf_counter(), (200, pytest.approx(wanted[number % 8][0]["probability"], abs=1e-4))
                    answer = await client.post("/v1/predict", content=GOOD[number % 8])
                    seconds.append(time.perf_counter() - started)
                    found = answer.status_code, answer.json()["top"][0]["probability"] if answer.status_code == 200 else None
                if found != status:
                    wrong.append((number, found, status))
                if number % 100 == 0:
                    memory.append(service.rss())

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return seconds, memory, wrong


@pytest.mark.slow
def test_ten_thousand_requests_of_which_a_tenth_is_hostile(tmp_path):
    with running(classifier(tmp_path)[0], _crowded(tmp_path), "--max-bytes", 1_000_000) as service:
        service.wait()
        usual, _, _ = asyncio.run(_storm(service, REQUESTS // 10, with_hostile=False))
        started = time.perf_counter()
        seconds, memory, wrong = asyncio.run(_storm(service, REQUESTS, with_hostile=True))
        took = time.perf_counter() - started
        service.client.get("/health")
        queue = service.metric('convnext_queue_length{model="classify"}')
        assert service.stop() == 0
    quarter = len(memory) // 4
    plateau, last = statistics.median(memory[quarter : 2 * quarter]), statistics.median(memory[-quarter:])
    for name, found in {"none hostile": usual, "a tenth hostile": seconds}.items():
        points = statistics.quantiles(found, n=100)
        print(f"{name}, {AT_ONCE} at once: p50 {1000 * points[49]:.0f} ms, p99 {1000 * points[98]:.0f} ms, last {1000 * max(found):.0f} ms")
    print(f"{REQUESTS} requests in {took:.0f} s; ", end="")
    print(f"memory {memory[0] / 2**20:.0f} MiB at first, plateau {plateau / 2**20:.0f}, at the end {last / 2**20:.0f}")
    assert wrong == []
    assert len(seconds) == REQUESTS * 9 // 10
    assert queue == 0
    assert last <= 1.05 * plateau
    assert max(memory) < _limit()
