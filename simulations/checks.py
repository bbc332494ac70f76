"""Laws of strategies, skews and engines, checked on tiny experiments in a folder of their own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from flwr.app import Context, Message

from fl_split.checks.laws import check_repr, hold, must, refuses
from fl_split.codecs import parse_codec
from fl_split.exchange.account import Traffic
from fl_split.exchange.records import BEGIN, GO_ON
from fl_split.foreign import Given
from fl_split.seeds import seeded
from fl_split.specs import parse
from simulations.clients import client_app
from simulations.data.samples import Samples
from simulations.data.skew import Skew, skewed
from simulations.engines import ENGINES
from simulations.engines.inline import Inline
from simulations.engines.local_grid import Engine, Session
from simulations.runs import checkpoint
from simulations.runs.columns import METRICS
from simulations.runs.experiment import Experiment
from simulations.runs.results import CLIENTS, SUMMARY
from simulations.runs.run import run
from simulations.runs.setup import prepare
from strategies import STRATEGIES, RoundResult, Strategy
from strategies.checks import check_choice, check_tasks
from strategies.server import flower_messages

TINY = {
    "clients": 6,
    "rounds": 2,
    "model": "vit(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=4)",
    "cut": 1,
    "batch_size": 64,
    "checkpoint_every": 1,
    "engine": "inline()",
}
"""The experiment on which parts are checked: the digits, 8 pixels a side."""

TIMES = {metric.name for metric in METRICS if metric.unit == "s"}
"""Columns that no two runs have in common."""

GOES_ON = "training must go on without a client that failed"

BROKEN = 2
"""The client that fails where one has to."""


class _Stop(Exception):
    """Ends a run on its way."""


@dataclass(frozen=True)
class _Failing:
    """The client app, in which one client fails in one round, at once or when it has begun."""

    round: int
    late: bool = False

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer, or fail."""
        metadata, action = message.metadata, flower_messages.read(message).action
        is_broken = context.node_config["partition-id"] == BROKEN
        is_its_turn = (
            metadata.group_id == str(self.round) and (action not in (BEGIN, GO_ON)) == self.late
        )
        if is_broken and is_its_turn:
            raise RuntimeError("battery is empty")
        return client_app.app(message, context)


@dataclass(frozen=True)
class _Outcome:
    """What a run told, and left in its folder."""

    folder: Path
    rows: list[dict[str, Any]]
    results: list[RoundResult]

    def equals(self, other: _Outcome) -> bool:
        """Tell whether rows, but for times, and final weights are equal to the bit."""
        mine, its = self.results[-1].weights, other.results[-1].weights
        is_same = all(bytes(mine[name].data) == bytes(its[name].data) for name in mine)
        return is_same and repr(self._counted()) == repr(other._counted())

    def _counted(self) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in self.rows]

    def joined(self, later: _Outcome) -> _Outcome:
        """Return this run and how it went on, as one."""
        return replace(later, rows=self.rows + later.rows, results=self.results + later.results)


def _play(
    folder: Path,
    session: Session | None = None,
    app: Any = client_app.app,
    stop_after: int = 0,
    **changes: Any,
) -> _Outcome:
    """Run the tiny experiment with changes; or go on with the run in `folder` if there is one."""
    resumed = None
    if folder.exists():
        objects = {key: one for key, one in changes.items() if isinstance(one, Given)}
        experiment, resumed = checkpoint.read(folder, objects)
    else:
        experiment = Experiment.from_dict({**TINY, **changes, "out": str(folder)})
    found = _Outcome(folder, [], [])

    def watch(row: dict[str, Any], result: RoundResult) -> None:
        found.rows.append(row)
        found.results.append(result)
        if row["round"] == stop_after:
            raise _Stop

    with nullcontext(session) if session else Inline().session(app) as begin, suppress(_Stop):
        run(prepare(experiment), begin, watch=watch, resumed=resumed)
    return found


