"""The container: what its files say, and the service under the conditions that they set, as far as that can be tried without Docker."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml
from helpers import sample_image
from service import encoded
from tiny_models import classifier
from typer.main import get_command

from convnext import __version__
from convnext.cli.common import app

ROOT = Path(__file__).parents[1]
UNNAMED = 54321  # a user that no file names
SERVE = get_command(app).commands["serve"]


def stages():
    """The instructions of each stage of the Dockerfile: (word, rest)."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text("utf-8"))
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found = []
    for word, rest in lines:
        if word == "FROM":
            found.append([])
        if found:
            found[-1].append((word, rest))
    return found


def only(stage, word):
    (rest,) = (rest for name, rest in stage if name == word)
    return rest


def environment():
    given = only(stages()[-1], "ENV")
    return dict(re.findall(r"(\w+)=(\S+)", given))


def test_the_image_runs_as_a_numbered_user_without_a_compiler_and_has_a_health_check():
    build, final = stages()
    assert only(final, "USER") == "10001:10001"
    assert not [rest for word, rest in final if word == "RUN"]  # all that is installed comes from the stage that builds
    assert json.loads(only(final, "ENTRYPOINT")) == ["convnext"]
    words = json.loads(only(final, "CMD"))
    assert words[0] == "serve"
    SERVE.make_context("serve", words[1:])
    assert "urllib.request.urlopen('http://127.0.0.1:8000/health'" in only(final, "HEALTHCHECK")
    for word, rest in build + final:
        assert word in {"FROM", "RUN", "ARG", "WORKDIR", "COPY", "ENV", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
        assert ":latest" not in rest
        if "apt-get install" in rest:
            assert "--no-install-recommends" in rest
            assert rest.endswith("rm -rf /var/lib/apt/lists/*")


def copied():
    return [name for word, rest in stages()[0] if word == "COPY" for name in rest.split()[:-1]]


def test_what_the_image_copies_is_all_that_the_build_sees():
    rules = (ROOT / ".dockerignore").read_text("utf-8").split()
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == set(copied())
    assert all((ROOT / name).exists() for name in copied())


def test_compose_and_kubernetes_start_the_service_of_this_version():
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))["services"]["convnext"]
    deployment = list(yaml.safe_load_all((ROOT / "docs/kubernetes.yaml").read_text("utf-8")))[1]["spec"]["template"]["spec"]
    (pod,) = deployment["containers"]
    for image, words in ((compose["image"], compose["command"]), (pod["image"], pod["args"])):
        assert image.endswith(f"convnext:{__version__}")
        assert words[0] == "serve"
        given = SERVE.make_context("serve", list(map(str, words[1:]))).params
        assert given["host"] == "0.0.0.0"
        assert given["access_log"]
    assert compose["read_only"]
    assert pod["securityContext"]["readOnlyRootFilesystem"]
    grace, wait = deployment["terminationGracePeriodSeconds"], pod["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert grace >= wait + 2 * given["timeout"] + 5
    assert all(pod[f"{kind}Probe"]["timeoutSeconds"] >= 3 for kind in ("startup", "readiness", "liveness"))


def can_isolate():
    tried = ["unshare", "-m", "sh", "-c", f"mount -o remount,bind,ro / && unshare -U --map-user={UNNAMED} true"]
    return sys.platform == "linux" and shutil.which("unshare") is not None and subprocess.run(tried, capture_output=True).returncode == 0


@pytest.mark.slow
def test_a_service_needs_no_home_no_name_of_its_user_and_no_writable_root(tmp_path):
    """With the environment of the image: only /tmp can be written."""
    if not can_isolate():
        pytest.skip("this machine lets nobody make namespaces")
    weights, log = classifier(tmp_path)[0], tmp_path / "log"
    settings = [f"{name}={value}" for name, value in environment().items() if name != "PATH"]
    inside = ["env", "-i", "PATH=/usr/bin:/bin", f"PYTHONPATH={ROOT}", *settings, sys.executable, "-m", "convnext", "serve", f"m={weights}"]
    script = f'mount --bind /tmp /tmp && mount -o remount,bind,ro / && exec unshare -U --map-user={UNNAMED} --map-group={UNNAMED} "$@"'
    with log.open("w") as written:
        process = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", script, "sh", *inside, "--port", "0", "--device", "cpu"], stderr=written, stdout=written
        )
    try:
        until = time.monotonic() + 120
        while not (found := re.search(r"on (http://\S+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert "NSpid" in status
        with httpx.Client(base_url=found[1], timeout=30) as client:
            while client.get("/ready").status_code != 200:
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.1)
            answer = client.post("/v1/predict", content=encoded(sample_image()))
        assert answer.status_code == 200, answer.text
        (check,) = re.findall(r"CMD (\[.*\])", only(stages()[-1], "HEALTHCHECK"))
        words = json.loads(check.replace("http://127.0.0.1:8000", found[1]))
        assert subprocess.run([sys.executable, *words[1:]], check=False).returncode == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert "warning" not in log.read_text().lower()
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_the_copied_files_are_enough_to_build_the_package(tmp_path):
    source = tmp_path / "src"
    source.mkdir()
    for name in copied():
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("lib", "__pycache__"))
        else:
            shutil.copy(path, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", tmp_path, source]
    subprocess.run(command, check=True, timeout=600, env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"convnext-{__version__}")
    assert wheel.stat().st_size > 300_000
