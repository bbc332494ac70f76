"""The same bits from every engine, any number of workers, and Flower's own runtime."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict

from fl_split.exchange.graphs import GraphMemory
from fl_split.exchange.records import GO_ON, HELD, ROUND, Record
from fl_split.exchange.split import Split
from fl_split.exchange.stacked import StackedHead, is_faster
from fl_split.flat import flatten
from fl_split.models.vit import ViT, split
from simulations.clients import client_app
from simulations.clients.pool import ClientPool
from simulations.clients.worker import Stacks
from simulations.engines.inline import Inline, InlineGrid
from simulations.engines.local_grid import FIRST_NODE
from simulations.engines.ray_engine import _balance
from simulations.runs.experiment import Experiment
from simulations.runs.setup import prepare
from strategies import STRATEGIES
from strategies.server import flower_messages
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
    "smashed_bytes",
]  # fmt: skip


@pytest.mark.parametrize(
    "strategy",
    ["parallel", "parallel(average_heads=False)", "mergesfl(slowest=0.3)", "sflv1", "sflv2",
     "sequential", "fedavg"],
)  # fmt: skip
def test_clients_served_through_their_state_equal_live_ones(reference, through_state, strategy):
    live, other = (run(strategy=strategy, **VARIED) for run in (reference, through_state))
    assert live.equals(other)
    assert live.rounds[COUNTED].equals(other.rounds[COUNTED])


CODED = {
    **VARIED,
    "codec": "bottlenet(ratio=0.5) | uniform(bits=6, rounding='stochastic') | rans()",
    "downlink": "uniform(bits=4, rounding='stochastic')",
}
"""Stochastic rounding on both ways, and a trainable codec."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy", [*STRATEGIES, "parallel(average_heads=False)", "mergesfl(slowest=0.3)"]
)
def test_ray_equals_inline_with_every_strategy(reference, on_ray, strategy):
    codec = "fp16()" if strategy == "sglr" else VARIED["codec"]
    changes = {**VARIED, "strategy": strategy, "codec": codec}
    inline, ray = reference(**changes), on_ray(**changes)
    assert inline.equals(ray)
    assert inline.rounds[COUNTED].equals(ray.rounds[COUNTED])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_number_of_ray_workers_changes_nothing(reference, on_ray, seen, workers):
    """What is served together, one after the other, and with a codec that draws and is trained."""
    app, processes = seen
    for strategy in ("parallel(average_heads=False)", "sflv2"):
        changes = {**VARIED, "strategy": strategy}
        inline, ray = reference(**changes), on_ray(app, workers, **changes)
        assert inline.equals(ray), strategy
        assert inline.rounds[COUNTED].equals(ray.rounds[COUNTED]), strategy
    check_coded(reference(**CODED), on_ray(workers=workers, **CODED))
    assert len(processes()) == workers


def check_coded(usual, other):
    assert usual.equals(other)
    assert usual.rounds[COUNTED].equals(other.rounds[COUNTED])
    assert (usual.folder / "codec.safetensors").read_bytes() == (
        other.folder / "codec.safetensors"
    ).read_bytes()


def test_chains_and_downlinks_draw_the_same_numbers_again(simulate, reference):
    usual = reference(**CODED)
    check_coded(usual, simulate(**CODED))
    whole = simulate(**{**CODED, "downlink": "identity()"}).rounds
    assert usual.rounds["payload_bytes_down"].iloc[0] < 0.2 * whole["payload_bytes_down"].iloc[0]
    assert usual.rounds["head_bytes_up"].iloc[0] > simulate(**VARIED).rounds["head_bytes_up"][0]


