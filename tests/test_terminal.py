"""What commands write: to terminals of any encoding and width, and when nobody reads it."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from rich.table import Table
from typer.testing import CliRunner

from simulations.cli import main as cli
from simulations.cli import terminal
from simulations.cli.streams import PLAIN, Terminal, notices, plain
from simulations.runs.paths import PathNotice
from simulations.studies.watch import BARS

ROOT = Path(__file__).parents[1]
TINY = [
    "clients=4", "rounds=1", "engine=inline", "batch_size=128", "local_steps=1", "cut=1",
    "model=vit(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=4)",
]  # fmt: skip


def test_letters_that_look_alike_stand_for_others():
    assert plain("│ ─ ┼ ┌ ╭ ━ ┃") == "| - + + + - |"
    assert plain("85.0 ± 1.2 %…") == "85.0 +- 1.2 %~"
    assert plain("ünï \u03b1 10⁶ ⠋") == "uni ? 106 *"
    assert len({*map(plain, BARS)}) == len(BARS), "a curve keeps its levels"
    assert "é".encode("latin-1", errors=PLAIN) == b"\xe9", "only what cannot be encoded"
    assert "\udcff".encode("utf-8", errors=PLAIN) == b"?"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_every_command_fits_an_encoding(tmp_path, encoding):
    runner = CliRunner(charset=encoding)
    config, out = str(ROOT / "configs" / "quickstart.toml"), str(tmp_path / "ünï")
    for command in (
        ["--help"],
        ["sweep", "--help"],
        ["list"],
        ["configs"],
        ["partition", config, *TINY],
        ["run", config, *TINY, "--out", out],
        ["watch", out],
        ["report", out, "-o", str(tmp_path / "r.html")],
        ["sweep", config, *TINY, "seed=0,1", "--dry-run", "--out", str(tmp_path / "s")],
    ):
        done = runner.invoke(cli.app, command)
        assert done.exception is None and done.exit_code == 0, (command, done.output)
        assert done.output
    wrong = runner.invoke(cli.app, ["run", "\u03b1…"])
    assert wrong.exit_code == 2 and "no configuration file" in wrong.stderr


def test_a_narrow_terminal(monkeypatch):
    monkeypatch.setattr(terminal.out, "width", 20)
    config = str(ROOT / "configs" / "quickstart.toml")
    done = CliRunner().invoke(cli.app, ["partition", config, *TINY])
    assert done.exit_code == 0
    assert max(map(len, done.stdout.splitlines()[1:])) <= 20


def test_a_pipe_that_closes_ends_no_command():
    """The console's file is a pipe that nobody reads: a run would lose its rounds."""
    reader, writer = os.pipe()
    os.close(reader)
    text = (
        "import sys; from simulations.cli.streams import Terminal\n"
        "out = Terminal()\n"
        "for _ in range(3): out.print('x' * 100)\n"
        "sys.stderr.write('went on')\n"
    )
    command = [sys.executable, "-c", text]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert done.returncode == 0 and done.stderr == "went on"


def test_a_closed_output_is_no_fault():
    command = f"exec {sys.executable} -m fl_split configs >&-"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0 and done.stderr == ""


def test_our_notices_are_lines_and_other_warnings_stay(capsys):
    with notices(Terminal(stderr=True)), warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("[b]two[/b] files", PathNotice, stacklevel=1)
    assert capsys.readouterr().err == "warning: [b]two[/b] files\n"


def test_tables_of_a_plain_console_are_ascii(capsysbinary):
    table = Table(title="a…b")
    table.add_row("±")
    console = Terminal(width=40)
    console.print(table)
    text = capsysbinary.readouterr().out.decode()
    assert plain(text).isascii()


SWALLOWS = """
import os, signal, sys, time
from simulations.cli.main import app

class Library:
    def find_spec(self, name, path=None, target=None):
        if name == "simulations.runs.experiment":
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(30)
            except BaseException:
                print("swallowed")

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Library())
sys.argv = ["fl-split", "partition", "quickstart"]
app()
"""


def test_ctrl_c_while_libraries_are_imported_ends_at_once_though_one_swallows_it():
    command = [sys.executable, "-c", SWALLOWS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped\n")
