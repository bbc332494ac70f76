"""What a strategy is given beside messages, and what it reports of a round."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import ArrayRecord
from torch import Tensor

from fl_split.codecs import Codec
from fl_split.flat import Flat
from fl_split.models.cut import Head, Tail
from fl_split.optimizers import Optimizer
from strategies.server.aggregation import Aggregator, fedavg
from strategies.server.mailbox import Traffic
from strategies.server.threads import Crew


@dataclass(frozen=True)
class Progress:
    """What a run that goes on must know beside weights.

    That is rounds done, the moments of the tail's optimiser, and what the aggregation
    remembers.
    """

    rounds: int = 0
    moments: dict[str, Tensor] = field(default_factory=dict)
    aggregator: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """What a strategy needs beside messages.

    Attributes
    ----------
    clients : int
        Number of virtual clients; the strategy waits until so many nodes are there.
    fraction : float
        Share of the clients sampled per round, in (0, 1].
    head, tail : Flat
        Where the global weights are trained and evaluated.
    pooled_round : Callable
        Train `head` and `tail` on pooled data for one round (the centralised baseline):
        (round, sampled clients) to (loss, samples, steps).
    aggregator : Aggregator
        What averages weights at the end of a round.
    crew : Crew
        The server's threads.
    progress : Progress
        Where to go on; by default from the start.
    on_round : Callable
        Called after every round with its :class:`RoundReport`; true ends the run.
    """

    clients: int
    fraction: float
    batch_size: int
    seed: int
    codec: Codec
    downlink: Codec
    tail_optimizer: Optimizer
    head: Flat[Head]
    tail: Flat[Tail]
    pooled_round: Callable[[int, Sequence[int]], tuple[float, int, int]]
    aggregator: Aggregator = field(default_factory=fedavg)
    crew: Crew = field(default_factory=Crew)
    progress: Progress = field(default_factory=Progress)
    on_round: Callable[[RoundReport], bool | None] = lambda report: None


@dataclass
class RoundReport:
    """What one round cost and gave: global weights, metrics, and traffic by partition id.

    `train_loss` is that of :func:`train_loss`; clients dropped in the round are left out.
    `shard_accuracy` is that of clients on their own held-out samples; `drift` the mean
    distance of their heads to the mean, before averaging.
    """

    round: int
    arrays: ArrayRecord
    metrics: dict[str, float]
    train_loss: float
    traffic: dict[int, Traffic]
    progress: Progress
    client_flops: int
    server_flops: int
    class_accuracy: list[float]
    shard_accuracy: dict[int, float]
    drift: float | None


def train_loss(losses: Mapping[tuple[int, int], float], samples: Mapping[int, int]) -> float:
    """Return the mean over clients, weights n_k / n, of client k's mean loss over its steps.

    `losses` are by client and step, n_k are all `samples` that client k holds; one that is
    not among them is the server, alone. Without losses nan. Sums go by client and step, never
    by arrival, so that SFLV1 has the loss of FedAvg to the bit.
    """
    steps: dict[int, list[float]] = {}
    for (client, _), loss in sorted(losses.items()):
        steps.setdefault(client, []).append(loss)
    counts = {client: samples.get(client, 1) for client in steps}
    means = [counts[client] * (sum(found) / len(found)) for client, found in steps.items()]
    return sum(means) / sum(counts.values()) if steps else math.nan
