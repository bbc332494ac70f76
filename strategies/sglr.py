"""SGLR: split averaging and split learning rates (Pal et al., arXiv 2112.01299, algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from itertools import count
from typing import Annotated, Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from fl_split.codecs import Codec
from fl_split.optimizers import Optimizer, scaled
from fl_split.payload import Payload
from fl_split.seeds import generator
from fl_split.specs import STRICT
from strategies.server.aggregation import Update
from strategies.server.round import Round
from strategies.server.strategy import Strategy


@dataclass(frozen=True, config=STRICT)
class SGLR(Strategy):
    """PSL with a larger learning rate of the tail, and one cut gradient for many clients.

    All clients step together, the tail takes one step per exchange as in PSL, heads are
    private. The paper takes the mean over the concatenated batches, which makes cut
    gradients smaller by the number of clients; here, as in PSL, each is that of the
    client's own mean loss, so that phi = 0, alpha = 0 is PSL to the bit. (Adam hardly
    sees the difference, SGD does.) For the same reason a client's loss counts by all the
    samples it holds, not by those of its batch: the same where all hold equally many.

    The averaged gradient is sent, and counted, once for each client that gets it; the paper
    counts one broadcast.

    Parameters
    ----------
    phi : float
        Share of the clients, drawn anew for each exchange, that get the mean of their cut
        gradients instead of their own (SplitAvg). They are averaged row by row among
        those of one shape. 1 diverges with many clients.
    alpha : float
        The tail's learning rate is that of `tail_optimizer` times K^alpha, K clients per
        round (SplitLr).
    """

    phi: Annotated[float, Field(ge=0, le=1)] = 0.75
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5

    keeps_models = True
    averages = False

    def check(self, codec: Codec) -> None:
        """Refuse codecs whose numbers stand for other places with every client."""
        if self.phi and not codec.in_place:
            raise ValueError(
                f"sglr averages cut gradients place by place, and {codec!r} sends other places "
                "of every sample; use one that sends all tokens, as uniform(bits=4), or phi=0.0"
            )

    def tail_optimizer(self, optimizer: Optimizer, clients: int) -> Optimizer:
        """Scale the learning rate."""
        return scaled(optimizer, clients**self.alpha)

    def train_round(self, round: Round) -> list[Update]:
        """Serve all clients together until the last one has run out of batches."""
        active = round.begin(round.clients)
        for step in count():
            if not active:
                break
            draw = generator(round.seed, "split average", round.number, step)
            active = round.serve_together(active, partial(self._mix, draw) if self.phi else None)
        return round.updates()

    def _mix(self, draw: torch.Generator, cuts: Mapping[int, Payload]) -> dict[int, Payload]:
        """Draw clients of this exchange and average their cut gradients."""
        clients, wanted = sorted(cuts), math.floor(self.phi * len(cuts) + 0.5)
        chosen = torch.randperm(len(clients), generator=draw)[:wanted].tolist()
        return average([clients[i] for i in chosen], cuts)


def average(clients: list[int], cuts: Mapping[int, Payload]) -> dict[int, Payload]:
    """Replace the cut gradients of `clients` by their mean, shape by shape."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for client in sorted(set(clients) & set(cuts)):
        shapes = tuple((name, *value.shape) for name, value in cuts[client].carried.items())
        alike.setdefault(shapes, []).append(client)
    found = dict(cuts)
    for group in alike.values():
        names = cuts[group[0]].carried
        mean = {n: torch.stack([cuts[c].carried[n] for c in group]).mean(dim=0) for n in names}
        found |= dict.fromkeys(group, Payload(mean))
    return found
