"""What a file says of itself is a stranger's text: a strict schema, one clear line, nothing downloaded, little memory."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import classifier, detector, segmenter

from convnext.errors import ConvnextError
from convnext.models import load
from convnext.models.weights.description import parse
from convnext.models.weights.files import read_weights


def changed(about, key, value):
    """A deep copy with one key, dotted, of another value."""
    copy = json.loads(json.dumps(about))
    *path, last = key.split(".")
    node = copy
    for part in path:
        node = node[part]
    node[last] = value
    return copy


@pytest.fixture
def described(tmp_path):
    path, model, _ = classifier(tmp_path)
    return path, model.state_dict(), read_weights(path)[1]


def rewrite(path, state, text):
    save_file(state, path, {"format": "pt", "convnext": text})


CASES = [
    ("model.weights", "https://localhost:9/evil.pth", "model.weights"),
    ("model.new_head", True, "model.new_head"),
    ("model.drop_path", 0.5, "model.drop_path"),
    ("model.name", "convnext_gigantic", "describes an unknown network: unknown model"),
    ("model.depth", 3, "no argument 'depth'"),
    ("model.depths", [1_000_000] * 4, "model.depths"),
    ("model.depths", [9000] * 4, "other sizes"),
    ("model.widths", [60_000] * 4, "other sizes"),
    ("model.widths", [10**40] * 4, "model.widths"),
    ("model.depths", [1, 1], "four stages"),
    ("model.num_classes", "3", "model.num_classes"),
    ("model.num_classes", -1, "model.num_classes"),
    ("model.num_classes", 7, "classes has 3 entries, the head 7"),
    ("model.kernel_size", True, "model.kernel_size"),
    ("model.kernel_size", 4, "kernel_size must be odd"),
    ("model.image_size", 200_000, "model.image_size"),
    ("model", None, "model"),
    ("model", [], "model"),
    ("task", "paint", "task"),
    ("task", ["classify"], "task"),
    ("classes", ["a"], "classes has 1 entries"),
    ("classes", [1, 2, 3], "classes"),
    ("classes", {"a": 1}, "classes"),
    ("class_ids", [1], "class_ids has 1 entries"),
    ("preprocessing", {}, "preprocessing"),
    ("preprocessing.image_size", 200_000, "image_size"),
    ("preprocessing.crop_ratio", 1e-6, "crop_ratio"),
    ("preprocessing.mean", [float("nan")] * 3, "mean"),
    ("preprocessing.mean", [0.5] * 100_000, "mean"),
    ("preprocessing.std", [0.0] * 3, "std"),
    ("preprocessing.std", [float("inf")] * 3, "std"),
    ("preprocessing.interpolation", "magic", "interpolation"),
    ("preprocessing.command", "rm", "command"),
    ("metrics", [1], "metrics"),
    ("step", -1, "step"),
    ("source", 3, "source"),
    ("surprise", 1, "surprise"),
]


@pytest.mark.parametrize(("key", "value", "message"), CASES)
def test_each_malformed_part_is_one_line_that_names_file_and_key(described, key, value, message):
    path, state, about = described
    rewrite(path, state, json.dumps(changed(about, key, value)))
    with pytest.raises(ConvnextError, match=f"classify.safetensors.*{message}") as caught:
        load.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", "3", '"x"', "{", "NaN", "[" * 100_000, '{"task":' * 20_000, "9" * 50_000, "\u0000"]
)
def test_what_is_no_description_is_refused(described, text):
    path, state, _ = described
    rewrite(path, state, text)
    with pytest.raises(ConvnextError, match="classify.safetensors") as caught:
        load.load(path)
    assert len(str(caught.value)) < 1000


def test_nothing_is_downloaded_and_little_memory_taken(described, tmp_path):
    _, state, about = described
    hostile = [("model.weights", "https://127.0.0.1:9/x.pth"), ("model.depths", [10**6] * 4), ("preprocessing.image_size", 200_000)]
    for i, (key, value) in enumerate(hostile):
        rewrite(tmp_path / f"{i}.safetensors", state, json.dumps(changed(about, key, value)))
    code = """if True:
        import resource, sys
        from convnext import ConvnextError
        from convnext.models import load as models
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for path in sys.argv[1:]:
            try: models.load(path)
            except ConvnextError as error: print(error)
        print("kB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", code, *(str(tmp_path / f"{i}.safetensors") for i in range(3))], capture_output=True, text=True
    )
    *messages, memory = done.stdout.splitlines()
    assert [line.split(" ")[0] for line in messages] == [str(tmp_path / f"{i}.safetensors") for i in range(3)], done.stderr
    assert "could not" not in done.stdout
    assert int(memory.split()[1]) < 200_000


