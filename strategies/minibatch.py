"""MiniBatch-SFL (Huang, Tian and Tang, 2023, arXiv 2308.11953): the tail learns as one batch."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic.dataclasses import dataclass

from fl_split.specs import STRICT
from strategies.server.aggregation import Update
from strategies.server.assignment import Assignment
from strategies.server.participants import Population
from strategies.server.round import Round
from strategies.server.strategy import Strategy


@dataclass(frozen=True, config=STRICT)
class MiniBatch(Strategy):
    """All clients step together, in batches whose sizes are as their data and add up alike.

    In every round the batches of an exchange have `batch_size` times clients per round samples
    together, dealt out in proportion to what each client holds; fewer at the end of an epoch, which
    all reach in nearly the same step. The tail takes one step per exchange, on the mean over all
    of them. Each client gets the cut gradient of its own mean loss
    at the tail before the step. Heads are averaged, weights n_k/n.

    After the authors of GAS, who compare with it in their code; of the paper only the abstract
    was read. They round sizes down, here none is lost by rounding. Take `local_steps`, as they do:
    by epochs, clients whose size was rounded up end a little earlier than others.
    """

    mixes_cuts = True

    def choose(self, population: Population, server_round: int) -> dict[int, Assignment]:
        """Draw clients as usual; deal out the samples of an exchange."""
        drawn = population.sample(server_round)
        held = {client: population.samples[client] for client in drawn}
        union = min(population.batch_size * population.per_round, sum(held.values()))
        return {client: Assignment(size) for client, size in dealt_out(union, held).items()}

    def train_round(self, round: Round) -> list[Update]:
        """Serve all clients together, weighted by their batches, until none has one left."""
        active = round.begin(round.clients, head=round.head)
        while active:
            active = round.serve_together(active, weight=round.batch_samples.__getitem__)
        return round.updates()


def dealt_out(union: int, held: Mapping[int, int]) -> dict[int, int]:
    """Deal out `union` samples in proportion to those `held`, at least one to each client.

    What is left over by rounding down goes to the largest remainders, one each. `union` is no
    less than there are clients, and no more than they hold.
    """
    rest, left = dict(held), union
    while small := [k for k, count in rest.items() if count * left < sum(rest.values())]:
        for client in small:
            del rest[client]
        left -= len(small)
    whole = sum(rest.values())
    sizes = {client: rest[client] * left // whole if client in rest else 1 for client in held}
    by_remainder = sorted(rest, key=lambda client: -(rest[client] * left % whole))
    for client in by_remainder[: union - sum(sizes.values())]:
        sizes[client] += 1
    return sizes
