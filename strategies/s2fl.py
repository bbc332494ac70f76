"""After S2FL (Yan et al., 2023, arXiv 2311.13163): groups whose labels are near uniform."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from fl_split.seeds import generator
from fl_split.specs import STRICT
from strategies.minibatch import MiniBatch
from strategies.server.aggregation import Update
from strategies.server.round import Round


@dataclass(frozen=True, config=STRICT)
class S2FL(MiniBatch):
    """MiniBatch-SFL with a copy of the tail per group of clients, averaged after every exchange.

    Clients of a round are dealt into groups at random, then swapped between them as long as this
    brings the labels of the groups nearer to uniform: by the Euclidean distance of their shares,
    mean over groups. The server learns how many samples of each class a client holds.

    After the authors of GAS, who compare with it in their code; of the paper only the abstract
    was read. Theirs leaves out clients that do not fill a group; here sizes of groups differ by
    one. Copies count equally, and so does what the optimiser remembers. With plain SGD, or with
    momentum, the mean of copies is one step on the mean of the groups' gradients: grouping then
    changes but the weights of clients, with Adam or clipping more. The first part of the paper, a
    cut for each client by its speed, anew in each round, is here the key `cut`, for a whole run.

    Parameters
    ----------
    groups : int
        How many; never more than clients in a round.
    """

    groups: Annotated[int, Field(ge=1)] = 2

    needs_labels = True

    def train_round(self, round: Round) -> list[Update]:
        """Serve group by group, weighted by batches, until no client has one left."""
        draw = generator(round.seed, "groups", round.number)
        groups = balanced(round.clients, self.groups, round.labels, draw)
        round.begin([client for group in groups for client in group], head=round.head)
        while any(groups):
            groups = round.serve_groups(groups, round.batch_samples.__getitem__)
        return round.updates()


def balanced(
    clients: Sequence[int],
    groups: int,
    labels: Mapping[int, Sequence[float]],
    draw: torch.Generator,
) -> list[list[int]]:
    """Divide clients into groups of (nearly) one size whose labels are near uniform; sorted.

    Starts from groups at random. Each client in turn is swapped with the one of another group
    that helps most, until no swap helps.
    """
    order = [clients[i] for i in torch.randperm(len(clients), generator=draw).tolist()]
    number = min(groups, len(order))
    group = {client: place % number for place, client in enumerate(order)}
    counts = np.array([labels[client] for client in order], float)
    where = np.array([group[client] for client in order])
    is_better = True
    while is_better:
        is_better = False
        for one in range(len(order)):
            other, gain = _best_swap(one, where, counts)
            if gain > 1e-12:  # else a swap and its reverse might both seem to help
                where[[one, other]] = where[[other, one]]
                is_better = True
    found: list[list[int]] = [[] for _ in range(number)]
    for client, place in zip(order, where.tolist(), strict=True):
        found[place].append(client)
    return [sorted(members) for members in found]


def _best_swap(
    one: int, where: NDArray[np.int64], counts: NDArray[np.float64]
) -> tuple[int, float]:
    """Return with whom to swap `one`, and by how much that lowers the sum of distances."""
    sums = np.stack([counts[where == place].sum(axis=0) for place in range(where.max() + 1)])
    moved = counts - counts[one]
    own, theirs = sums[where[one]], sums[where]
    gains = distance(own) + distance(theirs) - distance(own + moved) - distance(theirs - moved)
    gains[where == where[one]] = 0.0
    best = int(gains.argmax())
    return best, float(gains[best])


def distance(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Euclidean distance (...) of shares of classes, of counts (..., C), to uniform ones."""
    shares = counts / counts.sum(axis=-1, keepdims=True)
    return np.asarray(np.linalg.norm(shares - 1 / counts.shape[-1], axis=-1))
