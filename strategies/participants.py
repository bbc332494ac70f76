"""Who takes part: from Flower's random node ids to partition ids, and the draw of a round."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp import Grid

from fl_split.seeds import generator
from strategies import messages
from strategies.crew import Crew
from strategies.mailbox import Mailbox


class NoClientsLeft(RuntimeError):
    """Every client of a round was dropped: there is nothing to aggregate."""


@dataclass(frozen=True)
class Population:
    """Who is there, by partition id: numbers of samples, and (if asked) of each class."""

    samples: dict[int, int]
    labels: Mapping[int, Sequence[float]]


def roll_call(
    grid: Grid, clients: int, timeout: float, crew: Crew, with_labels: bool = False
) -> tuple[dict[int, int], Population]:
    """Wait for all nodes, then map partition ids to node ids, and to what they hold.

    Node ids are random; everything that affects a result goes by partition id.

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
        labels[partition] = messages.metrics(reply, messages.NUM_LABELS)
    missing = sorted(set(range(clients)) - set(nodes))
    if missing:
        reasons = sorted({t.dropped for t in mailbox.traffic.values() if t.dropped})
        raise NoClientsLeft(f"clients {missing} did not come up: {'; '.join(reasons)}")
    return nodes, Population(samples, labels)


def sample(samples: dict[int, int], fraction: float, seed: int, server_round: int) -> list[int]:
    """Draw the clients of a round, without those that hold no samples; sorted."""
    drawn = shuffled(samples, seed, server_round)
    return sorted(drawn[: per_round(samples, fraction)])


def shuffled(samples: dict[int, int], seed: int, server_round: int) -> list[int]:
    """Clients that hold samples, in the order in which a round draws them."""
    eligible = sorted(client for client, count in samples.items() if count > 0)
    draw = generator(seed, "sample", server_round)
    return [eligible[i] for i in torch.randperm(len(eligible), generator=draw).tolist()]


def per_round(samples: dict[int, int], fraction: float) -> int:
    """How many clients a round asks for; there may be fewer that hold samples."""
    return max(1, round(fraction * len(samples)))
