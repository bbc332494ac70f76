"""What goes wrong while a run goes on: dead workers, hanging clients, growing memory."""

import os
import signal
import time
from dataclasses import replace

import psutil
import pytest
from typer.testing import CliRunner

from fl_split.exchange.records import GRADIENT, PAYLOAD
from fl_split.payload import Payload
from simulations.cli import main as cli
from simulations.clients import client_app
from simulations.engines import ray_recovery
from simulations.engines.local_grid import WorkersLost
from simulations.engines.ray_engine import Ray
from strategies.server import flower_messages

PRIVATE = "parallel(average_heads=False)"
EXACT = ["round", "accuracy", "loss", "train_loss", "payload_bytes_up", "head_bytes_down"]
LONG = {"local_steps": 11, "batch_size": 32, "head_optimizer": "adam(lr=0.003)", "fraction": 0.7}
"""Enough steps that a client is asked for its state before the round is over."""


def dies_at(partition, number, marker):
    """The client app, whose process is killed once, over the given message of a client."""
    seen = 0

    def app(message, context):
        nonlocal seen
        if context.node_config["partition-id"] == partition and "train" in str(
            message.metadata.message_type
        ):
            seen += 1
            if seen == number and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return client_app.app(message, context)

    return app


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "number"), [("sflv1", 11), (PRIVATE, 16)])
def test_a_worker_killed_over_any_message_changes_nothing(
    reference, on_ray, tmp_path, strategy, number
):
    changes = {"strategy": strategy, "codec": "adc(ratio=0.25)", **LONG}
    undisturbed = reference(**changes)
    marker = tmp_path / "killed"
    app = dies_at(int(undisturbed.clients["client"][0]), number, marker)
    disturbed = on_ray(app, **changes)
    assert marker.exists()
    assert not disturbed.clients["dropped"].any()
    assert disturbed.equals(undisturbed)
    assert disturbed.rounds[EXACT].equals(undisturbed.rounds[EXACT])


@pytest.mark.slow
def test_workers_killed_from_outside_between_rounds_change_nothing(reference, on_ray, seen):
    """One after each of three rounds, each of which gave every actor work."""
    changes = {"strategy": PRIVATE, "rounds": 4, **LONG}
    undisturbed = reference(**changes)
    app, processes = seen
    killed = []

    def kill(row, result):
        if row["round"] < 4:
            killed.append(min(processes().difference(killed)))
            os.kill(killed[-1], signal.SIGKILL)

    disturbed = on_ray(app, watch=kill, **changes)
    assert len(processes()) == 5  # two, and one in place of each that was killed
    assert disturbed.equals(undisturbed)
    assert disturbed.rounds[EXACT].equals(undisturbed.rounds[EXACT])
    assert (disturbed.rounds["cpu_seconds"] >= 0).all()


@pytest.mark.slow
def test_a_client_that_kills_every_worker_is_dropped_alone(on_ray):
    def deadly(message, context):
        partition = context.node_config["partition-id"]
        if partition == 0 and message.metadata.group_id == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return client_app.app(message, context)

    outcome = on_ray(deadly, rounds=3)
    dropped = outcome.clients.query("dropped != ''")
    assert dropped[["round", "client"]].to_numpy().tolist() == [[1, 0]]
    assert "worker failed" in dropped["dropped"].iloc[0]
    assert outcome.summary["status"] == "complete"


@pytest.mark.slow
def test_workers_that_only_die_end_the_run_which_then_goes_on_elsewhere(
    reference, on_ray, resume, tmp_path, monkeypatch
):
    monkeypatch.setattr(ray_recovery, "MOST_DEATHS", 2)  # each takes seconds
    changes = {"strategy": PRIVATE, "rounds": 3, "clients": 8}

    def deadly(message, context):
        if message.metadata.group_id == "3":
            os.kill(os.getpid(), signal.SIGKILL)
        return client_app.app(message, context)

    with pytest.raises(WorkersLost, match="a worker died 2 times in a row"):
        on_ray(deadly, workers=1, **changes)
    whole = reference(**changes)
    left = type(whole)(tmp_path / "run1")
    assert (left.summary["status"], left.summary["ended_by"]) == ("failed", "workers lost")
    assert left.rounds["round"].tolist() == [1, 2]
    resume(left)  # after both rounds, though a checkpoint was due after ten
    assert left.equals(whole)
    assert left.rounds[EXACT].equals(whole.rounds[EXACT])


def hangs(message, context):
    is_third = context.node_config["partition-id"] == 3
    if (
        is_third
        and message.metadata.group_id == "1"
        and flower_messages.read(message).action == GRADIENT
    ):
        time.sleep(60)
    return client_app.app(message, context)


def check_hanging(run):
    outcome = run(hangs, timeout=2.0, rounds=2)
    dropped = outcome.clients.query("dropped != ''")
    assert dropped[["round", "client"]].to_numpy().tolist() == [[1, 3]]
    assert dropped["dropped"].tolist() == ["TimeoutError: no reply within 2 seconds"]


def test_a_client_that_hangs_is_dropped_for_the_round(simulate):
    check_hanging(simulate)


@pytest.mark.slow
def test_a_client_that_hangs_on_ray_is_dropped_for_the_round(on_ray):
    check_hanging(on_ray)


