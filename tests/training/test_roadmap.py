import json
import re

import pytest

from convnext.errors import ConvnextError, UsageError
from convnext.training.roadmap import parse_steps, walk

FEW = ["data.train=digits:train", "data.val=digits:val", "data.image_size=32", "data.workers=0", "model.width=4", "train.epochs=1"]
FEW += ["train.warmup_epochs=0.1", "train.batch_size=256"]


def go(output, *more, **how):
    told = []
    found = walk([*FEW, *more], output=output, small=True, steps=[3, 16], seeds=1, devices=["cpu", "cpu"], tell=told.append, **how)
    return found, told


def test_a_walk_is_taken_up_where_it_stopped(tmp_path):
    found, told = go(tmp_path)
    assert told[0] == "2 runs of 2 steps, 0 of them finished"
    assert [rung.step for rung in found.rungs] == ["patchify stem", "separate downsampling layers"]
    assert all(len(rung.top1) == 1 for rung in found.rungs)
    assert json.loads((tmp_path / "roadmap.json").read_text())["rungs"][1]["published_top1"] == 81.97
    assert (tmp_path / "roadmap.png").stat().st_size > 10_000
    assert "patchify stem" in (tmp_path / "roadmap.svg").read_text()
    assert "<svg" in (tmp_path / "report.html").read_text()
    table = (tmp_path / "roadmap.md").read_text().splitlines()
    assert re.search(rf"\| patchify stem \| 79.51 % \| 4.42 G \| {found.rungs[0].top1[0]:.2f} % \| – \| 1 \|", table[2])

    # A run that had not come to its report is taken up; the other is left as it is.
    unfinished = tmp_path / "roadmap_t_03_patchify_stem" / "seed0"
    (unfinished / "report.html").unlink()
    kept = (tmp_path / "roadmap_t_16_separate_downsampling" / "seed0" / "last.safetensors").stat().st_mtime_ns
    again, told = go(tmp_path)
    assert told[0] == "2 runs of 2 steps, 1 of them finished"
    assert again == found
    assert (tmp_path / "roadmap_t_16_separate_downsampling" / "seed0" / "last.safetensors").stat().st_mtime_ns == kept

    with pytest.raises(UsageError, match=r"optim.lr was 0.002, now 0.5"):
        go(tmp_path, "optim.lr=0.5")


def test_a_run_that_fails_is_told_with_its_log(tmp_path):
    with pytest.raises(ConvnextError, match=r"roadmap_t_.*ended with exit code 1: .*seed0\.log"):
        go(tmp_path, "optim.lr=1e30")


def test_steps_are_read_as_people_write_them(tmp_path):
    assert parse_steps("1,3,9-12") == [1, 3, 9, 10, 11, 12]
    with pytest.raises(UsageError, match="write them as"):
        parse_steps("1,x")
    with pytest.raises(UsageError, match="no step 17"):
        walk(FEW, output=tmp_path, small=True, steps=[17])
