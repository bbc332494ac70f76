"""Finished runs at equal budgets: the accuracy after the last round that is paid."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import fl_split as fs
from simulations.cli import main as cli
from simulations.report.within import spendings, within

SLOW = "devices('laptop') | network('1Mbit/s', '1Mbit/s', latency='0s')"
FAST = SLOW.replace("1Mbit/s", "10Mbit/s")


@pytest.fixture
def seeds(simulate):
    """Two runs that differ in their seed, of three rounds each."""
    return [simulate(rounds=3, seed=seed) for seed in (0, 1)]


def test_each_budget_is_read_off_at_the_last_round_that_it_pays(seeds):
    """Limits lie half of a round above what round 1, or rounds 1 and 2, have spent."""
    rounds = [one.rounds for one in seeds]
    flops = float(rounds[0]["client_flops"].max())
    limits = {"rounds(1)": 0, f"client_flops({2.5 * flops!r})": 1, "rounds(9)": 2, "bytes(1)": None}
    frame = within(spendings([one.folder for one in seeds], [*limits]))
    assert frame["seeds"].tolist() == [2] * 4
    for last, (_, row) in zip(limits.values(), frame.iterrows(), strict=True):
        if last is None:
            assert np.isnan(row["accuracy"]) and row["rounds"] == 0
            continue
        reached = [one["accuracy"].iloc[last] for one in rounds]
        assert row["accuracy"] == pytest.approx(np.mean(reached))
        assert row["spread"] == pytest.approx(np.std(reached, ddof=1))
        assert row["rounds"] == last + 1
    assert frame["reached"].tolist() == [True, True, False, True], "nine rounds are not there"


def test_seconds_are_those_of_each_system(seeds):
    """In the time that one network takes for a round, one that is ten times as fast does more."""
    first = seeds[0]
    table = fs.time(first.folder, [SLOW, FAST]).set_index("system")
    frame = fs.within(first.folder, f"seconds({float(table['seconds'][FAST])})", [SLOW, FAST])
    paid = frame.set_index("system")["rounds"]
    assert paid[FAST] == 3 and paid[SLOW] < 3
    assert not frame["budget"].str.contains("Mbit").any()


def test_a_seed_without_a_paid_round_leaves_no_mean_of_the_others(simulate):
    runs = [
        simulate(rounds=1, local_steps=0, fraction=0.3, partition="linear", seed=seed)
        for seed in (0, 1)
    ]
    spent = sorted(float(one.rounds["client_flops"].iloc[0]) for one in runs)
    assert spent[0] < spent[1]
    folders = [one.folder for one in runs]
    frame = within(spendings(folders, [f"client_flops({spent[0]})", f"client_flops({spent[1]})"]))
    assert frame["accuracy"].isna().tolist() == [True, False]
    assert frame["spread"].isna().tolist() == [True, False]


def test_devices_without_watts_have_no_joules(simulate, tmp_path):
    table = tmp_path / "mine.toml"
    table.write_text(
        '[mine]\ntitle = "x"\nsustained = "1GFLOP/s"\nbackward = 1.0\nmemory = "1GB"\n'
        "compute_watts = 0.0\nsend_watts = 0.0\nreceive_watts = 0.0\nidle_watts = 0.0\n"
        "assumed = []\n"
    )
    system = f"devices('mine', table='{table}') | wifi()"
    with pytest.raises(ValueError, match="has no watts; fill them in"):
        fs.within(simulate().folder, "joules(5)", system)


def test_what_a_system_leaves_out_is_said(simulate):
    """The order of gas is that of its own system."""
    folder = str(simulate(strategy="gas()", system="lte()").folder)
    done = CliRunner().invoke(cli.app, ["within", folder, "-b", "seconds(5)", "-s", "wifi()"])
    assert "other systems change its times alone" in " ".join(done.output.split())


def test_the_command_shows_and_writes_the_table(seeds, tmp_path):
    folders, made = [str(one.folder) for one in seeds], tmp_path / "made"
    command = ["within", *folders, "-b", "rounds(2)", "-b", "rounds(4)", "--out", str(made)]
    done = CliRunner().invoke(cli.app, command, env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    mean = 100 * np.mean([one.rounds["accuracy"].iloc[1] for one in seeds])
    assert f"{mean:.1f} ±" in done.output and "*" in done.output
    assert pd.read_csv(made / "within.csv")["reached"].tolist() == [True, False]
    text = (made / "within.svg").read_text()
    assert "rounds(limit=2)" in text and "rounds(limit=4)" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-b", "seconds(5)"], "give a system"),
        (["-b", "patience(3)"], "is no amount that runs can be compared at"),
        (["-b", "byte(5)"], "bytes"),
        (["-b", "seconds(5)", "-s", f"{SLOW} | deadline('1s')"], "decides who is trained"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(simulate, options, message):
    done = CliRunner().invoke(cli.app, ["within", str(simulate().folder), *options])
    assert done.exit_code == 2 and "Traceback" not in done.output
    assert message in " ".join(done.stderr.split())