def check_strategy(strategy: str | Strategy) -> None:
    """Hold a strategy to its laws; raise AssertionError with the one that it breaks.

    `strategy` is the spec of an entry of STRATEGIES, or a strategy. In six runs of two rounds or
    less, with six uneven clients:

    - its repr is its spec, and its choice of clients keeps :func:`check_choice`;
    - the same seed gives the same result, another seed another;
    - the columns of each round add up those of its clients, and the summary those of rounds;
    - an epoch sees every sample of every client that takes part;
    - a run that is stopped and resumed equals one that never stopped;
    - the task graph keeps :func:`check_tasks`, with one cut and in a U-shape, which is refused by
      a strategy that says so;
    - a client that fails, at once or later, is dropped, and training goes on.
    """
    built = parse(strategy, STRATEGIES) if isinstance(strategy, str) else strategy
    check_repr(built)
    check_choice(built)
    with TemporaryDirectory() as folder:
        given = Given.of(built, repr(built), "")
        system = "wifi()" if built.needs_clock else "none()"
        codec, rounds = _codec_for(built), max(2, built.least_rounds)
        play = partial(_play, strategy=given, codec=codec, system=system, rounds=rounds)
        path = Path(folder)
        whole = play(path / "whole")
        half = play(path / "half", stop_after=1)
        first = replace(whole, rows=whole.rows[:1], results=whole.results[:1])
        crossed = [one for one in whole.results if _payloads(one)]
        hold(first.equals(half), f"{built}: the same seed must give the same result")
        other = play(path / "other", seed=1, stop_after=1)
        hold(not first.equals(other), f"{built}: another seed must give another result")
        went_on = half.joined(play(path / "half"))
        hold(whole.equals(went_on), f"{built}: stopped and resumed must equal never stopped")
        _check_sums(whole)
        _check_epoch(whole.results[0])
        ushape = partial(play, path / "u-shape", end=2, rounds=built.least_rounds)
        found = whole.results
        if built.works_in_u_shape:
            found = [*found, *ushape().results]
        else:
            refuses(f"{built} must refuse a U-shape with ValueError", ushape)
        for result in found:
            check_tasks(result)
        if not built.trains_on_server:
            law = f"{built} sends smashed data, so that a payload must cross in some round"
            hold(bool(crossed) or not built.sends_smashed_data, law)
            for number, late in [(1, False), *((one.round, True) for one in crossed[:1])]:
                app, where = _Failing(number, late), path / f"late-{late}"
                failed = must(GOES_ON, partial(play, where, app=app, local_steps=2))
                _check_failure(failed, number)


def _codec_for(strategy: Strategy) -> str:
    """Return a codec that selects places, or one that does not if the strategy refuses it."""
    try:
        strategy.check(parse_codec("adc(ratio=0.25)"))
    except ValueError:
        return "fp16()"
    return "adc(ratio=0.25)"


def _check_sums(outcome: _Outcome) -> None:
    clients = pd.read_parquet(outcome.folder / CLIENTS)
    summary = json.loads((outcome.folder / SUMMARY).read_text())
    columns = [name for name, value in vars(Traffic()).items() if type(value) is int]
    for column in columns:
        name = "client_steps" if column == "steps" else column
        rows = [row[name] for row in outcome.rows]
        by_round = clients.groupby("round")[column].sum().tolist()
        hold(rows == by_round, f"{name} of rounds must add up those of clients")
        hold(sum(rows) == summary[name], f"{name} of the summary must add up those of rounds")
    hold(summary["client_steps"] > 0, "a run must take a step")


def _check_epoch(result: RoundResult) -> None:
    train = prepare(Experiment.from_dict(TINY)).train
    held = [len(rows) for rows in train.partitions]
    for client, traffic in result.traffic.items():
        expected = sum(held) if client < 0 else held[client]
        law = f"an epoch of client {client} must see its {expected} samples"
        hold(traffic.samples == expected, f"{law}, got {traffic.samples}")


def _payloads(result: RoundResult) -> int:
    return sum(traffic.payload_bytes_up for traffic in result.traffic.values())


def _check_failure(outcome: _Outcome, number: int) -> None:
    summary = json.loads((outcome.folder / SUMMARY).read_text())
    hold(summary["status"] == "complete", GOES_ON)
    dropped = [
        (result.round, client, traffic.dropped)
        for result in outcome.results
        for client, traffic in result.traffic.items()
        if traffic.dropped
    ]
    is_asked = BROKEN in outcome.results[number - 1].traffic
    expected = [(number, BROKEN, "RuntimeError: battery is empty")] if is_asked else []
    law = "a client that fails must be dropped for the round, it alone, with the reason"
    hold(dropped == expected, f"{law}, got {dropped}")
    for name, weights in outcome.results[-1].weights.items():
        hold(bool(np.isfinite(weights.numpy()).all()), f"{name} must stay finite")