@pytest.mark.slow
def test_flwr_run_equals_inline(simulate, tmp_path):
    """Its Ray has a folder of its own: in that of all it would join the nodes of another test."""
    own = {"plugins": str(ROOT / "examples" / "own_codec.py"), "codec": "own_codec:Signs"}
    inline = simulate(**{**VARIED, **own})
    toml = tmp_path / "run.toml"
    resolved = (inline.folder / "experiment.toml").read_text()
    toml.write_text(f'{resolved}out = "{tmp_path / "flwr"}"\n')
    ports = [_free_port(), _free_port()]
    own_ray = Path(tempfile.mkdtemp(prefix="ray"))  # short, for the paths of its sockets
    environment = {
        **os.environ,
        "FLWR_HOME": str(tmp_path / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_LOCAL_CONTROL_API_PORT": str(ports[0]),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(ports[1]),
        "RAY_TMPDIR": str(own_ray),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = ["flwr", "run", ".", "--run-config", str(toml), "--stream"]
    command += ["--federation-config", f"num-supernodes={inline.summary['experiment']['clients']}"]
    before = (ROOT / "pyproject.toml").read_text()
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
        )
        assert (tmp_path / "flwr" / "summary.json").exists(), done.stdout + done.stderr
    finally:
        _stop_superlink(tmp_path / "home")
        shutil.rmtree(own_ray, ignore_errors=True)
    other = type(inline)(tmp_path / "flwr")
    assert other.summary["status"] == "complete"
    assert inline.equals(other)
    assert inline.rounds[COUNTED].equals(other.rounds[COUNTED])
    assert (ROOT / "pyproject.toml").read_text() == before


def test_all_cores_count_where_the_system_cannot_tell_whose_they_are():
    assert available_cores(SimpleNamespace(cpu_count=lambda: 5)) == 5
    told = SimpleNamespace(cpu_count=lambda: 5, sched_getaffinity=lambda process: {0, 3})
    assert available_cores(told) == 2


@pytest.mark.parametrize("strategy", ["parallel", "sflv1"])
def test_the_number_of_server_threads_changes_nothing(simulate, strategy):
    changes = {"strategy": strategy, "clients": 20, "batch_size": 16, **VARIED}
    one, four = (simulate(server={"threads": threads}, **changes) for threads in (1, 4))
    assert one.equals(four)
    assert one.rounds[COUNTED].equals(four.rounds[COUNTED])


def with_worker(change, grid=InlineGrid):
    """A session of the inline engine, of a worker that `change` has had."""

    def start(worker, clients, timeout):
        change(worker)
        return grid(client_app.app, worker, clients, timeout)

    return start


class Counted(Split):
    """Split learning that counts how often a head runs alone."""

    def __init__(self):
        super().__init__()
        self.forwards = 0

    def smash(self, *arguments):
        self.forwards += 1
        return super().smash(*arguments)


class Watched(GraphMemory):
    """Room that notes what is asked of it."""

    def __init__(self, limit):
        super().__init__(limit)
        self.sizes, self.most = [], 0

    def take(self, size):
        found = super().take(size)
        self.sizes.append(size)
        self.most = max(self.most, self.used)
        return found


@pytest.mark.parametrize("kept", [0, 1])
def test_graphs_that_cannot_be_kept_are_computed_again(simulate, kept):
    """With room for no graph, or for some: same bits, and never more than there is room for."""

    def run(graphs):
        counted = Counted()

        def change(worker):
            worker.graphs, worker.exchange = graphs, counted

        outcome = simulate(session=with_worker(change), **{**VARIED, "batch_size": 2000})
        return outcome, counted.forwards

    plenty = Watched(2**40)
    usual, forwards = run(plenty)
    assert forwards == usual.rounds["client_steps"].sum()
    tight = Watched(kept * max(plenty.sizes))
    other, more = run(tight)
    assert other.equals(usual)
    assert tight.most <= tight.limit
    assert more == 2 * forwards if kept == 0 else forwards < more < 2 * forwards, more


class Seen(Stacks):
    """Stacks that note how many clients came back together."""

    def __init__(self, worker, pays):
        super().__init__(worker, pays)
        self.together, self.alone = [], 0

    def count(self, together=0, apart=0):
        super().count(together, apart)
        self.alone += apart
        if together:
            self.together.append(together)


class NoRoom(GraphMemory):
    """Room for stacks to be tried, but for no graph to be kept."""

    def has_room(self, size):
        return False


@pytest.mark.parametrize(
    ("strategy", "codec"),
    [
        ("parallel", "identity()"),
        ("parallel", "adc(ratio=0.25)"),
        ("parallel", "c3sl()"),
        ("parallel(average_heads=False)", "adc(ratio=0.25)"),
        ("sflv1", "topk(ratio=0.2) | uniform() | rans()"),
    ],
)
def test_heads_run_in_stacks_equal_heads_run_alone(simulate, strategy, codec):
    """Unequal partitions: stacks form, fall apart and run out of batches."""
    changes = {
        **VARIED, "strategy": strategy, "codec": codec, "model": PLAIN, "cut": 2,
        "clients": 11, "fraction": 1.0, "batch_size": 32,
    }  # fmt: skip

    def run(pays, graphs):
        counted, made = Counted(), []

        def change(worker):
            worker.graphs, worker.exchange = graphs, counted
            worker.stacks = Seen(worker, lambda *arguments: pays)
            made.append(worker.stacks)

        outcome = simulate(session=with_worker(change), **changes)
        return outcome, made[0], counted.forwards

    alone, stacks, usual = run(False, GraphMemory())
    assert not stacks.together and usual == alone.rounds["client_steps"].sum()
    stacked, stacks, fewer = run(True, GraphMemory())
    assert max(stacks.together) > 2
    assert fewer == usual - sum(stacks.together)  # those that came back alone ran again
    repeated, stacks, again = run(True, NoRoom())
    assert not stacks.together and usual <= again < 2 * usual  # all once, who went alone twice
    for other in (stacked, repeated):
        assert other.equals(alone)
        assert other.rounds[COUNTED].equals(alone.rounds[COUNTED])


def test_a_client_that_hangs_in_a_stack_is_dropped_alone(simulate):
    class Slow:
        """Images that hang when those of one client are asked for."""

        def __init__(self, images, rows):
            self.images, self.rows = images, rows
            self.shape, self.dtype = images.shape, images.dtype

        def __getitem__(self, rows):
            if np.isin(rows, self.rows).any():
                time.sleep(60)
            return self.images[rows]

    def change(worker):
        worker.stacks = Stacks(worker, lambda *arguments: True)
        slow = Slow(worker.data.pixels, worker.data.partitions[2])
        worker.data = replace(worker.data, pixels=slow)

    changes = {"model": PLAIN, "cut": 2, "partition": "iid()", "rounds": 1}
    outcome = simulate(session=with_worker(change), **changes, timeout=2.0)
    dropped = outcome.clients.query("dropped != ''")
    assert dropped["client"].tolist() == [2]
    assert "no reply within" in dropped["dropped"].iloc[0]


class Off(StackedHead):
    """A stack whose kernels give other bits."""

    def run(self, vectors, pixels):
        found = super().run(vectors, pixels)
        return replace(found, tokens=found.tokens * (1 + 1e-6))


def test_stacks_are_used_only_where_they_are_faster_and_their_bits_are_those_of_the_loop():
    model = ViT(hidden_size=16, num_attention_heads=2, patch_size=4, num_hidden_layers=2)
    head, _ = split(model.build(image_size=8, channels=1, num_classes=4, seed=0), 1)

    def clock(sign):
        """Tell times between which there is less and less, or more and more."""
        ticks = iter(range(1000))
        return lambda: sign * next(ticks) ** 2

    def found(stacked, sign):
        return is_faster(stacked, head, (2, 1, 8, 8), clock(sign))

    assert found(StackedHead(head), -1)
    assert not found(StackedHead(head), 1)
    assert not found(Off(head), -1)


def test_a_silent_client_is_dropped_after_the_timeout(simulate):
    """A grid that never answers for one node."""

    class Deaf(InlineGrid):
        def pull_messages(self, message_ids):
            return [
                reply
                for reply in super().pull_messages(message_ids)
                if reply.metadata.src_node_id != FIRST_NODE + 1
                or reply.metadata.message_type.startswith(flower_messages.QUERY)
            ]

    outcome = simulate(session=with_worker(lambda worker: None, Deaf), timeout=0.2, rounds=1)
    dropped = outcome.clients.query("dropped != ''")
    assert dropped["client"].tolist() == [1]
    assert "no reply within 0.4 seconds" in dropped["dropped"].iloc[0]
    assert outcome.summary["dropped"] == 1


def test_send_and_receive_answers_every_message():
    experiment = Experiment.from_dict({"clients": 3})
    worker = prepare(experiment).worker()
    question = Record(flower_messages.SAMPLE_COUNT)
    kind = flower_messages.QUERY + question.action
    with Inline().session(client_app.app) as session:
        grid = session(worker, 3, 60.0)
        sent = [
            grid.create_message(flower_messages.content(question), kind, node, "0")
            for node in grid.get_node_ids()
        ]
        replies = list(grid.send_and_receive(sent, timeout=10))
    answers = [flower_messages.read(reply) for reply in replies]
    assert [answer.number(flower_messages.PARTITION) for answer in answers] == [0, 1, 2]
    assert [answer.number(HELD) for answer in answers] == [*map(len, worker.data.partitions)]


def test_a_message_survives_being_taken_apart():
    from flwr.app import Array, ArrayRecord, Error, MetricRecord

    experiment = Experiment.from_dict({"clients": 1})
    with Inline().session(client_app.app) as session:
        grid = session(prepare(experiment).worker(), 1, 60.0)
    array = Array("uint8", (3,), "raw", b"abc")
    content = RecordDict({"a": ArrayRecord({"x": array}), "m": MetricRecord({"loss": 0.5})})
    message = grid.create_message(content, "train.step", 5, "7")
    back = flower_messages.from_wire(flower_messages.to_wire(message))
    assert back.content == message.content
    assert vars(back.metadata) == vars(message.metadata)
    assert content["a"]["x"].data == b"abc"
    failed = flower_messages.from_wire(
        flower_messages.to_wire(Message(Error(3, "why"), reply_to=message))
    )
    assert (failed.error.code, failed.error.reason) == (3, "why")


def test_an_idle_shell_holds_no_moments():
    """Between rounds a client is its saved state; a shell that is lent again starts anew."""
    worker = prepare(Experiment.from_dict({"clients": 3})).worker()
    pool = ClientPool(worker)
    client = pool.lend(0)
    client.begin(Record(GO_ON, numbers={ROUND: 1}))
    client.learn(torch.ones_like(client.head.vector))
    pool.take_back(client)
    assert not hasattr(client, "descent")
    again = pool.lend(1)
    assert again is client
    again.begin(Record(GO_ON, numbers={ROUND: 2}))
    assert torch.equal(again.head.vector, flatten(list(worker.head.parameters())))
    assert not again.descent.state()


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
