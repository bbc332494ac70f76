"""One round of a client's own training, and what federated algorithms change of it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fl_split.exchange.protocol import Batch, ClientSide, Exchange, Step
from fl_split.exchange.records import HEAD, TAIL, Number, Record, Weights
from fl_split.flat import Flat
from fl_split.recipe.descent import Descent


class LocalRound:
    """One round in which a client trains the whole model, as in FedAvg.

    Another algorithm is a subclass that changes :meth:`step`, :meth:`corrected` or :meth:`end`.
    The object lives for one round; what must last longer goes through :meth:`keep`.

    Attributes
    ----------
    exchange : Exchange
        Has the algorithm's parameters.
    client, came : ClientSide, Record
        Who trains, and what began the round.
    descents : dict[str, Descent]
        Those of both halves, by the names HEAD and TAIL.
    """

    exchange: Exchange

    def __init__(self, exchange: Exchange, client: ClientSide, came: Record, tail: Descent) -> None:
        self.exchange, self.client, self.came = exchange, client, came
        self.descents = {HEAD: client.descent, TAIL: tail}

    @property
    def halves(self) -> dict[str, Flat[Any]]:
        """Head and tail in training, by name."""
        return {name: descent.flat for name, descent in self.descents.items()}

    @cached_property
    def starts(self) -> dict[str, Tensor]:
        """Weights (P,) of both halves that came, by name."""
        return {name: self.sent(name) for name in self.descents}

    def sent(self, name: str) -> Tensor:
        """Return a vector that came, on the device of the client."""
        device = self.client.head.vector.device
        return torch.from_numpy(self.came.weights[name].numpy().copy()).to(device)

    def kept(self, key: str, name: str) -> Tensor:
        """Return what the client has kept under `key`; zeros like half `name` if it has nothing."""
        found = self.client.memory.get(key)
        return torch.zeros_like(self.halves[name].vector.detach()) if found is None else found

    def keep(self, key: str, vector: Tensor) -> None:
        """Keep a vector for later rounds.

        Raises
        ------
        ValueError
            It is not finite: then this round must leave no trace in what the client keeps.
        """
        if not bool(vector.isfinite().all()):
            raise ValueError(f"local training gave a {key} that is not finite")
        self.client.memory[key] = vector

    def moved(self, name: str) -> Tensor:
        """Return the weights (P,) that came less those of now; 0 for running statistics."""
        half = self.halves[name]
        found = self.starts[name] - half.vector.detach()
        return found if half.statistics is None else found.index_fill(0, half.statistics, 0.0)

    def step(self, batch: Batch) -> Step:
        """Return loss and gradients of a batch."""
        halves, client = self.halves, self.client
        return self.exchange.step(halves[HEAD], halves[TAIL], client.link, batch, client.at)

    def corrected(self, name: str, gradient: Tensor) -> Tensor:
        """Return what half `name` steps on, given its gradient (P,); 0 for running statistics."""
        del name
        return gradient

    def gradient(self, name: str, gradient: Tensor) -> Tensor:
        """Do the same, but leave running statistics to their own rule."""
        where = self.halves[name].statistics
        if where is None:
            return self.corrected(name, gradient)
        found = self.corrected(name, gradient.index_fill(0, where, 0.0))
        return found.index_copy(0, where, gradient[where])

    def end(self, steps: int) -> tuple[Mapping[str, Weights], Mapping[str, Number]]:
        """Keep what must last; return vectors and numbers that are sent beside the weights."""
        del steps
        return {}, {}
