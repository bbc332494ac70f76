"""Systems: quantities, devices, networks; what a run with a system records; timing afterwards."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import fl_split as fs
from fl_split.codecs import CODECS
from fl_split.spec_errors import SpecError
from simulations.cli import main as cli
from simulations.cli import terminal
from simulations.report.timing import by_device, table, time_runs
from simulations.runs import task_files
from simulations.runs.calibration import calibrate
from simulations.runs.experiment import Experiment
from simulations.runs.setup import prepare
from simulations.runs.virtual_time import timed
from simulations.system.coding import coding, operations
from simulations.system.devices import Devices, Mix, known
from simulations.system.graph import KINDS, Graph
from simulations.system.networks import Cell, Rates
from simulations.system.quantities import quantity
from simulations.system.system import SYSTEM, Timed, parse_system
from strategies import STRATEGIES

ROOT = Path(__file__).parents[1]

RUN = Timed(clients=6, seed=0)

SLOW = "mix(pi5=0.5, esp32_s3=0.5) | lte() | server('10GFLOP/s')"


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("10Mbit/s", "rate", 10e6), ("10 Mbps", "rate", 10e6), ("10MB/s", "rate", 80e6),
        ("50kbps", "rate", 50e3), ("1e6 bit/s", "rate", 1e6), ("40ms", "time", 0.04),
        ("2 min", "time", 120.0), ("1.2TFLOP/s", "speed", 1.2e12), ("8GiB", "memory", 2.0**33),
        ("512MB", "memory", 512e6), (".5s", "time", 0.5),
    ],
)  # fmt: skip
def test_quantities_are_read_with_their_units(text, kind, value):
    assert quantity(text, kind) == value


@pytest.mark.parametrize(
    ("text", "kind", "fault"),
    [
        ("10", "rate", "has no unit"), (10, "rate", "has no unit"),
        ("10Mbit", "rate", "no unit of rate"), ("-1Mbit/s", "rate", "must not be negative"),
        ("3 fortnights", "time", "units are s, ms, us, min, h, d"),
        ("1e400s", "time", "must not be negative"), ("fast", "rate", "bit/s, bps"),
    ],
)  # fmt: skip
def test_a_wrong_quantity_is_refused_with_the_units(text, kind, fault):
    with pytest.raises(ValueError, match=fault):
        quantity(text, kind)


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ("devices('pi6')", "did you mean 'pi"),
        ("mix(pi5=0.5, phone=1)", "unknown device 'phone'"),
        ("mix()", "give shares"),
        ("mix(pi5=-1)", "a share must be a number from 0"),
        ("lte() | wifi()", "second part for network"),
        ("lte() | none()", "none is no part"),
        ("network(up='-3Mbit/s')", "must not be negative"),
        ("network(up='0bit/s')", "never ends"),
        ("network(up='3')", "has no unit"),
        ("server(flops='1GHz')", "no unit of speed"),
        ("devices(law='uniform', spread=1.0)", "below 1 for uniform"),
        ("cell(nearest_km=2.0)", "nearest_km must not be above"),
        ("devices(table='nowhere.toml')", "no table of devices"),
    ],
)
def test_a_wrong_system_is_refused_in_one_line(spec, fault):
    with pytest.raises(SpecError, match=fault) as raised:
        Experiment.from_dict({"system": spec})
    assert "\n" not in str(raised.value)


def test_time_budgets_need_a_system(simulate):
    for budget in ("seconds(1.0)", "joules(1.0)"):
        with pytest.raises(ValueError, match="is counted by a system model; give one"):
            simulate(budget=budget)


def test_a_table_of_devices_of_ones_own(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        "[toy]\nsustained = '2GFLOP/s'\nbackward = 3\nmemory = '1MB'\ncompute_watts = 1\n"
        "send_watts = 2\nreceive_watts = 3\nidle_watts = 4\n"
    )
    fleet = parse_system(f"mix(toy=1, pi5=1, table={str(file)!r})").fleet(4, 0)
    assert sorted(fleet.flops.tolist()) == [2e9, 2e9, 35.169e9, 35.169e9]
    saved = Experiment.from_dict({"system": f"devices('toy', table={str(file)!r})"}).system
    assert str(file) in saved
    file.with_name("other.toml").write_text("[toy]\nsustained = '2GFLOP/s'\n")
    with pytest.raises(ValueError, match="device 'toy' needs sustained, backward, memory"):
        known(str(file.with_name("other.toml")))


def test_shares_of_a_mix_are_exact_and_who_has_which_is_drawn():
    mix = Mix(pi5=0.5, phone_mid=0.3, jetson_nano=0.2)
    first, again, other = (mix.draw(10, seed).kinds for seed in (0, 0, 1))
    assert np.bincount(first).tolist() == [5, 3, 2]
    assert first.tolist() == again.tolist() != other.tolist()
    assert np.bincount(Mix(pi5=1, pi4=1, laptop=1).draw(100, 0).kinds).tolist() in (
        [33, 34, 33], [33, 33, 34], [34, 33, 33],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("law", "spread", "low", "median", "high"),
    [("lognormal", 0.5, 0, 1.0, 99), ("uniform", 0.5, 0.5, 1.0, 1.5), ("zipf", 1.0, 0.01, 0.02, 1)],
)
def test_laws_have_their_medians_and_ends(law, spread, low, median, high):
    """Zipf's ranks 1..100 have the median 50.5."""
    speeds = Devices("pi5", law, spread).draw(20_000, 0).flops / known()["pi5"].flops
    assert np.median(speeds) == pytest.approx(median, rel=0.04)
    assert low <= speeds.min() and speeds.max() <= high


