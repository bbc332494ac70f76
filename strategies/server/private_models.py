"""Models that clients keep for themselves: fetched once a round, to be measured and saved."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fl_split.exchange.link import UNREADABLE
from fl_split.exchange.records import EXITS, Record, Weights, check_weights
from strategies.server import flower_messages
from strategies.server.conversation import Conversation
from strategies.server.mailbox import Mailbox
from strategies.server.participants import NoClientsLeft
from strategies.server.round import Round


def fetch(round: Conversation) -> dict[int, dict[str, Weights]]:
    """Ask all clients with samples for what they keep; not counted as traffic.

    That is the head, and the tail where clients train whole models.

    Raises
    ------
    NoClientsLeft
        None of them has anything to show.
    """
    is_whole, names = round.exchange.trains_whole_models, round.exchange.names
    question = flower_messages.OWN_MODEL if is_whole else flower_messages.OWN_HEAD
    return _ask(round, question, {name: round.weights[name] for name in names})


def fetch_exits(round: Round) -> dict[int, Weights]:
    """Ask all clients with samples for the exits that they keep; nothing where exits are shared.

    Clients that have not trained yet show those that all start from.

    Raises
    ------
    NoClientsLeft
        None of them has anything to show.
    """
    exits = round.training.head.private
    if not len(exits):
        return {}
    found = _ask(round, flower_messages.OWN_EXITS, {EXITS: Weights.of(exits.cpu().numpy())})
    return {client: weights[EXITS] for client, weights in found.items()}


def _ask(
    round: Conversation, question: str, like: Mapping[str, Weights]
) -> dict[int, dict[str, Weights]]:
    old = round.mailbox
    apart = Mailbox(old.grid, old.nodes, "0", old.timeout, old.threads)
    for client in (client for client, count in round.samples.items() if count):
        apart.send(client, Record(question), flower_messages.QUERY)
    found = {}
    for client, record in apart.replies():
        try:
            check_weights(record.weights, like)
            found[client] = dict(record.weights)
        except UNREADABLE as error:
            old.drop(client, f"sent {error}")
    for client, traffic in apart.account.traffic.items():
        if traffic.dropped:
            old.drop(client, traffic.dropped)
    if not found:
        raise NoClientsLeft(f"round {round.number}: no client has a model to evaluate")
    return dict(sorted(found.items()))


def mean(
    kept: Mapping[int, Mapping[str, Weights]], samples: Mapping[int, int]
) -> dict[str, Weights]:
    """Mean of models by client, weights n_k / n."""
    whole = sum(samples[client] for client in kept)
    return {
        name: Weights.of(
            np.asarray(
                sum(
                    weights[name].numpy() * (samples[client] / whole)
                    for client, weights in kept.items()
                )
            )
        )
        for name in next(iter(kept.values()))
    }
