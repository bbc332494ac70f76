"""Who counts in virtual time: deadlines, the first who come, sessions, dropouts, arrival."""

import numpy as np
import pytest
from typer.testing import CliRunner

from simulations.cli import main as cli
from simulations.clients import client_app
from simulations.runs import task_files
from simulations.runs.news import dropped_clients
from simulations.runs.virtual_time import timed
from simulations.system.clock import time_round
from simulations.system.gilbert_elliott import Switching
from simulations.system.spells import Spells
from simulations.system.system import Timed, parse_system
from strategies import STRATEGIES
from strategies.mergesfl import MergeSFL
from strategies.server.participants import Population

ROADS = "network('200kbit/s', '1Mbit/s', latency='5ms', law='lognormal', spread=0.7)"
SHORT = {"local_steps": 2, "batch_size": 8, "rounds": 1}
WIDE = {"local_steps": 2, "batch_size": 64, "rounds": 1, "partition": "iid()"}
"""Payloads larger than heads, so that who is late is late with a payload."""
RUN = Timed(clients=6, seed=0)


def ends(outcome):
    """Seconds until each client had ended, by client, the first who ended first."""
    return outcome.clients.set_index("client")["virtual_seconds"].sort_values()


def left_out(outcome):
    clients = outcome.clients
    return set(clients["client"][clients["dropped"] != ""])


def without(clients):
    """The client app, which fails for some clients: the server drops them."""

    def app(message, context):
        is_training = str(message.metadata.message_type).startswith("train")
        if is_training and context.node_config["partition-id"] in clients:
            raise RuntimeError("gone")
        return client_app.app(message, context)

    return app


@pytest.mark.parametrize("strategy", ["fedavg", "sflv1", "sflv3"])
def test_who_ends_after_the_deadline_of_a_round_is_left_out(simulate, strategy):
    """Their times are those of the same round without a deadline; the others train as if alone."""
    seconds = ends(simulate(strategy=strategy, system=ROADS, **SHORT))
    deadline = float(seconds.iloc[3:5].mean())
    outcome = simulate(strategy=strategy, system=f"{ROADS} | deadline('{deadline!r}s')", **SHORT)
    late = set(seconds.index[seconds > deadline])
    assert left_out(outcome) == late and len(late) == 2
    assert outcome.rounds["virtual_seconds"][0] == pytest.approx(deadline, abs=1e-6)
    if strategy in {"fedavg", "sflv1"}:
        assert outcome.equals(simulate(without(late), strategy=strategy, **SHORT))
    for reason in outcome.clients["dropped"][outcome.clients["dropped"] != ""]:
        assert reason.startswith("late: ") and reason.endswith(f"deadline of {deadline:g} s")


@pytest.mark.parametrize("strategy", ["parallel", "sflv2(order='cyclic')", "sequential"])
def test_who_is_late_at_an_exchange_is_left_out_before_it_is_served(simulate, strategy):
    """The two whose first payload takes longest, from when the server sent what it answers."""
    changes = {**WIDE, "strategy": strategy}
    free = simulate(system=ROADS, **changes)
    graph = task_files.read_round(free.folder, 1)
    _, now = parse_system(ROADS).in_round(RUN, 1, 0.0)
    times, first = time_round(graph, now), graph.steps == 0
    took = {}
    for client in range(6):
        mine = first & (graph.clients == client)
        asked, came = (np.flatnonzero(mine & graph.are(kind))[0] for kind in ("sync down", "up"))
        took[client] = times.end[came] - times.begin[asked]
    *_, third, second, slowest = sorted(took, key=took.__getitem__)
    deadline = float(took[third] + took[second]) / 2
    outcome = simulate(system=f"{ROADS} | deadline('{deadline!r}s', per='exchange')", **changes)
    assert left_out(outcome) == {second, slowest}
    assert outcome.equals(simulate(without({second, slowest}), **changes))
    waits = (graph := task_files.read_round(outcome.folder, 1)).amounts[graph.are("wait")].tolist()
    assert set(waits) == {round(1e6 * deadline)} and len(waits) == (
        1 if strategy == "parallel" else 2
    )


