"""What is refused before PyTorch is loaded."""

import pytest
from helpers import image_folder

from convnext.errors import UsageError
from convnext.training.folder.run_paths import check_device, check_start


def test_a_folder_that_holds_a_run_is_refused(tmp_path):
    (tmp_path / "recipe.yaml").write_text("# mine\ndata: {train: digits:train}\n")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UsageError, match="already holds a run: add --resume to continue it or --overwrite"):
        check_start("digits", [], output=tmp_path)
    check_start("digits", [], output=tmp_path, resume=True)
    check_start("digits", [], output=tmp_path, overwrite=True)
    (tmp_path / ".replaced").mkdir()  # of a killed process: what is here is known after the folder was repaired
    check_start("digits", [], output=tmp_path)


def test_data_that_need_more_than_a_look_are_not_refused_here(tmp_path, monkeypatch):
    photos = image_folder(tmp_path / "photos", each=1)
    for where in (str(photos), "digits:train", "x-{000..007}.tar", "x-*.tar", "https://host/x.tar", "hf://datasets/a/b", "cifar10:train"):
        check_start("finetune", [f"data.train={where}"], output=tmp_path / "run")
    with pytest.raises(UsageError, match="lies inside the data"):
        check_start("finetune", [f"data.train={photos}"], output=photos / "run")
    monkeypatch.setenv("WORLD_SIZE", "2")  # one process checks for all
    check_start("nothing", [], output=tmp_path)


@pytest.mark.parametrize("device", [None, "cpu", "cuda", "cuda:1", "mps"])
def test_names_of_devices_are_known(device):
    check_device(device)