def check_skew(skew: Skew) -> None:
    """Hold a skew to its laws; raise AssertionError with the one that it breaks.

    On 4 clients with 20 grey images of 8 pixels a side each, and one without:

    - its repr is its spec;
    - images and labels keep shape and type, and labels are classes;
    - the data that it is given stay as they are, and so do rows of nobody, as test data;
    - all that is random depends on the seed and the client alone;
    - of held-out samples labels stay right, and the client's own data are skewed as before.
    """
    check_repr(skew)
    draw = np.random.default_rng(0)
    parts = [*np.split(draw.permutation(80), 4), np.empty(0, np.int64)]
    pixels = draw.integers(100, 150, (90, 1, 8, 8), dtype=np.uint8)
    table = Samples(pixels, draw.integers(0, 5, 90), parts, 5, [0.5], [0.5])
    kept = replace(table, pixels=pixels.copy(), labels=table.labels.copy())
    with seeded(1, "trial"):
        found = skewed(table, [skew], 0, {})
    with seeded(2, "trial"):
        again = skewed(table, [skew], 0, {})
    hold(_is_same(table, kept), "the data that a skew is given must stay as they are")
    hold(_is_same(found, again), "the same seed must give the same data")
    for before, after in ((table.pixels, found.pixels), (table.labels, found.labels)):
        is_like = before.shape == after.shape and before.dtype == after.dtype
        hold(is_like, f"a skew must keep {before.dtype} {before.shape}")
        nobodys = np.array_equal(before[80:], after[80:])
        hold(nobodys, "rows of nobody, as test data, must stay as they are")
    hold(set(found.labels) <= set(range(5)), "labels must be classes")
    shard = parts[1][:5]
    fewer = replace(table, partitions=[parts[0], parts[1][5:], *parts[2:]])
    held_out = skewed(fewer, [skew], 0, {1: shard})
    is_right = np.array_equal(held_out.labels[shard], table.labels[shard])
    hold(is_right, "labels of held-out samples must stay right")
    for rows in (parts[0], parts[2], parts[3]):
        is_own = _is_same(held_out, found, rows)
        hold(is_own, "what a client sees must not depend on what another holds")


def _is_same(first: Samples, second: Samples, rows: Any = slice(None)) -> bool:
    return np.array_equal(first.pixels[rows], second.pixels[rows]) and np.array_equal(
        first.labels[rows], second.labels[rows]
    )


def check_engine(engine: str | Engine) -> None:
    """Hold an engine to its laws; raise AssertionError with the one that it breaks.

    `engine` is the spec of an entry of ENGINES, or an engine. In one session, compared with
    the inline engine to the last bit, for averaged heads, private ones in a U-shape, and
    whole models:

    - rows and weights are equal, also of the round in which a client fails, which is dropped;
    - a run that is stopped goes on, in the same session, as if it had never stopped.
    """
    cases: Sequence[dict[str, Any]] = (
        {"strategy": "parallel()", "codec": "adc(ratio=0.25)", "fraction": 0.7},
        {"strategy": "parallel(average_heads=False)", "end": 2},
        {"strategy": "fedavg()"},
    )
    built = parse(engine, ENGINES) if isinstance(engine, str) else engine
    app = _Failing(2)
    with TemporaryDirectory() as folder, built.session(app) as session:  # type: ignore[arg-type]
        for number, case in enumerate(cases):
            path, changes = Path(folder) / str(number), {**case, "local_steps": 2}
            inline = _play(path / "inline", app=app, **changes)
            found = _play(path / "whole", session, **changes)
            law = f"{case}: results must be those of the inline engine, bit for bit"
            hold(found.equals(inline), law)
            half = _play(path / "half", session, stop_after=1, **changes)
            went_on = half.joined(_play(path / "half", session))
            law = f"{case}: stopped and resumed must equal never stopped"
            hold(went_on.equals(inline), law)
