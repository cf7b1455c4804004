"""Datasets whose tables hold the images, on the hub and on this machine."""

import json
import os

import numpy as np
import pytest
from file_server import Server
from shard_files import jpeg, samples, shard

from convnext.data import download as download_module
from convnext.data.images import read_image
from convnext.data.sources.open import open_source
from convnext.data.sources.packed.embedded import _part_name, is_embedded
from convnext.errors import ConvnextError, UsageError
from convnext.inference.inputs import find_items
from convnext.recipe import load_recipe
from convnext.tasks.classify.task import ClassifyTask

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

NAMES = ["cat", "dog"]
COMMIT = "c0ffee" * 6 + "c0ff"
FEATURES = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "cache"))


def rows(first, labels, features=FEATURES, **more):
    """A table of images known by their numbers, as `datasets` writes it."""
    images = [{"bytes": jpeg(first + i), "path": f"{first + i}.jpg"} for i in range(len(labels))]
    made = pyarrow.table({"image": images, "label": labels} | {name: list(values) for name, values in more.items()})
    note = {b"huggingface": json.dumps({"info": {"features": features}}).encode()} if features else None
    return made.replace_schema_metadata(note)


def write(path, made, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(made, path, **how)
    return str(path)


def check(source, numbers, labels):
    assert [source.label(i) for i in range(len(source))] == labels
    for index, number in enumerate(numbers):
        assert np.array_equal(source.read(index), read_image(jpeg(number)))
        assert tuple(source.pixels(index).shape) == (3, 20, 24)


def test_a_parquet_file_of_images_is_read_at_random_and_written_once(tmp_path):
    where = write(tmp_path / "x.parquet", rows(0, [1, 0, 1, 1, 0]), row_group_size=2)
    source = open_source(where)
    assert source.classes == NAMES
    check(source, range(5), [1, 0, 1, 1, 0])
    (folder,) = (tmp_path / "cache" / "tables").iterdir()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = open_source(where)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert [again.key(i) for i in range(5)] == [source.key(i) for i in range(5)]
    assert [open_source(where, ["dog", "cat"]).label(i) for i in range(5)] == [0, 1, 0, 0, 1]
    with pytest.raises(ConvnextError, match="cat in .* is not one of the classes trained on"):
        open_source(where, ["ant", "dog"])
    assert ClassifyTask().overview(where) == ["5 images, 2 classes: cat 2, dog 3"]
    assert ClassifyTask().check(where) == []
    assert [item.read().size for item in find_items([where])] == [(24, 20)] * 5


def test_labels_as_text_as_bare_numbers_and_missing(tmp_path):
    source = open_source(write(tmp_path / "text.parquet", rows(0, ["10", "b", "10"], features=None)))
    assert (source.classes, [source.label(i) for i in range(3)]) == (["10", "b"], [0, 1, 0])
    source = open_source(write(tmp_path / "numbers.parquet", rows(0, [2, 0], features=None)))
    assert (source.classes, [source.label(i) for i in range(2)]) == (["0", "1", "2"], [2, 0])
    source = open_source(write(tmp_path / "some.parquet", rows(0, [-1, 0, None, 1])))
    check(source, [1, 3], [0, 1])
    assert source.remarks == ["skipped 2 images without a label"]
    with pytest.raises(ConvnextError, match="the 2 images of .*none.parquet have no labels"):
        open_source(write(tmp_path / "none.parquet", rows(0, [-1, -1])))
    with pytest.raises(ConvnextError, match="has the label 2, and 2 classes"):
        open_source(write(tmp_path / "more.parquet", rows(0, [0, 2])))
    many = pyarrow.table({"image": [b"x"], "label": [[0, 1]]})
    with pytest.raises(UsageError, match="the column label has any number of classes for each image"):
        open_source(write(tmp_path / "many.parquet", many))


def test_columns_are_chosen_by_name(tmp_path):
    features = {
        "image": {"_type": "Image"},
        **{f"{kind}_label": {"names": ["a", "b"], "_type": "ClassLabel"} for kind in ("fine", "coarse")},
    }
    made = rows(0, [0, 1], features, fine_label=[1, 1], coarse_label=[0, 1])
    where = write(tmp_path / "x.parquet", made.drop_columns(["label"]))
    with pytest.raises(
        UsageError, match="several columns that may be the label: fine_label, coarse_label; say which, with data.label_column"
    ):
        open_source(where)
    check(open_source(f"{where}:label=coarse_label"), [0, 1], [0, 1])
    with pytest.raises(UsageError, match="no column 'fine'; known: coarse_label, fine_label, image"):
        open_source(f"{where}:label=fine")
    data = ClassifyTask().open(load_recipe("finetune", [f"data.train={where}", f"data.val={where}", "data.label_column=coarse_label"]))
    check(data.val.source, [0, 1], [0, 1])
    folder = tmp_path / "set"
    write(folder / "x.parquet", made.drop_columns(["label"]))
    with pytest.raises(UsageError, match="data.root is of tables that name files"):
        ClassifyTask().open(load_recipe("finetune", [f"data.train={folder}", "data.root=x"]))


def test_folders_of_parquet_and_of_save_to_disk(tmp_path):
    write(tmp_path / "set" / "data" / "train-00000-of-00002.parquet", rows(0, [0, 1]))
    write(tmp_path / "set" / "data" / "train-00001-of-00002.parquet", rows(2, [1]))
    write(tmp_path / "set" / "data" / "test-00000-of-00001.parquet", rows(9, [0]))
    check(open_source(f"{tmp_path}/set:train"), range(3), [0, 1, 1])
    check(open_source(f"{tmp_path}/set:test"), [9], [0])
    with pytest.raises(UsageError, match=f"set has several parts: name one of {tmp_path}/set:test, {tmp_path}/set:train"):
        open_source(f"{tmp_path}/set")
    with pytest.raises(UsageError, match="no part 'trian'; did you mean 'train'"):
        open_source(f"{tmp_path}/set:trian")
    for part, first in (("train", 20), ("test", 30)):
        folder = tmp_path / "saved" / part
        folder.mkdir(parents=True)
        made = rows(first, [1, 0])
        with pyarrow.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file, pyarrow.ipc.new_stream(file, made.schema) as stream:
            stream.write_table(made)
        (folder / "state.json").touch()
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    check(open_source(f"{tmp_path}/saved:train"), [20, 21], [1, 0])
    check(open_source(f"{tmp_path}/saved/test"), [30, 31], [1, 0])
    (tmp_path / "saved" / "test" / "data-00000-of-00001.arrow").write_bytes(b"ARROW")
    with pytest.raises(ConvnextError, match="is not an Arrow file of `datasets`, or is damaged"):
        open_source(f"{tmp_path}/saved/test")


def test_tables_of_paths_and_class_folders_with_a_table_are_not_taken_for_images(tmp_path):
    paths = pyarrow.table({"image": ["a.jpg"], "label": [0]})
    assert not is_embedded(write(tmp_path / "x.parquet", paths))
    write(tmp_path / "photos" / "x.parquet", rows(0, [0]))
    (tmp_path / "photos" / "ant").mkdir()
    assert not is_embedded(str(tmp_path / "photos"))
    assert not is_embedded("hf://datasets/a/b/x-{000..001}.tar")


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("data/train-00000-of-00002.parquet", "train"),
        ("data/train-00000-of-00002-0123456789abcdef.parquet", "train"),
        ("plain_text/test-00000-of-00001.parquet", "plain_text/test"),
        ("default/partial-train/0000.parquet", "train"),
        ("train/0.parquet", "train"),
        ("validation.parquet", "validation"),
        ("train/data-00000-of-00001.arrow", "train"),
        ("fr/valid_1.parquet", "fr/valid"),
    ],
)
def test_the_path_of_a_file_says_its_part(file, part):
    assert _part_name(file) == part


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub at this address; returns its files, and a function that lists a dataset's files there."""
    server = Server({})
    server.commit = COMMIT
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", server.address + template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(download_module, "_WAITS", ())

    def publish(files, revision=""):
        at = f"/revision/{revision.replace('/', '%2F')}" if revision else ""
        listing = {"id": "some/body", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
        server.files[f"api/datasets/some/body{at}"] = json.dumps(listing).encode()
        server.files |= {f"datasets/some/body/resolve/{COMMIT}/{name}": content for name, content in files.items()}

    yield server, publish
    server.shutdown()
    server.server_close()


def content(made, tmp_path):
    write(tmp_path / "part.parquet", made)
    return (tmp_path / "part.parquet").read_bytes()


def test_a_dataset_on_the_hub_is_listed_downloaded_once_and_then_needs_no_network(hub, tmp_path):
    server, publish = hub
    page = "---\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n  - name: label\n    dtype:\n      class_label:\n        names:\n          '0': kitten\n          '1': pup\n---\n# Pets\n"
    files = {f"data/train-0000{i}-of-00002.parquet": content(rows(2 * i, [i, 1], features=None), tmp_path) for i in (0, 1)}
    publish(files | {"data/test-00000-of-00001.parquet": content(rows(9, [0], features=None), tmp_path), "README.md": page.encode()})
    source = open_source("hf://datasets/some/body/train")
    assert source.classes == ["kitten", "pup"]
    check(source, range(4), [0, 1, 1, 1])
    with pytest.raises(UsageError, match="hf://datasets/some/body has several parts: name one of hf://datasets/some/body/test, hf://"):
        open_source("hf://datasets/some/body")
    assert not [path for path, _ in server.log if "test-" in path]
    del server.files[f"datasets/some/body/resolve/{COMMIT}/data/test-00000-of-00001.parquet"]
    with pytest.raises(ConvnextError, match=rf"could not download hf://datasets/some/body@{COMMIT}/data/test-00000-of-00001.parquet"):
        open_source("hf://datasets/some/body/test")
    server.shutdown()
    server.server_close()
    check(open_source("hf://datasets/some/body/train"), range(4), [0, 1, 1, 1])


def test_a_revision_a_configuration_and_the_copy_in_parquet(hub, tmp_path):
    _, publish = hub
    publish({"x.py": b""})
    publish({"small/train/0000.parquet": content(rows(3, [1, 0]), tmp_path), "big/train/0000.parquet": b""}, "refs/convert/parquet")
    publish({"train.parquet": content(rows(5, [1, 1]), tmp_path)}, "v2")
    check(open_source("hf://datasets/some/body/small/train"), [3, 4], [1, 0])
    with pytest.raises(
        UsageError, match="several parts 'train': name one of hf://datasets/some/body/big/train, hf://datasets/some/body/small/train"
    ):
        open_source("hf://datasets/some/body/train")
    check(open_source("hf://datasets/some/body@v2"), [5, 6], [1, 1])
    check(open_source("hf://datasets/some/body@v2/train.parquet"), [5, 6], [1, 1])


def test_what_the_hub_lacks_is_named(hub, tmp_path):
    _, publish = hub
    with pytest.raises(ConvnextError, match=r"could not list the files of hf://datasets/no/body \(.*hf download no/body"):
        open_source("hf://datasets/no/body/train")
    publish({"x.csv": b""}, "v1")
    with pytest.raises(UsageError, match="has no Parquet files"):
        open_source("hf://datasets/some/body@v1")


def test_a_shard_on_the_hub_is_still_a_shard(hub, tmp_path):
    server, _ = hub
    server.files["datasets/some/body/resolve/main/x.tar"] = shard(tmp_path / "x.tar", samples(0, 3)).read_bytes()
    assert len(open_source("hf://datasets/some/body/x.tar")) == 3
    assert os.path.exists(tmp_path / "hub")
