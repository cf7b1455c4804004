import csv
import json
from dataclasses import replace

import command
import huggingface_hub
import pytest
import torch
from helpers import image_folder, random_model

from convnext.errors import ConvnextError, UsageError
from convnext.models.load import cost_of
from convnext.models.registry import BACKBONES, find, list_models
from convnext.models.weights.files import write_weights
from convnext.models.weights.formats import from_native
from convnext.paper import listing
from convnext.paper.published import TABLES, read
from convnext.paper.table import NO_WEIGHTS, UNPUBLISHED, table, weights_tag

CPU = torch.device("cpu")
QUICK = ("robustness", "throughput")  # tables of few networks


def run(*arguments, code=0):
    return command.run("table", *arguments, "--device", "cpu", code=code)


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TABLES])
def test_no_row_is_left_out_and_no_number_made_up(name):
    rows = table(name, CPU).rows
    assert [row["label"] for row in rows] == [row.label for row in read(name)]
    for row in rows:
        assert row["model"] in list_models()
        assert row["measured_params_m"] > 0
        assert row["measured_gmacs"] > 0
        assert all(
            value is None
            for key, value in row.items()
            if key.startswith("measured_") and key not in ("measured_params_m", "measured_gmacs")
        )


@pytest.mark.slow
def test_what_is_counted_is_what_is_printed():
    rows = table("robustness", CPU).rows + table("imagenet", CPU, pattern="convnext_xlarge").rows
    printed = {(row.model, row.image_size): row.values for row in read("imagenet")}
    assert len(rows) == 7
    for row in rows:
        row |= {f"published_{key}": value for key, value in printed[row["model"], row["image_size"]].items()}
        assert round(row["measured_params_m"]) == row["published_params_m"]
        assert round(row["measured_gmacs"], 1) == row["published_gmacs"]
        assert row["measured_gmacs"] == cost_of(row["model"], row["image_size"]).macs / 1e9


@pytest.mark.slow
def test_rows_are_chosen_by_label_or_name():
    assert [row["label"] for row in table("imagenet", CPU, pattern="effnet-b[34]").rows] == ["EffNet-B3", "EffNet-B4"]
    assert {row["model"] for row in table("imagenet", CPU, pattern="swin_base*").rows} == {"swin_base", "swin_base_384"}
    with pytest.raises(UsageError, match="no row of the imagenet table matches 'convnext_tny'; did you mean 'convnext_tiny'"):
        table("imagenet", CPU, pattern="convnext_tny")


def test_speed_is_measured_where_asked_for():
    found = table("imagenet", CPU, pattern="convnext_tiny", speed=True, seconds=0)
    (row,) = found.rows
    assert 0 < row["measured_images_per_second_least"] <= row["measured_images_per_second"] <= row["measured_images_per_second_most"]
    assert row["measured_memory_mib"] is None  # a CPU
    assert (row["measured_top1"], row["remarks"]) == (None, [])
    assert found.setting["batch_size"] == 1
    assert found.environment["hardware"]["device"] == "cpu"
    assert any("batch 1, float32" in line for line in found.measured_on())
    assert table("imagenet", CPU, pattern="convnext_tiny").environment is None


def test_throughput_is_a_ratio_to_swin_measured_in_turns(monkeypatch):
    monkeypatch.setitem(BACKBONES, "swin_tiny", BACKBONES["convnext_atto"])  # stands for it: much faster
    (tiny,) = table("throughput", CPU, pattern="convnext_tiny", speed=True, seconds=0).rows
    assert tiny["measured_swin_images_per_second"] > tiny["measured_images_per_second"]
    assert tiny["measured_ratio_least"] <= tiny["measured_ratio"] <= tiny["measured_ratio_most"] < 1
    assert round(tiny["published_ratio_a100"], 2) == 1.47


def row_of(label, group, size):
    return next(row for row in read("imagenet") if (row.label, row.group, row.image_size) == (label, group, size))


