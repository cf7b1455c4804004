"""How much of the data that a network is evaluated on may be unusable, and who says so."""

import json
from pathlib import Path

import pytest
from tasks.detect.test_parts import dataset
from tiny_models import detector

from convnext import tasks
from convnext.errors import ConvnextError
from convnext.models.load import load
from convnext.tasks.labelled import labelled_source


def with_invalid(root, count):
    """A dataset of nine objects of which so many are invalid; its name."""
    where = dataset(root, [[0], [1], [2]] * 3)
    content = json.loads((root / "a.json").read_text())
    for one in content["annotations"][:count]:
        one["bbox"] = [0, 0, 0, 0]
    (root / "a.json").write_text(json.dumps(content))
    return where


def opened(where, max_corrupt=None, run=None):
    loaded = load(detector(Path(where.split(":")[1]).parent)[0])
    loaded.classes, loaded.run = ["car", "bus", "person"], run
    return labelled_source(loaded, tasks.get("detect"), where, max_corrupt)


def test_many_invalid_objects_stop_an_evaluation_and_one_does_not(tmp_path):
    where = with_invalid(tmp_path, 1)
    assert sum(opened(where)[0].objects_by_class()) == 8
    where = with_invalid(tmp_path, 2)
    with pytest.raises(ConvnextError, match=r"2 of 9 annotations are invalid, more than 1\.0% \(--max-corrupt\): .*annotation 0 has a box"):
        opened(where)
    assert sum(opened(where, 0.3)[0].objects_by_class()) == 7


def test_the_limit_is_that_of_the_run_where_the_user_says_none(tmp_path):
    where = with_invalid(tmp_path, 2)
    (tmp_path / "recipe.yaml").write_text(
        f"task: detect\nmodel: {{name: mask_rcnn_convnext_atto}}\ndata: {{train: '{where}', max_corrupt: 0.3}}\n"
    )
    source, limit = opened(where, run=tmp_path)
    assert (sum(source.objects_by_class()), limit) == (7, 0.3)
    assert opened(where, 0.25, run=tmp_path)[1] == 0.25
    with pytest.raises(ConvnextError, match=r"more than 10\.0%"):
        opened(where, 0.1, run=tmp_path)