def test_rates_differ_by_client_or_by_round():
    by_client = Rates("1Mbit/s", "2Mbit/s", "5ms", "lognormal", 0.5)
    first, second = (by_client.roads(50, number, 0).up for number in (1, 2))
    assert first.tolist() == second.tolist() and len({*first.tolist()}) == 50
    by_round = Rates("1Mbit/s", "2Mbit/s", "5ms", "lognormal", 0.5, "round")
    first, second = (by_round.roads(50, number, 0) for number in (1, 2))
    assert first.up.tolist() != second.up.tolist()
    assert (first.down / first.up).tolist() == pytest.approx([2.0] * 50)


def test_fading_has_a_mean_of_one_in_power():
    """SNR is (2^(rate / W) - 1), so that the gain can be read off the rate."""
    still, faded = Cell(), Cell(fading=True)
    snr = [2 ** (cell.roads(20_000, 1, 0).up / 1e7) - 1 for cell in (still, faded)]
    assert float(np.mean(snr[1] / snr[0])) == pytest.approx(1.0, abs=0.03)


ARGUMENTS = {
    "deadline": "'60s'", "first": "0.5", "mix": "pi5=1.0", "sessions": "'1h', '1h'",
    "shared": "'1Gbit/s'",
}  # fmt: skip
"""Of parts that have no default for each."""


@pytest.mark.parametrize(
    "name", [name for name in SYSTEM if name not in {"none", "traces", "awake"}]
)
def test_every_part_alone_is_a_system(name):
    system = parse_system(f"{name}({ARGUMENTS.get(name, '')})")
    fleet, now = system.in_round(Timed(3, 0), 1, 0.0)
    for numbers in (now.flops, now.roads.up, now.roads.down):
        assert numbers.shape == (3,) and (numbers > 0).all()
    assert all((fleet.of(key) > 0).all() for key in ("memory", "compute_watts", "idle_watts"))


@pytest.mark.parametrize("name", list(known()))
def test_every_device_says_where_its_numbers_are_from(name):
    device = known()[name]
    keys = {"sustained", "backward", "memory", "compute_watts", "send_watts", "receive_watts",
            "idle_watts"}  # fmt: skip
    assert {*device.assumed} <= keys | {"peak"}
    for key in keys - {*device.assumed} - {"sustained", "backward", "memory"}:
        assert key in device.source or "watts" in device.source, key


# What a run records.