def test_a_joint_step_begins_at_the_deadline_when_somebody_is_late(simulate):
    """One exchange, one client late: its head is left out, too, and nobody waits for it."""
    changes = {**WIDE, "local_steps": 1}
    free = simulate(system=ROADS, **changes)
    graph = task_files.read_round(free.folder, 1)
    _, now = parse_system(ROADS).in_round(RUN, 1, 0.0)
    end = time_round(graph, now).end
    came = np.sort(end[graph.are("up")])
    deadline = float(came[-2:].mean())
    outcome = simulate(system=f"{ROADS} | deadline('{deadline!r}s', per='exchange')", **changes)
    graph = task_files.read_round(outcome.folder, 1)
    times = time_round(graph, now)
    (wait,) = np.flatnonzero(graph.are("wait"))
    assert times.end[wait] == pytest.approx(deadline, abs=1e-6)
    serves = np.flatnonzero(graph.are("serve"))
    assert times.begin[serves].min() == pytest.approx(times.end[wait])
    assert len(left_out(outcome)) == 1
    assert outcome.rounds["virtual_seconds"][0] == times.seconds < float(came[-1]) + 1.0


@pytest.mark.parametrize("strategy", ["fedavg", "sflv1", "parallel"])
def test_the_first_who_come_are_taken(simulate, strategy):
    changes = {**SHORT, "strategy": strategy, "local_steps": 1}
    free = simulate(system=ROADS, **changes)
    graph = task_files.read_round(free.folder, 1)
    _, now = parse_system(ROADS).in_round(RUN, 1, 0.0)
    message = graph.are("sync up") if strategy != "parallel" else graph.are("up")
    times = time_round(graph, now).end
    order = sorted(np.flatnonzero(message), key=lambda n: times[n])
    slow = {int(graph.clients[n]) for n in order[4:]}
    outcome = simulate(system=f"{ROADS} | first(0.6)", **changes)  # 3.6 clients: 4
    assert left_out(outcome) == slow
    assert outcome.equals(simulate(without(slow), **changes))
    assert outcome.rounds["virtual_seconds"][0] < free.rounds["virtual_seconds"][0]


@pytest.mark.parametrize(
    ("strategy", "system"),
    [
        ("parallel", "deadline('0.6s', per='exchange')"),
        ("sflv1", "first(0.5) | dropouts(exchange=0.2)"),
        ("sflv2(order='arrival', phi=1)", "sessions('2s', '1s')"),
    ],
)
def test_engines_agree_and_replay_is_the_online_clock(simulate, on_ray, strategy, system):
    changes = {"strategy": strategy, "system": f"{ROADS} | {system}", **SHORT, "rounds": 3}
    alone = simulate(**changes)
    many = on_ray(**changes)
    assert many.equals(alone)
    assert many.clients["dropped"].tolist() == alone.clients["dropped"].tolist()
    assert alone.clients["dropped"].any()
    for number in (1, 2, 3):
        mine, others = (task_files.file_of(one.folder, number) for one in (alone, many))
        assert mine.read_bytes() == others.read_bytes()
    replayed = timed(alone.folder, 3, RUN, parse_system(ROADS))
    assert alone.rounds["virtual_seconds"].tolist() == [one.seconds for one in replayed]


def test_payloads_are_served_as_they_arrive(simulate):
    """In the graph every served payload came before those that are served later."""
    outcome = simulate(strategy="sflv2(order='arrival', phi=1)", system=ROADS, **SHORT)
    graph = task_files.read_round(outcome.folder, 1)
    _, now = parse_system(ROADS).in_round(RUN, 1, 0.0)
    end = time_round(graph, now).end
    before = [graph.after[graph.bounds[n] : graph.bounds[n + 1]] for n in range(len(end))]
    came = []
    for number in np.flatnonzero(graph.are("serve")):
        (payload,) = [n for n in before[number] if graph.are("up")[n]]
        came.append(end[payload])
    order = np.argsort(end[graph.are("serve")], kind="stable")
    assert np.array(came)[order].tolist() == sorted(came)
    cyclic = simulate(strategy="sflv2(order='cyclic', phi=1)", system=ROADS, **SHORT)
    assert not outcome.equals(cyclic)


def test_a_round_asks_those_who_are_there_and_waits_for_the_first(simulate, tmp_path):
    """Nobody before 50 s, client 2 alone until 100 s, then all; 4 goes before it can answer.

    Client 4's times touch, which is one stay; 2 pays for no time in which nobody was there.
    """
    usual = simulate(system=ROADS, strategy="fedavg", **SHORT)
    alone, joules = float(ends(usual)[2]), usual.clients.set_index("client")["energy_joules"][2]
    gone = 50 + alone / 2
    rows = ["2,50,1e9", f"4,50,{50 + alone / 4}", f"4,{50 + alone / 4},{gone}"]
    path = tmp_path / "awake.csv"
    path.write_text("\n".join(["client,on,off", *rows, *(f"{k},100,1e9" for k in (0, 1, 3, 5))]))
    outcome = simulate(
        system=f"{ROADS} | awake('{path}')", strategy="fedavg", **{**SHORT, "rounds": 400},
        budget="seconds(110)",
    )  # fmt: skip
    clients, seconds = outcome.clients, outcome.rounds["virtual_seconds"]
    first = clients[clients["round"] == 1].set_index("client")
    assert first.index.tolist() == [2, 4]
    assert first["dropped"][4] == f"went away: {alone / 2:.4g} s into the round"
    assert first["energy_joules"][2] == pytest.approx(joules, rel=1e-3)
    assert seconds[0] == pytest.approx(50 + max(alone, alone / 2), abs=1e-5)
    assert seconds[1] == pytest.approx(alone)
    later = clients[clients["round"] == int(clients["round"].max())]
    assert set(later["client"]) == {0, 1, 2, 3, 5}


