"""Examples do what they say: each runs from its first line to its last."""

import runpy
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient
from typer.testing import CliRunner

from simulations.cli.main import app

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Examples write into the folder that one is in."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_runs(path, tmp_path, capsys):
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()
    tables = [*tmp_path.rglob("rounds.csv")]
    assert tables and all(pd.read_csv(table)["accuracy"].notna().all() for table in tables)


@pytest.mark.parametrize("spec", ["own_codec:Signs", "own_strategy:LargestLast"])
def test_an_example_of_a_part_keeps_the_laws(spec):
    file = EXAMPLES / f"{spec.partition(':')[0]}.py"
    done = CliRunner().invoke(app, ["check", spec, "--plugin", str(file)])
    assert done.exit_code == 0, done.output


def test_signs_are_a_bit_each():
    import torch

    signs = runpy.run_path(str(EXAMPLES / "own_codec.py"))["Signs"]()
    from fl_split.payload import Payload

    value = torch.tensor([[1.0, -2.0, 3.0, -6.0, 0.5, 0.5, -0.5, 0.5, 1.0]])
    packed = signs.pack(Payload({"tokens": value}), torch.Generator())
    assert packed.carried["tokens"].tolist() == [0b10110101, 0b1]
    mean = value.abs().mean()
    assert torch.equal(signs.unpack(packed).carried["tokens"], value.sign() * mean)


def test_the_notebook_runs_in_a_kernel(tmp_path):
    notebook = nbformat.read(EXAMPLES / "first_steps.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # committed without results
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    kinds = [output.output_type for output in outputs]
    assert kinds.count("execute_result") >= 5 and "error" not in kinds
    shown = [
        output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])
    ]
    assert any("image/png" in data for data in shown)  # the figure, not its name
