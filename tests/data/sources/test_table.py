"""Labels from tables: which file, which column, which label, and what is refused."""

import pickle

import pytest
from helpers import sample_image

from convnext.data.images import CorruptImageError
from convnext.data.sources.base import ClassifySubset, target_kind_of
from convnext.data.sources.open import open_source
from convnext.data.sources.table import TableName, images_of
from convnext.errors import ConvnextError, UsageError
from convnext.tasks.classify.task import ClassifyTask

LABELS = ["ant", "bee", "ant", "wasp"]


def images(folder, names=("a.jpg", "b.jpg", "c.jpg", "d.png")):
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        sample_image(i, (12, 10)).save(folder / name)
    return folder


def write(path, rows, separator=",", encoding="utf-8", end="\n"):
    path.write_bytes(end.join([*(separator.join(row) for row in rows), ""]).encode(encoding))
    return str(path)


def table(root, header=("image", "label"), names=("a.jpg", "b.jpg", "c.jpg", "d.png"), labels=LABELS, name="labels.csv", **how):
    images(root)
    return write(root / name, [header, *zip(names, labels, strict=True)], **how)


def content(source):
    return {source.key(i): source.classes[source.label(i)] for i in range(len(source))}


EXPECTED = {"a.jpg": "ant", "b.jpg": "bee", "c.jpg": "ant", "d.png": "wasp"}


@pytest.mark.parametrize("header", [("image", "label"), ("Image Path", "Class"), ("file_name", "category"), ("filename", "target")])
@pytest.mark.parametrize(
    "how", [{}, {"separator": ";"}, {"separator": "\t"}, {"encoding": "utf-8-sig", "end": "\r\n"}, {"encoding": "utf-16"}]
)
def test_columns_and_dialects(tmp_path, header, how):
    source = open_source(table(tmp_path, header, **how))
    assert (source.classes, content(source)) == (["ant", "bee", "wasp"], EXPECTED)
    assert source.remarks == [f"columns: {header[0]} names the images, {header[1]} their labels"]
    assert source.read(3).size == (12, 10)
    assert target_kind_of(source) == target_kind_of(ClassifySubset(source, [0])) == "class"


def test_tsv_quotes_blank_lines_and_names_with_separators(tmp_path):
    images(tmp_path, ["a, b.jpg", "c\td.jpg"])
    where = write(tmp_path / "x.csv", [["image", "label"], [], ['"a, b.jpg"', '"a ""queen"""'], ["c\td.jpg", " bee "], []])
    assert content(open_source(where)) == {"a, b.jpg": 'a "queen"', "c\td.jpg": "bee"}
    where = write(tmp_path / "x.tsv", [["image", "label"], ["a, b.jpg", "x,y"], ['"c\td.jpg"', "z"]], "\t")
    assert content(open_source(where)) == {"a, b.jpg": "x,y", "c\td.jpg": "z"}


