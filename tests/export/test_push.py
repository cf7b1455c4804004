"""What `convnext push` would send, and that it is found again by its name."""

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import yaml
from helpers import sample_image
from huggingface_hub import ModelCard
from tiny_models import CLASSES, create

import convnext
from convnext.data.transforms.preprocessing import ClassifyPreprocessing
from convnext.errors import ConvnextError, UsageError
from convnext.export.push import push
from convnext.models.calibration import calibrate
from convnext.models.weights.files import read_weights, write_weights
from convnext.recipe import load_recipe

METRICS = {"top1": 93.75, "loss": 0.25, "count": 16}
COMMIT = "0" * 40


@pytest.fixture
def run(tmp_path):
    """A run folder as training leaves it, of an untrained network."""
    folder, model = tmp_path / "run", create("convnext_tiny")
    folder.mkdir()
    about = {"task": "classify", "model": model.spec, "classes": CLASSES, "preprocessing": ClassifyPreprocessing(image_size=32).to_json()}
    write_weights(folder / "best.safetensors", model.state_dict(), about | {"metrics": METRICS, "step": 12})
    recipe = load_recipe("finetune", ["data.train=photos", "data.val=null", "model.name=convnext_tiny", "model.weights=fb_in22k"])
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    (folder / "evaluation.json").write_text(json.dumps({"metrics": METRICS | {"top1": 50.0}}))
    return folder


def test_the_card_says_what_was_measured_with_the_weights_that_are_sent(run, tmp_path):
    folder = tmp_path / "sent"
    assert push(run, "hf://someone/ants", "mit", dry_run=folder) == str(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "best.safetensors", "evaluation.json", "recipe.yaml"]
    for name in ("best.safetensors", "evaluation.json", "recipe.yaml"):
        assert (folder / name).read_bytes() == (run / name).read_bytes()
    card = ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == ("mit", "convnext", "image-classification")
    assert card.data.base_model == "timm/convnext_tiny.fb_in22k"
    assert {one.metric_type: one.metric_value for one in card.data.eval_results} == {"top1": 93.75, "loss": 0.25}
    assert yaml.safe_load(card.content.split("---")[1])["model-index"][0]["name"] == "ants"
    assert "top-1 accuracy 93.75 % (15 of 16) on 20% of photos, at step 12" in card.text  # of the best weights, not of the last
    assert "50" not in card.text
    assert "ant, bee, wasp" in card.text
    assert 'convnext.load("hf://someone/ants")' in card.text


def test_other_libraries_load_what_is_sent_for_them(run, tmp_path):
    import timm

    push(run, "someone/ants", "mit", dry_run=tmp_path / "sent", library="timm")
    assert {"best.safetensors", "config.json", "model.safetensors"} < {path.name for path in (tmp_path / "sent").iterdir()}
    theirs, x = timm.create_model(f"local-dir:{tmp_path / 'sent'}", pretrained=True).eval(), torch.ones(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(x), convnext.load(run, device="cpu").model(x), atol=1e-4, rtol=1e-4)
    card = ModelCard.load(tmp_path / "sent" / "README.md")
    assert card.data.library_name == "timm"
    assert 'timm.create_model("hf-hub:someone/ants", pretrained=True)' in card.text
    with pytest.raises(UsageError, match="did you mean 'timm'"):
        push(run, "someone/ants", "mit", dry_run=tmp_path / "other", library="tim")


def test_the_card_warns_of_the_licence_of_the_first_weights(run, tmp_path, caplog):
    push(run, "hf://someone/ants", "mit", dry_run=tmp_path / "free")
    assert "## Licence" not in (tmp_path / "free" / "README.md").read_text()
    recipe = load_recipe("finetune", ["data.train=photos", "model.name=convnext_tiny", "model.weights=eupe_lvd1689m"])
    (run / "recipe.yaml").write_text(recipe.to_yaml())
    push(run, "hf://someone/ants", "mit", dry_run=tmp_path / "bound")
    assert "fair-noncommercial-research-license (research only, no commercial use)" in (tmp_path / "bound" / "README.md").read_text()
    assert "--license says mit" in caplog.text


@pytest.fixture
def sent(run, tmp_path):
    """The hub's own cache, filled as a download fills it, and the environment that uses it, offline."""
    cache = tmp_path / "cache" / "models--someone--ants"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(COMMIT)
    push(run, "someone/ants", "mit", dry_run=cache / "snapshots" / COMMIT)
    return cache / "snapshots" / COMMIT, os.environ | {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}


