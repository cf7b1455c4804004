"""The notebooks of the documentation run from their first cell to their last, and show what they promise."""

import os
import re

import nbformat
import pytest
from documented import ROOT
from nbclient import NotebookClient

FOLDER = ROOT / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SHORT = {"EPOCHS": 2, "STEPS": 12}  # what the first cell of a notebook sets: enough to show everything


def read(path):
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_has_no_outputs_and_names_pages_that_exist(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert path.stat().st_size < 200_000
    assert notebook.cells[0].source.count("**You need**") == notebook.cells[0].source.count("**You get**") == 1
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert not cell.get("execution_count")
        for page in re.findall(r"\]\((\.\./[^)#]+)", cell.source):
            assert (FOLDER / page).exists(), page


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_its_results(path, tmp_path, monkeypatch):
    notebook = read(path)
    for name, value in SHORT.items():
        notebook.cells[1].source = re.sub(rf"^{name} = \d+", f"{name} = {value}", notebook.cells[1].source, flags=re.MULTILINE)
    first = nbformat.v4.new_code_cell("import os, torch\nos.environ['OMP_NUM_THREADS'] = '1'\ntorch.set_num_threads(1)")
    notebook.cells.insert(0, first)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    NotebookClient(notebook, timeout=800, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = {
        cell.source: "".join(output.get("data", {}).get("text/html", "") for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    }
    for source, html in shown.items():
        if "convnext.train(" in source:
            assert html.count("<svg") >= 3  # the curves of one output, and those of a result that is shown
            assert "elapsed" in html
        elif source in ("result", "fitted") or source.endswith("\nfitted"):
            assert "accuracy" in html or "AP" in html or "mIoU" in html
        elif source.endswith(("\nprediction", "\nfound")):
            assert html.count("<img") == min(12, html.count("<img")) > 0