def test_a_system_changes_no_result_and_replay_equals_the_online_clock(simulate, reference):
    plain, outcome = reference(), simulate(system=SLOW)
    assert outcome.equals(plain)
    assert outcome.rounds["accuracy"].tolist() == plain.rounds["accuracy"].tolist()
    assert "virtual_seconds" not in plain.rounds
    replayed = [*timed(outcome.folder, 2, RUN, parse_system(SLOW))]
    assert outcome.rounds["virtual_seconds"].tolist() == [one.seconds for one in replayed]
    assert outcome.rounds["energy_joules"].tolist() == [one.joules.sum() for one in replayed]
    clients = outcome.clients
    for number, one in enumerate(replayed, start=1):
        mine = clients[clients["round"] == number]
        assert mine["energy_joules"].tolist() == one.joules.tolist()
        assert mine["virtual_seconds"].max() == one.seconds
    assert outcome.summary["virtual_seconds"] == pytest.approx(
        sum(one.seconds for one in replayed), abs=1e-3
    )


def test_budgets_of_time_and_energy_end_a_run(simulate, reference):
    rounds = simulate(system=SLOW, rounds=4).rounds
    for budget, column in (("seconds", "virtual_seconds"), ("joules", "energy_joules")):
        limit = float(rounds[column][:2].sum())
        outcome = simulate(system=SLOW, rounds=4, budget=f"{budget}({limit!r})")
        assert len(outcome.rounds) == 2
        assert outcome.summary["ended_by"] == f"{budget}(limit={limit!r})"


@pytest.mark.parametrize("strategy", ["parallel", "sflv1", "sflv2", "sequential", "fedavg"])
def test_graphs_on_disk_are_those_of_any_engine(simulate, on_ray, strategy):
    changes = {"strategy": strategy, "rounds": 2, "local_steps": 2}
    alone = simulate(**changes)
    many = on_ray(**changes)
    for number in (1, 2):
        mine, others = (task_files.file_of(one.folder, number) for one in (alone, many))
        assert mine.read_bytes() == others.read_bytes()


def test_a_resumed_run_leaves_the_graphs_of_one_that_was_never_stopped(
    simulate, reference, tmp_path
):
    """It is stopped after round 3, and goes on from the checkpoint of round 2."""
    changes = {"rounds": 4, "checkpoint_every": 2}

    def stop(row, result):
        if row["round"] == 3:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        simulate(watch=stop, **changes)
    (folder,) = {path.parent for path in tmp_path.rglob("experiment.toml")}
    fs.resume(folder)
    whole = reference(**changes)
    for number in range(1, 5):
        mine, theirs = (task_files.file_of(one, number) for one in (whole.folder, folder))
        assert mine.read_bytes() == theirs.read_bytes()


# Afterwards.


def test_a_finished_run_is_timed_under_other_systems(simulate, tmp_path):
    """Ten times the rate, without latency, is a tenth of the time that is sent."""
    outcome = simulate(rounds=3)
    base = "devices('laptop') | network('1Mbit/s', '1Mbit/s', latency='0s') | server('1TFLOP/s')"
    slow, fast = base, base.replace("1Mbit/s", "10Mbit/s")
    frame = table(time_runs([outcome.folder], [slow, fast]), [0.0, 2.0]).set_index("system")
    sent = ["up", "down", "weights"]
    seconds = frame[sent].sum(axis=1) * frame["seconds"]
    assert seconds[slow] == pytest.approx(10 * seconds[fast], rel=1e-9)
    shares = frame[["head", "tail", *sent]].sum(axis=1)
    assert shares.tolist() == pytest.approx([1.0, 1.0])
    assert frame["to_0"].tolist() == [
        next(timed(outcome.folder, 1, RUN, parse_system(spec))).seconds for spec in (slow, fast)
    ]
    assert frame["to_2"].isna().all(), "an accuracy of 200 % is never reached"
    accuracy = outcome.rounds["accuracy"]
    rounds = [one.seconds for one in timed(outcome.folder, 3, RUN, parse_system(slow))]
    reached = int((accuracy >= 0.9 * accuracy.max()).idxmax())
    assert frame["to_90"][slow] == pytest.approx(sum(rounds[: reached + 1]))


