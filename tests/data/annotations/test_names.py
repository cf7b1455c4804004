"""Class names from the files that tools write, and every file that only looks like one."""

import json

import pytest
from helpers import sample_image

from convnext.cli import app
from convnext.data.annotations.mask_files import read_classes
from convnext.data.annotations.names import read_names
from convnext.errors import ConvnextError, UsageError


def written(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("name", ["data.yaml", "data.yml", "DATA.YAML"])
@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("train: ../train/images\nval: ../valid/images\n\nnc: 2\nnames: ['red', 'blue']\n", ["red", "blue"]),
        ("names:\n- red\n- blue\n", ["red", "blue"]),
        ("names:\n  1: blue\n  0: red\n", ["red", "blue"]),
        ("nc: 2\nnames:\n  '0': red\n  '1': blue\n", ["red", "blue"]),
        ("nc: 3\nnames: {0: red, 2: blue}\n", ["red", None, "blue"]),
        ("names: {0: red, 2: blue}\n", ["red", None, "blue"]),
        (b"\xef\xbb\xbfnames: ['caf\xc3\xa9', 7]\n", ["café", "7"]),
    ],
)
def test_names_of_yaml(tmp_path, name, text, names):
    assert read_names(written(tmp_path, name, text)) == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: x\nnc: 2\n", "has no `names`"),
        ("- red\n- blue\n", "has no `names`"),
        ("names: red\n", "has no `names`"),
        ("names: [red, blue]\nnc: 3\n", "has 2 names, and nc says 3"),
        ("names: [red, red]\n", "names 'red' twice"),
        ("names: [no, yes]\n", "False is not a name: write names in quotation marks"),
        ("names: [red, '']\n", "'' is not a name"),
        ("names: {red: 0, blue: 1}\n", "'red' is not a class's number"),
        ("names: {-1: red}\n", "-1 is not a class's number"),
        ("names: {0: red, '0': blue}\n", "'0' is not a class's number, .* or occurs twice"),
        ("names: []\n", "names no class"),
        ("names: [red\n", "is not YAML"),
        (b"names: [caf\xe9]\n", "is not UTF-8"),
        ("nc: 2\nnames: ['red', 'blue']\n".encode("utf-16"), "is not UTF-8"),
    ],
)
def test_yaml_that_does_not_name_the_classes(tmp_path, text, message):
    with pytest.raises(ConvnextError, match=message):
        read_names(written(tmp_path, "data.yaml", text))


@pytest.mark.parametrize("text", ["red\nblue\n", "red\r\nblue\r\n\n\n", b"\xef\xbb\xbfred\nblue", "  red\n blue \n"])
def test_names_one_per_line(tmp_path, text):
    assert read_names(written(tmp_path, "names.txt", text)) == ["red", "blue"]


OTHER_FORMATS = {
    "YAML": ["nc: 2\nnames: ['red', 'blue']\n", "train: a\nval: b\n", "0: red\n1: blue\n", "- red\n- blue\n"],
    "JSON": ['["red", "blue"]\n', '{"names": ["red", "blue"]}', "[\n  1,\n  2\n]"],
    "HTML or XML": ["<!DOCTYPE html>\n<html>\n", "<html>\n<body>", '<?xml version="1.0"?>\n<a/>'],
    "a table or numbered list": [
        "id,name\n0,red\n1,blue\n",
        "1;red\n2;blue\n",
        "red,0\nblue,1\n",
        "0 red\n1 blue\n2 green\n",
        "1\tred\n17\tblue\n",
    ],
}


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in OTHER_FORMATS.items() for text in texts])
def test_lists_of_names_that_are_something_else(tmp_path, kind, text):
    path = written(tmp_path, "names.txt", text)
    with pytest.raises(ConvnextError, match=f"names.txt is not a list of names, one per line, but {kind}"):
        read_names(path)
    with pytest.raises(ConvnextError, match="is not a list of names"):
        read_classes(path)


@pytest.mark.parametrize(
    "names",
    [
        ["1 euro", "2 euro"],
        ["tench, Tinca tinca", "goldfish"],
        ["tree: oak", "birch"],
        ["(void)", "[a]"],
        ["a b", "c-d"],
        ["3", "7"],
        ["0", "1", "2", "3"],
    ],
)
def test_names_that_only_look_like_something_else(tmp_path, names):
    assert read_names(written(tmp_path, "names.txt", "\n".join(names))) == names


def test_empty_lines_and_doubles_and_nothing(tmp_path):
    for text, message in (("red\n\nblue\n", "line 2 of .* is empty"), ("red\nred\n", "names 'red' twice"), ("\n", "names no class")):
        with pytest.raises(ConvnextError, match=message):
            read_names(written(tmp_path, "names.txt", text))
    with pytest.raises(UsageError, match="no file"):
        read_names(tmp_path / "nowhere.yaml")


def test_a_classes_txt_with_a_byte_order_mark(tmp_path):
    entries = read_classes(written(tmp_path, "classes.txt", "(other)\nred\nblue\n".encode("utf-8-sig")))
    assert [(entry.name, entry.is_ignored) for entry in entries] == [("(other)", True), ("red", False), ("blue", False)]
    assert len(read_classes(written(tmp_path, "classes.txt", "road 0 0 0\nroof 1 1 1\nwall 2, 2, 2\n"))) == 3


@pytest.mark.parametrize("names", [["--names", "{root}/data.yaml"], []])
def test_a_yolo_dataset_as_it_is_exported_is_converted_with_its_classes(tmp_path, names, capsys):
    for folder in ("images", "labels"):
        (tmp_path / "train" / folder).mkdir(parents=True)
    sample_image(0, (60, 50)).save(tmp_path / "train" / "images" / "a.jpg")
    (tmp_path / "train" / "labels" / "a.txt").write_text("1 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2\n")
    written(tmp_path, "data.yaml", "train: ../train/images\n\nnc: 2\nnames: ['red', 'blue']\n")
    arguments = ["data", "convert", "yolo", str(tmp_path / "train" / "images"), str(tmp_path / "out.json")]
    app([*arguments, *(name.format(root=tmp_path) for name in names)], standalone_mode=False)
    found = json.loads((tmp_path / "out.json").read_text())
    by_id = {category["id"]: category["name"] for category in found["categories"]}
    assert [by_id[annotation["category_id"]] for annotation in found["annotations"]] == ["blue", "red"]
    (tmp_path / "data.yaml").write_text("names: {1: blue}\n")
    app(arguments, standalone_mode=False)
    assert "skipped" in (told := capsys.readouterr().err)
    assert "a.txt, line 2: class 0, which has no name" in told
