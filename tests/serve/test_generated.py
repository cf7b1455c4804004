"""Clients that generators make from the service's description compile, and read its answers."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from helpers import sample_image
from service import encoded, running
from tiny_models import classifier, detector, segmenter

import convnext
from convnext.serve.app import create_app

TYPESCRIPT = """
import { readFile } from "node:fs/promises";
import createClient from "openapi-fetch";
import type { paths } from "./api.js";
const [url, path] = process.argv.slice(2);
const client = createClient<paths>({ baseUrl: url });
const content = new Blob([new Uint8Array(await readFile(path))]);
const headers = { "Content-Type": "application/octet-stream" };
for (const model of ["classify", "detect", "segment"]) {
  const options = { params: { query: { model, top: 1 } }, headers, body: content as unknown as string, bodySerializer: () => content };
  const { data, error } = await client.POST("/v1/predict", options);
  if (!data) throw new Error(JSON.stringify(error));
  switch (data.task) {
    case "classify": console.log(data.top[0].class, data.weights.digest.length); break;
    case "detect": console.log(data.objects[0].class, data.objects[0].box.length); break;
    case "segment": console.log(data.classes[0].class, data.size.join("x")); break;
  }
}
"""
PYTHON = """
import sys
from io import BytesIO
from pathlib import Path
from convnext_client import Client
from convnext_client.api.default import predict
from convnext_client.types import File
for model in ("classify", "detect", "segment"):
    body = File(BytesIO(Path(sys.argv[2]).read_bytes()), mime_type="application/octet-stream")
    answer = predict.sync(client=Client(sys.argv[1]), body=body, model=model, top=1)
    if answer.task == "classify":
        print(answer.top[0].class_, len(answer.weights.digest))
    elif answer.task == "detect":
        print(answer.objects[0].class_, len(answer.objects[0].box))
    else:
        print(answer.classes[0].class_, "x".join(map(str, answer.size)))
"""


def call(*words, folder, **options):
    done = subprocess.run(list(map(str, words)), cwd=folder, capture_output=True, text=True, check=False, timeout=300, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    with running(*(make(folder)[0] for make in (classifier, detector, segmenter)), "--optimize", "off") as service:
        yield service.wait()


@pytest.fixture
def described(tmp_path, service):
    """A folder with the service's description and an image, and what a client of it must print."""
    (tmp_path / "openapi.json").write_text(json.dumps(create_app({}).openapi()))
    assert json.loads((tmp_path / "openapi.json").read_text()) == service.client.get("/openapi.json").json()
    (tmp_path / "image.png").write_bytes(encoded(sample_image(size=(80, 60))))
    first = [service.client.post(f"/v1/predict?model={name}", content=(tmp_path / "image.png").read_bytes()).json() for name in
             ("classify", "detect", "segment")]  # fmt: skip
    wanted = [f"{first[0]['top'][0]['class']} 71", f"{first[1]['objects'][0]['class']} 4", f"{first[2]['classes'][0]['class']} 60x80"]
    return tmp_path, "\n".join(wanted) + "\n"


@pytest.mark.slow
def test_a_typescript_client_compiles_strictly_and_runs(described, service):
    folder, wanted = described
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm on this machine")
    packages = ("openapi-typescript@7", "openapi-fetch@0.17", "typescript@5", "@types/node@20")
    (folder / "package.json").write_text('{"type": "module", "private": true}')
    if subprocess.run([npm, "install", "--silent", *packages], cwd=folder, capture_output=True, timeout=300, check=False).returncode:
        pytest.skip("npm can't install packages here")
    (folder / "use.ts").write_text(TYPESCRIPT)
    options = {"strict": True, "module": "nodenext", "target": "es2022", "types": ["node"]}
    (folder / "tsconfig.json").write_text(json.dumps({"compilerOptions": options, "files": ["use.ts"]}))
    call("npx", "openapi-typescript", "openapi.json", "-o", "api.d.ts", folder=folder)
    call("npx", "tsc", "-p", ".", folder=folder)
    assert call("node", "use.js", service.url, "image.png", folder=folder) == wanted


@pytest.mark.slow
def test_a_python_client_is_generated_and_runs(described, service):
    folder, wanted = described
    python = folder / "venv/bin/python"  # of its own: the generator needs older versions of some packages
    call(sys.executable, "-m", "venv", python.parents[1], folder=folder)
    packages = [python, "-m", "pip", "install", "--quiet", "openapi-python-client", "ruff"]
    if subprocess.run(packages, capture_output=True, timeout=300, check=False).returncode:
        pytest.skip("pip can't install packages here")
    programs = {**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}"}
    command = [python, "-m", "openapi_python_client", "generate", "--path", "openapi.json", "--output-path", "client"]
    call(*command, folder=folder, env=programs)
    (folder / "use.py").write_text(PYTHON)
    found = call(python, "use.py", service.url, "image.png", folder=folder, env={**programs, "PYTHONPATH": str(folder / "client")})
    assert found == wanted


def test_the_clients_name_is_that_of_the_package():
    assert create_app({}).openapi()["info"] == {"title": "convnext", "version": convnext.__version__}
