import json
import multiprocessing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from convnext.errors import UsageError
from convnext.inference.answers import Answer
from convnext.inference.embeddings import FeaturesOutput
from convnext.inference.inputs import Item
from convnext.inference.outputs import open_output
from convnext.tasks.classify.prediction import ClassifyPrediction

CLASSES = ["ant", "bee, wild", "wasp"]
PREDICTOR = SimpleNamespace(task="classify", classes=CLASSES, options={})
NAMES = ["1.png", 'a "b"\n,c.png', "caf\udce9.png", "4.png"]  # a quote, a newline and a byte that is no UTF-8


def answer(name, i=0):
    item = Item(name, name, Path(name))
    if name == "4.png":
        return Answer(item, error="4.png: not an image")
    probabilities = torch.tensor([0.5, 0.3, 0.2]).roll(i)
    return Answer(item, prediction=ClassifyPrediction(probabilities, CLASSES), features=np.full(5, i, np.float32))


def write(path, names=NAMES):
    """What a call leaves: what is done already is not written again."""
    output = open_output(path, None, PREDICTOR, [], 2, False)
    output.write([answer(name, NAMES.index(name)) for name in names if name not in output.done])
    output.finish()
    return output.done


@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
def test_wherever_writing_was_cut_off_the_next_call_completes_it(tmp_path, ending):
    write(tmp_path / f"whole{ending}")
    whole = (tmp_path / f"whole{ending}").read_bytes()
    path = tmp_path / f"cut{ending}"
    held = set()
    for size in range(0, len(whole), 3):
        path.write_bytes(whole[:size])
        held.add(len(write(path)))
        assert path.read_bytes() == whole, f"cut off at {size}"
    assert held == {0, 1, 2, 3}  # what was whole was kept
    assert write(path) == {name: "4.png: not an image" if name == "4.png" else None for name in NAMES}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl", b'{"file": "1.png"}\n'),
        ("x.jsonl", b'{"image": "1.png"}\nnonsense\n{"image": "2.png"}\n'),
        ("x.jsonl", b"a text that does not end"),
        ("x.csv", b"image,class\n1.png,ant\n"),
        ("x.csv", b"image,row,rows,class,probability,error\n1.png,1,1,ant\n"),
    ],
)
def test_a_file_of_someone_else_is_refused_and_untouched(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=rf"{name} can't be resumed.*--overwrite"):
        open_output(tmp_path / name, None, PREDICTOR, [], None, False)
    assert (tmp_path / name).read_bytes() == content
    assert open_output(tmp_path / name, None, PREDICTOR, [], None, True).done == {}


def test_someone_elses_array_table_and_annotations_are_refused_and_untouched(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(3))
    for name in ("x.parquet", "x.json"):
        (tmp_path / name).write_text("mine")
    detector = SimpleNamespace(task="detect", classes=CLASSES)
    with pytest.raises(UsageError, match=r"x\.json exists already"):
        open_output(tmp_path / "x.json", None, detector, [], None, False)
    for name in ("x.npy", "x.parquet"):
        with pytest.raises(UsageError, match="exists already"):
            FeaturesOutput(tmp_path / name)
    assert np.load(tmp_path / "x.npy").shape == (3,)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x.npy", "x.parquet"]


def test_formats_are_of_endings_and_tasks(tmp_path):
    for name, kind, message in (
        ("x.txt", None, "has no known ending"),
        ("x.txt", "cvs", "did you mean 'csv'"),
        ("x.json", None, "a network for the task 'classify' has no coco output: use .jsonl or .csv"),
        ("masks", None, "a network for the task 'classify' has no masks output"),
    ):
        with pytest.raises(UsageError, match=message):
            open_output(tmp_path / name, kind, PREDICTOR, [], None, False)
    assert not list(tmp_path.iterdir())
    write_as_csv = open_output(tmp_path / "x.txt", "csv", PREDICTOR, [], 1, False)
    write_as_csv.write([answer("1.png")])
    assert (tmp_path / "x.txt").read_text().splitlines()[1].startswith("1.png,1,1,ant,0.5")


def test_embeddings_cut_off_between_array_and_list_keep_their_rows_together(tmp_path):
    path = tmp_path / "x.npy"
    output = FeaturesOutput(path)
    output.write([answer("1.png", 1), answer("4.png")])
    output.write([answer("2.png", 2)])
    lines = (tmp_path / "x.rows.jsonl").read_bytes().splitlines(keepends=True)
    assert [json.loads(line).get("row") for line in lines] == [0, None, 1]
    del output
    (tmp_path / "x.rows.jsonl").write_bytes(b"".join(lines[:2]))  # killed when the rows were on the disk, and not yet their lines
    output = FeaturesOutput(path)
    assert output.done == {"1.png": None, "4.png": "4.png: not an image"}
    output.write([answer("3.png", 3), answer("5.png", 5)])
    output.finish()
    assert np.load(path).tolist() == [[1] * 5, [3] * 5, [5] * 5]
    with pytest.raises(UsageError, match="embeddings of 5 numbers, but this network gives 7"):
        output.write([Answer(Item("6.png", "6.png", None), features=np.zeros(7, np.float32))])


def test_two_processes_do_not_write_one_file(tmp_path):
    output = open_output(tmp_path / "x.jsonl", None, PREDICTOR, [], None, False)
    with multiprocessing.get_context("fork").Pool(1) as pool, pytest.raises(UsageError, match="is being written by another process"):
        pool.apply(open_output, (tmp_path / "x.jsonl", None, PREDICTOR, [], None, False))
    assert output.done == {}
