from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from fl_split.exchange.stacked import StackedHead, is_faster
from fl_split.models.preprocessing import Preprocessing
from fl_split.specs import parse
from simulations.clients import client_app
from simulations.clients.worker import Stacks, Worker
from simulations.data.decoding import Wishes, decide, decode, look_at
from simulations.data.sources import Source
from simulations.engines.local_grid import LocalGrid, Session
from simulations.engines.ray_engine import Ray, _balance
from simulations.runs import checkpoint, flower_app, server_app
from simulations.runs.experiment import Experiment
from simulations.runs.experiment_data import silent
from simulations.runs.setup import prepare
from strategies import STRATEGIES, Strategy
from strategies.server import flower_messages, flower_private

TINY = {
    "clients": 6,
    "rounds": 2,
    "model": "vit(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=4)",
    "cut": 1,
    "batch_size": 64,
    "local_steps": 2,
    "engine": "inline()",
}

gc.disable()  # what imports and collection make stays: nothing is found by looking through it


def pytest_collection_finish() -> None:
    """Leave out for good what has been imported and collected, and collect garbage again."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture
def decoded() -> Callable[..., tuple[Any, Any]]:
    """Decode the images of a source, to train and to test on; 0 is what the data say."""

    def decode_all(source: Source, size: int = 0, channels: int = 0) -> tuple[Any, Any]:
        looked = look_at(source, "error", silent)
        side, bands = size or looked.survey.side, channels or looked.survey.channels
        train, test, _ = decide(looked, Wishes(), side, bands, Preprocessing())
        halves = decode(looked, "", (train, test), 0, silent)[:2]
        return halves[0][:], halves[1][:]

    return decode_all


@dataclass
class Outcome:
    """A finished run, read back from its folder."""

    folder: Path

    @property
    def rounds(self) -> pd.DataFrame:
        return pd.read_csv(self.folder / "rounds.csv")

    @property
    def clients(self) -> pd.DataFrame:
        return pd.read_parquet(self.folder / "clients.parquet")

    @property
    def model(self) -> dict[str, torch.Tensor]:
        """Weights by the names that modules have; files of a ViT have those of transformers 4."""
        if not (self.folder / "config.json").exists():
            return load_file(self.folder / "model.safetensors")
        return AutoModelForImageClassification.from_pretrained(self.folder).state_dict()

    def equals(self, other: Outcome) -> bool:
        """Bit-equality of the two trained models."""
        mine, its = (load_file(one.folder / "model.safetensors") for one in (self, other))
        return mine.keys() == its.keys() and all(torch.equal(mine[k], its[k]) for k in mine)

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())


@pytest.fixture(autouse=True)
def _quiet() -> None:
    torch.set_num_threads(1)
    datasets.disable_progress_bars()


@pytest.fixture(scope="session", autouse=True)
def _stacks_are_tried_once() -> Iterator[None]:
    """Try a form of heads once a process: each trial would be a fifth of a tiny run."""
    tried: dict[tuple[str, ...], bool] = {}

    def pays(stacked: StackedHead, head: Any, shape: Sequence[int]) -> bool:
        form = repr(head), *map(str, shape)
        if form not in tried:
            tried[form] = is_faster(stacked, head, shape)
        return tried[form]

    def start(worker: Worker) -> None:
        worker.stacks = Stacks(worker, pays)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "__post_init__", start)
        yield


@pytest.fixture
def simulate(tmp_path: Path):
    """Run a tiny experiment with changes; each call in its own folder."""
    return _simulator(tmp_path)


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory):
    """Run a tiny experiment inline, once per process for the same changes; only read it."""
    run = _simulator(tmp_path_factory.mktemp("reference"))
    found: dict[str, Outcome] = {}

    def once(**changes: Any) -> Outcome:
        key = repr(sorted(changes.items()))
        if key not in found:
            found[key] = run(**changes)
        return found[key]

    return once


def _clock_for(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a system where a strategy's results depend on virtual time."""
    return {"system": "wifi()"} if _strategy_of(changes).needs_clock else {}


def _strategy_of(changes: Mapping[str, Any]) -> Strategy:
    return parse(changes.get("strategy", "parallel"), STRATEGIES)