def test_parquet_and_numbers_sort_as_numbers(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    images(tmp_path)
    columns = {"path": ["a.jpg", "b.jpg", "c.jpg", "d.png"], "label": [2, 10, 2, 1], "box": [[1], [2], [3], [4]]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
    source = open_source(str(tmp_path / "x.parquet"))
    assert source.classes == ["1", "2", "10"]
    assert content(source) == {"a.jpg": "2", "b.jpg": "10", "c.jpg": "2", "d.png": "1"}
    (tmp_path / "y.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ConvnextError, match="y.parquet is not a Parquet file, or is damaged"):
        open_source(str(tmp_path / "y.parquet"))


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "x.parquet").touch()
    with pytest.raises(UsageError, match=r"needs pyarrow: run pip install '.\[tables\]'"):
        open_source(str(tmp_path / "x.parquet"))


def test_names_without_endings_in_the_folder_beside_the_table(tmp_path):
    """Kaggle: train.csv with ids, train/ and test/ with the images."""
    images(tmp_path / "train", ["1f.jpg", "2e.png", "3.a.JPG"])
    images(tmp_path / "test", ["9.jpg"])
    (tmp_path / "train" / "1f.txt").touch()
    source = open_source(write(tmp_path / "train.csv", [["id", "breed"], ["1f", "pug"], ["2e", "corgi"], ["3.a", "pug"]]) + ":label=breed")
    assert content(source) == {"1f.jpg": "pug", "2e.png": "corgi", "3.a.JPG": "pug"}
    assert source.remarks[0] == f"columns: id names the images, breed their labels; they are in {tmp_path}/train"
    (tmp_path / "train" / "1f.png").touch()
    with pytest.raises(ConvnextError, match=r"1f may be 1f.jpg or 1f.png in .*train: name it with its ending"):
        open_source(f"{tmp_path}/train.csv:label=breed")


def test_paths_start_from_the_root_and_may_have_backslashes_and_either_unicode_form(tmp_path):
    images(tmp_path / "photos" / "in", ["fu\u0308r.jpg", "b.jpg", "c.jpg"])
    outside = images(tmp_path / "elsewhere", ["o.jpg"]) / "o.jpg"
    rows = [["image", "label"], ["in/f\u00fcr.jpg", "x"], ["in\\b.jpg", "y"], ["./in/c.jpg", "x"], [str(outside), "y"]]
    where = write(tmp_path / "labels.csv", rows) + f":root={tmp_path}/photos"
    source = open_source(where)
    assert list(content(source)) == ["in/fu\u0308r.jpg", "in/b.jpg", "in/c.jpg", str(outside)]
    assert all(source.pixels(i).shape == (3, 10, 12) for i in range(4))
    with pytest.raises(UsageError, match="no folder nowhere, which the paths of .*labels.csv start from"):
        open_source(f"{tmp_path}/labels.csv:root=nowhere")
    for name in ("one", "two"):
        images(tmp_path / name, ["q.jpg"])
    with pytest.raises(UsageError, match="may be in .*one or .*two: set data.root"):
        open_source(write(tmp_path / "q.csv", [["image", "label"], ["q.jpg", "x"]]))


def test_odd_names_are_missing_images_and_no_defects(tmp_path):
    images(tmp_path)
    names = ["a.jpg", "x\0/b.jpg", "n" * 5000 + "/c.jpg", "http://host/d.jpg", "/", ".."]
    source = open_source(write(tmp_path / "labels.csv", [["image", "label"], *([name, "x"] for name in names)]))
    assert source.remarks[1].startswith("5 of 6 images of the table can't be found, the first ")
    for index in range(1, 6):
        with pytest.raises(CorruptImageError):
            source.pixels(index)


def test_missing_images_are_counted_named_and_unreadable(tmp_path):
    where = table(tmp_path)
    (tmp_path / "b.jpg").unlink()
    source = open_source(where)
    assert source.remarks[1:] == ["1 of 4 images of the table can't be found, the first b.jpg"]
    with pytest.raises(CorruptImageError, match="b.jpg: there is no such file"):
        source.pixels(1)
    assert ClassifyTask().check(where) == [f"{tmp_path}/b.jpg: there is no such file"]
    for name in ("a.jpg", "c.jpg", "d.png"):
        (tmp_path / name).unlink()
    with pytest.raises(ConvnextError, match="none of the 4 images of .* is in .*, the first a.jpg: give the folder"):
        open_source(where)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["image", "label"], ["a.jpg", "x"], ["b.jpg", ""]], "row 3 of .*labels.csv has no label in the column 'label'"),
        ([["image", "label"], ["a.jpg", "x"], ["", "y"]], "row 3 of .*labels.csv names no image"),
        ([["image", "label"], ["a.jpg", "x"], [], ["b.jpg"]], "row 4 of .*labels.csv has 1 field, the header 2"),
        ([["image", "label"], ["a.jpg", "x"], ["b.jpg", "y", "z"]], "row 3 of .*labels.csv has 3 fields"),
        ([["image", "label"], ["a.jpg", "x"], ["a.jpg", "y"]], "a.jpg has two labels in .*labels.csv, rows 2 and 3"),
        ([["image", "label"], ["a.jpg", "x"], ["./a", "y"]], "a.jpg has two labels"),
        ([["image", "label"], ["a.jpg", '"x'], ["b.jpg", "y"]], "row 2 of .*labels.csv can't be read"),
        ([["image", "label", "label"], ["a.jpg", "x", "x"]], "two columns 'label'"),
        ([["image", "label"]], "no rows below its header"),
        ([["photo", "label"], ["a.jpg", "x"]], r"no column of images \(it has photo, label\).*data.image_column=NAME"),
        ([["image", "species"], ["a.jpg", "x"]], r"no column of labels \(it has image, species\).*labels.csv:label=NAME"),
        ([["a.jpg", "x"], ["b.jpg", "y"]], "the first row must name the columns"),
    ],
)
def test_what_is_wrong_is_named_with_its_row(tmp_path, rows, message):
    images(tmp_path)
    with pytest.raises(ConvnextError, match=message):
        open_source(write(tmp_path / "labels.csv", rows))


def test_rows_that_repeat_are_reported_and_options_are_checked(tmp_path):
    images(tmp_path)
    where = write(tmp_path / "labels.csv", [["image", "label"], ["a.jpg", "x"], ["b.jpg", "y"], ["a", "x"]])
    source = open_source(where)
    assert content(source) == {"a.jpg": "x", "b.jpg": "y"}
    assert source.remarks[1] == "skipped 1 row that repeats an earlier one, the first row 4 (a.jpg)"
    with pytest.raises(UsageError, match="data.label_column=lable: .* has no such column; did you mean 'label'"):
        open_source(f"{where}:label=lable")
    with pytest.raises(UsageError, match="unknown option 'lable'; did you mean 'label'"):
        open_source(f"{where}:lable=label")
    with pytest.raises(UsageError, match="no table .*other.csv"):
        open_source(f"{tmp_path}/other.csv")
    (tmp_path / "latin.csv").write_bytes("image,label\na.jpg,für\n".encode("latin-1"))
    with pytest.raises(ConvnextError, match="latin.csv is not UTF-8"):
        open_source(f"{tmp_path}/latin.csv")


