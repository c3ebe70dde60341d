"""The notebook docs/tour.ipynb: it runs from top to bottom, says what it claims, and is small."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOUR = ROOT / "docs" / "tour.ipynb"
nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed")


def text_of(cell):
    """What a cell printed."""
    return "".join(output.get("text", "") for output in cell.get("outputs", []))


def test_it_is_small_installs_first_and_was_run_in_order():
    assert TOUR.stat().st_size < 300_000
    notebook = nbformat.read(TOUR, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "%pip install" in code[0].source
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    assert "/" + "tmp" not in TOUR.read_text()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ipykernel") is None, reason="ipykernel is not installed")
@pytest.mark.filterwarnings("ignore")  # those of Jupyter
def test_every_cell_runs_and_the_network_learns(monkeypatch, tmp_path):
    from nbclient import NotebookClient

    monkeypatch.delenv("XLA_FLAGS", raising=False)  # the fake devices of the other tests would share the cores
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(TOUR, as_version=4)
    NotebookClient(notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    printed = "".join(text_of(cell) for cell in notebook.cells if cell.cell_type == "code")
    assert "60,965,224" in printed
    losses = [float(loss) for loss in re.findall(r"step \d+: loss ([\d.]+)", printed)]
    assert losses[-1] < losses[0] / 2
    one, five = (float(re.search(rf"{word}: +([\d.]+)%", printed)[1]) for word in ("one view", "five views"))
    off = [float(error) for error in re.findall(r"tower \d off: ([\d.]+)%", printed)]
    assert max(one, five) < 20  # chance: 90
    assert min(off) > one
    assert sum("image/jpeg" in o.get("data", {}) for c in notebook.cells for o in c.get("outputs", [])) >= 8
