"""`convnext data check --deep`."""

import csv
import shutil

import pytest
from command import run
from helpers import image_folder
from PIL import Image
from tiny_models import classifier

from convnext.errors import UsageError
from convnext.fit.quality.check import deep_check


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return str(classifier(tmp_path_factory.mktemp("weights"))[0])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three classes; one image of the first lies in the folder of the second, and one has a mirrored copy."""
    folder = image_folder(tmp_path_factory.mktemp("photos") / "all", each=16)
    ants, bees = (sorted((folder / name).iterdir()) for name in ("ant", "bee"))
    shutil.move(ants[0], folder / "bee" / "in-the-wrong-folder.png")
    Image.open(bees[3]).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "bee" / "mirrored.png")
    return folder


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def checked(photos, weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checked")
    return folder, run("data", "check", photos, "--deep", "--model", weights, "--output", folder).stdout


def test_the_image_in_the_wrong_folder_is_suspected(checked, photos):
    folder, printed = checked
    found = [(row["image"], row["label"], row["suggested"]) for row in rows(folder / "labels.csv")]
    assert (str(photos / "bee" / "in-the-wrong-folder.png"), "bee") in {row[:2] for row in found}
    assert len(found) <= 12  # of 49, by a network that learned nothing
    assert f"{len(found)} labels may be wrong, the first: {found[0][0]} is labelled {found[0][1]} and seems to be {found[0][2]}" in printed


def test_the_mirrored_copy_is_a_duplicate(checked, photos):
    folder, printed = checked
    found = {(row["other"], row["relation"]) for row in rows(folder / "duplicates.csv")}
    assert (str(photos / "bee" / "mirrored.png"), "mirrored") in found
    assert "near duplicates: " in printed


def test_the_folder_has_a_page_and_no_weights(checked):
    folder, _ = checked
    page = (folder / "report.html").read_text("utf-8")
    assert "Suspected wrong labels" in page
    assert "Near duplicates" in page
    assert {path.name for path in folder.iterdir()} == {"labels.csv", "duplicates.csv", "report.html", "features"}


def test_leaks_are_found_between_both_parts(photos, weights, tmp_path):
    val = image_folder(tmp_path / "val", each=4)
    shutil.copy(sorted((photos / "wasp").iterdir())[5], val / "wasp" / "leak.png")
    said = []
    found = deep_check(str(photos), task="classify", val=str(val), model=weights, report=said.append)
    leaks = [pair for pair in found.duplicates.pairs if {pair.first.part, pair.second.part} == {0, 1}]
    assert "leak.png" in {found.parts[1].source.name(max(pair.first, pair.second).index).split("/")[-1] for pair in leaks}


def test_a_second_check_computes_no_features_again(checked, photos, weights):
    folder, _ = checked
    said = []
    deep_check(str(photos), task="classify", output=folder, model=weights, report=said.append)
    assert any(line.startswith("features: 0 computed") for line in said)


def test_other_tasks_and_options_without_deep_are_refused(photos, weights):
    with pytest.raises(UsageError, match="--deep needs labels of whole images"):
        deep_check(str(photos), task="detect", model=weights)
    refused = run("data", "check", photos, "--model", weights, "--output", "x", code=2)
    assert "--model and --output without --deep: add --deep" in refused.stderr


def test_unreadable_images_are_problems_and_the_rest_is_checked(photos, weights, tmp_path):
    broken = shutil.copytree(photos, tmp_path / "broken")
    sorted((broken / "ant").iterdir())[0].write_bytes(b"no image")
    done = run("data", "check", broken, "--deep", "--model", weights, "--output", tmp_path / "out", code=1)
    assert "1 problem in" in done.stderr
    assert (tmp_path / "out" / "labels.csv").exists()
