"""The service on a local cluster of Ray: two workers, one of which is killed."""

import os
import runpy
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from helpers import sample_image
from tiny_models import classifier

import convnext
from convnext.serve.client import ServiceError

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_serve.py"
ray = pytest.importorskip("ray")
serve = pytest.importorskip("ray.serve")


@pytest.fixture
def cluster():
    """A head without processors and two workers of one; returns the workers."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    workers = [made.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=made.address, log_to_driver=False)
    try:
        yield made, workers
    finally:
        serve.shutdown()
        ray.shutdown()
        made.shutdown()


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def replicas():
    """The nodes and processes of the replicas that run."""
    names = [one["name"] for one in ray.util.list_named_actors(all_namespaces=True) if one["name"].startswith("SERVE_REPLICA")]
    actors = [ray.get_actor(name, namespace="serve") for name in names]
    where = lambda _: (ray.get_runtime_context().get_node_id(), os.getpid())  # noqa: E731
    return dict(ray.get([actor.__ray_call__.remote(where) for actor in actors]))


def same(found, wanted):
    """Whether classes agree, and probabilities but for the rounding that batches of another size bring."""
    near = [one["probability"] == pytest.approx(other["probability"], abs=2e-5) for one, other in zip(found, wanted, strict=True)]
    return [one["class"] for one in found] == [one["class"] for one in wanted] and all(near)


@pytest.mark.slow
def test_replicas_answer_as_the_predictor_also_after_one_is_killed(cluster, tmp_path):
    made, workers = cluster
    model = classifier(tmp_path)[0]
    photos = []
    for i in range(8):
        photos.append(tmp_path / f"{i}.png")
        sample_image(i).save(photos[-1])
    wanted = {photo: one.to_json()["top"] for photo, one in zip(photos, convnext.load(model, device="cpu")(photos), strict=True)}
    port = free_port()
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    app = runpy.run_path(str(EXAMPLE))["app"]
    serve.run(app({"model": str(model), "replicas": "2"}), route_prefix="/")
    running = replicas()
    assert len(running) == 2  # one on each worker

    answered, wrong, lost, killed = [], [], [], threading.Event()

    def ask():
        client = convnext.Client(f"http://127.0.0.1:{port}")
        while answered.count("after") < 80:
            for photo in photos:
                when = "after" if killed.is_set() else "before"
                try:
                    found = client.predict(photo)["top"]
                except ServiceError as error:  # Ray's answer for a request that the killed replica was working on
                    lost.append(error.status)
                    found = client.predict(photo)["top"]
                if not same(found, wanted[photo]):
                    wrong.append((found, wanted[photo]))
                answered.append(when)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    while len(answered) < 40:
        time.sleep(0.1)
    pid = running[workers[0].node_id]
    os.kill(pid, signal.SIGKILL)
    made.remove_node(workers[0], allow_graceful=False)  # and its machine
    killed.set()
    for thread in threads:
        thread.join()
    assert answered.count("after") >= 80  # a thread that raised would have ended early
    assert not wrong
    assert lost.count(500) == len(lost) <= len(threads)  # at most what each client had under way
