"""Who takes part: from Flower's random node ids to partition ids, and the draw of a round."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp import Grid

from fl_split.seeds import generator
from strategies.server import messages
from strategies.server.mailbox import Mailbox
from strategies.server.threads import Crew


class NoClientsLeft(RuntimeError):
    """Every client of a round was dropped: there is nothing to aggregate."""


def batch_samples(share: float, batch_size: int) -> int:
    """Samples of the batch of a client that takes a share of the batch size."""
    return max(1, int(share * batch_size))


@dataclass(frozen=True)
class Population:
    """Whom the clients of every round are chosen from.

    Attributes
    ----------
    samples, labels : Mapping
        By partition id, numbers of samples, and (if a strategy asks) of each class.
    fraction : float
        Share of the clients that a round asks for.
    """

    samples: dict[int, int]
    labels: Mapping[int, Sequence[float]]
    fraction: float
    batch_size: int
    seed: int

    @property
    def per_round(self) -> int:
        """How many clients a round asks for; there may be fewer that hold samples."""
        return max(1, round(self.fraction * len(self.samples)))

    def shuffled(self, server_round: int) -> list[int]:
        """Clients that hold samples, in the order in which a round draws them."""
        eligible = sorted(client for client, count in self.samples.items() if count > 0)
        draw = generator(self.seed, "sample", server_round)
        return [eligible[i] for i in torch.randperm(len(eligible), generator=draw).tolist()]

    def sample(self, server_round: int) -> list[int]:
        """Draw the clients of a round, without those that hold no samples; sorted."""
        return sorted(self.shuffled(server_round)[: self.per_round])


def roll_call(
    grid: Grid, clients: int, timeout: float, crew: Crew, with_labels: bool = False
) -> tuple[dict[int, int], dict[int, int], dict[int, list[float]]]:
    """Wait for all nodes, then map partition ids to node ids, and to what they hold.

    That is samples and, `with_labels`, samples of each class. Node ids are random;
    everything that affects a result goes by partition id.

    Raises
    ------
    NoClientsLeft
        Fewer nodes than `clients` appeared in time, or a node failed to answer.
    """
    deadline = time.monotonic() + timeout
    while len(found := list(grid.get_node_ids())) < clients:
        if time.monotonic() > deadline:
            raise NoClientsLeft(f"waited for {clients} nodes, only {len(found)} came")
        time.sleep(0.1)
    mailbox = Mailbox(grid, {node: node for node in found}, "0", timeout, crew)
    for node in found:
        content = RecordDict({messages.SETTINGS: ConfigRecord()} if with_labels else {})
        mailbox.send(node, messages.ROLL_CALL, content)
    nodes, samples, labels = {}, dict[int, int](), dict[int, list[float]]()
    for node, reply in mailbox.arrivals():
        partition = int(messages.metric(reply, messages.PARTITION))
        nodes[partition] = node
        samples[partition] = int(messages.metric(reply, messages.NUM_EXAMPLES))
        if with_labels:
            labels[partition] = messages.metrics(reply, messages.NUM_LABELS)
            _check_labels(labels, partition, samples[partition])
    missing = sorted(set(range(clients)) - set(nodes))
    if missing:
        reasons = sorted({t.dropped for t in mailbox.traffic.values() if t.dropped})
        raise NoClientsLeft(f"clients {missing} did not come up: {'; '.join(reasons)}")
    return nodes, samples, labels


def _check_labels(labels: Mapping[int, Sequence[float]], client: int, samples: int) -> None:
    counts, others = labels[client], next(iter(labels.values()))
    if len(counts) != len(others) or min(counts, default=-1) < 0 or sum(counts) != samples:
        raise NoClientsLeft(
            f"client {client} said it holds {samples} samples and of the classes {counts}; "
            "these are not counts of one data set"
        )
