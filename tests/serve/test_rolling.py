"""A minute of requests while models are loaded again, and while processes are replaced: none is lost or answered wrongly."""

import asyncio
import itertools
import statistics
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import httpx
import pytest
import torch
from helpers import sample_image
from service import Service, encoded, running
from tiny_models import classifier, write

import convnext
from convnext.inference.fingerprint import fingerprint_of

SECONDS = 60  # of each load
RATE = 100  # requests a second, each sent when its time has come, whether or not those before it are answered
RELOADS, RESTARTS = 5, 2
LAG, PRE_STOP = 1, 3  # seconds after which a load balancer knows that a process ends, and after which the process is asked to end
IMAGES = [encoded(sample_image(seed, (160, 120)), "JPEG") for seed in range(8)]
SESAME = {"Authorization": "Bearer sesame"}


@dataclass
class Version:
    """A weight file, and what it answers to each of the images."""

    content: bytes
    digest: str
    top: list[tuple[str, float]]


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """Two networks that answer differently to every image."""
    made = []
    for shift in (0.0, 3.0):
        path, model, how = classifier(tmp_path_factory.mktemp("version"))
        with torch.no_grad():
            model.head.bias[2] += shift
        write(path, "classify", how, model)
        predictor = convnext.load(path, device="cpu")
        top = [predictor(image).top()[0] for image in IMAGES]
        made.append(Version(path.read_bytes(), f"sha256:{fingerprint_of(predictor, {}).weights}", top))
    first, second = made
    assert all(abs(one[1] - other[1]) > 0.01 for one, other in zip(first.top, second.top, strict=True))
    return made


@dataclass
class Load:
    """The requests of one load: when each was due, how long it took from then on, and the digest of the weights that answered."""

    versions: list[Version]
    sent: int = 0
    begun: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    wrong: list[object] = field(default_factory=list)

    async def run(self, url, beside=None):
        """Send requests to a service for SECONDS, and until a task beside it is done, through connections that are kept open."""
        async with httpx.AsyncClient(base_url=url, headers=SESAME, timeout=30, limits=httpx.Limits(max_connections=64)) as client:
            started, tasks = time.perf_counter(), []
            while self.sent < SECONDS * RATE or not (beside is None or beside.done()):
                due = started + self.sent / RATE
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                tasks.append(asyncio.create_task(self._send(client, self.sent, due)))
                self.sent += 1
            await asyncio.gather(*tasks)

    async def _send(self, client, number, due):
        which = number % len(IMAGES)
        try:
            answer = await client.post("/v1/predict", content=IMAGES[which])
        except httpx.HTTPError as error:
            self.wrong.append((number, repr(error)))
            return
        took = time.perf_counter() - due
        if answer.status_code != 200:
            self.wrong.append((number, answer.status_code, answer.text))
            return
        found, right = answer.json(), {one.digest: one.top[which] for one in self.versions}
        digest, best = found["weights"]["digest"], found["top"][0]
        name, probability = right.get(digest, (None, None))
        if best["class"] != name or best["probability"] != pytest.approx(probability, abs=1e-4):
            self.wrong.append((number, found))
        self.begun.append(due)
        self.seconds.append(took)
        self.digests.append(digest)

    def print(self, name):
        """Say how long the answers took."""
        points, most = statistics.quantiles(self.seconds, n=100), max(self.seconds)
        times = f"p50 {1000 * points[49]:.0f} ms, p99 {1000 * points[98]:.0f} ms, max {1000 * most:.0f} ms"
        ended = max(due + took for due, took in zip(self.begun, self.seconds, strict=True))
        rate = len(self.seconds) / (ended - min(self.begun))
        print(f"{name}: {len(self.seconds)} answers, {rate:.0f} a second, {times}; {len(self.wrong)} lost or wrong")


def replace(path, version):
    """Put a weight file into another's place, at once."""
    path.with_suffix(".new").write_bytes(version.content)
    path.with_suffix(".new").replace(path)


