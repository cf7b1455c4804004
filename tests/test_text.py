"""Text from outside: printable wherever it goes, and read and written as UTF-8 whatever the machine takes for its encoding."""

import ast
from pathlib import Path

import pytest

import convnext
from convnext.errors import ConvnextError
from convnext.recipe import load_recipe
from convnext.text import beyond_limit, class_name, printable, printable_lines, read_lines, shortened


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, with blanks", "plain, with blanks"),
        ("fourmi é 中文 👩\u200d🔬", "fourmi é 中文 👩\u200d🔬"),
        ("caf\udce9.jpg", r"caf\xe9.jpg"),
        ("fourmi \udcc3\udca9", "fourmi é"),  # what Python makes of it with LC_ALL=C
        ("\ud800", r"\ud800"),  # no byte of a name, as JSON may have it
        ("two\nlines\r\t", r"two\nlines\r\t"),
        ("\x1b]0;title\x07\x9b", r"\x1b]0;title\x07\x9b"),
        ("\u202egpj.exe\u2028\ufeff", r"\u202egpj.exe\u2028\ufeff"),
    ],
)
def test_text_is_shown_as_itself_or_escaped(text, shown):
    assert printable(text) == shown
    assert printable(shown) == shown
    shown.encode("utf-8")
    assert class_name(text) == shown


def test_lines_stay_lines_and_long_names_keep_their_ends():
    assert printable_lines("a\x1b\nb") == "a\\x1b\nb"
    assert shortened("x" * 40, 40) == "x" * 40
    assert (shortened("abcdefgh", 5), shortened("abcdefgh", 4)) == ("ab…gh", "a…gh")


def test_text_files_may_have_a_byte_order_mark_and_must_be_utf_8(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_bytes("rouge\u2028é\r\nbleu\n\n".encode("utf-8-sig"))
    assert read_lines(path) == ["rouge\u2028é", "bleu"]
    for encoding in ("latin-1", "utf-16"):
        path.write_bytes("é\n".encode(encoding))
        with pytest.raises(ConvnextError, match="classes.txt is not UTF-8 .*: save it as UTF-8"):
            read_lines(path)
    recipe = tmp_path / "own.yaml"
    recipe.write_bytes("data: {train: fourmi é, image_size: 32}\n".encode("utf-8-sig"))
    assert load_recipe(str(recipe)).data.train == "fourmi é"


def test_every_text_file_of_the_package_is_opened_with_its_encoding():
    """Ruff's PLW1514 finds those whose paths it can follow; this finds all by their method's name."""
    without = []
    for path in Path(convnext.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            name = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
            given = len(node.args) if name else 0
            if name in ("read_text", "write_text") and given + any(key.arg == "encoding" for key in node.keywords) < 1 + (
                name == "write_text"
            ):
                without.append(f"{path}:{node.lineno}")
    assert without == []


@pytest.mark.parametrize(("found", "count"), [(1, 49), (29, 100), (3, 3000), (50, 100)])
def test_a_limit_that_is_exceeded_names_one_that_is_not(found, count):
    message = beyond_limit("some are bad", found, count, 0.0, "--max-corrupt", ["a\n", *"bcdefg"])
    assert message.startswith(
        "some are bad, more than 0.0% (--max-corrupt): a\\n; b; c; d; e; …. Correct or remove them (`convnext data check` lists all), or accept"
    )
    assert found <= float(message.split("--max-corrupt ")[1].split()[0]) * count


def test_a_limit_that_would_accept_most_of_the_data_is_not_offered():
    assert beyond_limit("all are bad", 9, 9, 0.01, "data.max_corrupt", ["a"]).endswith(
        "(data.max_corrupt): a. Correct or remove them (`convnext data check` lists all)"
    )