@pytest.mark.slow
def test_what_was_sent_is_found_by_its_name(run, sent):
    wanted = convnext.load(run)(sample_image()).probabilities.tolist()
    code = f"""if True:
        import sys, convnext
        sys.path.insert(0, {os.path.dirname(os.path.dirname(__file__))!r})
        from helpers import sample_image
        predictor = convnext.load("hf://someone/ants")
        assert predictor.classes == {CLASSES}
        assert predictor(sample_image()).probabilities.tolist() == {wanted}
        """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=sent[1], check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_commands_of_the_card_convert_what_was_sent(sent, tmp_path):
    folder, environment = sent
    lines = [line for line in (folder / "README.md").read_text().splitlines() if line.startswith("convnext convert")]
    assert [line.rpartition(" ")[2] for line in lines] == ["timm", "transformers"]
    for line in lines:
        command = [sys.executable, "-m", *line.split()]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "model.safetensors").exists()
    assert (tmp_path / "folder-for-from_pretrained" / "config.json").exists()


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as making a repository and a commit of small files takes."""

    def do_POST(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, content))
        files = json.loads(content).get("files", []) if self.path.endswith("/preupload/main") else []
        answers = {
            "/api/repos/create": {"url": "https://huggingface.co/someone/ants"},
            "/api/models/someone/ants/preupload/main": {
                "files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            },
            "/api/models/someone/ants/commit/main": {"commitUrl": "https://huggingface.co/someone/ants/commit/1", "commitOid": COMMIT},
        }
        answer = json.dumps(answers.get(self.path, {})).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments):
        pass


def test_what_is_sent_is_what_the_dry_run_writes(run, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    push(run, "someone/ants", "mit", dry_run=tmp_path / "dry")
    command = [sys.executable, "-m", "convnext", "push", str(run), "someone/ants", "--license", "mit", "--private"]
    environment = os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_TOKEN": "hf_stand_in", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("/someone/ants\n")
    asked = dict(server.asked)
    created = json.loads(asked["/api/repos/create"])
    assert (created["name"], created["organization"]) == ("ants", "someone")
    assert "private" in (created.get("visibility"), "private" if created.get("private") else None)  # as the client is new or old
    lines = [json.loads(line) for line in asked["/api/models/someone/ants/commit/main"].splitlines()]
    sent = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"}
    assert sent == {path.name: path.read_bytes() for path in (tmp_path / "dry").iterdir()}


def test_what_is_no_finished_run_or_no_name_is_refused_before_anything_is_written(run, tmp_path):
    for name in ("ants", "a/b/c", "some one/ants"):
        with pytest.raises(UsageError, match="not a valid name on the hub"):
            push(run, name, "mit", dry_run=tmp_path / "sent")
    with pytest.raises(UsageError, match="is in use"):
        push(run, "someone/ants", "mit", dry_run=run)
    shutil.copytree(run, tmp_path / "unfinished")
    (tmp_path / "unfinished" / "evaluation.json").unlink()
    with pytest.raises(ConvnextError, match=r"not a finished run: it lacks evaluation\.json"):
        push(tmp_path / "unfinished", "someone/ants", "mit", dry_run=tmp_path / "sent")
    assert not (tmp_path / "sent").exists()


def test_without_the_hub_the_error_is_a_line_that_says_what_to_do(run, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConvnextError, match="the hub did not accept someone/ants: .*refused.*`hf auth login`"):
        push(run, "someone/ants", "mit")


def test_the_card_says_what_calibrated_weights_give(run, tmp_path):
    path = run / "best.safetensors"
    state, about = read_weights(path)
    push(run, "someone/ants", "mit", dry_run=tmp_path / "plain")
    assert "calibrated" not in (tmp_path / "plain" / "README.md").read_text()
    write_weights(path, state, about, calibrate([0.1, 0.2]))
    push(run, "someone/ants", "mit", dry_run=tmp_path / "sets")
    card = (tmp_path / "sets" / "README.md").read_text()
    assert "convnext predict hf://someone/ants photo.jpg --coverage 0.95\n" in card
    assert "--unknown" not in card
    write_weights(path, state, about, calibrate([0.1, 0.2], torch.eye(32)))
    push(run, "someone/ants", "mit", dry_run=tmp_path / "both")
    assert "photo.jpg --coverage 0.95 --unknown\n" in (tmp_path / "both" / "README.md").read_text()