@pytest.mark.parametrize(
    ("row", "tags", "wanted"),
    [
        (("ConvNeXt-B", "imagenet1k", 224), None, "fb_in1k"),
        (("ConvNeXt-B", "imagenet1k", 384), None, "fb_in1k_384"),
        (("ConvNeXt-B", "imagenet22k", 224), None, "fb_in22k_ft_in1k"),
        (("ConvNeXt-B", "imagenet22k", 384), None, "fb_in22k_ft_in1k_384"),
        (("Swin-B", "imagenet22k", 384), ["ms_in1k", "ms_in22k", "ms_in22k_ft_in1k"], "ms_in22k_ft_in1k"),
        (("Swin-B", "imagenet1k", 384), ["ms_in22k_ft_in1k", "ms_in1k"], "ms_in1k"),
        (("R-152x4", "imagenet22k", 480), ["goog_in21k", "goog_in21k_ft_in1k"], "goog_in21k_ft_in1k"),
        (("DeiT-S", "imagenet1k", 224), ["fb_in22k"], None),
    ],
)
def test_each_row_has_the_weights_that_gave_it(row, tags, wanted):
    row = row_of(*row)
    assert weights_tag(row, find(row.model).weights if tags is None else tags) == wanted


@pytest.mark.slow
def test_accuracy_is_that_of_an_evaluation_and_missing_weights_are_told(tmp_path, monkeypatch, caplog):
    """Random weights in the place where the hub keeps ConvNeXt-T's; ConvNeXt-S's are missing."""
    photos = image_folder(tmp_path / "photos", classes=("n01440764", "n02099601"), each=2)
    folder = tmp_path / "hub" / "models--timm--convnext_tiny.fb_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    write_weights(folder / "snapshots" / ("0" * 40) / "model.safetensors", from_native(random_model("convnext_tiny").state_dict(), "timm"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    done = run("imagenet", "--data", photos, "--model", "convnext_[ts]*", "--json")
    tiny, small = json.loads(done.stdout)["rows"]
    evaluated = command.run("eval", "convnext_tiny", "--weights", "fb_in1k", "--data", photos, "--device", "cpu", "--json")
    assert tiny["measured_top1"] == json.loads(evaluated.stdout)["top1"]
    assert (tiny["measured_weights"], tiny["remarks"]) == ("fb_in1k", [])
    assert (small["measured_top1"], small["remarks"]) == (None, [NO_WEIGHTS])
    assert "timm/convnext_small.fb_in1k/resolve/main/model.safetensors" in caplog.text


def test_a_network_without_published_weights_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, "convnext_tiny", replace(BACKBONES["convnext_tiny"], weights={}))
    (row,) = table("imagenet", CPU, pattern="convnext_tiny", data=str(image_folder(tmp_path / "photos", each=1))).rows
    assert (row["measured_top1"], row["remarks"]) == (None, [UNPUBLISHED])


def test_data_that_cannot_be_used_are_told_at_once(tmp_path):
    with pytest.raises(ConvnextError, match="no folder"):
        table("imagenet", CPU, data=str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="remove --data"):
        table("throughput", CPU, data="digits:val")


@pytest.mark.slow
def test_json_csv_and_markdown_hold_the_same_rows():
    some = ("roadmap", "--model", "*_0[1-3]_*")
    rows = json.loads(run(*some, "--json").stdout)["rows"]
    assert len(rows) > 3
    lines = list(csv.DictReader(run(*some, "--csv").stdout.splitlines()))
    assert [{key: None if value is None else str(value) for key, value in row.items() if key != "remarks"} for row in rows] == [
        {key: value or None for key, value in line.items() if key != "remarks"} for line in lines
    ]
    assert [line["remarks"] for line in lines] == ["; ".join(row["remarks"]) for row in rows]
    text = run(*some, "--markdown").stdout
    assert text.strip() == listing.markdown("roadmap", rows)
    assert [line.split("|")[1].strip() for line in text.split("\n\n")[0].splitlines()[2:]] == [row["label"] for row in rows]


def test_the_command_prints_draws_and_explains(tmp_path):
    done = run("ade20k", "--model", "*tiny", "--plot", tmp_path / "figure.png")
    assert max(map(len, done.stdout.splitlines())) <= 140
    assert done.stderr == f"{tmp_path / 'figure.png'}\n"
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "choose one" in run("imagenet", "--json", "--csv", code=2).stderr
