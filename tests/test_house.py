"""The rooms of CONTRIBUTING.md, the contract of import-linter and the contents of convnext/ agree; named files exist; the citation is current."""

import ast
import graphlib
import re
import tomllib
from collections import Counter

import pytest
import yaml
from documented import PAGES, ROOT


def contract():
    """The layers of pyproject.toml, top first, each a set of module names."""
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = (contract["layers"] for contract in linter["contracts"] if contract["type"] == "layers")
    return [{name.strip().removeprefix("convnext.") for name in layer.split("|")} for layer in layers]


def table():
    """The rooms of the table in CONTRIBUTING.md, top first, each a set of module names."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (rows,) = re.findall(r"^\| room \|.*\n\| -+ \|.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [set(re.findall(r"`(\w+)`", row.split("|")[1])) for row in rows.splitlines()]


def test_contributing_shows_the_contract_of_import_linter():
    assert table() == contract()


def test_every_module_of_the_package_has_its_room():
    package = ROOT / "convnext"
    found = {path.stem for path in package.glob("*.py")} | {path.parent.name for path in package.glob("*/__init__.py")}
    assert found - {"__init__", "__main__"} == set().union(*contract())


@pytest.mark.parametrize("script", [*(ROOT / "examples").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")], ids=lambda path: path.name)
def test_what_examples_and_benchmarks_import_from_the_package_exists(script):
    for node in ast.walk(ast.parse(script.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").partition(".")[0] == "convnext":
            exec(compile(ast.Module([node], []), str(script), "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page):
    for path in re.findall(r"`((?:convnext|tests|benchmarks|examples)/[\w/.-]+)`", page.read_text()):
        assert (ROOT / path).exists(), f"{page.name} names {path}, which does not exist"


def test_the_citation_has_what_the_format_requires_and_the_project_says():
    """Citation File Format 1.2.0 requires version, message, title and authors."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["cff-version"] == "1.2.0"
    assert citation["message"]
    assert citation["title"]
    assert citation["authors"] == project["authors"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert {"type", "title", "authors"} <= citation["preferred-citation"].keys()


def modules():
    """Each module of the package with its syntax tree."""
    for path in sorted((ROOT / "convnext").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        yield name, path, ast.parse(path.read_text())


def imports(name, tree, known):
    """The modules of the package that one imports, within functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "convnext":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in known else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)


def test_no_modules_import_each_other_in_a_circle():
    trees = {name: tree for name, _, tree in modules()}
    del trees["convnext"]  # the public API, which imports a name when it is first used
    graph = {name: set(imports(name, tree, trees)) & trees.keys() - {name} for name, tree in trees.items()}
    sorter = graphlib.TopologicalSorter(graph)
    sorter.prepare()  # raises CycleError, which names the circle


def test_a_class_name_is_used_once():
    counts = Counter(node.name for _, _, tree in modules() for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    assert [name for name, count in counts.items() if count > 1] == []


def test_files_and_folders_stay_small():
    long = {path.name: count for _, path, _ in modules() if (count := len(path.read_text().splitlines())) > 300}
    assert not long
    files = [path for path in (ROOT / "convnext").rglob("*") if path.is_file() and path.suffix not in (".pyc", ".yaml")]
    folders = Counter(path.parent for path in files)
    full = {folder.name for folder, count in folders.items() if count > 15}
    assert full <= {"csrc"}