def test_the_command_shows_times_and_writes_figures(simulate, tmp_path):
    folder = str(simulate().folder)
    command = ["time", folder, "-s", SLOW, "-s", "wifi", "--accuracy", "0.1", "--out"]
    done = CliRunner().invoke(cli.app, [*command, str(tmp_path / "o")], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    frame = pd.read_csv(tmp_path / "o" / "time.csv")
    assert frame["system"].tolist() == [SLOW, "wifi"] and (frame["seconds"] > 0).all()
    assert (tmp_path / "o" / "devices.csv").exists()
    for name in ("time.svg", "energy.svg", "gantt.svg"):
        text = (tmp_path / "o" / name).read_text()
        assert "virtual seconds" in text or "<svg" in text


def test_a_report_times_all_runs_under_each_system(simulate, tmp_path):
    """The numbers behind its curves are those of the clock."""
    outcome, page = simulate(rounds=3), tmp_path / "page.md"
    fs.report(outcome.folder, page, system=["wifi", SLOW])
    curve = pd.read_csv(tmp_path / "page_files" / "accuracy-virtual-time.csv")
    for spec in ("wifi", SLOW):
        seconds = np.cumsum(
            [one.seconds for one in timed(outcome.folder, 3, RUN, parse_system(spec))]
        )
        mine = curve[curve["configuration"].str.contains("wifi") == (spec == "wifi")]
        assert mine["virtual time, s"].tolist() == pytest.approx(seconds.tolist())
    text = page.read_text()
    assert "virtual time" in text and "client energy" in text


def test_what_cannot_be_timed_is_said_in_one_line(simulate, tmp_path):
    outcome = simulate()

    def said(*arguments):
        done = CliRunner().invoke(cli.app, ["time", *map(str, arguments)])
        assert done.exit_code == 2 and "Traceback" not in done.output
        return " ".join(done.stderr.split())

    assert "is no system" in said(outcome.folder, "-s", "none")
    assert "round 9" in said(outcome.folder, "-s", "lte", "--round", "9", "--out", tmp_path / "x")
    file = task_files.file_of(outcome.folder, 2)
    file.write_bytes(file.read_bytes()[:100])
    assert "round-000002.parquet is torn or no task graph" in said(outcome.folder, "-s", "lte")
    file.unlink()
    assert "is missing" in said(outcome.folder, "-s", "lte")
    folder = outcome.folder / task_files.FOLDER
    (folder / "round-000001.parquet").unlink()
    folder.rmdir()
    assert "recorded none; run it again" in said(outcome.folder, "-s", "lte")


def test_devices_are_listed_with_what_is_assumed(monkeypatch):
    monkeypatch.setattr(terminal.out, "width", 200)
    done = CliRunner().invoke(cli.app, ["list", "devices"])
    assert done.exit_code == 0 and "cortex_m7" in done.output and "35.2 GFLOP/s" in done.output
    assert "4.8 GFLOP/s*" in done.output, "assumed"


def test_a_device_is_shown_with_its_sources(monkeypatch):
    monkeypatch.setattr(terminal.out, "width", 200)
    done = CliRunner().invoke(cli.app, ["list", "pi5"])
    assert done.exit_code == 0 and "Sustained 35.2 GFLOP/s" in done.output
    assert "Assumed: peak, backward, receive_watts." in done.output
    assert "top500-benchmark" in done.output


def test_what_a_client_spends_is_told_by_kind_of_device(simulate):
    """Means over the clients that have it; joules are watts times the seconds beside them."""
    outcome = simulate(rounds=2)
    spec = "mix(pi5=0.5, phone_mid=0.5) | network('1Mbit/s', '1Mbit/s', latency='10ms')"
    frame = by_device(time_runs([outcome.folder], [spec])).set_index("device")
    assert frame["clients"].tolist() == frame["active"].tolist() == [3, 3]
    spent = [*timed(outcome.folder, 2, RUN, parse_system(spec))]
    kinds = parse_system(spec).fleet(6, 0).kinds
    for number, name in enumerate(["pi5", "phone_mid"]):
        mine = sum(one.joules for one in spent)[kinds == number]
        assert frame.loc[name, "joules"] == pytest.approx(mine.mean())
        assert frame.loc[name, "most_joules"] == pytest.approx(mine.max())
        device, row = known()[name], frame.loc[name]
        assert row["joules"] == pytest.approx(
            device.compute_watts * row["compute"] + device.send_watts * row["send"]
            + device.receive_watts * row["receive"] + device.idle_watts * row["wait"]
        )  # fmt: skip


def test_without_watts_there_is_no_energy(simulate, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        "[toy]\nsustained = '2GFLOP/s'\nbackward = 2\nmemory = '1GB'\ncompute_watts = 0\n"
        "send_watts = 0\nreceive_watts = 0\nidle_watts = 0\n"
    )
    runs = time_runs([simulate().folder], [f"devices('toy', table={str(file)!r})"])
    assert table(runs)["joules"].isna().all() and by_device(runs)["joules"].isna().all()


def test_a_mix_is_written_on_the_command_line(tmp_path):
    tiny = ["clients=2", "rounds=1", "engine=inline", "batch_size=256", "local_steps=1"]
    command = ["run", "quickstart", *tiny, "system=mix(pi5=1, pi4=1) | wifi()", "--out"]
    done = CliRunner().invoke(cli.app, [*command, str(tmp_path / "r")])
    assert done.exit_code == 0, done.output
    saved = (tmp_path / "r" / "experiment.toml").read_text()
    assert "mix(table='', pi5=1, pi4=1) | wifi(" in saved
    wrong = CliRunner().invoke(cli.app, [*command[:-2], "system=mix(pi9=1)"])
    assert wrong.exit_code == 2 and "unknown device 'pi9'; did you mean" in wrong.stderr


def test_codecs_cost_what_the_table_says(simulate):
    """One step of 8 samples: 8 x 5 x 16 numbers, of which adc leaves the values of 3 tokens."""
    chain, found = "adc(ratio=0.5) | uniform(bits=4)", []
    simulate(
        watch=lambda row, result: found.append(result.tasks), codec=chain, downlink="fp16()",
        clients=1, rounds=1, local_steps=1, batch_size=8,
    )  # fmt: skip
    amounts = {task.kind: task.amount for task in found[0]}
    whole, left = amounts["encode"], amounts["decode"]
    assert whole == 8 * 5 * 16 and 0 < left < whole
    assert amounts["pack"] == amounts["unpack"] == left
    graph = Graph.of(found[0])
    costs = operations(graph, coding(chain), coding("fp16()"))
    by_kind = {KINDS[kind]: cost for kind, cost in zip(graph.kinds, costs, strict=True) if cost}
    assert by_kind == pytest.approx(
        {
            "encode": 198.6 * whole + 163.9 * left,
            "decode": 11.6 * whole + 52.1 * left,
            "pack": 40.5 * left,
            "unpack": 13.5 * left,
        }
    )


def test_the_table_of_costs_is_that_of_the_benchmark():
    """Shares of the head's time on a ViT-Tiny: 43,875 operations of the head for each number."""
    measured = pd.read_csv(ROOT / "docs" / "results" / "codecs_vit_tiny.csv").set_index("codec")
    head = ((measured["client_ms"] + measured["server_ms"]) / measured["share"]).median()
    for name in CODECS:
        costs = coding(name)
        if name != "identity":
            expected = measured.loc[name, ["client_ms", "server_ms"]] / head * 43875.015
            assert costs.first == pytest.approx([*expected], rel=1e-2)
        assert not costs.unknown


def test_a_codec_that_the_table_does_not_have_counts_nothing_and_is_named():
    found = coding("topk(ratio=0.1) | my_pkg.codecs:Mine()")
    assert found.unknown == ("my_pkg.codecs:Mine",) and found.first == (277.6, 161.9)


def test_a_device_with_too_little_memory_is_named(simulate):
    with pytest.raises(
        ValueError, match=r"system: a client needs about .*cortex_m7 has 1 MB \(3 c"
    ):
        simulate(system="mix(pi5=0.5, cortex_m7=0.5)", batch_size=512)
    outcome = simulate(batch_size=512, rounds=1)
    with pytest.raises(ValueError, match=r"under .*cortex_m7.*: a client needs about"):
        time_runs([outcome.folder], ["devices('cortex_m7')"])


def test_memory_of_a_client_is_four_times_its_weights_and_the_activations(simulate):
    outcome = simulate(rounds=1)
    summary, weights = outcome.summary, outcome.rounds["head_bytes_up"].sum() / 6
    kept = summary["activation_bytes"]["head"]
    assert summary["client_bytes"] == pytest.approx(4 * weights + kept, rel=0.1)


@pytest.mark.parametrize("strategy", ["parallel()", "cse_fsl()"])
def test_a_calibrated_device_takes_the_times_that_were_measured(tmp_path, strategy):
    """By a watch that is read before and after forward and after backward: 0.5 and 1.5 s."""
    keys = {"clients": 2, "batch_size": 8, "engine": "inline()", "strategy": strategy}
    setup = prepare(Experiment.from_dict(keys))
    ticks = itertools.accumulate(itertools.cycle([0.0, 0.5, 1.5]))
    found = calibrate(setup, 3, lambda: next(ticks))
    assert (found.forward_seconds, found.backward_seconds) == (0.5, 1.5)
    file = tmp_path / "mine.toml"
    file.write_text(found.row("mine").replace("watts = 0.0", "watts = 1.0"))
    device = known(str(file))["mine"]
    plain = prepare(Experiment.from_dict({**keys, "strategy": "parallel()"}))
    work = plain.exchange.flops(plain.head, plain.tail)
    assert 8 * work.forward / device.flops == pytest.approx(found.forward_seconds, rel=0.01)
    backward = 8 * work.backward / 2 * device.backward / device.flops
    assert backward == pytest.approx(found.backward_seconds, rel=0.01)


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ("time,client,up_bps\n0,0,1\n", "has no column down_bps"),
        ("time,client,up_bps,down_bps\n0,0,1,\n", "line 2 has an empty cell"),
        ("time,client,up_bps,down_bps\n0,0,1,-3\n", "line 2 has an empty cell, a negative"),
        ("time,client,up_bps,down_bps\n1,0,1,1\n", "must begin at 0 and rise"),
        ("time,client,up_bps,down_bps\n0,0,1,1\n0,0,2,2\n", "must begin at 0 and rise"),
        ("time,client,up_bps,down_bps\n0,0,0,1\n5,0,0,1\n", "always 0: it would never end"),
    ],
)
def test_a_damaged_trace_is_refused_in_one_line(tmp_path, rows, fault):
    file = tmp_path / f"{abs(hash(rows))}.csv"
    file.write_text(rows)
    with pytest.raises(SpecError, match=fault):
        Experiment.from_dict({"system": f"traces({str(file)!r})"})


