"""Bulk prediction from S3 into S3 on a local cluster of Ray: two workers, one of which is killed."""

import json
import os
import subprocess
import sys
import time
from io import BytesIO

import pytest
from helpers import sample_image
from tiny_models import classifier

import convnext

pytest.importorskip("ray.data")
s3fs = pytest.importorskip("s3fs")
moto = pytest.importorskip("moto.server")

COUNT = 160


@pytest.fixture
def s3(tmp_path, monkeypatch):
    """A service that answers as S3 does, with a bucket of a run and images; returns its files."""
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    given = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    for name, value in (given | {"AWS_DEFAULT_REGION": "us-east-1", "CONVNEXT_CACHE": str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)
    files = s3fs.S3FileSystem(skip_instance_cache=True)
    files.mkdir("bucket")
    files.put_file(str(classifier(tmp_path)[0]), "bucket/runs/mine/best.safetensors")
    for i in range(COUNT):
        content = BytesIO()
        sample_image(i, (24, 20)).save(content, "PNG")
        files.pipe_file(f"bucket/photos/{i:03d}.png", content.getvalue())
    yield files
    server.stop()


@pytest.fixture
def cluster():
    """A head without processors and two workers of one."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    workers = [made.add_node(num_cpus=1) for _ in range(2)]
    yield made, workers
    made.shutdown()


@pytest.mark.slow
def test_a_lost_worker_loses_no_image_in_storage(s3, cluster, tmp_path):
    made, workers = cluster
    arguments = [
        "s3://bucket/runs/mine",
        "s3://bucket/photos",
        "--output",
        "s3://bucket/found.jsonl",
        "--engine",
        "ray",
        "--batch-size",
        "4",
    ]
    command = [sys.executable, "-m", "convnext", "predict", *arguments, "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_ADDRESS": made.address}
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    while running.poll() is None and not any(path.stat().st_size for path in tmp_path.glob("cache/outputs/*/found.jsonl")):
        time.sleep(0.05)
    assert running.poll() is None, running.communicate()
    made.remove_node(workers[0], allow_graceful=False)
    assert not s3.exists("bucket/found.jsonl")
    printed = running.communicate(timeout=600)
    assert running.returncode == 0, printed
    rows = [json.loads(line) for line in s3.cat_file("bucket/found.jsonl").splitlines()]
    assert [row["image"] for row in rows] == [f"s3://bucket/photos/{i:03d}.png" for i in range(COUNT)]
    wanted = convnext.predict(tmp_path / "classify.safetensors", "s3://bucket/photos", batch_size=4, device="cpu")
    assert [row["top"] for row in rows] == [one.to_json()["top"] for one in wanted.predictions.values()]