@pytest.mark.parametrize("make", [classifier, detector, segmenter])
def test_files_as_they_were_written_before_still_load(tmp_path, make):
    """With all that a run wrote at commit 43e21d2: metrics that may be NaN, a step, arguments of the recipe that are the defaults."""
    path, model, how = make(tmp_path)
    _, about = read_weights(path)
    about["model"] |= {"grad_checkpointing": False, "layer_scale": 1.0}
    about |= {"metrics": {"top1": 50.0, "loss": float("nan"), "count": 3}, "step": 7}
    about["preprocessing"] = {key: value for key, value in about["preprocessing"].items() if key not in ("scales", "mirror", "range")}
    rewrite(path, model.state_dict(), json.dumps(about))
    loaded = load.load(path)
    assert loaded.preprocessing == how
    assert loaded.classes == ["ant", "bee", "wasp"]
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(loaded.model.state_dict().values(), model.state_dict().values(), strict=True)
    )


def test_ids_and_names_that_no_encoding_fits_are_kept(described):
    path, state, about = described
    names, ids = ["ant", "b\udce9e", "wasp"], [1, [0, 0, 255], 7]
    rewrite(path, state, json.dumps(about | {"classes": names, "class_ids": ids, "source": "hf://timm/x@" + "0" * 40}))
    loaded = load.load(path)
    assert (loaded.classes, loaded.class_ids, loaded.source) == (names, ids, "hf://timm/x@" + "0" * 40)


def test_a_description_of_an_exported_file_is_checked_too(described, tmp_path):
    _, _, about = described
    graph = {"precision": "float32", "pixels": False, "size": None, "num_classes": 3, "outputs": ["logits"]}
    good = about | {"graph": graph, "labels": about["classes"], "convnext": "0.1.0"}
    assert parse(json.dumps(good), tmp_path / "a.onnx", exported=True)["graph"] == graph
    for key, value in (("graph", {}), ("graph.num_classes", 4), ("graph.size", [10**9, 1]), ("model.weights", "https://x"), ("task", None)):
        with pytest.raises(ConvnextError, match="a.onnx"):
            parse(json.dumps(changed(good, key, value)), tmp_path / "a.onnx", exported=True)


def test_a_head_of_other_size_than_described_is_refused(described):
    path, state, about = described
    state = {key: value[:2].clone() if key.startswith("head.") else value for key, value in state.items()}
    rewrite(path, state, json.dumps(about))
    with pytest.raises(ConvnextError, match="classify.safetensors has a head of 2 classes"):
        load.load(path)


def test_rectangles_and_letterboxes_travel_with_the_weights_and_older_files_have_neither(described):
    path, state, about = described
    how = {**about["preprocessing"], "image_size": [32, 48], "letterbox": True}
    rewrite(path, state, json.dumps(about | {"preprocessing": how}))
    found = load.load(path).preprocessing
    assert (found.size, found.letterbox) == ((32, 48), True)
    older = {key: value for key, value in about["preprocessing"].items() if key != "letterbox"}
    rewrite(path, state, json.dumps(about | {"preprocessing": older}))
    assert load.load(path).preprocessing.letterbox is False
    for wrong in ({"warp": True}, {"image_size": [32]}, {"image_size": [32, 0]}, {"image_size": [32, 100_000]}):
        rewrite(path, state, json.dumps(about | {"preprocessing": how | wrong}))
        with pytest.raises(ConvnextError, match=path.name):
            load.load(path)