def test_a_folder_of_images_whose_labels_are_in_a_table_names_it(tmp_path):
    where = table(tmp_path / "all")
    with pytest.raises(ConvnextError, match=f"has no class folders: .*, or give the table of their labels, as {where}"):
        open_source(f"{tmp_path}/all")
    images(tmp_path / "all" / "train")
    with pytest.raises(ConvnextError, match=f"has no class folders: .*, or give the table of their labels, as {where}"):
        open_source(f"{tmp_path}/all/train")


def test_given_classes_decide_the_labels(tmp_path):
    where = table(tmp_path)
    assert [open_source(where, ["wasp", "bee", "ant"]).label(i) for i in range(4)] == [2, 1, 2, 0]
    with pytest.raises(ConvnextError, match="row 5 of .*: wasp is not one of the classes trained on; did you mean 'wasps'"):
        open_source(where, ["ant", "bee", "wasps"])


SPLIT = [["image", "label", "split"], ["a.jpg", "x", "train"], ["b.jpg", "y", "Validation"], ["c.jpg", "y", "train"], ["d.png", "", "test"]]


def test_the_column_split(tmp_path):
    images(tmp_path)
    where = write(tmp_path / "labels.csv", SPLIT)
    source = open_source(where)
    assert source.parts == ["train", "val", "train"]
    assert source.remarks[1:] == ["column split: train 2, val 1, test 1", "skipped 1 image of the part test without a label"]
    assert content(open_source(f"{where}:split=val")) == {"b.jpg": "y"}
    assert open_source(f"{where}:split=val").classes == ["x", "y"]
    with pytest.raises(ConvnextError, match="names no images with labels"):
        open_source(f"{where}:split=test")
    with pytest.raises(UsageError, match="no images of the part 'dev2'"):
        open_source(f"{where}:split=dev2")
    with pytest.raises(ConvnextError, match="a.jpg has two parts in .*, rows 2 and 6"):
        open_source(write(tmp_path / "twice.csv", [*SPLIT, ["a.jpg", "x", "val"]]))
    other = open_source(write(tmp_path / "other.csv", [*SPLIT[:3], ["c.jpg", "y", "banana"]]))
    assert other.parts is None
    assert other.remarks[1] == "the column 'split' holds 'banana', not only train, val and test: it is not used"
    assert [path for path, _ in images_of(where)] == ["a.jpg", "b.jpg", "c.jpg", "d.png"]
    assert images_of(f"{where}:split=test") == [("d.png", tmp_path / "d.png")]


def test_several_classes_and_numbers_are_read_and_a_classifier_refuses_them(tmp_path):
    images(tmp_path)
    many = write(tmp_path / "many.csv", [["image", "labels"], ["a.jpg", "x|y"], ["b.jpg", ""], ["c.jpg", "z| x |x"]])
    source = open_source(many)
    assert (source.target_kind, source.classes) == ("classes", ["x", "y", "z"])
    assert [source.label(i) for i in range(3)] == [(0, 1), (), (0, 2)]
    assert [source.label(i) for i in (0, 2)] == [tuple(sorted(open_source(many, ["x", "y", "z"]).label(i))) for i in (0, 2)]
    hot = write(tmp_path / "hot.csv", [["image", "MEL", "NV"], ["a.jpg", "1.0", "0.0"], ["b.jpg", "1", "1"], ["c.jpg", "0", "0"]])
    source = open_source(hot)
    assert (source.target_kind, source.classes, [source.label(i) for i in range(3)]) == ("classes", ["MEL", "NV"], [(0,), (0, 1), ()])
    assert [open_source(hot, ["NV", "MEL"]).label(i) for i in range(2)] == [(1,), (0, 1)]
    number = write(tmp_path / "number.csv", [["image", "value"], ["a.jpg", "1.5"], ["b.jpg", "-2e3"]])
    source = open_source(number)
    assert (source.target_kind, source.classes, [source.label(i) for i in range(2)]) == ("value", ["value"], [1.5, -2000.0])
    assert len({source.label_bytes(i) for i in range(2)}) == 2
    assert pickle.loads(pickle.dumps(source)).label(0) == 1.5
    with pytest.raises(ConvnextError, match="row 2 of .* has 'nan', which is not a number in the column 'value'"):
        open_source(write(tmp_path / "nan.csv", [["image", "value"], ["a.jpg", "nan"]]))
    several = "any number of classes", "multilabel"
    for where, what, task in ((many, *several), (hot, *several), (number, "a number", "regress")):
        with pytest.raises(UsageError, match=f"has {what} for each image, and a classifier learns one class: take task={task}"):
            ClassifyTask().check(where)


def test_the_name_of_a_table_is_read_and_written():
    name = TableName.parse("a:b/c.CSV:root=C:/photos:label=x=y")
    assert (str(name.path), name.options) == ("a:b/c.CSV", {"root": "C:/photos", "label": "x=y"})
    assert str(name) == "a:b/c.CSV:root=C:/photos:label=x=y"
    assert TableName.parse("photos") is TableName.parse("x.csv.gz") is TableName.parse("digits:train") is None
