import multiprocessing
import os
import pickle
import tarfile

import numpy as np
import pytest
from helpers import shared
from PIL import Image
from shard_files import NUMBERS, decoded, jpeg, pixels, samples, shard, three_shards

from convnext.data.images import CorruptImageError
from convnext.data.loader import Samples, make_loader
from convnext.data.sampling.order import EVALUATION, EpochOrder, InOrder
from convnext.data.sources.packed import shards
from convnext.data.sources.packed.shards import is_shards, open_shards
from convnext.errors import ConvnextError, UsageError


@pytest.mark.parametrize("where", ["", "/train-*.tar", "/train-{000..002}.tar"])
def test_every_form_of_name_gives_each_sample_with_its_label(tmp_path, where):
    where = str(three_shards(tmp_path)) + where
    assert is_shards(where)
    source = open_shards(where)
    assert len(source) == 13
    assert source.classes == ["0", "1", "2"]
    for index, number in enumerate(NUMBERS):
        assert pixels(source, index) == decoded(number)
        assert source.label(index) == number % 3
    assert source.name(5) == f"{tmp_path}/train-001.tar/0010"
    assert len(open_shards(f"{tmp_path}/train-001.tar")) == 2


def test_what_is_a_folder_of_shards_and_what_is_not(tmp_path):
    three_shards(tmp_path)
    assert is_shards("https://x.org/{0..3}.tar")
    assert is_shards("hf://datasets/some/body/a.tar")
    assert is_shards("no/such/file.tar.gz")
    assert not is_shards("digits:train")
    (tmp_path / ".cache").mkdir()
    assert is_shards(str(tmp_path))
    (tmp_path / "ant").mkdir()
    assert not is_shards(str(tmp_path))


def test_labels_come_as_numbers_or_names_in_any_of_three_files(tmp_path):
    files = [
        *(("a.JPG", jpeg(0)), ("a.cls", b"2\n")),
        *(("b.json", b'{"label": 1, "width": 24}'), ("b.jpg", jpeg(1)), ("b.txt", b"a photograph")),
        *(("deep/c.png", jpeg(2)), ("deep/c.txt", b"ant")),
        *(("d.jpg", jpeg(3)), ("d.cls", b"wasp"), ("d.seg.png", b"")),
    ]
    path = shard(tmp_path / "a.tar", files)
    (tmp_path / "classes.txt").write_text("ant\tan ant\nbee\nwasp\n")
    source = open_shards(str(path))
    assert [source.label(i) for i in range(4)] == [2, 1, 0, 2]
    assert source.name(2).endswith("a.tar/deep/c")
    assert source.classes == ["ant", "bee", "wasp"]


def test_given_classes_are_matched_by_name_to_those_of_the_shards(tmp_path):
    path = str(shard(tmp_path / "a.tar", samples(0, 3)))
    assert open_shards(path, ["x", "y", "z"]).classes == ["x", "y", "z"]  # nothing beside the shards says otherwise
    (tmp_path / "classes.txt").write_text("bee\nwasp\nant\n")
    source = open_shards(path, ["ant", "bee", "cat", "wasp"])
    assert [source.label(i) for i in range(3)] == [1, 3, 0]
    assert source.classes == ["ant", "bee", "cat", "wasp"]
    assert [open_shards(path, ["0", "1", "2"]).label(i) for i in range(3)] == [0, 1, 2]  # a network trained on numbers
    with pytest.raises(ConvnextError, match="wasp in .*classes.txt is not one of the classes trained on; did you mean 'wasps'"):
        open_shards(path, ["ant", "bee", "wasps"])
    (tmp_path / "classes.txt").write_text("bee\nant\nbee\n")
    with pytest.raises(ConvnextError, match="classes.txt names the class bee twice"):
        open_shards(path)


def test_files_of_no_sample_are_reported_and_a_broken_image_is_named(tmp_path):
    files = [("README", b"hi"), ("._0000.jpg", b""), *samples(0, 1), ("b.jpg", jpeg(1)[:100]), ("b.cls", b"0")]
    path = shard(tmp_path / "a.tar", files)
    source = open_shards(str(path))
    assert source.skipped == [f"{path}/README"]
    assert source.remarks == ["skipped 1 file that operating systems leave in archives"]
    assert len(source) == 2
    with pytest.raises(CorruptImageError, match="a.tar/b: "):
        source.read(1)


