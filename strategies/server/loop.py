"""The rounds of a run on the server: choose, train, aggregate, tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.serverapp import Grid

from fl_split.drift import drift
from fl_split.exchange.records import HEAD, TAIL, Weights
from fl_split.flat import Flat
from strategies.server.aggregation import Update
from strategies.server.mailbox import Mailbox
from strategies.server.participants import AllLate, NoClientsLeft, Population, roll_call
from strategies.server.private_models import fetch, fetch_exits, mean
from strategies.server.round import Round
from strategies.server.strategy import Strategy
from strategies.server.tail import TrainedTail
from strategies.server.tasks import in_order
from strategies.server.training import Progress, RoundResult, Training

NAMED = 3
"""Reasons that a message lists."""


def train(
    strategy: Strategy,
    grid: Grid,
    weights: Mapping[str, Weights],
    rounds: int,
    timeout: float,
    training: Training,
) -> dict[str, Weights]:
    """Run up to `rounds` rounds; return the weights after the last one.

    `timeout` bounds the wait for any one reply, in seconds.

    Raises
    ------
    NoClientsLeft
        All clients of a round failed.
    """
    training.threads.on_done = getattr(grid, "wake", training.threads.on_done)
    call = roll_call(grid, training.clients, timeout, training.threads, strategy.needs_labels)
    sizes = training.fraction, training.batch_size
    everyone = Population(call.samples, call.labels, *sizes, training.seed, training.speeds)
    per_round = len(strategy.choose(everyone, 1))
    optimizer = strategy.tail_optimizer(training.tail_optimizer, per_round)
    tail = TrainedTail(training.tail, optimizer, training.exchange, training.recipe)
    tail.descent.restore(training.progress.moments)
    training.aggregator.set_state(training.progress.aggregator)
    training.link.restore(training.progress.link)
    for number in range(training.progress.rounds + 1, rounds + 1):
        tail.flat.load(weights[TAIL].numpy())  # an observer may have put others into both
        training.head.load(weights[HEAD].numpy())
        delay, away = training.attendance.begin(number, everyone.holders)
        round = Round(
            number=number,
            assignments=strategy.choose(replace(everyone, away=away), number),
            samples=call.samples,
            weights=weights,
            labels=call.labels,
            exchange=training.exchange,
            training=training,
            mailbox=Mailbox(grid, call.nodes, str(number), timeout, training.threads),
            tail=tail,
        )
        if delay:
            round.tasks.wait(delay)
        result = _train_round(strategy, round)
        weights, is_last = result.weights, training.on_round(result)
        del result  # models that clients keep shall not outlive their round
        if is_last:
            break
    return dict(weights)


def _train_round(strategy: Strategy, round: Round) -> RoundResult:
    updates = strategy.train_round(round)
    round.tail.finish()
    round.stand_ins.take_back()
    if updates is None:
        raise TypeError(f"{type(strategy).__name__}.train_round returned None; return updates()")
    if not updates and not strategy.trains_on_server:
        reasons = sorted({t.dropped for t in round.mailbox.account.traffic.values()})
        some = "; ".join(reasons[:NAMED]) + ("; ..." if reasons[NAMED:] else "")
        is_divergent = all("not finite" in one for one in reasons)
        kind, advice = NoClientsLeft, "; take a smaller learning rate" * is_divergent
        if round.late == {*round.clients}:
            kind, advice = AllLate, "; give them more time in the system"
        raise kind(
            f"round {round.number}: all {len(round.clients)} clients were dropped "
            f"({some}); nothing to aggregate, results so far are kept{advice}"
        )
    round.tasks.average(round.ends)
    own = fetch(round) if strategy.keeps_models else {}
    heads = [own[k] for k in own if k in round.clients] or [u.weights for u in updates]
    apart = _drift(heads)  # before aggregation, which may consume them
    weights = _aggregate(strategy, round, updates, own)
    return RoundResult(
        round=round.number,
        weights=weights,
        own=own,
        exits=fetch_exits(round),
        train_loss=train_loss(
            {k: v for k, v in round.losses.items() if not round.mailbox.dropped(k)}, round.samples
        ),
        traffic=round.mailbox.account.traffic,
        crossed=round.mailbox.account.crossed,
        progress=Progress(
            round.number,
            round.tail.descent.state(),
            round.training.aggregator.state(),
            round.link.state(),
        ),
        client_flops=round.client_flops,
        server_flops=round.server_flops,
        drift=apart,
        tasks=in_order(round.tasks.tasks),
    )


def _aggregate(
    strategy: Strategy,
    round: Round,
    updates: Sequence[Update],
    own: Mapping[int, Mapping[str, Weights]],
) -> dict[str, Weights]:
    """Return the global weights after the round.

    What clients do not send is as the server has it: its own tail, and the head of the
    round's start. Of models that clients keep it is the mean, only to be saved.
    """
    if strategy.trains_on_server:
        training = round.training
        return {HEAD: Weights.of(training.head.numpy()), TAIL: Weights.of(training.tail.numpy())}
    weights = {HEAD: round.head, TAIL: round.tail.weights()}
    if own:
        weights |= mean(own, round.samples)
    if any(update.weights for update in updates):
        weights |= strategy.aggregate(round, list(updates))
    weights |= round.kept
    return {name: _kept(round, name, found) for name, found in weights.items()}


def _kept(round: Round, name: str, found: Weights) -> Weights:
    """Return weights after a round, with what its phase leaves alone as it was.

    A server's optimiser would go on with its momentum, and sums over clients are rounded.
    """
    halves: dict[str, Flat[Any]] = {HEAD: round.training.head, TAIL: round.training.tail}
    kept = round.exchange.phases.kept(halves[name], round.number) if name in halves else None
    if kept is None:
        return found
    stays = kept[halves[name].num_private :].cpu().numpy()
    return Weights.of(np.where(stays, round.weights[name].numpy(), found.numpy()))


def train_loss(losses: Mapping[int, Mapping[int, float]], samples: Mapping[int, int]) -> float:
    """Return the mean over clients, weights n_k / n, of client k's mean loss over its steps.

    `losses` are by client and step, n_k are all `samples` that client k holds; one that is
    not among them is the server, alone. Without losses nan. Sums go by client and step, never
    by arrival, so that SFLV1 has the loss of FedAvg to the bit.
    """
    counts = {client: samples.get(client, 1) for client in sorted(losses)}
    parts = []
    for client, count in counts.items():
        steps = [loss for _, loss in sorted(losses[client].items())]
        parts.append(count * (sum(steps) / len(steps)))
    return sum(parts) / sum(counts.values()) if parts else math.nan


def _drift(records: Sequence[Mapping[str, Weights]]) -> float | None:
    heads = [record[HEAD].numpy() for record in records if HEAD in record]
    return drift(heads) if len(heads) > 1 else None
