"""The same bits from every engine, any number of workers, and Flower's own runtime."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from flwr.app import Message, RecordDict

from simulations.clients import client_app
from simulations.engines.inline import Inline
from simulations.engines.local_grid import FIRST_NODE
from simulations.engines.ray_engine import _balance
from simulations.runs.experiment import Experiment
from simulations.runs.setup import prepare
from strategies import STRATEGIES
from strategies.server import messages
from strategies.server.threads import available_cores

ROOT = Path(__file__).parents[1]
VARIED = {
    "partition": "dirichlet(alpha=0.3)",
    "codec": "adc(ratio=0.25)",
    "model": "vit(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=4, "
    "hidden_dropout_prob=0.1)",
    "head_optimizer": "adam(lr=0.003)",
    "fraction": 0.7,
}
PLAIN = "vit(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=4)"
COUNTED = [
    "round", "accuracy", "loss", "train_loss", "clients", "samples", "client_steps",
    "payload_bytes_up", "payload_bytes_down", "head_bytes_up", "head_bytes_down",
    "wire_bytes_up", "wire_bytes_down", "smashed_bytes",
]  # fmt: skip


@pytest.mark.parametrize(
    "strategy",
    ["parallel", "parallel(average_heads=False)", "mergesfl(slowest=0.3)", "sflv1", "sflv2",
     "sequential", "fedavg"],
)  # fmt: skip
def test_clients_served_through_their_state_equal_live_ones(simulate, through_state, strategy):
    live, other = (run(strategy=strategy, **VARIED) for run in (simulate, through_state))
    assert live.equals(other)
    assert live.rounds[COUNTED].equals(other.rounds[COUNTED])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_ray_equals_inline_with_every_strategy(simulate, on_ray, workers):
    with on_ray(workers) as simulate_on_ray:
        for strategy in [*STRATEGIES, "parallel(average_heads=False)", "mergesfl(slowest=0.3)"]:
            codec = "fp16()" if strategy == "sglr" else VARIED["codec"]
            changes = {**VARIED, "strategy": strategy, "codec": codec}
            inline, ray = simulate(**changes), simulate_on_ray(**changes)
            assert inline.equals(ray), strategy
            assert inline.rounds[COUNTED].equals(ray.rounds[COUNTED]), strategy


CODED = {
    **VARIED,
    "codec": "bottlenet(ratio=0.5) | uniform(bits=6, rounding='stochastic') | rans()",
    "downlink": "uniform(bits=4, rounding='stochastic')",
}


@pytest.mark.parametrize("engine", [pytest.param("ray()", marks=pytest.mark.slow), "inline()"])
def test_chains_and_downlinks_draw_the_same_numbers_everywhere(simulate, engine):
    """Stochastic rounding on both ways, a trainable codec, and replies in another order."""
    usual = simulate(**CODED)
    other = simulate(**CODED, engine=engine)
    assert usual.equals(other)
    assert usual.rounds[COUNTED].equals(other.rounds[COUNTED])
    assert (usual.folder / "codec.safetensors").read_bytes() == (
        other.folder / "codec.safetensors"
    ).read_bytes()
    whole = simulate(**{**CODED, "downlink": "identity()"}).rounds
    assert usual.rounds["payload_bytes_down"].iloc[0] < 0.2 * whole["payload_bytes_down"].iloc[0]
    assert usual.rounds["head_bytes_up"].iloc[0] > simulate(**VARIED).rounds["head_bytes_up"][0]


@pytest.mark.slow
def test_flwr_run_equals_inline(simulate, tmp_path):
    inline = simulate(**VARIED)
    toml = tmp_path / "run.toml"
    resolved = (inline.folder / "experiment.toml").read_text()
    toml.write_text(f'{resolved}out = "{tmp_path / "flwr"}"\n')
    ports = [_free_port(), _free_port()]
    environment = {
        **os.environ,
        "FLWR_HOME": str(tmp_path / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_LOCAL_CONTROL_API_PORT": str(ports[0]),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(ports[1]),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = ["flwr", "run", ".", "--run-config", str(toml), "--stream"]
    command += ["--federation-config", f"num-supernodes={inline.summary['experiment']['clients']}"]
    before = (ROOT / "pyproject.toml").read_text()
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )
        assert (tmp_path / "flwr" / "summary.json").exists(), done.stdout + done.stderr
    finally:
        _stop_superlink(tmp_path / "home")
    other = type(inline)(tmp_path / "flwr")
    assert other.summary["status"] == "complete"
    assert inline.equals(other)
    assert inline.rounds[COUNTED].equals(other.rounds[COUNTED])
    assert (ROOT / "pyproject.toml").read_text() == before


def test_all_cores_count_where_the_system_cannot_tell_whose_they_are(monkeypatch):
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    assert available_cores() == 5


@pytest.mark.parametrize("strategy", ["parallel", "sflv1"])
def test_the_number_of_server_threads_changes_nothing(simulate, monkeypatch, strategy):
    changes = {"strategy": strategy, "clients": 20, "batch_size": 16, **VARIED}
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0})
    one = simulate(**changes)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2, 3})
    four = simulate(**changes)
    assert one.equals(four)
    assert one.rounds[COUNTED].equals(four.rounds[COUNTED])


@pytest.mark.parametrize("kept", [0, 3])
def test_graphs_that_cannot_be_kept_are_computed_again(simulate, monkeypatch, kept):
    """With room for no graph, or for some: same bits, and never more than there is room for."""
    from simulations.clients.client import Client
    from simulations.clients.worker import Worker

    calls, smashed, sizes = [], Client._smash, []

    def counted(self):
        result = smashed(self)
        calls.append(1)
        sizes.append((self.worker._kept, max(self.worker._sizes.values())))
        return result

    monkeypatch.setattr(Client, "_smash", counted)
    changes = {**VARIED, "batch_size": 2000}
    plenty = simulate(**changes)
    usual, largest = len(calls), max(size for _, size in sizes)
    original = Worker.__init__

    def small(self, *arguments, **named):
        original(self, *arguments, **named)
        self.graph_bytes = kept * largest

    monkeypatch.setattr(Worker, "__init__", small)
    sizes.clear()
    tight = simulate(**changes)
    assert tight.equals(plenty)
    assert max(kept_bytes for kept_bytes, _ in sizes) <= kept * largest
    assert len(calls) - usual > usual if kept == 0 else len(calls) > usual


@pytest.mark.parametrize(
    "codec", ["identity()", "adc(ratio=0.25)", "c3sl()", "topk(ratio=0.2) | uniform() | rans()"]
)
@pytest.mark.parametrize("strategy", ["parallel", "parallel(average_heads=False)", "sflv1"])
def test_heads_run_in_groups_equal_heads_run_alone(simulate, monkeypatch, strategy, codec):
    """Unequal partitions: groups form, fall apart and run out of batches."""
    from simulations.clients import worker

    changes = {
        **VARIED, "strategy": strategy, "codec": codec, "model": PLAIN, "cut": 2,
        "clients": 11, "fraction": 1.0, "batch_size": 32,
    }  # fmt: skip
    seen = []
    for name in ("smash_together", "head_gradients"):
        original = getattr(worker, name)

        def counted(*arguments, name=name, original=original):
            seen.append((name, len(arguments[name == "smash_together"])))
            return original(*arguments)

        monkeypatch.setattr(worker, name, counted)
    monkeypatch.setattr(worker, "is_faster", lambda *arguments: False)
    alone = simulate(**changes)
    assert not seen
    monkeypatch.setattr(worker, "is_faster", lambda *arguments: True)
    grouped = simulate(**changes)
    assert {name for name, size in seen if size > 2} == {"smash_together", "head_gradients"}
    monkeypatch.setattr(worker.Worker, "keep", lambda *arguments: None)
    repeated = simulate(**changes)
    for other in (grouped, repeated):
        assert other.equals(alone)
        assert other.rounds[COUNTED].equals(alone.rounds[COUNTED])


def test_a_client_that_hangs_in_a_group_is_dropped_alone(simulate, monkeypatch):
    from simulations.clients import worker
    from simulations.clients.client import Client

    monkeypatch.setattr(worker, "is_faster", lambda *arguments: True)
    original = Client.rows

    def rows(self):
        if self.here.client == 2:
            time.sleep(60)
        return original(self)

    monkeypatch.setattr(Client, "rows", rows)
    changes = {"model": PLAIN, "cut": 2, "partition": "iid()", "rounds": 1}
    outcome = simulate(**changes, timeout=2.0)
    dropped = outcome.clients.query("dropped != ''")
    assert dropped["client"].tolist() == [2]
    assert "no reply within" in dropped["dropped"].iloc[0]


def test_groups_are_used_only_where_their_bits_are_those_of_the_loop(monkeypatch):
    from fl_split.exchange import stacked as grouped
    from fl_split.models.vit import ViT, split

    model = ViT(hidden_size=16, num_attention_heads=2, patch_size=4, num_hidden_layers=2)
    head, _ = split(model.build(image_size=8, channels=1, num_classes=4, seed=0), 1)
    ticks = iter(range(1000))  # every call takes less than the one before
    monkeypatch.setattr(grouped.time, "thread_time", lambda: -(next(ticks) ** 2))
    assert grouped.is_faster(grouped.GroupedHead(head), head, (2, 1, 8, 8))
    exact = grouped.Linear.forward
    monkeypatch.setattr(grouped.Linear, "forward", lambda self, x: exact(self, x) * (1 + 1e-6))
    assert not grouped.is_faster(grouped.GroupedHead(head), head, (2, 1, 8, 8))


def test_a_silent_client_is_dropped_after_the_timeout(simulate):
    """A grid that never answers for one node."""
    from simulations.engines import inline as engines

    class Deaf(engines.InlineGrid):
        def pull_messages(self, message_ids):
            return [
                reply
                for reply in super().pull_messages(message_ids)
                if reply.metadata.src_node_id != FIRST_NODE + 1
                or reply.metadata.message_type == messages.ROLL_CALL
            ]

    original, engines.InlineGrid = engines.InlineGrid, Deaf
    try:
        outcome = simulate(timeout=0.2, rounds=1)
    finally:
        engines.InlineGrid = original
    dropped = outcome.clients.query("dropped != ''")
    assert dropped["client"].tolist() == [1]
    assert "no reply within 0.4 seconds" in dropped["dropped"].iloc[0]
    assert outcome.summary["dropped"] == 1


def test_send_and_receive_answers_every_message():
    experiment = Experiment.from_dict({"clients": 3})
    worker = prepare(experiment).worker()
    with Inline().session(client_app.app) as session:
        grid = session(worker, 3, 60.0)
        sent = [
            grid.create_message(RecordDict(), messages.ROLL_CALL, node, "0")
            for node in grid.get_node_ids()
        ]
        replies = list(grid.send_and_receive(sent, timeout=10))
    assert [messages.metric(reply, messages.PARTITION) for reply in replies] == [0, 1, 2]


def test_a_message_survives_being_taken_apart():
    from flwr.app import Array, ArrayRecord, Error, MetricRecord

    experiment = Experiment.from_dict({"clients": 1})
    with Inline().session(client_app.app) as session:
        grid = session(prepare(experiment).worker(), 1, 60.0)
    array = Array("uint8", (3,), "raw", b"abc")
    content = RecordDict({"a": ArrayRecord({"x": array}), "m": MetricRecord({"loss": 0.5})})
    message = grid.create_message(content, messages.STEP, 5, "7")
    back = messages.from_wire(messages.to_wire(message))
    assert back.content == message.content
    assert vars(back.metadata) == vars(message.metadata)
    assert content["a"]["x"].data == b"abc"
    failed = messages.from_wire(messages.to_wire(Message(Error(3, "why"), reply_to=message)))
    assert (failed.error.code, failed.error.reason) == (3, "why")


def test_an_idle_shell_holds_no_moments():
    """Between rounds a client is its saved state; a shell that is lent again starts anew."""
    from fl_split.flat import flatten

    worker = prepare(Experiment.from_dict({"clients": 3})).worker()
    client = worker.lend()
    client.begin(0, 1, None)
    client.learn(torch.ones_like(client.head.vector))
    worker.give_back(client)
    assert not hasattr(client, "optimizer")
    again = worker.lend()
    assert again is client
    again.begin(1, 2, None)
    assert torch.equal(again.head.vector, flatten(list(worker.head.parameters())))
    assert not again.optimizer.state


def test_clients_are_spread_over_workers_by_size():
    # Largest first: 10 -> 0; 9 -> 1; 8 -> 1 has 10 (9 + 1 per client), 0 has 11; 1 s fill up 0.
    assert _balance([10, 1, 1, 1, 9, 8], 2) == [0, 0, 0, 0, 1, 1]
    assert _balance([5, 5, 5, 5], 4) == [0, 1, 2, 3]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _stop_superlink(home: Path) -> None:
    """`flwr run` leaves its SuperLink running; end the one started from `home`."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            variables = (process / "environ").read_bytes()
        except OSError:
            continue
        if f"FLWR_HOME={home}".encode() in variables and int(process.name) != os.getpid():
            os.kill(int(process.name), signal.SIGTERM)
    time.sleep(1)