@pytest.mark.slow
def test_several_clients_that_hang_in_one_worker_are_dropped_alone(on_ray):
    def several_hang(message, context):
        hangs_here = context.node_config["partition-id"] in {0, 2, 5}
        if hangs_here and flower_messages.read(message).action == GRADIENT:
            time.sleep(60)
        return client_app.app(message, context)

    outcome = on_ray(several_hang, workers=1, timeout=2.0, rounds=1)
    assert outcome.clients.query("dropped != ''")["client"].tolist() == [0, 2, 5]


@pytest.mark.parametrize("strategy", ["parallel", "sflv1", "sflv2"])
def test_a_client_whose_loss_overflows_is_dropped_alone(simulate, strategy):
    """Finite numbers, so large that the tail's norms give no number: nobody else may suffer."""

    def overflows(message, context):
        reply = client_app.app(message, context)
        record = flower_messages.read(reply)
        if context.node_config["partition-id"] != 1 or record.action != PAYLOAD:
            return reply
        payload = Payload.from_bytes(record.sent())
        payload.carried["tokens"] = payload.carried["tokens"] * 1e25
        return flower_messages.reply(message, replace(record, payload=payload.to_bytes()))

    outcome = simulate(overflows, strategy=strategy, rounds=2)
    dropped = outcome.clients.query("dropped != ''")
    assert dropped["client"].tolist() == [1, 1]
    assert dropped["dropped"].str.contains("loss that is not finite").all()
    assert outcome.rounds["train_loss"].notna().all()
    assert all(weights.isfinite().all() for weights in outcome.model.values())


def is_alive(process):
    """A process that nobody has waited for yet is dead, though it is still listed."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.fixture
def two_nodes(seen):
    """Start a cluster; yield a session on it, how to lose a node, and which processes work."""
    from ray.cluster_utils import Cluster

    app, processes = seen
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    other = cluster.add_node(num_cpus=1)

    def lose():
        workers = [psutil.Process(number) for number in processes()]
        cluster.remove_node(other, allow_graceful=False)
        for _ in range(600):  # its worker notices in a while
            if not all(map(is_alive, workers)):
                return
            time.sleep(0.1)

    try:
        with Ray(address=cluster.address, workers=2).session(app) as session:
            yield session, lose, processes
    finally:
        cluster.shutdown()


@pytest.mark.slow
def test_two_nodes_give_the_bits_of_one_and_a_lost_one_takes_its_clients_along(
    simulate, reference, two_nodes
):
    """In one test, since starting a cluster takes long. One CPU a node: one worker on each."""
    session, lose, processes = two_nodes
    changes = {"strategy": "sflv1", "codec": "adc(ratio=0.25)", "partition": "dirichlet(alpha=0.3)"}
    inline, spread = reference(**changes), simulate(session=session, **changes)
    assert len(processes()) == 2
    assert spread.equals(inline)
    assert spread.rounds[EXACT].equals(inline.rounds[EXACT])

    def watch(row, result):
        if row["round"] == 1:
            lose()

    outcome = simulate(session=session, watch=watch, rounds=3, timeout=3.0)
    dropped = outcome.clients.query("dropped != ''")
    assert outcome.summary["status"] == "complete"
    assert sorted(dropped["round"].unique()) == [2, 3]
    assert len(dropped) == 2 * 3  # half of the six clients, twice
    assert dropped["dropped"].str.contains("no reply|worker failed").all()


def test_an_address_without_a_cluster_is_one_line(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text("clients = 2")
    command = ["run", str(config), "--engine", "ray(address='127.0.0.1:1')", "--out"]
    result = CliRunner().invoke(cli.app, [*command, str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "error: engine: no Ray cluster at '127.0.0.1:1'" in result.output


@pytest.mark.slow
def test_thousands_of_clients_with_a_few_samples_each(simulate):
    outcome = simulate(
        clients=1433, partition="iid", fraction=0.3, rounds=2, batch_size=1, strategy="parallel",
        local_steps=0,
    )  # fmt: skip
    assert outcome.rounds["clients"].tolist() == [430, 430]
    assert outcome.rounds["samples"].tolist() == [430, 430]


@pytest.mark.slow
def test_memory_does_not_grow_with_rounds(simulate):
    """Once warm, 150 rounds may add what an allocator wastes, not a record per client."""
    used = {}

    def watch(row, result):
        used[row["round"]] = psutil.Process().memory_info().rss

    simulate(watch=watch, rounds=200, clients=20, fraction=0.5, local_steps=1, batch_size=8)
    assert used[200] - used[50] < 24e6


class Slow(client_app.SplitApp):
    """The client app, slower than a share of the time for all messages together."""

    def open(self, message, context):
        answering = super().open(message, context)
        if answering:
            receive = answering.receive
            answering.receive = lambda: (time.sleep(0.4), receive())
        return answering


def test_clients_that_are_slow_but_in_time_are_not_dropped_for_coming_together(simulate):
    outcome = simulate(Slow(), strategy="fedavg", timeout=2.0, rounds=1)
    assert 6 * 0.4 > 2.0 and (outcome.clients["dropped"] == "").all()
    assert outcome.equals(simulate(strategy="fedavg", rounds=1))