def test_the_first_who_come_are_waited_for_and_nobody_else(simulate):
    """A deadline that others miss makes no round longer."""
    alone = simulate(strategy="sflv1", system=f"{ROADS} | first(0.5)", **SHORT)
    late = float(ends(alone).iloc[-1]) - 1e-3
    spec = f"{ROADS} | first(0.5) | deadline('{late!r}s')"
    both = simulate(strategy="sflv1", system=spec, **SHORT)
    assert both.rounds["virtual_seconds"].tolist() == alone.rounds["virtual_seconds"].tolist()
    assert both.clients["dropped"].str.startswith("late").sum() == 1
    assert both.equals(alone)


@pytest.mark.parametrize("strategy", ["parallel", "fedavg", "sflv2"])
def test_what_dropouts_leave_undone_is_counted_nowhere(simulate, strategy):
    """Bytes and operations of the columns are those of the task graph."""
    outcome = simulate(
        strategy=strategy, system="wifi | dropouts(round=0.3, exchange=0.3)",
        **{**SHORT, "rounds": 2}, clients=12,
        channel="erasure(p=0.2, packet=200, mode='drop')", codec="zstd",
    )  # fmt: skip
    assert outcome.rounds["dropped"].min() > 0
    for number, row in enumerate(outcome.rounds.to_dict("records"), start=1):
        graph = task_files.read_round(outcome.folder, number)
        up = graph.amounts[graph.are("up", "sync up")].sum()
        assert up == row["payload_bytes_up"] + row["head_bytes_up"]
        down = graph.amounts[graph.are("down", "sync down")].sum()
        assert down == row["payload_bytes_down"] + row["head_bytes_down"]
        works = graph.are("forward", "backward", "train")
        assert graph.amounts[works].sum() == row["client_flops"]


def test_dropouts_are_as_many_as_their_law_says(simulate):
    outcome = simulate(
        strategy="fedavg", system="wifi | dropouts(round=0.3)", clients=40, rounds=10,
        local_steps=1, batch_size=4,
    )  # fmt: skip
    dropped = outcome.clients["dropped"] == "dropped out"
    assert dropped.mean() == pytest.approx(0.3, abs=3 * (0.3 * 0.7 / 400) ** 0.5)
    assert outcome.rounds["dropped"].sum() == dropped.sum()


def test_spells_are_on_as_often_as_their_means_say():
    """Share of time, and mean length of a spell, within three standard errors."""
    spells, time, on, lengths = Spells(2.0, 6.0, 0, "spells", 1), 0.0, 0.0, []
    while time < 80_000:
        is_on, until = spells.at(time)
        on += (until - time) * is_on
        lengths += [until - time] * is_on
        time = until
    assert on / time == pytest.approx(0.25, abs=0.01)
    assert np.mean(lengths) == pytest.approx(2.0, abs=3 * 2.0 / len(lengths) ** 0.5)
    assert [spells.at(5.0), spells.at(5.0)] == [Spells(2.0, 6.0, 0, "spells", 1).at(5.0)] * 2


def test_a_switching_road_carries_bits_at_both_rates():
    """By hand: 10 bit/s until 3 s, 1 bit/s until 5 s, then 10 again: 30 + 2 + 8 bits in 5.8 s."""

    class Given:
        def at(self, time):
            ends = [3.0, 5.0, 1e9]
            place = next(n for n, end in enumerate(ends) if time < end)
            return place != 1, ends[place]

    assert Switching(Given(), 10.0, 1.0).end(0.0, 40.0) == pytest.approx(5.8)
    assert Switching(Given(), 10.0, 0.0).end(4.0, 5.0) == pytest.approx(5.5)


def test_rates_of_gilbert_and_elliott_are_slower_than_the_good_one(simulate):
    spec = "gilbert_elliott('1Mbit/s', '1Mbit/s', bad=0.1, good_for='1s', bad_for='1s')"
    worse = simulate(system=spec).rounds["virtual_seconds"].sum()
    good = simulate(system="network('1Mbit/s', '1Mbit/s')").rounds["virtual_seconds"].sum()
    bad = simulate(system="network('100kbit/s', '100kbit/s')").rounds["virtual_seconds"].sum()
    assert good < worse < bad