def test_a_run_over_traces_goes_on_with_its_time(simulate, tmp_path):
    """Rates fall a hundredfold when the first round has ended: later rounds take so much longer."""
    fast = simulate(system="devices('laptop') | network('1Mbit/s', '1Mbit/s', latency='0s')")
    until = fast.rounds["virtual_seconds"][0]
    file, rows = tmp_path / "roads.csv", ["time,client,up_bps,down_bps"]
    for client in range(6):
        rows += [f"{t},{client},{r},{r}" for t, r in ((0, 1e6), (until, 1e4), (1e3 * until, 1e4))]
    file.write_text("\n".join(rows) + "\n")
    spec = f"devices('laptop') | traces({str(file)!r})"
    outcome = simulate(system=spec)
    first, second = outcome.rounds["virtual_seconds"]
    assert first == pytest.approx(until)
    assert second / first == pytest.approx(100, rel=0.01)
    frame = table(time_runs([outcome.folder], [spec]))
    assert frame["seconds"][0] == pytest.approx(outcome.rounds["virtual_seconds"].sum())
    few = simulate(rounds=1, clients=7)
    with pytest.raises(ValueError, match=r"1 of 7 clients are not in it \(6\)"):
        time_runs([few.folder], [spec])


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_every_strategy_has_a_time_and_slower_devices_take_longer(reference, strategy):
    """All work of clients takes ten times as long, so a round does not take less."""
    run = reference(strategy=strategy)
    slow, fast = (
        [*timed(run.folder, 2, RUN, parse_system(f"devices('pi5', utilisation={u}) | wifi()"))]
        for u in (0.01, 0.1)
    )
    for one, other in zip(slow, fast, strict=True):
        assert one.seconds >= other.seconds > 0
        assert one.compute.tolist() == pytest.approx((10 * other.compute).tolist())
        assert sum(one.shares.values()) == pytest.approx(one.seconds)
