"""Files that cannot be written leave nothing half done; damaged ones are named, and what to do."""

import json
import re
import resource
from contextlib import contextmanager

import pytest
from typer.testing import CliRunner

from fl_split.spec_errors import SpecError
from simulations.api import load
from simulations.cli import main as cli
from simulations.clients import client_app
from simulations.runs import checkpoint
from simulations.runs.experiment import Experiment
from simulations.runs.files import (
    DamagedError,
    WriteError,
    append,
    read_rounds,
    read_summary,
    write_whole,
)
from simulations.runs.results import Recorder
from simulations.runs.run import Stop
from simulations.studies.cells import Cell, faults, is_finished
from simulations.studies.watch import look_below, remarks

INTERRUPT = {"strategy": "parallel(average_heads=False)", "rounds": 5, "checkpoint_every": 3}


@contextmanager
def small_files(size):
    """Let no file of this process grow beyond `size` bytes, as a full disk would not."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_cannot_be_written_leaves_what_was_there(tmp_path):
    whole, table = tmp_path / "model", tmp_path / "rounds.csv"
    write_whole(whole, b"old")
    append(table, b"head\n")
    with small_files(8):
        with pytest.raises(WriteError, match=r"cannot write .*model'.*ulimit"):
            write_whole(whole, b"too much for it")
        with pytest.raises(WriteError, match=r"rounds.csv"):
            append(table, b"1,2,3\n")
    assert whole.read_bytes() == b"old" and table.read_bytes() == b"head\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "rounds.csv"]
    with pytest.raises(WriteError, match=r"No such file or directory; .* free there"):
        write_whole(tmp_path / "nowhere" / "model", b"")


def test_a_run_that_cannot_write_says_so_and_goes_on_later(simulate, reference, resume, tmp_path):
    """After two rounds there is room for the summary only."""
    changes = {"rounds": 6, "checkpoint_every": 1}
    whole = reference(**changes)

    def limit(row, result):
        if row["round"] == 2:
            held.__enter__()

    held = small_files((whole.folder / "summary.json").stat().st_size + 500)
    try:
        with pytest.raises(WriteError, match=r"round-000003\.parquet") as caught:
            simulate(watch=limit, **changes)
    finally:
        held.__exit__(None, None, None)
    left = type(whole)(tmp_path / "run1")
    assert (left.summary["status"], left.summary["ended_by"]) == ("failed", "write error")
    assert not list(left.folder.rglob(".*.part"))
    stop = Stop.because(caught.value, left.folder, [left.folder])
    assert stop.code == 1 and stop.is_error and "to go on: fl-split resume" in stop.text
    assert checkpoint.read(left.folder)[1].rounds == 2
    resume(left)
    assert left.equals(whole)


def test_a_row_that_does_not_fit_leaves_no_trace_of_its_round(simulate, tmp_path):
    outcome = simulate(rounds=1)
    path = outcome.folder / "rounds.csv"
    before = path.read_bytes()
    recorder = Recorder(outcome.folder, Experiment.from_dict({"rounds": 3}), 1)

    class Result:
        round, traffic, tasks = 2, {}, []

    with small_files(len(before) + 5), pytest.raises(WriteError):
        recorder.add(Result, recorder.rows[0] | {"round": 2}, {})
    assert path.read_bytes() == before and len(recorder.rows) == 1


def test_a_stopped_run_goes_on_after_its_last_whole_round(simulate, reference, resume, tmp_path):
    """Between two checkpoints, in the middle of a round, with states that clients keep."""
    whole = reference(**INTERRUPT)
    calls = []

    def blow(message, context):
        calls.append(message.metadata.group_id)
        if calls.count("5") == 9:
            raise KeyboardInterrupt
        return client_app.app(message, context)

    with pytest.raises(KeyboardInterrupt):
        simulate(blow, **INTERRUPT)
    left = type(whole)(tmp_path / "run1")
    assert left.summary["status"] == "interrupted"
    assert checkpoint.read(left.folder)[1].rounds == 4  # the last that was due is of round 3
    resume(left)
    assert left.equals(whole)
    assert left.rounds["accuracy"].equals(whole.rounds["accuracy"])


DAMAGES = [
    (lambda text: text.replace(",", ";"), "has no column .*semicolons"),
    (lambda text: without(text, "payload_bytes_up"), "has no column payload_bytes_up"),
    (lambda text: shortened(text), r"payload_bytes_up.*(spreadsheet|not what was written)"),
    (lambda text: text.splitlines(keepends=True)[0], "has 0 rounds, the checkpoint 2"),
    (lambda text: text.replace("\n2,", "\n7,"), "is not the row of round 2"),
]


def cells_of(text):
    return [line.split(",") for line in text.splitlines()]


def text_of(rows):
    return "".join(",".join(row) + "\n" for row in rows)


def without(text, column):
    rows = cells_of(text)
    place = rows[0].index(column)
    return text_of([row[:place] + row[place + 1 :] for row in rows])


def shortened(text):
    rows = cells_of(text)
    place = rows[0].index("payload_bytes_up")
    for row in rows[1:]:
        row[place] = f"{float(row[place]):.2E}"
    return text_of(rows)


class Killed(Exception):
    pass


@pytest.fixture
def killed(simulate, tmp_path):
    def kill(row, result):
        if row["round"] == 2:
            raise Killed

    with pytest.raises(Killed):
        simulate(watch=kill, rounds=3, checkpoint_every=1)
    return tmp_path / "run1"


def test_a_table_that_a_spreadsheet_has_changed_is_named(killed):
    table = killed / "rounds.csv"
    before = table.read_text()
    for damage, fault in DAMAGES:
        table.write_text(damage(before))
        result = CliRunner().invoke(cli.app, ["resume", str(killed)])
        assert result.exit_code == 2 and result.stderr.count("\n") == 1
        assert re.search(fault, result.stderr), result.stderr
        assert "put the file back" in result.stderr
        assert table.read_text() == damage(before)
    table.write_bytes(b"\xef\xbb\xbf" + before.replace("\n", "\r\n").encode())
    assert CliRunner().invoke(cli.app, ["resume", str(killed)]).exit_code == 0
    assert table.read_text().startswith(before)


def test_a_key_of_another_version_is_named_with_its_file(killed):
    with (killed / "experiment.toml").open("a") as file:
        file.write("new_key = 3\n")
    with pytest.raises(SpecError, match=r"experiment.toml: unknown key 'new_key'"):
        checkpoint.read(killed)


def test_damaged_files_of_a_finished_run_are_named(simulate):
    folder = simulate(rounds=1).folder
    keys = json.loads((folder / "summary.json").read_text())["experiment"]
    cell = Cell(folder.name, {}, Experiment.from_dict(keys))
    assert is_finished(folder, cell) and faults([cell], folder.parent) == []

    def check(file, content, fault):
        path = folder / file
        before = path.read_bytes()
        path.write_bytes(content)
        assert not is_finished(folder, cell)
        (told,) = faults([cell], folder.parent)
        assert file in told and fault in told and f"{cell.name} is run again" in told
        (seen,) = look_below(folder.parent)
        assert (seen.status, len(remarks([seen]))) == ("damaged", 1) and file in seen.remark
        path.write_bytes(before)

    check("summary.json", b"", "is empty")
    check("summary.json", b'{"status": "comp', "is torn or edited")
    check("experiment.toml", (folder / "experiment.toml").read_bytes()[:100], "experiment.toml")
    check("rounds.csv", (folder / "rounds.csv").read_bytes().replace(b",", b";"), "semicolons")
    with (folder / "experiment.toml").open("a") as file:
        file.write("new_key = 3\n")
    (told,) = faults([cell], folder.parent)
    assert "unknown key 'new_key'" in told and f"{cell.name} is left out" in told
    assert not is_finished(folder, cell)


def test_what_python_reads_is_named_too(simulate):
    folder = simulate(rounds=1).folder
    run = load(folder)
    (folder / "summary.json").write_text("{")
    (folder / "clients.parquet" / "round-000001.parquet").write_bytes(b"PAR1")
    with pytest.raises(DamagedError, match=r"summary\.json is torn"):
        assert run.summary
    with pytest.raises(DamagedError, match=r"round-000001\.parquet is torn"):
        assert len(run.clients)
    with pytest.raises(DamagedError, match="has no status"):
        (folder / "summary.json").write_text("[]")
        read_summary(folder / "summary.json")
    table = folder / "rounds.csv"
    table.write_text(table.read_text().replace("\n1,", "\none,"))
    with pytest.raises(DamagedError, match="column round holds 'one'"):
        read_rounds(table)
    (folder.parent / "sweep.csv").write_text("cell;status\na;complete\n")
    with pytest.raises(DamagedError, match=r"sweep\.csv has no column cell"):
        load(folder.parent)
