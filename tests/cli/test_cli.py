"""The command line as a user meets it, in this process but for what only another shows."""

import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from command import run
from helpers import image_folder, random_model, sample_image
from tiny_models import classifier

from convnext.models.weights.files import write_weights


def in_a_process(*arguments, code=0, **options):
    done = subprocess.run([sys.executable, "-m", "convnext", *map(str, arguments)], capture_output=True, text=True, check=False, **options)
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small run over three colours, and the folder it learned from."""
    root = tmp_path_factory.mktemp("cli")
    photos = image_folder(root / "photos", each=20)
    run(
        "train", "digits", f"data.train={photos}", "data.val=null", "train.epochs=12", "train.warmup_epochs=2", "train.batch_size=20",
        "model.widths=[16,32,48,64]", "augment.rand_augment=null", "train.eval_every=6", "--output", root / "run",
    )  # fmt: skip
    return root / "run", photos


def test_help_is_short_and_names_every_command():
    text = in_a_process("--help").stdout
    assert all(command in text for command in ("demo", "train", "eval", "predict", "models", "cost", "recipes", "convert"))
    assert in_a_process("--version").stdout.strip() == "0.1.0"


def test_help_and_import_load_nothing_heavy():
    code = "import sys, convnext, convnext.cli; print([m for m in ('torch', 'numpy', 'timm', 'PIL') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_predict_loads_nothing_that_a_classifier_does_not_use(tmp_path):
    """Each of these takes a tenth of a second or more, which every single prediction would wait for."""
    weights, image = classifier(tmp_path)[0], tmp_path / "a.jpg"
    sample_image().save(image)
    code = (
        "import sys, convnext.cli\ntry:\n    convnext.cli.main()\nfinally:\n"
        "    print([m for m in ('torchvision', 'timm', 'torch._dynamo', 'sympy', 'matplotlib', 'sklearn', 'scipy', 'transformers', "
        "'huggingface_hub', 'onnx', 'pandas', 'faster_coco_eval') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, "predict", weights, image], capture_output=True, text=True, check=True)
    assert [line.split("  ")[0] for line in done.stdout.splitlines()] == [str(image), "[]"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "digit", "--output", "x"), "did you mean 'digits'?"),
        (("train", "digits", "train.epoch=3", "--output", "x"), "did you mean 'train.epochs'?"),
        (("train", "digits", "--ouput", "x"), "--output"),
        (("train", "digits"), "--output"),
        (("trian", "digits"), "train"),
        (("cost", "convnext_tny"), "did you mean 'convnext_tiny'?"),
        (("models", "convnxt_tiny"), "did you mean 'convnext_tiny'?"),
        (("predict", "convnext_tiny", "nowhere.jpg"), "no image or folder nowhere.jpg"),
        (("eval", "nowhere.pth", "--data", "digits:val"), "no weight file nowhere.pth"),
        (("demo", "--task", "clasify"), "unknown task 'clasify'; did you mean 'classify'?"),
        (("convert", "hf://a/b", "b.pth", "--to", "tim"), "did you mean 'timm'?"),
    ],
)
def test_mistakes_are_one_line_with_the_nearest_word(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*arguments, code=1 if "nowhere.pth" in arguments else 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback():
    assert "Traceback" in in_a_process("cost", "nothing", "--debug", code=1).stderr


def test_cost_and_models_as_json():
    cost = json.loads(run("cost", "convnext_tiny", "--json").stdout)
    assert cost == {"name": "convnext_tiny", "parameters": 28589128, "macs": 4455531264, "image_size": 224}
    assert json.loads(run("cost", "lenet5", "--json").stdout)["image_size"] == 32
    listed = run("models", "*resnet50").stdout
    assert "resnet50 " in listed
    assert "upernet_resnet50 " in listed
    assert "1280x800" in next(line for line in listed.splitlines() if line.startswith("cascade_mask_rcnn"))
    rows = json.loads(run("models", "convnext_b*", "--json").stdout)
    assert [row["name"] for row in rows] == ["convnext_base"]
    assert "fb_in22k_ft_in1k_384" in rows[0]["weights"]


def test_models_says_the_licence_and_accuracy_of_each_tag():
    shown = run("models", "convnext_nano").stdout
    assert "in12k_ft_in1k " in shown
    assert "82.31 at 224, 82.88 at 288" in shown
    assert "apache-2.0" in shown
    shown = run("models", "convnext_tiny").stdout
    assert "eupe_lvd1689m (fair-noncommercial-research-license)" in shown
    assert "research only, no commercial use" in shown
    assert "dinov3_lvd1689m (dinov3-license)" in run("models", "upernet_convnext_tiny").stdout
    (row,) = json.loads(run("models", "convnext_tiny", "--json").stdout)
    assert (row["licences"]["tv_in1k"], row["published"]["tv_in1k"]["top1"]) == ("bsd-3-clause", {"224": 82.52})
    assert row["published"]["eupe_lvd1689m"]["free"] is False


def test_the_best_models_under_a_cost():
    found = json.loads(run("models", "--best", "--under", "10G", "--licence", "free", "--json").stdout)
    assert all(row["free"] and row["gmacs"] <= 10 for row in found)
    assert [row["top1"] for row in found] == sorted((row["top1"] for row in found), reverse=True)
    assert (found[0]["network"], found[0]["tag"], found[0]["top1"], found[0]["size"]) == ("convnext_small", "in12k_ft_in1k", 85.164, 224)
    shown = run("models", "convnext_tiny", "--best", "--under", "8000M").stdout.splitlines()
    assert "convnext_tiny --weights in12k_ft_in1k --size 288" in shown[1]
    assert "convnext_tiny --weights in12k_ft_in1k " in shown[2]
    assert "give multiply-adds" in run("models", "--best", "--under", "lots", code=2).stderr
    assert "are for --best" in run("models", "--licence", "free", code=2).stderr
    assert "raise --under" in run("models", "--best", "--under", "1M", code=1).stderr


def test_recipes_are_listed_shown_and_explained():
    assert "digits" in run("recipes").stdout
    shown = run("recipes", "show", "digits", "train.epochs=7").stdout
    assert "epochs: 7" in shown
    assert "betas: [0.9, 0.999]" in shown
    assert "optim.lr" in run("recipes", "keys").stdout


def test_a_trained_run_evaluates_on_its_own_validation_images_and_on_others(trained):
    folder, photos = trained
    own = json.loads(run("eval", folder, "--json").stdout)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert own["count"] == [line for line in lines if line["kind"] == "eval"][-1]["count"]  # the images held out in the run
    best = json.loads((folder / "evaluation.json").read_text())["metrics"]
    assert own["top1"] >= best["top1"]
    other = json.loads(run("eval", folder, "--data", photos, "--json", "--workers", 0).stdout)
    assert other["count"] == 60
    assert other["top1"] > 80
    assert "top-1 accuracy" in run("eval", folder / "last.safetensors", "--data", photos).stdout
    assert "--multi-scale is a test of segmenters" in run("eval", folder, "--multi-scale", code=2).stderr


def test_a_trained_run_predicts_images_and_folders(trained, tmp_path):
    folder, photos = trained
    (tmp_path / "bad.jpg").write_text("no")
    done = run("predict", folder, photos / "ant" / "000.jpg", photos / "wasp", tmp_path / "bad.jpg", "--json", "--top", 2)
    rows = json.loads(done.stdout)
    assert len(rows) == 22
    assert [len(row["top"]) for row in rows[:-1]] == [2] * 21
    assert rows[-1]["error"].startswith(str(tmp_path / "bad.jpg"))
    assert f"skipped: {tmp_path / 'bad.jpg'}" in done.stderr
    classes = [row["top"][0]["class"] for row in rows[:-1]]
    assert np.mean([name == "wasp" for name in classes[1:]]) > 0.7
    line = run("predict", folder, photos / "ant" / "000.jpg").stdout
    assert line.startswith(str(photos / "ant" / "000.jpg"))
    assert "%" in line
    run("predict", folder, tmp_path / "bad.jpg", code=1)


def test_foreign_weights_are_evaluated_by_folder_order_or_told_why_not(tmp_path):
    write_weights(tmp_path / "w.pth", random_model("convnext_atto", num_classes=3).state_dict())
    photos = image_folder(tmp_path / "photos", each=2)
    assert json.loads(run("eval", tmp_path / "w.pth", "--data", photos, "--json").stdout)["count"] == 6
    two = image_folder(tmp_path / "two", classes=("ant", "bee"), each=2)
    assert "has 2 classes, the network 3, and its weights do not name them" in run("eval", tmp_path / "w.pth", "--data", two, code=1).stderr
    assert "say with --data" in run("eval", tmp_path / "w.pth", code=2).stderr


def test_imagenet_weights_name_their_classes_and_understand_synset_folders(tmp_path):
    write_weights(tmp_path / "w.safetensors", random_model("convnext_atto").state_dict())
    photos = image_folder(tmp_path / "photos", classes=("n01440764", "n02099601"), each=2)
    assert json.loads(run("eval", tmp_path / "w.safetensors", "--data", photos, "--json").stdout)["count"] == 4
    rows = json.loads(run("predict", tmp_path / "w.safetensors", photos, "--json").stdout)
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    assert rows[0]["top"][0]["class"] in {info.index_to_description(i) for i in range(1000)}


def test_a_published_set_is_evaluated_with_a_page_and_mistakes_are_told(tmp_path):
    weights = tmp_path / "w.safetensors"
    write_weights(weights, random_model("convnext_atto").state_dict())
    photos = image_folder(tmp_path / "photos", classes=("n01498041", "n01531178"), each=2)  # two of ImageNet-A's 200
    page = tmp_path / "page.html"
    told = json.loads(run("eval", weights, "--data", f"imagenet-a:{photos}", "--json", "--report", page, "--workers", 0).stdout)
    assert (told["count"], len(told["classes"]), len(told["calibration"])) == (4, 200, 15)
    assert "Worst mistakes" in page.read_text()
    mistaken = run("eval", weights, "--data", f"imagent-a:{photos}", code=2).stderr
    assert "did you mean 'imagenet-a:'?" in mistaken
    assert "there is no folder" in run("eval", weights, "--data", photos, "--report", tmp_path / "no" / "page.html", code=2).stderr


@pytest.mark.parametrize("to", ["official", "timm", "torchvision", "transformers"])
@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_convert_there_and_back_is_bit_equal(tmp_path, to, ending):
    state = random_model("convnext_atto", num_classes=3).state_dict()
    write_weights(tmp_path / "w.pth", state)
    there, back = tmp_path / f"there{ending}", tmp_path / "back.safetensors"
    assert f"to {to}, written to {there}" in run("convert", tmp_path / "w.pth", there, "--to", to).stdout
    run("convert", there, back, "--to", "official")
    from safetensors.torch import load_file

    found = load_file(back)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)


def test_messages_of_the_log_are_one_line_without_escapes():
    run("--version")  # the command line cleans what is logged from then on
    record = logging.makeLogRecord({"msg": "%s names %s", "args": ("a\nb.json", "\x1b]0;title\x07")})
    assert logging.lastResort.filter(record)
    assert logging.Formatter().format(record) == r"a\nb.json names \x1b]0;title\x07"


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii:strict"}  # no name fits in
SHORT = ["train.epochs=1", "train.warmup_epochs=0", "train.batch_size=4", "data.workers=0", "model.widths=[8,16,24,32]"]


@pytest.mark.slow
def test_names_of_any_bytes_end_no_run_whatever_the_encoding(tmp_path):
    photos = image_folder(tmp_path / "photos", ("$\\frac{$", "<b>中", "esc\x1b]0;title\x07", "caf\udce9", "fourmi e\u0301"), each=2)
    (photos / "caf\udce9" / "two\nlines\udce9.jpg").write_bytes(b"no image")
    (photos / "caf\udce9" / "000.jpg").rename(photos / "caf\udce9" / "$\udce9$.jpg")
    strange, folder = os.environ | ASCII, tmp_path / "run"
    data = [f"data.train={photos}", f"data.val={photos}", "data.max_corrupt=0.5"]
    done = in_a_process("train", "digits", *data, *SHORT, "--output", folder, env=strange)
    counts = r"11 images, 5 classes: $\frac{$ 2, <b>\u4e2d 2, caf\xe9 3, esc\x1b]0;title\x07 2, fourmi \xe9 2"
    assert f"train: {counts}" in done.stderr
    assert rf"skipped: {photos}/caf\xe9/two\nlines\xe9.jpg: " in done.stderr
    assert "could not be written" not in done.stderr
    page = (folder / "report.html").read_text("utf-8")
    assert page.endswith("</html>\n")
    assert all(name in page for name in ("fourmi é", "&lt;b&gt;中", r"caf\xe9"))
    (folder / "evaluation.json").read_text("utf-8").encode("utf-8")

    again = in_a_process("eval", folder, "--report", tmp_path / "page.html", "--max-corrupt", "0.5", "--workers", 0, "--json", env=strange)
    assert json.loads(again.stdout)["classes"] == [r"$\frac{$", "<b>中", r"caf\xe9", r"esc\x1b]0;title\x07", "fourmi é"]
    assert (tmp_path / "page.html").read_text("utf-8").endswith("</html>\n")
    checked = in_a_process("data", "check", photos, code=1, env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"})
    assert checked.stdout.splitlines()[0] == counts.replace(r"\u4e2d", "中").replace(r"\xe9 2", "é 2")
    assert rf"{photos}/caf\xe9/two\nlines\xe9.jpg: not an image" in checked.stdout
    assert "1 problem in" in checked.stderr
    told = in_a_process("predict", folder, photos, env=strange)
    assert len(told.stdout.splitlines()) == 10
    assert "\x1b" not in told.stdout + told.stderr
    assert (
        "\\u2013" in in_a_process("table", "roadmap", "--model", "*_01_*", "--device", "cpu", env=strange).stdout
    )  # a dash, which ASCII lacks

    # A page that can't be written is told of, and fails nothing.
    (folder / "report.html").unlink()
    (folder / "report.html").mkdir()
    done = in_a_process("train", "digits", *data, *SHORT, "--output", folder, "--resume")
    assert f"the report {folder}/report.html could not be written" in done.stderr
    assert "; report:" not in done.stderr
    done = in_a_process("eval", folder, "--report", folder / "checkpoints", "--max-corrupt", "0.5", "--workers", 0)
    assert "could not be written" in done.stderr
    assert "top-1 accuracy" in done.stdout