BAD = {
    "no label": ([("k.jpg", b"x")], "sample 'k' .* has no label in .cls, .json or .txt .it has .jpg;"),
    "no image": ([("k.cls", b"1")], "sample 'k' .* has no image .it has .cls;"),
    "two images": ([("k.jpg", b"x"), ("k.png", b"x"), ("k.cls", b"1")], "sample 'k' .* has two images"),
    "apart": ([("k.jpg", b"x"), ("m.jpg", b"x"), ("k.cls", b"1"), ("m.cls", b"1")], "'k' .* no label .*must follow one another"),
    "no number": ([("k.jpg", b"x"), ("k.cls", b"one")], "'k' .* label 'one', which is not a number, and there is no classes.txt"),
    "no whole number": ([("k.jpg", b"x"), ("k.json", b'{"label": 1.5}')], "'k' .* label '1.5', which is not a number"),
    "no json": ([("k.jpg", b"x"), ("k.json", b"{")], "'k' .* has a .json that can't be read"),
    "empty label": ([("k.jpg", b"x"), ("k.cls", b"")], "'k' .* label '', which is not a number"),
    "negative": ([("k.jpg", b"x"), ("k.cls", b"-1")], "'k' .* has the label -1, which is not one of 0 to"),
    "an identifier": ([("k.jpg", b"x"), ("k.cls", b"99999999999999999999")], "'k' .* has the label 9+, which is not one of 0 to 999999"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_sample_is_reported_by_shard_and_key_at_opening(tmp_path, kind):
    files, message = BAD[kind]
    path = shard(tmp_path / "bad.tar", [*samples(0, 2), *files])
    with pytest.raises(ConvnextError, match=message) as error:
        open_shards(str(path))
    assert f"of {path} " in str(error.value)
    assert "write the shard again" in str(error.value)


def test_a_label_outside_the_classes_is_reported(tmp_path):
    path = str(shard(tmp_path / "a.tar", samples(0, 3)))
    with pytest.raises(ConvnextError, match="sample '0002' .* has the label 2, which is not one of 0 to 1"):
        open_shards(path, ["ant", "bee"])
    path = str(shard(tmp_path / "b.tar", [("k.jpg", b"x"), ("k.cls", b"bees")]))
    with pytest.raises(ConvnextError, match="label 'bees', .* nor one of the 2 classes; did you mean 'bee'"):
        open_shards(path, ["ant", "bee"])


def test_missing_and_empty_and_compressed_shards_are_reported(tmp_path):
    three_shards(tmp_path)
    for where, message in [
        (f"{tmp_path}/train-{{001..004}}.tar", "no shard .*train-003.tar; .* names 4"),
        (f"{tmp_path}/val-*.tar", "no shard .*val-"),
        (f"{tmp_path}/none.tar", "no shard .*none.tar"),
        (f"{tmp_path}/train-{{4..1}}.tar", "range {4..1} runs backwards"),
        ("https://127.0.0.1:9/*.tar", "must name one .tar file or a range"),
        ("https://127.0.0.1:9/a.tgz", "must name one .tar file or a range"),
        ("hf://datasets/some/a.tar", "the form is hf://datasets/owner/name/file.tar"),
    ]:
        with pytest.raises(UsageError, match=message):
            open_shards(where)
    path = shard(tmp_path / "empty" / "a.tar", [])
    with pytest.raises(ConvnextError, match="a.tar holds no samples: remove it"):
        open_shards(str(path))
    path.write_bytes(b"")
    with pytest.raises(ConvnextError, match="a.tar is damaged or ends early after its beginning .empty file.: remove it, and download"):
        open_shards(str(path))
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(ConvnextError, match="a.tar is compressed"):
        open_shards(str(path))
    shard(tmp_path / "val-000.tar", samples(0, 1))
    with pytest.raises(UsageError, match=r"holds train-\*.tar and val-\*.tar: name one, as in .*/train-\*.tar"):
        open_shards(str(tmp_path))


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_shard_cut_anywhere_is_reported_at_opening(tmp_path, format):
    long = "" if format == tarfile.USTAR_FORMAT else "long" * 40  # beyond the 100 bytes of a plain header
    files = [(f"{long}{name}", content) for name, content in samples(0, 3)]
    path = shard(tmp_path / "a.tar", files, format)
    whole = path.read_bytes()
    source = open_shards(str(path))
    assert [pixels(source, i) for i in range(3)] == [decoded(i) for i in range(3)]
    assert source.name(1) == f"{path}/{long}0001"
    mark = len(whole.rstrip(b"\0")) // 512 * 512 + 512  # the end mark begins with the block behind the last label
    for cut in range(0, mark + 512, 64):
        path.write_bytes(whole[:cut])
        with pytest.raises(ConvnextError, match="a.tar .*: remove it, and download or write it again"):
            open_shards(str(path))
    path.write_bytes(whole[: mark + 512])
    assert len(open_shards(str(path))) == 3


def test_damaged_headers_and_joined_files_are_reported_at_opening(tmp_path):
    path = shard(tmp_path / "a.tar", samples(0, 3))
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        headers = [info.offset for info in tar]
    for at in headers:
        path.write_bytes(whole[: at + 3] + b"\xff" + whole[at + 4 :])
        with pytest.raises(ConvnextError, match="a.tar is damaged .*: remove it"):
            open_shards(str(path))
    path.write_bytes(whole + whole)
    with pytest.raises(ConvnextError, match="continues after its end mark, which follows '0002.cls' .cat can't join tar files"):
        open_shards(str(path))


def test_it_is_pickled_without_its_open_files_and_reads_the_same_in_a_spawned_process(tmp_path):
    source = open_shards(str(three_shards(tmp_path)))
    wanted = [pixels(source, i) for i in range(13)]
    again = pickle.loads(pickle.dumps(source))
    assert (len(source._files), len(again._files)) == (3, 0)
    assert [pixels(again, i) for i in range(13)] == wanted
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert np.asarray(pool.apply(source.read, (7,))).tobytes() == wanted[7]


def test_no_more_files_are_open_than_a_process_may_have(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_OPEN_FILES", 2)
    source = open_shards(str(three_shards(tmp_path)))
    before = len(os.listdir("/proc/self/fd"))
    for index in (0, 5, 7, 0, 12, 6, 1):
        assert pixels(source, index) == decoded(NUMBERS[index])
    assert len(os.listdir("/proc/self/fd")) == before + 2


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_see_each_sample_once_an_epoch(tmp_path, workers):
    source = open_shards(str(three_shards(tmp_path)))
    source.read(0)  # so that the workers inherit an open file
    data = Samples(source, lambda image: np.asarray(image if isinstance(image, Image.Image) else image.permute(1, 2, 0)).tobytes(), seed=0)
    seen = [s for batch in make_loader(data, InOrder(13, 4), list, workers, pin=False) for s in batch]
    assert [(s.index, s.label, s.image) for s in seen] == [(i, n % 3, decoded(n)) for i, n in enumerate(NUMBERS)]
    order = EpochOrder(13, 1, seed=1)
    loader = make_loader(data, order, list, workers, pin=False)
    for order.epoch in range(2):
        seen = [s for batch in loader for s in batch]
        assert sorted(s.index for s in seen) == list(range(13))
        assert all(s.image == decoded(NUMBERS[s.index]) for s in seen)
    assert data[(EVALUATION, 3)].index == 3


@pytest.mark.slow
def test_tiny_imagenet_is_read():
    root = shared("data/tiny-imagenet-40")
    train = open_shards(f"{root}/train-{{000000..000007}}.tar")
    val = open_shards(f"{root}/val-*.tar", train.classes)
    assert (len(train), len(val), len(train.classes)) == (20000, 2000, 40)
    assert train.classes[:2] == ["n01443537", "n01742172"]
    assert np.bincount([train.label(i) for i in range(20000)]).tolist() == [500] * 40
    with tarfile.open(root / "train-000003.tar") as tar:
        content, label = (tar.extractfile(f"008765.{ending}").read() for ending in ("jpg", "cls"))
    index = next(i for i in range(20000) if train.name(i).endswith("/008765"))
    assert (pixels(train, index), train.label(index)) == (np.asarray(shards.read_image(content)).tobytes(), int(label))
