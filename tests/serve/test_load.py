"""Ten thousand requests, a tenth of them hostile."""

import asyncio
import itertools
import statistics
import struct
import time
import zlib

import httpx
import pytest
from helpers import sample_image
from service import encoded, running
from tiny_models import classifier

REQUESTS, AT_ONCE, TIMEOUT = 10_000, 32, 2.0
HEAD = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n"
PHOTO = encoded(sample_image(size=(400, 300)), "JPEG")
GOOD = [encoded(sample_image(seed, (160, 120)), "JPEG") for seed in range(8)]


def _bomb():
    """A well-formed PNG of 400 million pixels in 400 kB."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = zlib.compressobj()
    pixels = b"".join(rows.compress(bytes(20_001)) for _ in range(20_000)) + rows.flush()
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0))
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


def _hostile(client, address, bomb):
    """Kinds of hostile requests, each a function to the status that it got, and the status that it must get."""

    async def post(content, **options):
        return (await client.post("/predict", content=content, **options)).status_code

    async def too_long():  # and not said so; not by much, as httpx looks for an answer only after it has sent all
        for _ in range(60):
            yield bytes(20_000)

    head = HEAD.format(len(PHOTO)).encode()
    drops = [PHOTO[i : i + 20] for i in range(0, 800, 20)]
    return [
        (lambda: post(PHOTO[: len(PHOTO) // 2]), 422),
        (lambda: post(b"not an image at all"), 415),
        (lambda: post(bomb), 413),
        (lambda: post(b"", headers={"Content-Type": "application/json"}), 422),
        (lambda: _raw(address, HEAD.format(10**9).encode(), bytes(5000)), 413),
        (lambda: post(too_long()), 413),
        (lambda: _raw(address, *(head[i : i + 1] for i in range(40)), pause=0.1), 408),
        (lambda: _raw(address, head, *drops, pause=0.1), 408),
        (lambda: _raw(address, head, PHOTO[:1000], listen=False), None),
        (lambda: _raw(address, head, PHOTO, listen=False), None),
    ]


async def _storm(service):
    """The requests; seconds of the good ones, memory over time, and what went wrong."""
    seconds, memory, wrong = [], [], []
    limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
    async with httpx.AsyncClient(base_url=service.url, limits=limits, timeout=60) as client:
        wanted = [(await client.post("/predict", content=content)).json()["top"] for content in GOOD]
        hostile = itertools.cycle(_hostile(client, service.address, _bomb()))
        numbers = iter(range(REQUESTS))

        async def work():
            for number in numbers:
                if number % 10 == 5:
                    run, status = next(hostile)
                    found = await run()
                else:
                    started, status = time.perf_counter(), (200, pytest.approx(wanted[number % 8][0]["probability"], abs=1e-4))
                    answer = await client.post("/predict", content=GOOD[number % 8])
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
    with running(classifier(tmp_path)[0], "--timeout", TIMEOUT, "--max-bytes", 1_000_000) as service:
        service.wait()
        started = time.perf_counter()
        seconds, memory, wrong = asyncio.run(_storm(service))
        took = time.perf_counter() - started
        service.client.get("/health")
        queue, last = service.metric('convnext_queue_length{model="classify"}'), service.rss()
        assert service.stop() == 0
    quarter = len(memory) // 4
    plateau = statistics.median(memory[quarter : 2 * quarter])
    points = statistics.quantiles(seconds, n=100)
    print(
        f"{REQUESTS} requests in {took:.0f} s, {AT_ONCE} at once: p50 {1000 * points[49]:.0f} ms, p99 {1000 * points[98]:.0f} ms; ", end=""
    )
    print(f"memory {memory[0] / 2**20:.0f} MiB at first, plateau {plateau / 2**20:.0f}, at the end {last / 2**20:.0f}")
    assert wrong == []
    assert len(seconds) == REQUESTS * 9 // 10
    assert queue == 0
    assert last <= 1.05 * plateau
