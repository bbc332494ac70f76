"""Who takes part: from Flower's random node ids to partition ids, and the draw of a round."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fl_split.exchange.records import HELD, Record
from fl_split.seeds import generator
from strategies.server import flower_messages
from strategies.server.mailbox import Mailbox
from strategies.server.threads import ServerThreads


class NoClientsLeft(RuntimeError):
    """Every client of a round was dropped: there is nothing to aggregate."""


class AllLate(NoClientsLeft):
    """Every client of a round was dropped, and each was late by the experiment's own system."""


@dataclass(frozen=True)
class Population:
    """Whom the clients of every round are chosen from.

    Attributes
    ----------
    samples, labels : Mapping
        By partition id, numbers of samples, and (if a strategy asks) of each class.
    fraction : float
        Share of the clients that a round asks for.
    speeds : Sequence
        (clients,) operations per second of their devices; empty if nobody knows.
    away : frozenset
        Clients that the round cannot ask.
    """

    samples: Mapping[int, int]
    labels: Mapping[int, Sequence[float]]
    fraction: float
    batch_size: int
    seed: int
    speeds: Sequence[float] = ()
    away: frozenset[int] = frozenset()

    @cached_property
    def holders(self) -> list[int]:
        """Clients that hold samples, sorted."""
        return sorted(client for client, count in self.samples.items() if count > 0)

    @property
    def per_round(self) -> int:
        """How many clients a round asks for; there may be fewer that hold samples."""
        return max(1, round(self.fraction * len(self.samples)))

    def shuffled(self, server_round: int) -> list[int]:
        """Clients that hold samples and are there, in the order in which a round draws them."""
        found: list[int] = self._order(server_round).tolist()
        return found

    def sample(self, server_round: int) -> list[int]:
        """Draw the clients of a round, without those that hold no samples or are away; sorted."""
        return sorted(self._order(server_round)[: self.per_round].tolist())

    def _order(self, server_round: int) -> NDArray[np.int64]:
        draw = generator(self.seed, "sample", server_round)
        order = torch.randperm(len(self._eligible), generator=draw, device="cpu")
        drawn = self._eligible[order.numpy()]
        return drawn[~np.isin(drawn, [*self.away])] if self.away else drawn

    @cached_property
    def _eligible(self) -> NDArray[np.int64]:
        """The same as an array."""
        return np.array(self.holders, dtype=np.int64)


@dataclass(frozen=True)
class RollCall:
    """Who is there, by partition id: Flower's node ids, samples, and samples of each class.

    Node ids are random; everything that affects a result goes by partition id.
    """

    nodes: dict[int, int]
    samples: dict[int, int]
    labels: Mapping[int, Sequence[float]]


def roll_call(
    grid: Grid,
    clients: int,
    timeout: float,
    threads: ServerThreads,
    with_labels: bool = False,
    terms: bytes | None = None,
) -> RollCall:
    """Find out what all clients hold; samples of each class only `with_labels`.

    `terms` are handed to nodes with the question: what they must know of the run.

    A grid that knows it says it, if it has a method ``describe(with_labels)`` that returns what
    this function does: to ask 100,000 clients takes minutes. On others wait for all nodes, and
    ask each.

    Raises
    ------
    NoClientsLeft
        Fewer nodes than `clients` appeared in time, or a node failed to answer.
    """
    if describe := getattr(grid, "describe", None):
        told: RollCall = describe(with_labels)
        return told
    deadline = time.monotonic() + timeout
    while len(found := list(grid.get_node_ids())) < clients:
        if time.monotonic() > deadline:
            raise NoClientsLeft(f"waited for {clients} nodes, only {len(found)} came")
        time.sleep(0.1)
    nodes = {node: node for node in found}
    mailbox = Mailbox(grid, nodes, "0", timeout, threads, kind="node")
    action = flower_messages.LABEL_COUNTS if with_labels else flower_messages.SAMPLE_COUNT
    for node in found:
        mailbox.send(node, Record(action, terms), flower_messages.QUERY)
    labels: dict[int, list[float]] = {}
    call = RollCall({}, {}, labels)
    for node, answer in mailbox.replies():
        partition = int(answer.number(flower_messages.PARTITION))
        _check_place(partition, clients, call.nodes)
        call.nodes[partition] = node
        call.samples[partition] = int(answer.number(HELD))
        if with_labels:
            labels[partition] = answer.list(flower_messages.NUM_LABELS)
            _check_labels(labels, partition, call.samples[partition])
    missing = sorted(set(range(clients)) - set(call.nodes))
    if missing:
        reasons = sorted({t.dropped for t in mailbox.account.traffic.values() if t.dropped})
        raise NoClientsLeft(f"clients {missing} did not come up: {'; '.join(reasons)}")
    return call


def _check_place(client: int, clients: int, nodes: Mapping[int, int]) -> None:
    if client in nodes or not 0 <= client < clients:
        fault = "two nodes have" if client in nodes else "a node has"
        raise NoClientsLeft(
            f"{fault} partition-id={client}; {clients} clients need one node for each of "
            f"0..{clients - 1}"
        )


def _check_labels(labels: Mapping[int, Sequence[float]], client: int, samples: int) -> None:
    counts, others = labels[client], next(iter(labels.values()))
    if len(counts) != len(others) or min(counts, default=-1) < 0 or sum(counts) != samples:
        raise NoClientsLeft(
            f"client {client} said it holds {samples} samples and of the classes {counts}; "
            "these are not counts of one data set"
        )
