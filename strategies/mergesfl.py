"""After MergeSFL (Liao et al., ICDE 2024, arXiv 2311.13348): batches merged to be near IID."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from scipy.special import rel_entr

from fl_split.seeds import generator
from fl_split.specs import STRICT
from strategies.server.aggregation import Update
from strategies.server.assignment import Assignment
from strategies.server.participants import Population
from strategies.server.round import Round
from strategies.server.strategy import Strategy


@dataclass(frozen=True, config=STRICT)
class MergeSFL(Strategy):
    """All clients step together on one merged batch, chosen so that its labels are near IID.

    The tail takes one step per exchange on the mean over the samples of all batches. A
    client's batch, and with it the learning rate of its head, is as small as its device is
    slow, so that none waits. Heads are averaged with weights of the samples they learnt from.
    Each client gets the cut gradient of its own mean loss, as in `parallel`.

    Reconstructed: the paper chooses clients by a genetic algorithm and then changes batch
    sizes a little; here they are chosen one by one, each the one that brings the merged
    labels nearest to those of all clients (Kullback-Leibler divergence), among more than
    are needed, drawn anew for each round. That passes over large one-sided batches. Speeds
    are those of the experiment's `system`, else drawn. The server learns how many samples of
    each class a client holds.

    Parameters
    ----------
    candidates : float
        Clients drawn for each one that is needed; 1 leaves no choice.
    slowest : float
        Without a system: speed of the slowest device, that of the fastest being 1; others lie
        between, evenly on a logarithmic scale. A client takes its speed, over that of the
        fastest candidate, times `batch_size`.
    """

    candidates: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2.0
    slowest: Annotated[float, Field(gt=0, le=1)] = 1.0

    mixes_cuts = True
    needs_labels = True
    follows_speeds = True

    def choose(self, population: Population, server_round: int) -> dict[int, Assignment]:
        """Draw candidates, then choose those whose merged labels are nearest to all labels."""
        wanted = population.per_round
        drawn = population.shuffled(server_round)[: math.ceil(self.candidates * wanted)]
        speeds = {client: self._speed(population, client) for client in drawn}
        shares = {client: speed / max(speeds.values()) for client, speed in speeds.items()}
        sizes = {
            client: max(1, int(share * population.batch_size)) for client, share in shares.items()
        }
        filled = {client: min(size, population.samples[client]) for client, size in sizes.items()}
        chosen = nearest_to_all(drawn, wanted, filled, population.labels)
        return {client: Assignment(sizes[client], shares[client]) for client in sorted(chosen)}

    def _speed(self, population: Population, client: int) -> float:
        if population.speeds:
            return population.speeds[client]
        draw = generator(population.seed, "speed", client)
        return self.slowest ** torch.rand((), dtype=torch.float64, generator=draw).item()

    def train_round(self, round: Round) -> list[Update]:
        """Serve all clients together, weighted by their batches, until none has one left."""
        active = round.begin(round.clients, head=round.head)
        while active:
            active = round.serve_together(active, weight=round.batch_samples.__getitem__)
        return round.updates(lambda client: round.traffic[client].samples)


def nearest_to_all(
    drawn: Sequence[int],
    wanted: int,
    sizes: Mapping[int, int],
    labels: Mapping[int, Sequence[float]],
) -> list[int]:
    """Choose `wanted` of `drawn` whose labels, merged, are nearest to those of all clients.

    Starts from the first, then takes the one that leaves the least Kullback-Leibler
    divergence of the merged batch from all labels; ties go to the one drawn earlier.
    `sizes` tells how many samples a client's batch has.
    """
    everyone = np.sum([*labels.values()], axis=0, dtype=float)
    target = everyone / everyone.sum()
    parts = {k: sizes[k] * np.asarray(labels[k], float) / np.sum(labels[k]) for k in drawn}
    chosen, rest = [drawn[0]], list(drawn[1:])
    merged = parts[drawn[0]]
    while rest and len(chosen) < wanted:
        distances = [
            float(rel_entr(whole / whole.sum(), target).sum())
            for whole in (merged + parts[client] for client in rest)
        ]
        best = rest.pop(int(np.argmin(distances)))
        chosen.append(best)
        merged = merged + parts[best]
    return chosen