@pytest.mark.slow
def test_a_minute_of_reloads(versions, tmp_path):
    path = tmp_path / "insects.safetensors"
    replace(path, versions[0])
    calm, busy, changes = Load(versions), Load(versions), []

    async def reload(url):
        async with httpx.AsyncClient(base_url=url, timeout=60, headers=SESAME) as client:
            for version in itertools.islice(itertools.cycle([versions[1], versions[0]]), RELOADS):
                await asyncio.sleep(SECONDS / (RELOADS + 1))
                replace(path, version)
                asked = time.perf_counter()
                answer = await client.post("/v1/models/insects")
                assert (answer.status_code, answer.json()["weights"]["digest"]) == (200, version.digest)
                changes.append((asked, time.perf_counter(), version.digest))

    async def both(url):
        await calm.run(url)
        reloading = asyncio.create_task(reload(url))
        await busy.run(url, reloading)
        await reloading

    with running(path, "--token", "sesame") as service:
        asyncio.run(both(service.wait().url))
        assert service.stop() == 0
    calm.print("undisturbed")
    busy.print(f"{len(changes)} reloads of {statistics.median(done - asked for asked, done, _ in changes):.2f} s each")
    assert calm.wrong == busy.wrong == []
    assert (len(calm.seconds), len(busy.seconds)) == (calm.sent, busy.sent)
    assert len(changes) == RELOADS
    assert set(busy.digests) == {one.digest for one in versions}
    answers = [(due, due + took, digest) for due, took, digest in zip(busy.begun, busy.seconds, busy.digests, strict=True)]
    until = [asked for asked, _, _ in changes[1:]] + [float("inf")]
    for (_, done, digest), next_one in zip(changes, until, strict=True):
        assert {found for begun, ended, found in answers if done < begun and ended < next_one} <= {digest}  # the new weights, from then on


class Balancer:
    """A TCP proxy that gives each new connection to the next of its targets, as Kubernetes does. A connection stays with its target."""

    def __init__(self, *targets):
        self.targets, self._turns, self._kept = list(targets), itertools.count(), set()

    @asynccontextmanager
    async def listening(self):
        """The address of the proxy."""
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        try:
            yield "http://{}:{}".format(*server.sockets[0].getsockname())
        finally:
            server.close()

    async def _carry(self, reader, writer):
        target = self.targets[next(self._turns) % len(self.targets)]
        try:
            back, forth = await asyncio.open_connection(*target)
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(self._pump(reader, forth), self._pump(back, writer))

    async def _pump(self, reader, writer):
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()


async def restart(balancer, old, start):
    """Replace a process by a new one, in the order in which Kubernetes does. Returns the new one."""
    fresh = await asyncio.to_thread(start)
    balancer.targets.append(fresh.address)
    await asyncio.sleep(LAG)  # the load balancer hears late that the old one ends
    balancer.targets.remove(old.address)
    await asyncio.sleep(PRE_STOP - LAG)
    assert await asyncio.to_thread(old.stop) == 0
    return fresh


@pytest.mark.slow
def test_a_minute_of_rolling_restarts(versions, tmp_path):
    path = tmp_path / "insects.safetensors"
    replace(path, versions[0])
    calm, busy, took, all_of_them = Load(versions), Load(versions), [], []

    def start():
        service = Service(path, "--token", "sesame")
        all_of_them.append(service)
        return service.wait()

    async def roll(balancer, pods):
        for version in itertools.islice(itertools.cycle([versions[1], versions[0]]), RESTARTS):
            replace(path, version)
            began = time.perf_counter()
            for index, old in enumerate(pods):
                pods[index] = await restart(balancer, old, start)
            took.append(time.perf_counter() - began)

    async def run():
        pods = await asyncio.gather(asyncio.to_thread(start), asyncio.to_thread(start))
        balancer = Balancer(*(pod.address for pod in pods))
        async with balancer.listening() as url:
            await calm.run(url)
            rolling = asyncio.create_task(roll(balancer, pods))
            await busy.run(url, rolling)
            await rolling
        return [await asyncio.to_thread(pod.stop) for pod in pods]

    try:
        codes = asyncio.run(run())
    finally:
        for service in all_of_them:
            service.process.kill()
            service.process.wait()
    calm.print("undisturbed, two processes")
    busy.print(f"two processes replaced {RESTARTS} times in {sum(took):.0f} s")
    assert calm.wrong == busy.wrong == []
    assert (len(calm.seconds), len(busy.seconds)) == (calm.sent, busy.sent)
    assert codes == [0, 0]
    assert set(calm.digests) == {versions[0].digest}
    assert set(busy.digests) == {one.digest for one in versions}
    assert busy.digests[-1] == versions[0].digest  # those of the last restart
