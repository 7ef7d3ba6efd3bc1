"""Every notebook runs from top to bottom as a reader would run it, and is kept without outputs."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
CELL_S = 60  # of a single cell on a busy machine; all of a notebook take less on a quiet one
LONGEST = 25  # lines of a cell: a policy or a plot


def ran(notebook: Any, folder: Path, **options: Any) -> Any:
    """The notebook with its outputs; files that it writes go to the folder."""
    where = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=CELL_S, kernel_name="python3", resources=where, **options).execute()
    return notebook


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_there_are_five() -> None:
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path: Path, tmp_path: Path) -> None:
    notebook = ran(nbformat.read(path, 4), tmp_path)
    found = outputs(notebook)
    assert [output.text for output in found if output.output_type == "stream" and output.name == "stderr"] == []
    figures = [output for output in found if "image/png" in output.get("data", {})]
    assert len(figures) >= 3
    assert len(json.dumps(found)) < 1_000_000  # a page that loads


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_kept_small_and_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert outputs(notebook) == []
    assert notebook.cells[0].source.startswith("# ")  # says what it is about
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.execution_count is None
            assert len(cell.source.splitlines()) <= LONGEST
            names = {node.id for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Name)}
            assert "get_ipython" not in names


def test_a_mistake_shows_one_line(tmp_path: Path) -> None:
    cells = ["import sagasim", "sagasim.simulate(trace='tau-bench', preset='vllm-0.14')"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    (error,) = outputs(ran(notebook, tmp_path, allow_errors=True))
    assert error.ename == "ConfigError"
    assert len(error.traceback) == 1
    assert error.traceback[0].startswith(
        "ConfigError: preset: unknown preset 'vllm-0.14'; expected 'vllm-0.15' perhaps"
    )


def test_a_cell_that_is_run_again_replaces_its_policy(tmp_path: Path) -> None:
    """And the object shows itself as a table, the figure as a picture, without any set-up."""
    cells = [
        "import sagasim\nbusy = dict(workload='swe-bench', tasks=10, gpus=4, max_num_seqs=1, arrivals='at-once')",
        "@sagasim.policy('order', 'mine')\ndef mine(request, now_ps):\n    return request.prompt_tokens",
        "first = sagasim.simulate(**busy, order='mine')\nfirst",
        "@sagasim.policy('order', 'mine')\ndef mine(request, now_ps):\n    return -request.prompt_tokens",
        "second = sagasim.simulate(**busy, order=mine)\nprint(first.digest != second.digest)",
        "second.plot()",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    table, printed, figure = outputs(ran(notebook, tmp_path))
    assert "<table>" in table.data["text/html"]
    assert printed.text == "True\n"
    assert "image/png" in figure.data
