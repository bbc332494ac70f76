"""Imports go simulations -> strategies -> fl_split, never up."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "fl_split": {"strategies", "simulations", "flwr", "flwr_datasets", "ray", "datasets", "pandas"},
    "strategies": {"simulations", "ray", "datasets", "flwr_datasets", "pandas"},
    "simulations": set(),
}


@pytest.mark.parametrize("room", FORBIDDEN)
def test_imports_look_down(room):
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").partition(".")[0]}
            else:
                continue
            assert not names & FORBIDDEN[room], f"{file}:{node.lineno} imports {names}"


def test_codecs_do_not_import_each_other():
    allowed = {"fl_split.codecs.codec", "fl_split.codecs.sparse"}
    for file in (ROOT / "fl_split" / "codecs").glob("*.py"):
        if file.name == "__init__.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and "codecs" in (node.module or ""):
                assert node.module in allowed, f"{file} imports {node.module}"
