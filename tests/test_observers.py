"""Numbers of an outside observer, on their way to all files and pages of a run."""

import json
import weakref
from dataclasses import dataclass
from types import SimpleNamespace

import pandas as pd
import pytest

from fl_split.codecs import Identity
from fl_split.exchange.account import Traffic
from simulations.clients import client_app
from simulations.report.comparison import comparison
from simulations.report.page import build
from simulations.runs import checkpoint
from simulations.runs.columns import COLUMNS, Metric
from simulations.runs.experiment import Experiment
from simulations.runs.observers import Costs, Observer
from simulations.runs.run import run, workers
from simulations.runs.setup import prepare
from simulations.studies.cells import Cell, study_frame

TINY = {  # as in conftest.py, which cannot be imported
    "clients": 3,
    "model": "vit(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=4)",
    "cut": 1,
    "batch_size": 64,
    "local_steps": 1,
    "checkpoint_every": 1,
    "engine": "inline()",
}


class Clock(Observer):
    """Two and a half seconds a round, which add up; and a number that nobody declares."""

    metrics = (Metric("virtual_seconds", "virtual time", "s", adds_up=True),)

    def measure(self, result):
        return {"virtual_seconds": 2.5, "temper": 7.0 * result.round}


class Breaker(Observer):
    """Stop the run by force after two rounds."""

    def after_round(self, result, row):
        if result.round == 2:
            raise KeyboardInterrupt
        return False


def train(folder, *observers, resumed=None, **changes):
    setup = prepare(Experiment.from_dict({**TINY, **changes, "out": str(folder)}))
    with workers([setup]) as session:
        return run(setup, session, observers=observers, resumed=resumed)


def check(folder, rounds):
    """The file, the summary and the page all hold what the clock told."""
    written = pd.read_csv(folder / "rounds.csv")
    assert list(written) == [*COLUMNS, "virtual_seconds", "temper"]
    assert written["virtual_seconds"].tolist() == [2.5] * rounds
    assert written["temper"].tolist() == [7.0 * number for number in range(1, rounds + 1)]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["virtual_seconds"] == 2.5 * rounds and "temper" not in summary
    page = build([folder])
    tables = {table.name: table for table in page.tables}
    assert tables["results"].data["virtual time, s"].tolist() == [2.5 * rounds]
    assert tables["metrics"].data["temper"].tolist() == [7.0 * rounds]
    assert "virtual time, s" not in tables["metrics"].columns
    (curve,) = (one.data for one in page.drawings if one.name == "accuracy-virtual-time")
    assert curve["virtual time, s"].tolist() == [2.5 * n for n in range(1, rounds + 1)]
    return summary


def test_numbers_of_an_observer_are_in_rounds_summary_report_and_studies(tmp_path):
    train(tmp_path / "cell", Clock(), rounds=2)
    summary = check(tmp_path / "cell", 2)
    assert comparison({"a": summary})["virtual_seconds"].tolist() == [5.0]
    cells = [Cell.read("cell", TINY, {"seed": 0}), Cell.read("other", TINY, {"seed": 1})]
    rows = study_frame(cells, tmp_path, {}).set_index("cell")
    assert rows.loc["cell", "virtual_seconds"] == 5.0 and "temper" not in rows
    assert rows["virtual_seconds"].isna().tolist() == [False, True]


def test_a_run_that_goes_on_keeps_the_columns_of_an_observer(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(folder, Clock(), Breaker(), rounds=4)
    before = (folder / "rounds.csv").read_text()
    _, found = checkpoint.read(folder)
    train(folder, Clock(), resumed=found, rounds=4)
    check(folder, 4)
    done = "".join(f"{line}\n" for line in before.splitlines()[: found.rounds + 1])
    assert found.rounds and (folder / "rounds.csv").read_text().startswith(done)


def test_an_observer_that_comes_late_leaves_the_rounds_before_as_they_were(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(folder, Breaker(), rounds=3)
    before = pd.read_csv(folder / "rounds.csv", dtype=str)
    _, found = checkpoint.read(folder)
    summary = train(folder, Clock(), resumed=found, rounds=3)
    written = pd.read_csv(folder / "rounds.csv", dtype=str)
    done = found.rounds
    assert written[COLUMNS][:done].equals(before[COLUMNS][:done])
    assert written["virtual_seconds"].isna().tolist() == [True] * done + [False] * (3 - done)
    assert summary["virtual_seconds"] == 2.5 * (3 - done)


def test_two_observers_may_not_measure_the_same(tmp_path):
    class Copy(Observer):
        def measure(self, result):
            return {"accuracy": 1.0}

    with pytest.raises(ValueError, match=r"Copy measures \['accuracy'\] once more"):
        train(tmp_path / "run", Copy(), rounds=1)


@pytest.mark.parametrize("names", [("round",), ("accuracy",), ("own", "own")])
def test_a_name_that_is_declared_twice_is_said_before_the_first_round(tmp_path, names):
    watched = []

    class Copy(Observer):
        metrics = tuple(Metric(name, name) for name in names)

        def measure(self, result):
            watched.append(result.round)
            return {}

    with pytest.raises(ValueError, match=f"Copy declares '{names[-1]}' once more"):
        train(tmp_path / "run", Copy(), rounds=1)
    assert not watched and not (tmp_path / "run" / "rounds.csv").exists()


def test_models_that_clients_keep_do_not_outlive_their_round(simulate):
    told, alive = [], []

    def watch(row, result):
        assert len(result.own) == 6
        told.append(weakref.ref(result))

    def app(message, context):
        alive.extend(one() is not None for one in told)
        return client_app.app(message, context)

    simulate(app, watch=watch, strategy="parallel(average_heads=False)", local_steps=1, rounds=2)
    assert alive and not any(alive)


def test_a_number_of_each_client_is_summed_over_clients():
    @dataclass
    class Timed(Traffic):
        lost: int = 0
        airtime: float = 0.0

    traffic = {0: Timed(samples=5, lost=2, airtime=0.5), 3: Timed(samples=7, lost=1, airtime=1.0)}
    result = SimpleNamespace(traffic=traffic, client_flops=0, server_flops=0)
    found = Costs(Identity()).measure(result)
    assert (found["lost"], found["airtime"], found["samples"]) == (3, 1.5, 12)
    assert {"dropped", "lost", "airtime"} <= traffic[0].row().keys()
    assert "steps" not in found and "client_cpu_seconds" not in found
