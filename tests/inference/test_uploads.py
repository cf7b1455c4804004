"""Prediction from storage and into it, by the commands and functions that people use."""

import json
from io import BytesIO
from pathlib import Path

import command
import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from helpers import sample_image
from shard_files import samples, shard
from stored import empty_bucket
from tiny_models import classifier, detector

import convnext
from convnext.data.sources.packed.shards import open_shards
from convnext.data.storage import objects
from convnext.errors import ConvnextError, UsageError
from convnext.inference import uploads
from convnext.inference.inputs import find_items


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """Storage with a run folder and some images, one of them damaged; returns a function that writes an object."""
    write = empty_bucket(monkeypatch, tmp_path)
    write("runs/mine/best.safetensors", classifier(tmp_path)[0].read_bytes())
    for name in ("b/1.png", "a/2.png", "a/1.png"):
        write(f"photos/{name}", png(len(name)))
    write("photos/a/bad.png", b"no image")
    write("photos/notes.txt", b"text")
    return write


def png(seed):
    file = BytesIO()
    sample_image(seed).save(file, "PNG")
    return file.getvalue()


def content(name):
    return fsspec.filesystem("memory").cat_file(f"/bucket/{name}")


def rows(name):
    return [json.loads(line) for line in content(name).splitlines()]


FOLDER, FOUND = "memory://bucket/photos", "memory://bucket/found.jsonl"
NAMES = [f"{FOLDER}/{name}" for name in ("a/1.png", "a/2.png", "a/bad.png", "b/1.png")]


