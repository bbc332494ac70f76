import json
import math
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest

from fl_split.codecs import CODECS

ROOT = Path(__file__).parents[1]
TINY = "4 clients, 2 a round, ADC 0.1"
CHAINS = 4
CELL = "devices('pi5') | cell(bandwidth_mhz={}, nearest_km=1.0, farthest_km=1.0)"
COMMANDS = {
    "engine": ["engine.py", "--tiny"],
    "engine_only": ["engine.py", "--tiny", "--engine-only", "--only", TINY, "--rounds", "2"],
    "clock": ["engine.py", "--tiny", "--clock"],
    "scaling": ["scaling.py", "--tiny"],
    "codec_costs": ["codec_costs.py", "--tiny"],
    "data": ["data.py", "--tiny"],
    "peers": ["peers.py", "--tiny"],
    "token_rates": ["token_rates.py", "--tiny"],
    "channel_levels": ["channel_levels.py", "--tiny"],
    "in_cells": [
        *("channel_levels.py", "--tiny", "--channels", "awgn(snr_db='cell')", "perfect()"),
        *("--systems", CELL.format(0.1), CELL.format(0.01)),
    ],
    "policies": ["policies.py", "--tiny"],
    "exits_by_client": ["exits_by_client.py", "--tiny", "--tau", "0"],
}

pytestmark = pytest.mark.slow


def benchmark(*arguments):
    command = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a program at its tiny size; return what it printed and the rows it wrote.

    It runs in this process, which has imported all that it needs.
    """

    def measure(name):
        program, *options = COMMANDS[name]
        found = tmp_path / f"{name}.json"
        monkeypatch.setattr(sys, "argv", [program, *options, "--json", str(found)])
        monkeypatch.setenv("COLUMNS", "160")
        monkeypatch.syspath_prepend(ROOT / "benchmarks")
        import_module(program.removesuffix(".py")).main()
        return capsys.readouterr().out, json.loads(found.read_text())

    return measure


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("engine", [TINY, "empty exchange over 3", "first exchange"]),
        ("engine_only", [TINY]),
        ("clock", [TINY, TINY]),
        ("scaling", [2]),
        ("data", ["cache, cold", "cache, warm"]),
        ("peers", ["inline"]),
    ],
)
def test_a_benchmark_runs_and_prints_its_rows(run, name, expected):
    shown, rows = run(name)
    assert [row.get("name", row.get("clients")) for row in rows] == expected
    assert all(row.get("engine", "inline()") == "inline()" for row in rows)
    for text in map(str, expected[:1]):
        assert text in shown
    if name == "engine_only":  # what a paired comparison reads
        assert rows[0]["wall_s"] > 0 and rows[0]["cpu_s"] >= 0


def test_the_benchmark_of_codecs_measures_every_codec_and_chain(run):
    shown, rows = run("codec_costs")
    assert [row["name"] for row in rows][:-CHAINS] == list(CODECS)
    assert all(row["name"] in shown for row in rows)


def test_one_model_is_tested_at_every_rate_of_tokens(run):
    shown, rows = run("token_rates")
    assert "dual_gate" in shown and "residual_gate" in shown
    by_threshold = [row for row in rows if "threshold" in row["tested"]]
    rows = [row for row in rows if row not in by_threshold]
    assert len(by_threshold) == 5 and all(1 <= row["kept"] <= 16 for row in by_threshold)
    kept = {(row["tested"].partition("(")[0], row["rate"]): row["kept"] for row in rows}
    counts = {0.1: 2, 0.25: 4, 0.5: 8, 0.75: 12, 1.0: 16}  # of 16 patches
    tested = ("residual_gate", "dual_gate", "random", "norm", "cls_attention")
    assert kept == {(name, rate): n for name in tested for rate, n in counts.items()}
    whole = {row["accuracy"] for row in rows if row["trained"] == "none()" and row["rate"] == 1}
    assert len(rows) == 25 and len(whole) == 1
    assert all(0 <= row["accuracy"] <= 1 for row in rows)


def test_one_model_is_tested_over_every_channel(run):
    """d = 4 of 16: 17 tokens of four uses, at 10 dB of log2(11) bits each; else of 32 bytes."""
    shown, rows = run("channel_levels")
    noisy, perfect = (row["bytes_up"] for row in rows)
    assert [row["channel"] for row in rows] == ["awgn()", "perfect()"]
    assert perfect - noisy == 17 * 32 - math.ceil(17 * 4 * math.log2(11) / 8)
    assert all(row["channel"] in shown and 0 <= row["accuracy"] <= 1 for row in rows)


def test_in_a_cell_a_symbol_takes_a_second_over_the_bandwidth(run):
    """68 uses, 17 tokens of 4, in the place of 544 bytes of a code at capacity.

    A client of 0.2 W at 1 km loses 128.1 dB and has 10 log10(200) + 174 - 128.1 = 68.91 dB over
    the noise of 1 Hz. Symbols count as whole bytes, so they take up to a byte longer.
    """
    _, rows = run("in_cells")
    seconds = [row["seconds"] for row in rows]
    for noisy, perfect, hertz in zip(seconds[:2], seconds[2:], (100e3, 10e3), strict=True):
        rate = hertz * math.log2(1 + 10**6.891 / hertz)
        took = 8 * 544 / rate - (perfect - noisy)
        assert -1e-5 <= took - 68 / hertz <= 8 / rate
    assert {row["channel_uses"] for row in rows[:2]} == {68}


def test_pairs_of_a_share_of_patches_and_a_ratio_of_symbols_are_settings(run):
    """CLS and 2 or 16 patches, of 8 or 4 uses each, of an image of 64 numbers."""
    shown, rows = run("policies")
    found = {row["policy"]: row["uses_per_number"] for row in rows}
    for tokens, rate in ((3, "0.1"), (17, "1")):
        for uses, ratio in ((8, "0.5"), (4, "0.25")):
            name = f"jscc(ratio={ratio}, ratios=[0.5, 0.25]) at rate {rate}"
            assert found[name] == tokens * uses / 64
    assert found["best constant of lyapunov(rate=1.0, slots=10)"] <= 1
    assert "lyapunov(rate=1.0, slots=10)" in found and "lyapunov" in shown
    assert {(row["run"], row["seed"], row["delay_price"]) for row in rows} == {("run", 0, None)}


def test_held_out_rows_of_each_client_leave_at_the_first_exit_if_anything_is_sure(run):
    """Every one of the 1,433 digits for training is trained on or held out, a fifth of a client."""
    shown, rows = run("exits_by_client")
    assert [(row["run"], row["seed"], row["client"]) for row in rows] == [
        (f"run{seed}", seed, client) for seed in (0, 1) for client in range(4)
    ]
    assert sum(row["rows"] + row["held_out"] for row in rows) == 2 * 1433
    for row in rows:
        assert row["held_out"] == math.ceil(0.2 * (row["rows"] + row["held_out"]))
        assert (row["leave"], row["mean_exit"]) == (1, 1) and 0 < row["entropy"] < math.log2(10)
        assert row["accuracy_leaving"] == row["accuracy"]
        assert row["partition"] == "dirichlet(alpha=1.0)" and row["partition"] in shown


def test_correlations_of_clients_and_their_intervals_are_those_done_by_hand(monkeypatch):
    """Five clients of two runs: z has a standard error of 1 / sqrt(5 - 3), or of 1 within runs."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    correlation = import_module("exits_by_client").correlation
    leave = {"entropy": [0, 1, 2, 9, 11], "leave": [0, 2, 1, 9, 7]}
    clients = pd.DataFrame({"run": [*"aaabb"], **leave})
    r, low, high = correlation(clients, "spearman")  # two pairs change places: 1 - 24 / 120
    far = 1.96 * math.sqrt((1 + 0.8**2 / 2) / 2)
    assert r == pytest.approx(0.8)
    assert [low, high] == pytest.approx([math.tanh(math.atanh(0.8) + d) for d in (-far, far)], 1e-3)
    r, low, high = correlation(clients, "pearson", runs=2)  # -1 0 1 -1 1 and -1 1 0 1 -1: -1 / 4
    assert r == pytest.approx(-0.25)
    assert [low, high] == pytest.approx(
        [math.tanh(math.atanh(-0.25) + d) for d in (-1.96, 1.96)], 1e-3
    )


