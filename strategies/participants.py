"""Who takes part: from Flower's random node ids to partition ids, and the draw of a round."""

from __future__ import annotations

import time

import torch
from flwr.app import RecordDict
from flwr.serverapp import Grid

from fl_split.seeds import generator
from strategies import messages
from strategies.crew import Crew
from strategies.mailbox import Mailbox


class NoClientsLeft(RuntimeError):
    """Every client of a round was dropped: there is nothing to aggregate."""


def roll_call(
    grid: Grid, clients: int, timeout: float, crew: Crew
) -> tuple[dict[int, int], dict[int, int]]:
    """Wait for all nodes, then map partition ids to node ids and to numbers of samples.

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
        mailbox.send(node, messages.ROLL_CALL, RecordDict())
    nodes, samples = {}, {}
    for node, reply in mailbox.arrivals():
        partition = int(messages.metric(reply, messages.PARTITION))
        nodes[partition] = node
        samples[partition] = int(messages.metric(reply, messages.NUM_EXAMPLES))
    missing = sorted(set(range(clients)) - set(nodes))
    if missing:
        reasons = sorted({t.dropped for t in mailbox.traffic.values() if t.dropped})
        raise NoClientsLeft(f"clients {missing} did not come up: {'; '.join(reasons)}")
    return nodes, samples


def sample(samples: dict[int, int], fraction: float, seed: int, server_round: int) -> list[int]:
    """Draw the clients of a round, without those that hold no samples; sorted."""
    eligible = sorted(client for client, count in samples.items() if count > 0)
    wanted = min(len(eligible), max(1, round(fraction * len(samples))))
    draw = generator(seed, "sample", server_round)
    chosen = torch.randperm(len(eligible), generator=draw)[:wanted]
    return sorted(eligible[i] for i in chosen.tolist())