def _simulator(folder: Path) -> Callable[..., Outcome]:
    count = 0

    def run(
        app: Any = client_app.app,
        watch: Any = None,
        session: Session | None = None,
        server: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> Outcome:
        nonlocal count
        count += 1
        values = {**TINY, **_clock_for(changes), **changes, "out": str(folder / f"run{count}")}
        values["rounds"] = max(values["rounds"], _strategy_of(changes).least_rounds)
        execute(Experiment.from_dict(values), app, watch, session=session, server=server)
        return Outcome(Path(values["out"]))

    return run


@dataclass
class SharedRay:
    """The one Ray of a test process, of three workers, started when it is first asked for.

    Its actors know no app of their own: each run brings along the one they answer it with.
    """

    _started: ExitStack = field(default_factory=ExitStack)
    _begin: Session | None = None

    def session(self, workers: int = 2, app: Any = client_app.app) -> Session:
        """Run on the first `workers` of its actors, which answer with `app`."""
        start = self._begin = self._begin or self._started.enter_context(
            Ray(workers=3).session(_brought_along())
        )

        def begin(worker: Any, clients: int, timeout: float) -> LocalGrid:
            worker.app = app
            grid = start(worker, clients, timeout)
            grid._home = _balance([len(part) for part in worker.data.partitions], workers)
            return grid

        return begin

    def close(self) -> None:
        """End it, if it runs; whoever asks again gets a new one."""
        self._begin = None
        self._started.close()


def _brought_along() -> Any:
    """Make the app that answers with a run's own; made here, Ray sends it to actors by value."""

    class BroughtAlong:
        def __call__(self, message: Message, context: Any) -> Message:
            return context.pool.worker.app(message, context)

        def open(self, message: Message, context: Any) -> Any:
            open_ = getattr(context.pool.worker.app, "open", None)
            return open_ and open_(message, context)

    return BroughtAlong()


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[SharedRay]:
    """Let Ray's workers, by default the nicest, have their share of a busy machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        shared = SharedRay()
        yield shared
        shared.close()


@pytest.fixture(autouse=True)
def _ends_ray(request: pytest.FixtureRequest, shared_ray: SharedRay) -> None:
    """Tests that need Ray come first; all others shall find the machine without it."""
    if "ray_session" not in request.fixturenames:
        shared_ray.close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put tests that need Ray first, for one process; each other process begins with long ones.

    So no process is left with a long test when all others are done. Items are dealt to processes
    in as many stretches of the same length; the first has Ray's tests.
    """
    count = getattr(config, "workerinput", {}).get("workercount", 1)
    on_ray = [item for item in items if "ray_session" in item.fixturenames]
    rest = [item for item in items if "ray_session" not in item.fixturenames]
    long = [item for item in rest if item.get_closest_marker("slow")]
    short = [item for item in rest if not item.get_closest_marker("slow")]
    half = -(-len(long) // max(1, count - 1))  # neighbours stay together: they share fixtures
    shares = [on_ray, *(long[begin : begin + half] for begin in range(0, len(long), half or 1))]
    length = -(-len(items) // count)
    ordered: list[pytest.Item] = []
    for share in shares:
        fill = max(0, length - len(share))
        ordered += [*share, *short[:fill]]
        short = short[fill:]
    items[:] = [*ordered, *short]


@pytest.fixture
def ray_session(shared_ray: SharedRay) -> Callable[..., Session]:
    """Give sessions of the shared Ray: with so many workers, that answer with an app."""
    return shared_ray.session


@pytest.fixture
def on_ray(simulate, ray_session) -> Callable[..., Outcome]:
    """Run a tiny experiment on the shared Ray."""

    def run(app: Any = client_app.app, workers: int = 2, **changes: Any) -> Outcome:
        return simulate(session=ray_session(workers, app), **changes)

    return run


@pytest.fixture
def seen(tmp_path: Path):
    """Give a client app that notes which processes it runs in, and tell which these are."""
    folder = tmp_path / "processes"
    folder.mkdir()

    def app(message: Message, context: Context) -> Message:
        (folder / str(os.getpid())).touch()
        return client_app.app(message, context)

    return app, lambda: {int(path.name) for path in folder.iterdir()}


def execute(
    experiment: Experiment,
    app: Any = client_app.app,
    watch: Any = None,
    resumed: checkpoint.Checkpoint | None = None,
    session: Session | None = None,
    server: Mapping[str, Any] | None = None,
) -> None:
    """Run an experiment on its own engine, or on a session that has been started with an app.

    `server` says what the server has beside, as LocalContext calls it.
    """
    assert session is None or app is client_app.app
    setup = prepare(experiment)
    watch = watch or (lambda row, result: None)
    started = nullcontext(session) if session else experiment.parts.engine.session(app)
    with started as begin:
        grid = begin(setup.worker(), experiment.clients, experiment.timeout)
        server_app.app(grid, server_app.LocalContext(setup, watch, resumed, **(server or {})))


class Spoilt:
    """The client app, with replies of some partitions spoilt from a given message on."""

    def __init__(self, partitions: set[int], spoil: Callable[[Message], Message], after: int = 1):
        self.partitions, self.spoil, self.after, self.seen = partitions, spoil, after, 0

    def __call__(self, message: Message, context: Context) -> Message:
        reply = client_app.app(message, context)
        is_ours = context.node_config["partition-id"] in self.partitions
        if is_ours and message.metadata.message_type.startswith("train"):
            self.seen += 1
            if self.seen > self.after:
                return self.spoil(reply)
        return reply

    @staticmethod
    def several(spoilt: Sequence[Spoilt]) -> Callable[[Message, Context], Message]:
        """Return the client app in which partitions fail in ways of their own."""
        by_partition = {partition: one for one in spoilt for partition in one.partitions}

        def app(message: Message, context: Context) -> Message:
            mine = int(context.node_config["partition-id"])
            return by_partition.get(mine, client_app.app)(message, context)

        return app


@pytest.fixture
def spoilt() -> type[Spoilt]:
    """Make client apps that fail."""
    return Spoilt


@pytest.fixture
def through_state(simulate) -> Callable[..., Outcome]:
    """Play Flower's stock runtime: each message meets a context that went through bytes."""

    def run(**changes: Any) -> Outcome:
        config = {**TINY, **changes, "out": "", "engine": "inline()"}
        run_config = Experiment.from_dict(config).model_dump()
        states: dict[int, RecordDict] = {}

        def stateless(message: Message, context: Context) -> Message:
            partition = int(context.node_config["partition-id"])
            state = states.get(partition, RecordDict())
            fresh = Context(1, context.node_id, {"partition-id": partition}, state, run_config)
            reply = flower_app.app(message, fresh)
            data = flower_private.record_to_bytes(fresh.state)
            states[partition] = flower_private.record_from_bytes(data)
            return flower_messages.from_wire(flower_messages.to_wire(reply))

        return simulate(stateless, **changes)

    return run


@pytest.fixture
def resume():
    """Go on with a run from its checkpoint, in a session if one is given."""

    def run(outcome: Outcome, session: Session | None = None) -> None:
        experiment, found = checkpoint.read(outcome.folder)
        execute(experiment, resumed=found, session=session)

    return run
