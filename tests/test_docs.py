"""README and documentation are true: they build, links lead somewhere, blocks can be used."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main

import fl_split
from fl_split.codecs import CODECS
from simulations.cli.main import app
from simulations.runs.columns import COLUMNS
from simulations.runs.experiment import Experiment
from simulations.runs.settings import read_overrides, read_toml
from simulations.studies.pareto import ParetoStudy
from simulations.studies.sweep import cells, read_grid
from strategies import STRATEGIES

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts),
]
BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>.*?) -->\n)?(?P<fence>`{3,})(?P<kind>\S*)[^\n]*\n(?P<text>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\]\((?!https?:)([^)\s]+)\)")
PROGRAMS = {"export", "flwr", "pip", "python3", "source"}
"""Programs of other projects that pages call."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and what the comment before it says."""

    page: Path
    line: int
    kind: str
    mark: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def _blocks(kind: str) -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            mark = match["mark"] or ""
            if match["kind"] == kind and not mark.startswith("not checked"):
                found.append(Block(page, line, kind, mark, match["text"]))
    assert found, f"pages must have blocks of kind {kind}"
    return found


def _app() -> Any:
    """Return the command line."""
    return typer.main.get_command(app)


def _commands(text: str) -> Iterator[list[str]]:
    """Yield the commands of a block, as words; comments and continued lines are understood."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def _slugs(page: Path) -> set[str]:
    """Return the anchors that a forge gives to the headings of a page."""
    text = BLOCK.sub("", page.read_text())
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


@pytest.mark.slow
def test_the_documentation_builds_without_warning_and_its_reference_has_every_entry(
    tmp_path: Path,
) -> None:
    places = [str(ROOT / "docs"), str(tmp_path / "html"), "-d", str(tmp_path / "doctrees")]
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", *places]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    entries = {
        "codecs": CODECS,
        "columns": COLUMNS,
        "commands": [f"fl-split {name}" for name in _app().commands],
        "keys": Experiment.model_fields,
        "python": getattr(fl_split, "__all__", []),
        "strategies": STRATEGIES,
    }
    for page, names in entries.items():
        html = (tmp_path / "html" / "reference" / f"{page}.html").read_text()
        text = re.sub(r"<[^>]+>", "", html[html.index("<article") :])
        assert [name for name in names if name not in text] == [], page


def test_the_citation_names_version_and_licence_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [project["version"]]
    assert re.findall(r"^license: (.+)$", citation, re.MULTILINE) == [project["license"]]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_a_file_and_a_heading(page: Path) -> None:
    broken = []
    for link in LINK.findall(page.read_text()):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in _slugs(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("block", _blocks("toml"), ids=str)
def test_configurations_in_pages_are_valid(block: Block) -> None:
    _check_experiments(tomllib.loads(block.text))


@pytest.mark.parametrize("block", _blocks("bash"), ids=str)
def test_commands_in_pages_can_be_called(block: Block) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in _commands(block.text):
        program, *rest = words[1:] if "=" in words[0] else words
        if program == "fl-split":
            _check_command(rest)
        elif program == "make":
            assert {*rest} <= targets, words
        elif program == "python":
            scripts = [word for word in rest if word.endswith(".py")]
            assert all((ROOT / script).is_file() for script in scripts), words
        else:
            assert program in PROGRAMS, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_sentences_exist(page: Path) -> None:
    named = set(re.findall(r"`fl-split ([a-z]+)", BLOCK.sub("", page.read_text())))
    assert named <= set(_app().commands)


@pytest.mark.slow
@pytest.mark.parametrize("block", _blocks("python"), ids=str)
def test_python_in_pages_runs_or_compiles(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks marked ``run`` are run as they are, with few rounds and clients."""
    code = compile(_tiny(block.text), str(block), "exec", dont_inherit=True)
    if block.mark != "run":
        return
    monkeypatch.chdir(tmp_path)
    exec(code, {"__name__": "page"})


def _tiny(text: str) -> str:
    """Return `text` with one round, in this process, and four clients wherever it asks for more."""
    text = re.sub(r"\brounds=\d+", "rounds=1, engine='inline'", text)
    return re.sub(r"\bclients=\d+", "clients=4", text)


def _check_command(words: list[str]) -> None:
    """Parse a command of ours as the command line does, and check its experiments."""
    app = _app()
    name, *arguments = words
    assert name in app.commands, words
    command = app.commands[name]
    given = command.make_context(name, arguments).params
    files = given.get("configs") or ([given["config"]] if "config" in given else [])
    settings = [str(word) for word in [*files, *(given.get("overrides") or [])] if "=" in str(word)]
    for file in (word for word in files if "=" not in str(word)):
        values = _configuration(Path(file))
        if name == "sweep":
            values["sweep"] = read_grid(values.get("sweep", {}), given["grid"] or [])
        assert name in values or name not in {"pareto", "sweep"}, words
        _check_experiments({**values, **read_overrides(settings)})


def _configuration(file: Path) -> dict[str, Any]:
    """Read a configuration by path or by the name of one that is shipped."""
    if str(file).startswith("my_"):
        return {}  # stands for a file of the reader's
    return read_toml(ROOT / "configs" / f"{file.stem}.toml")


def _check_experiments(values: dict[str, Any]) -> None:
    """Raise unless all experiments that a configuration asks for are valid."""
    rows, grid, pareto = (values.pop(key, None) for key in ("compare", "sweep", "pareto"))
    Experiment.from_dict(values)
    for row in rows or []:
        Experiment.from_dict({**values, **{k: v for k, v in row.items() if k != "name"}})
    if grid:
        assert cells(values, read_grid(grid, []))
    if pareto:
        assert ParetoStudy.read(pareto).cells(values)
