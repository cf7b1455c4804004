"""Registers, references, and the modules that are imported for them."""

import re
import sys
from types import SimpleNamespace

import pytest
from command import run
from registered import forgetting

import convnext
from convnext import extend
from convnext.errors import ConvnextError, UsageError
from convnext.extend import Register, caller, find, giving, is_marker, load, marker, module_of, resolve


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, empty; modules that a test imports from it are forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(extend, "_loaded", [])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith(("mine_", "plugin_")):
            del sys.modules[name]


def test_a_name_is_registered_once_and_found_by_the_nearest(folder):
    register = Register("loss", {"ours": 1})
    register.decorator("mine", "one")(2)
    assert (register.get("ours"), register.get("mine"), register.origins) == (1, 2, {"mine": "one"})
    register.decorator("mine", "one")(3)  # a cell of a notebook that runs again
    assert register.get("mine") == 3
    with pytest.raises(UsageError, match="the loss 'mine' exists already, in one"):
        register.add("mine", 4, "another")
    with pytest.raises(UsageError, match="the loss 'ours' exists already, in convnext"):
        register.add("ours", 4, "one")
    with pytest.raises(UsageError, match="unknown loss 'mien'; did you mean 'mine'"):
        register.get("mien")
    for name in ("a:b", "a/b", "", "own", "1st", "a b"):
        with pytest.raises(UsageError, match="can't name a loss"):
            register.add(name, 4, "one")


def test_the_registering_module_is_the_one_that_calls():
    def register():
        return caller()

    assert register() == __name__


def test_modules_of_the_current_folder_are_imported(folder):
    (folder / "mine_a.py").write_text("value = 1\n")
    load("mine_a")
    load("mine_a")
    assert (sys.modules["mine_a"].value, extend.loaded()) == (1, ["mine_a"])
    assert sys.path[-1] == str(folder)  # behind all others: no file of the folder replaces an installed package


@pytest.mark.parametrize(
    ("content", "name", "kind", "message"),
    [
        (None, "mine_b", UsageError, "no module 'mine_b': it must lie in "),
        (None, "mine_b.py", UsageError, "'mine_b.py' is not the name of a module: give the module's name, mine_b"),
        (None, "", UsageError, "is not the name of a module"),
        ("import no_such_library\n", "mine_b", ConvnextError, "the module mine_b needs no_such_library, which is not installed"),
        ("1 +\n", "mine_b", ConvnextError, "the module mine_b can't be imported: SyntaxError"),
        ("raise KeyError('x')\n", "mine_b", ConvnextError, "the module mine_b can't be imported: KeyError: 'x'"),
    ],
)
def test_a_module_that_can_not_be_imported_is_named(content, name, kind, message, folder):
    if content is not None:
        (folder / "mine_b.py").write_text(content)
    with pytest.raises(kind, match=message) as caught:
        load(name)
    assert type(caught.value) is kind


def test_references(folder):
    (folder / "mine_c.py").write_text("def f(): return 3\n")
    assert module_of("mine_c:f") == "mine_c"
    assert module_of("package.inner:f") == "package.inner"
    assert [module_of(text) for text in ("digits:train", "no_such:f", "photos", "coco:a.json:b", "a/b:c", "C:f.g")] == [None] * 6
    (folder / "photos").mkdir()
    assert module_of("photos:train") is None  # a folder without code
    assert module_of("json:loads") == "json"
    (folder / "json").mkdir()
    assert module_of("json:train") is None  # which a library does not hide
    with pytest.raises(UsageError, match="mine_c:f needs the module mine_c; add --import mine_c"):
        resolve("mine_c:f")  # nothing is imported because a file names it
    with pytest.raises(UsageError, match="os:abort needs the module os; add --import os"):
        resolve("os:abort")  # although it is: a stranger's recipe must not have any function called
    load("mine_c")
    assert resolve("mine_c:f")() == 3
    with pytest.raises(UsageError, match="mine_c has no 'g'"):
        resolve("mine_c:g")


def test_markers_stand_for_what_a_call_gives():
    def one():
        return 1

    def two():
        return 2

    marks = [marker("metrics", function) for function in (one, two)]
    assert all(is_marker(mark) for mark in marks)
    assert not is_marker("owner:x")
    with giving(metrics=[one, two]):
        assert [find(extend.METRICS, mark)() for mark in marks] == [1, 2]
    with pytest.raises(UsageError, match="one was given from Python .* give it again, as metrics="):
        find(extend.METRICS, marks[0])


def test_installed_packages_announce_themselves(folder, monkeypatch, caplog):
    (folder / "plugin_d.py").write_text("import convnext\nconvnext.register_metric('metric_of_a_plugin')(len)\n")
    (folder / "plugin_d-1.0.dist-info").mkdir()
    (folder / "plugin_d-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin_d\nVersion: 1.0\n")
    points = "[convnext]\na_broken_one = no_such_plugin\nplugin = plugin_d\n"
    (folder / "plugin_d-1.0.dist-info" / "entry_points.txt").write_text(points)
    monkeypatch.setattr(extend, "_asked_entry_points", False)
    monkeypatch.setattr(extend.METRICS, "entries", dict(extend.METRICS.entries))
    monkeypatch.setattr(extend.METRICS, "origins", dict(extend.METRICS.origins))
    sys.path.append(str(folder))
    assert extend.METRICS.get("metric_of_a_plugin") is len
    assert extend.METRICS.origins["metric_of_a_plugin"] == "plugin_d"
    assert "the installed extension no_such_plugin can't be loaded: ModuleNotFoundError" in caplog.text


def test_every_command_takes_import(folder):
    (folder / "mine_e.py").write_text("import sys\nsys.stderr.write('imported\\n')\n")
    for arguments in (
        ("--import", "mine_e", "recipes"),
        ("recipes", "--import", "mine_e"),
        ("recipes", "show", "digits", "--import=mine_e"),
    ):
        sys.modules.pop("mine_e", None)
        assert run(*arguments).stderr == "imported\n"
    assert "no module 'mine_f'" in run("recipes", "--import", "mine_f", code=2).stderr
    assert "is not the name of a module" in run("recipes", "--import", code=2).stderr


BROKEN = """
import convnext
from torch import nn

@convnext.register_backbone("broken_g")
class Broken(nn.Module):
    def __init__(self, num_classes=3, inputs=3):
        super().__init__()
        self.head = nn.Linear(int(inputs), num_classes)

    def forward(self, x):
        return self.head(x.mean((1, 2, 3)))

@convnext.register_source("broken_g")
def opened(where, classes):
    return [][int(where)]
"""


def test_an_error_in_code_of_a_user_is_not_called_a_defect_of_convnext(folder):
    (folder / "mine_g.py").write_text(BROKEN)
    with forgetting():
        said = run("cost", "broken_g", "--size", "8", "--import", "mine_g", code=1).stderr
        assert re.search(r"error: RuntimeError: mat1 and mat2 .*\(in your code: .*mine_g.py, line 12; --debug shows the traceback\)", said)
        said = run("data", "check", "broken_g:7", "--import", "mine_g", code=1).stderr
        assert "error: IndexError: list index out of range (in your code: " in said
    assert extend.place_in_own_code(ValueError()) is None


def test_the_public_api_offers_the_registers():
    names = [name for name in convnext.__all__ if name.startswith("register_")]
    assert len(names) == 8
    assert all(callable(getattr(convnext, name)) for name in names)
    with pytest.raises(UsageError, match="the task 'classify' exists already, in convnext"):
        convnext.register_task("classify")(SimpleNamespace)
