"""Measure the cost of the service: images per second through `convnext serve` and through the network alone.

    python benchmarks/serving.py [--model convnext_tiny] [--batch-size 8] [--rounds 5] [--seconds 20]

Both take turns on the same machine. A round measures the network as `convnext bench` does with that batch, both as it is and as the
service uses it (on a CPU, through `convnext.optimize` in float32). Then clients send JPEG photographs of 500 x 375 pixels to the service,
enough at once that a batch can fill while another is computed. Then the network is measured again. The ratios of a round are to the means
of the two measurements. The clients run on the same processors as the service, so their work counts against the service.
"""

import argparse
import asyncio
import functools
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import torch
from PIL import Image

import convnext
from convnext.cli.serve import faster
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.distributed import pick_device
from convnext.inference.predictor import Predictor
from convnext.models.load import Loaded
from convnext.models.weights.files import write_weights
from convnext.paper.bench import Setting, measure
from convnext.paper.contestants import Contestant, build

SIZE = (500, 375)  # of ImageNet's usual photograph


@functools.cache
def photograph(seed: int) -> bytes:
    """Return a JPEG with structure at all scales, about 50 kB as in ImageNet."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((SIZE[1], SIZE[0], 3))
    for cells in (3, 9, 27, 81, 243):
        coarse = Image.fromarray(rng.integers(0, 255, (cells, cells, 3), dtype=np.uint8))
        pixels += np.asarray(coarse.resize(SIZE, Image.Resampling.BICUBIC), float) / 5
    file = BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def start(name: str, folder: Path, optimize: str | None, batch_size: int, device: str) -> tuple[subprocess.Popen[str], str]:
    """Start the service, warm it up, and give it with its address."""
    model = convnext.create_model(name)
    description = {"task": "classify", "model": model.spec, "classes": None, "preprocessing": ClassifyPreprocessing().to_json()}
    write_weights(folder / "model.safetensors", model.state_dict(), description)
    command = [sys.executable, "-m", "convnext", "serve", str(folder / "model.safetensors"), "--port", "0", "--timeout", "600"]
    command += ["--device", device, "--batch-size", str(batch_size), *(["--optimize", optimize] if optimize else [])]
    service = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert service.stderr is not None
    address = re.search(r"http://\S+", service.stderr.readline())
    if address is None:
        raise SystemExit("the service did not start")
    while httpx.get(f"{address[0]}/ready").status_code != 200:
        time.sleep(0.1)
    return service, address[0]


async def load(address: str, clients: int, seconds: float) -> tuple[float, list[float]]:
    """Images a second, and how long each request took.

    Requests are written by hand: a client library takes a millisecond for each, on the processors that are measured.
    """
    host, port = address.removeprefix("http://").split(":")
    requests, taken = [], []
    for body in map(photograph, range(16)):
        head = f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
        requests.append(head.encode() + body)
    started = time.perf_counter()

    async def send(number: int) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        while time.perf_counter() < started + seconds:
            before = time.perf_counter()
            writer.write(requests[number % len(requests)])
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200 "):
                raise SystemExit(head.decode())
            length = re.search(rb"content-length: (\d+)", head.lower())
            assert length is not None
            await reader.readexactly(int(length[1]))
            taken.append(time.perf_counter() - before)
            number += 1
        writer.close()

    await asyncio.gather(*(send(number) for number in range(clients)))
    return len(taken) / (time.perf_counter() - started), taken


def entered(name: str, optimize: str | None, device: torch.device) -> list[Contestant]:
    """Return the network as it is and, if it differs, as the service uses it."""
    predictor = Predictor(Loaded(build(name), ClassifyPreprocessing()), device)
    own = faster(predictor, optimize, None)
    return [Contestant(name, "convnext", one.model) for one in ((predictor,) if own is predictor else (predictor, own))]


def alone(contestants: list[Contestant], batch_size: int, seconds: float, device: torch.device) -> tuple[float, float]:
    """Return images per second of the network as it is and as the service uses it, measured in turns as `convnext bench` does."""
    found = measure(contestants, Setting(rounds=3, seconds=seconds), device, batch_size)
    return found[0].images_per_second.median, found[-1].images_per_second.median


def main() -> None:
    """Measure in turns; print each round, then the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="convnext_tiny")
    parser.add_argument("--optimize", help="as of convnext serve")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20)
    chosen = parser.parse_args()
    device = pick_device(None)
    print(f"{chosen.model}, batch {chosen.batch_size}, {device}, {os.cpu_count()} processors, torch {torch.__version__}")
    to_plain, to_own, latencies = [], [], []
    network = (entered(chosen.model, chosen.optimize, device), chosen.batch_size, chosen.seconds, device)
    with tempfile.TemporaryDirectory() as folder:
        service, address = start(chosen.model, Path(folder), chosen.optimize, chosen.batch_size, str(device))
        try:
            before = alone(*network)
            for _ in range(chosen.rounds):
                served, taken = asyncio.run(load(address, 3 * chosen.batch_size, chosen.seconds))
                after = alone(*network)
                plain, own = ((one + other) / 2 for one, other in zip(before, after, strict=True))
                to_plain.append(served / plain)
                to_own.append(served / own)
                latencies += taken
                print(f"service {served:7.2f} /s   network as it is {plain:7.2f}, {to_plain[-1]:.3f}", end="   ")
                print(f"as the service has it {own:7.2f}, {to_own[-1]:.3f}", flush=True)
                before = after
        finally:
            service.terminate()
            service.wait()
    points = statistics.quantiles(latencies, n=100)
    print(f"median ratio to the network as it is {statistics.median(to_plain):.3f}, ", end="")
    print(f"as the service has it {statistics.median(to_own):.3f}; ", end="")
    print(f"{3 * chosen.batch_size} clients: p50 {points[49]:.3f} s, p99 {points[98]:.3f} s")


if __name__ == "__main__":
    main()