def test_mergesfl_takes_the_speeds_of_the_system():
    """A client with a quarter of the fastest speed has a quarter of the batch."""
    labels = {client: [5.0, 5.0] for client in range(4)}
    people = Population(dict.fromkeys(range(4), 100), labels, 1.0, 16, 0, (4e9, 1e9, 2e9, 4e9))
    chosen = MergeSFL(slowest=0.01).choose(people, 1)
    assert {k: one.batch_size for k, one in chosen.items()} == {0: 16, 1: 4, 2: 8, 3: 16}
    assert chosen[1].rate == 0.25


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"strategy": "sflv2(order='arrival')", "system": "none"}, "needs virtual time"),
        ({"strategy": "sequential", "system": "first(0.5)"}, "take deadline instead of first"),
        ({"strategy": "centralised", "system": "deadline('1s')"}, "no clients that could be late"),
        (
            {"system": "lte | deadline('9s', per='exchange')", "end": 2},
            "take per='round'",
        ),
        (
            {"system": "lte | shared('1Mbit/s') | deadline('9s')", "strategy": "sflv2"},
            "leave out shared or deadline",
        ),
        ({"system": "lte | first(0.2)", "aggregation": "krum(malicious=1)"}, "needs 5 clients"),
        ({"system": "deadline('0s')"}, "nobody is there after 0 seconds"),
        ({"system": "deadline('5')"}, "has no unit"),
        ({"system": "dropouts(round=1.0)"}, "round"),
        ({"system": "sessions('0s', '1s')"}, "must be above 0"),
        ({"system": "awake('nowhere.csv')"}, "no table in"),
        ({"system": "traces('nowhere.csv')"}, "no table in"),
        ({"system": "gilbert_elliott() | shared('1Gbit/s')"}, "leave out shared"),
        ({"system": "deadline('1ms')"}, "all 6 clients were dropped .late: "),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(simulate, changes, fault):
    with pytest.raises((ValueError, RuntimeError), match=fault) as error:
        simulate(**{**SHORT, **changes})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        (["1,5,3"], "line 2: off must be above on"), (["1,0,9", "1,5,12"], "client 1 overlap"),
        (["1,,3"], "line 2 has an empty cell"), (["6,0,3"], "client 6 is none of clients 0 to 5"),
        (["0.5,0,3"], "client must be a whole number"), ([], "no client is there after 0 s"),
    ],
)  # fmt: skip
def test_damaged_times_are_refused_in_one_line(simulate, tmp_path, rows, fault):
    path = tmp_path / "awake.csv"
    path.write_text("\n".join(["client,on,off", *rows]))
    with pytest.raises((ValueError, RuntimeError), match=fault):
        simulate(system=f"awake('{path}')", **SHORT)


def test_a_finished_run_cannot_be_timed_with_a_deadline(simulate):
    folder = str(simulate(system=ROADS, **SHORT).folder)
    done = CliRunner().invoke(cli.app, ["time", folder, "-s", f"{ROADS} | deadline('1s')"])
    assert done.exit_code == 2
    assert "deadline decides who is trained" in " ".join(done.output.split())


def test_a_deadline_that_nobody_meets_is_one_line_and_loses_nothing(tmp_path):
    command = ["run", "quickstart", "system=wifi | deadline('1ms')", "clients=3", "rounds=2"]
    done = CliRunner().invoke(cli.app, [*command, "engine=inline", f"out={tmp_path / 'r'}"])
    assert done.exit_code == 2
    assert "give them more time in the system" in " ".join(done.output.split())
    assert (tmp_path / "r" / "summary.json").exists()


def test_many_late_clients_are_one_line_with_their_number(simulate):
    results = []
    system = "wifi | dropouts(round=0.5)"
    simulate(watch=lambda row, result: results.append(result), system=system, clients=30, **SHORT)
    count = sum(traffic.dropped == "dropped out" for traffic in results[0].traffic.values())
    assert dropped_clients(results[0]) == [
        f"round 1: {count} clients dropped: dropped out ({count})"
    ]


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_a_deadline_that_all_meet_changes_no_bit(simulate, reference, strategy):
    if STRATEGIES[strategy].trains_on_server:
        return
    changes = {**SHORT, "strategy": strategy}
    outcome = simulate(system="wifi | deadline('1h') | sessions('1000h', '1us')", **changes)
    assert not left_out(outcome)
    assert outcome.equals(simulate(system="wifi", **changes))