def test_a_run_folder_and_images_in_storage_give_the_answers_of_files_here(bucket, tmp_path):
    done = command.run("predict", "memory://bucket/runs/mine", FOLDER, "--output", FOUND)
    assert "weights: memory://bucket/runs/mine/best.safetensors" in done.stderr
    assert "predicted 3 of 4 images, skipped 1" in done.stderr
    assert [row["image"] for row in rows("found.jsonl")] == NAMES
    for name in NAMES:
        path = tmp_path / "here" / name.removeprefix(f"{FOLDER}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(f"photos/{name.removeprefix(f'{FOLDER}/')}"))
    here = convnext.predict(tmp_path / "classify.safetensors", tmp_path / "here")
    assert [row["top"] for row in rows("found.jsonl") if "top" in row] == [one.to_json()["top"] for one in here.predictions.values()]
    pattern = convnext.predict(tmp_path / "classify.safetensors", [f"{FOLDER}/*/1.png", f"{FOLDER}/a/2.png"])
    assert list(pattern.predictions) == [NAMES[0], NAMES[3], NAMES[1]]
    with pytest.raises(UsageError, match=r"notes\.txt holds no images"):
        find_items([f"{FOLDER}/notes.txt"])


def test_a_call_that_was_stopped_leaves_nothing_in_storage_and_is_resumed(bucket, monkeypatch):
    predict, read, fails = (
        ["predict", "memory://bucket/runs/mine", FOLDER, "--output", FOUND, "--batch-size", 1],
        MemoryFileSystem.cat_file,
        [True],
    )

    def fail_at_the_last(self, path, *more, **how):
        if fails and path.endswith("b/1.png"):
            raise ConnectionError("reset by peer")
        return read(self, path, *more, **how)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", fail_at_the_last)
    done = command.run(*predict, "--threads", 1, code=1)
    assert f"could not read {NAMES[3]} (reset by peer)" in done.stderr  # which is no fault of the image
    assert not fsspec.filesystem("memory").exists("/bucket/found.jsonl")
    fails.clear()
    done = command.run(*predict)
    assert "of 4 images are done already" in done.stderr
    assert [row["image"] for row in rows("found.jsonl")] == NAMES
    written = content("found.jsonl")
    command.run(*predict)  # uploads the same again
    assert content("found.jsonl") == written


def test_an_upload_that_failed_is_tried_again_and_objects_of_others_are_kept(bucket, tmp_path, monkeypatch):
    model = tmp_path / "classify.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "mv", lambda *_, **__: (_ for _ in ()).throw(PermissionError("403")))
        with pytest.raises(ConvnextError, match=r"no permission to write memory://bucket/\.found.*check the credentials"):
            convnext.predict(model, FOLDER, FOUND)
    with monkeypatch.context() as patch:
        patch.setattr("convnext.inference.predictor.Predictor.infer", None)  # predicts nothing again
        convnext.predict(model, FOLDER, FOUND)
    assert len(rows("found.jsonl")) == 4
    bucket("found.jsonl", b"of someone else")
    with pytest.raises(UsageError, match=f"{FOUND} exists already, and this machine did not write it"):
        convnext.predict(model, FOLDER, FOUND)
    convnext.predict(model, FOLDER, FOUND, overwrite=True)
    assert len(rows("found.jsonl")) == 4


def test_images_that_changed_in_storage_make_answers_stale(bucket, tmp_path):
    convnext.predict(tmp_path / "classify.safetensors", FOLDER, FOUND)
    bucket("photos/a/1.png", png(9))
    with pytest.raises(UsageError, match=f"{NAMES[0]} was changed since"):
        convnext.predict(tmp_path / "classify.safetensors", FOLDER, FOUND)


def test_shards_in_storage_are_predicted_by_their_addresses_and_trained_on(bucket, tmp_path):
    for i in range(2):
        bucket(f"shards/train-{i:03d}.tar", shard(tmp_path / "one.tar", samples(10 * i, 3)).read_bytes())
    where = "memory://bucket/shards/train-{000..001}.tar"
    items = find_items([where])
    assert [item.name for item in items][2:4] == [f"memory://bucket/shards/train-{i}" for i in ("000.tar/0002.jpg", "001.tar/0010.jpg")]
    assert [item.name for item in find_items(["memory://bucket/shards/*.tar"])] == [item.name for item in items]
    items[0].file().unlink()  # as on another machine
    assert items[0].read().size == (24, 20)
    bucket("shards/classes.txt", b"ant\nbee\nwasp\n")
    source = open_shards(where)
    assert len(source) == 6
    assert source.classes == ["ant", "bee", "wasp"]
    bucket("shards/train-001.tar", shard(tmp_path / "one.tar", samples(30, 3)).read_bytes())
    items[-1].file().unlink()
    with pytest.raises(ConvnextError, match="changed since it was listed"):
        items[-1].read()


def test_coco_results_with_ids_from_storage_and_embeddings_are_uploaded(bucket, tmp_path):
    images = [{"id": i, "file_name": name.rpartition("photos/")[2], "width": 48, "height": 40} for i, name in enumerate(NAMES, 7)]
    categories = [{"id": 5 + i, "name": name} for i, name in enumerate(("ant", "bee", "wasp"))]
    bucket("instances.json", json.dumps({"images": images, "annotations": [], "categories": categories}).encode())
    convnext.predict(
        detector(tmp_path)[0], FOLDER, "memory://bucket/found.json", annotations="memory://bucket/instances.json", threshold=0.0
    )
    assert {one["image_id"] for one in json.loads(content("found.json"))} <= {7, 8, 10}
    convnext.predict(tmp_path / "classify.safetensors", FOLDER, features="memory://bucket/found.npy")
    assert np.load(BytesIO(content("found.npy"))).shape == (3, 32)


def test_outputs_of_several_files_are_refused(bucket, tmp_path):
    for given in ({"output": "memory://bucket/masks"}, {"draw": "memory://bucket/drawn"}, {"output": FOUND, "kind": "label-studio"}):
        with pytest.raises(UsageError, match="only formats of one file are written to storage"):
            convnext.predict(tmp_path / "classify.safetensors", FOLDER, **given)
    with pytest.raises(UsageError, match=r"memory:/bucket/found\.jsonl has one slash .* give the address as text"):
        convnext.predict(tmp_path / "classify.safetensors", FOLDER, Path(FOUND))


def test_a_model_in_storage_is_the_newest_version(bucket, tmp_path):
    first = convnext.load("memory://bucket/runs/mine")
    assert first.source == "memory://bucket/runs/mine/best.safetensors"
    bucket("runs/mine/best.safetensors", detector(tmp_path)[0].read_bytes())
    assert (first.task, convnext.load("memory://bucket/runs/mine/best.safetensors").task) == ("classify", "detect")
    with pytest.raises(UsageError, match="no weight file or run folder memory://bucket/runs/other"):
        convnext.load("memory://bucket/runs/other")
    assert objects.find("memory://bucket/runs") is None
    assert uploads.staged(FOUND, "output").parent == uploads.staged("memory://bucket/found.csv", "output").parent
