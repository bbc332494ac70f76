"""Models that clients keep for themselves: shown once a round, to be evaluated and saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from strategies.server import messages
from strategies.server.mailbox import Mailbox
from strategies.server.participants import NoClientsLeft

if TYPE_CHECKING:
    from strategies.server.round import Round


def shown(round: Round) -> dict[int, ArrayRecord]:
    """Ask all clients with samples for what they keep; not counted as traffic.

    That is the head, and the tail where clients train whole models.

    Raises
    ------
    NoClientsLeft
        None of them has anything to show.
    """
    old = round.mailbox
    apart = Mailbox(old.grid, old.nodes, "0", old.timeout, old.crew)
    content = RecordDict({messages.SETTINGS: ConfigRecord()} if round.is_local else {})
    for client in (client for client, count in round.samples.items() if count):
        apart.send(client, messages.REPORT, content)
    names = [messages.HEAD, *([messages.TAIL] if round.is_local else [])]
    found = {}
    for client, reply in apart.arrivals():
        try:
            messages.check_weights(reply, names, round.arrays)
            found[client] = reply.content.array_records[messages.WEIGHTS]
        except (KeyError, TypeError, ValueError) as error:
            old.drop(client, f"sent {error}")
    if not found:
        raise NoClientsLeft(f"round {round.number}: no client has a model to evaluate")
    return dict(sorted(found.items()))


def mean(kept: Mapping[int, ArrayRecord], samples: Mapping[int, int]) -> ArrayRecord:
    """Mean of models by client, weights n_k / n."""
    whole = sum(samples[client] for client in kept)
    vectors = {
        name: sum(
            messages.numbers(record[name]) * (samples[client] / whole)
            for client, record in kept.items()
        )
        for name in next(iter(kept.values()))
    }
    return messages.weights(**{name: np.asarray(vector) for name, vector in vectors.items()})