def test_figures_of_results_are_drawn_from_their_rows(tmp_path, monkeypatch):
    """Those that pages show are there, and each line has rows."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    figures = import_module("result_figures")
    for name in figures.FIGURES:
        assert "<svg" in figures.draw(name, tmp_path).read_text()
        page = (figures.RESULTS / f"{name.partition('_')[0]}.md").read_text()
        assert f"]({name}.svg)" in page and (figures.RESULTS / f"{name}.svg").exists()


def checkout(folder, seconds):
    """A checkout whose engine says that its runs take `seconds`, one after the other."""
    program = folder / "benchmarks" / "engine.py"
    program.parent.mkdir(parents=True)
    program.write_text(f"""
import json, os, pathlib, sys
here = pathlib.Path(__file__).parents[1]
assert os.environ["PYTHONPATH"] == str(here) == os.getcwd()
log = here.parent / "order"
order = log.read_text() if log.exists() else ""
second = {seconds}[order.count(here.name)]
log.write_text(order + here.name)
row = {{"name": "job", "cpu_s": second, "wall_s": 2.0}}
pathlib.Path(sys.argv[sys.argv.index("--json") + 1]).write_text(json.dumps([row]))
""")
    return folder


def test_pairs_alternate_and_give_the_mean_ratio_with_its_interval(tmp_path):
    a = checkout(tmp_path / "A", [1.0, 2.0, 4.0])
    b = checkout(tmp_path / "B", [1.0, 2.2, 4.8])
    done = benchmark(ROOT / "benchmarks" / "paired.py", a, b, "--pairs", 3)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "order").read_text() == "ABBAAB"
    # Ratios 1, 1.1, 1.2: mean 1.1, deviation 0.1; t(0.975; 2) = 4.303, so +- 0.248.
    cells = [
        cell.strip()
        for cell in next(x for x in done.stdout.splitlines() if "job" in x)[1:-1].split("│")
    ]
    assert cells == ["job", "1.100", "0.852-1.348", "1.000", "1.000-1.000", "2.333"]


def test_a_run_that_fails_ends_the_comparison_with_its_reason(tmp_path):
    a = checkout(tmp_path / "A", [1.0, 1.0])
    b = checkout(tmp_path / "B", [])
    done = benchmark(ROOT / "benchmarks" / "paired.py", a, b, "--pairs", 2)
    assert done.returncode != 0
    assert "B/benchmarks/engine.py failed" in done.stderr and "IndexError" in done.stderr
