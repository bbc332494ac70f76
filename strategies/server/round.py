"""One round in progress: what a strategy can ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_split.codecs import Received
from fl_split.exchange.account import Traffic
from fl_split.exchange.link import Arrival
from fl_split.exchange.records import HEAD, TAIL, Weights
from fl_split.exchange.served import HalfServed, Served
from fl_split.exchange.serving import of_rows
from fl_split.exchange.split import total
from fl_split.payload import Payload
from fl_split.recipe.schedules import Moment
from fl_split.seeds import StepId, generator
from strategies.server.aggregation import Update
from strategies.server.punctual import Punctual
from strategies.server.tail import TrainedTail
from strategies.server.tasks import SERVER

Weight = Callable[[int], int]
"""For how many samples a client counts."""

Mix = Callable[[dict[int, Payload]], dict[int, Payload]]
"""What becomes of the cut gradients of an exchange, by client, before they are sent."""


@dataclass(kw_only=True)
class Round(Punctual):
    """One round in progress; `tail` is the shared one, `kept` goes to the next round, unsent.

    A strategy begins clients (:meth:`begin`), serves what they send (one of the `serve`
    methods, until no client has a payload left) and returns :meth:`updates`.
    """

    tail: TrainedTail
    kept: dict[str, Weights] = field(default_factory=dict)
    _pooled_steps: int = 0

    @property
    def seed(self) -> int:
        """The experiment's seed."""
        return self.training.seed

    @property
    def head(self) -> Weights:
        """The global head at the start of the round."""
        return self.weights[HEAD]

    def serve(self, client: int, arrival: Arrival) -> None:
        """Take one step of the shared tail on one payload, and send the cut gradient."""
        moment = self.moment(self.done, 1)
        result = self.tail.step({client: arrival}, self.at(client), self.training.graphs, moment)
        self._take(client, SERVER, result)
        if isinstance(result, HalfServed):
            self.wait_for_answers()

    def serve_apart(
        self, tails: Mapping[int, TrainedTail], arrivals: Mapping[int, Arrival]
    ) -> None:
        """Do the same with each client's own tail, beside whatever else is going on."""
        graphs = self.training.graphs
        steps = [
            partial(tails[k].step, {k: arrival}, self.at(k), graphs, self.moment_of(k))
            for k, arrival in arrivals.items()
        ]

        def work() -> list[Served | HalfServed]:
            return [step() for step in steps]

        def then(results: list[Served | HalfServed]) -> None:
            for client, result in zip(arrivals, results, strict=True):
                self._take(client, client, result)

        self.training.threads.submit(work, then)

    def serve_together(
        self,
        clients: Sequence[int],
        mix: Mix | None = None,
        weight: Weight | None = None,
        is_frozen: bool = False,
    ) -> list[int]:
        """Take one step of the shared tail on the payloads of all `clients`, weights n_k / n.

        n_k is `weight` of client k, by default all samples that it holds; n sums over those
        that had a payload, which are returned. If it `is_frozen` the tail takes no step.

        Groups of clients go through the tail as soon as they are complete, and get their cut
        gradients as soon as these are there: neither depends on the other groups. The tail's
        gradient adds up in order. With `mix` cut gradients wait for each other, and what it
        makes of them is sent.
        """
        if self.attendance.decides:
            self.wait_for_all(clients)
        results = self._serve(clients, self.clients, weight, mix is None)
        self.wait_for_answers()
        in_order = [results[number] for number in sorted(results)]
        if mix:
            mixed = mix({client: cut for result in in_order for client, cut in result.cuts.items()})
            self.tasks.mix([*mixed])
            for result in in_order:
                self.send_cuts(replace(result, cuts={k: mixed[k] for k in result.cuts}))
            self.mailbox.push()
        served = _served(in_order, clients)
        if served and not is_frozen:
            gradient = self._gradient(in_order, self.clients, weight)
            self.tail.descend(gradient, self._joint_moment(len(served)))
            self.tasks.step(SERVER)
        return served

    def serve_groups(
        self, groups: Sequence[Sequence[int]], weight: Weight | None = None
    ) -> list[list[int]]:
        """Let a copy of the shared tail step for each group of clients; it becomes their mean.

        Each copy steps as in :meth:`serve_together`. Returns who of each group had a payload.
        """
        if self.attendance.decides:
            self.wait_for_all([client for clients in groups for client in clients])
        found = [self._serve(clients, clients, weight) for clients in groups]
        self.wait_for_answers()
        in_order = [[results[number] for number in sorted(results)] for results in found]
        served = [_served(*both) for both in zip(in_order, groups, strict=True)]
        if count := sum(map(len, served)):
            gradients = [
                self._gradient(results, clients, weight)
                for results, clients in zip(in_order, groups, strict=True)
                if _served(results, clients)
            ]
            self.tail.descend_apart(gradients, self._joint_moment(count))
            self.tasks.step(SERVER)
        return served

    def train_tail(
        self, arrivals: Mapping[int, Arrival], pool: Received, parts: Sequence[Tensor]
    ) -> None:
        """Take a step of the shared tail on each of `parts`, which are rows of a `pool`.

        The pool is made of what `arrivals` have, which are still to be served. A part whose loss
        is not finite is passed over; who has spoilt it is dropped when served.
        """
        taken, flops, steps = len(arrivals), 0, len(parts) * sum(self._expected_steps.values())
        for number, rows in enumerate(parts):  # each is one of so many parts of the joint step
            place = self.done * len(parts) + number * taken
            moment = Moment(self.number, place, taken, steps)
            flops += self.step_on(of_rows(pool, rows), moment).flops
        self.tasks.train(SERVER, [*arrivals], flops)

    def train_tail_alone(self, pool: Received, taken: int) -> None:
        """Take a step of the shared tail on a `pool` of the last `taken` payloads, all served."""
        self.tasks.train(SERVER, [], self.step_on(pool, self._joint_moment(taken)).flops)

    def step_on(self, rows: Received, moment: Moment) -> Served:
        """Take a step of the shared tail that answers nobody; its task is not recorded yet."""
        at = StepId(self.seed, self.number, SERVER, self._pooled_steps)
        served = self.tail.step({SERVER: Arrival({}, rows)}, at, self.training.graphs, moment)
        assert isinstance(served, Served)  # no U-shape
        self._pooled_steps += 1
        self.server_flops += served.flops
        return served

    @property
    def done(self) -> int:
        """Payloads that have been served, of all clients."""
        return sum(self.steps.values())

    def moment(self, done: int, taken: int) -> Moment:
        """Return where in the shared tail's round a step is: it counts payloads of all clients."""
        return Moment(self.number, done, taken, sum(self._expected_steps.values()))

    @cached_property
    def _expected_steps(self) -> dict[int, int]:
        """Steps that each client would take, or payloads of those that send fewer."""
        asked, steps = self.assignments, self.training.num_steps
        every = self.exchange.every
        return {k: -(-steps(self.samples[k], one) // every) for k, one in asked.items()}

    def _serve(
        self,
        clients: Sequence[int],
        among: Sequence[int],
        weight: Weight | None,
        is_sent: bool = True,
    ) -> dict[int, Served]:
        """Let the shared tail serve `clients`; return what it will have made of their groups.

        Weights are as if all of `among` had a payload. Cut gradients go out if it `is_sent`.
        """
        results: dict[int, Served] = {}
        count = weight or self.samples.__getitem__

        def then(number: int, group: list[int], result: Served | HalfServed) -> None:
            if isinstance(result, HalfServed):
                self.half_serve(result, partial(then, number, group))
                return
            results[number] = result
            self.note(result, group)
            if is_sent:
                self.send_cuts(result)

        for number, arrivals in enumerate(self.groups(clients)):
            whole = self._whole(among, weight)
            weights = {client: count(client) / whole for client in arrivals}
            at = self.at(next(iter(arrivals)))
            work = partial(self.tail.serve, arrivals, weights, at, self.training.graphs)
            self.training.threads.submit(work, partial(then, number, [*arrivals]))
        return results

    def _gradient(
        self, results: Sequence[Served], among: Sequence[int], weight: Weight | None
    ) -> Tensor:
        """Return the tail's gradient of the loss of all that were served, weights n_k / n."""
        count, whole = weight or self.samples.__getitem__, self._whole(among, weight)
        part = sum(count(client) for result in results for client in result.cuts)
        gradient = total([result.gradient for result in results])
        return gradient if part == whole else gradient * (whole / part)

    def _joint_moment(self, taken: int) -> Moment:
        """Return where in the shared tail's round the step on `taken` payloads is."""
        return self.moment(max(0, self.done - taken), taken)

    def _whole(self, among: Sequence[int], weight: Weight | None) -> int:
        """Return what weights are divided by before all payloads have come.

        That is n over all clients `among` which they are, or of weights that are known with a
        payload only, that of the first client; the gradient is put right in the end.
        """
        if weight:
            return next(weight(client) for client in among if client in self.batch_samples)
        return sum(self.samples[client] for client in among)

    def _take(self, client: int, owner: int, result: Served | HalfServed) -> None:
        """Answer one client; `owner` has the tail that served it."""
        if isinstance(result, HalfServed):
            self.half_serve(result, partial(self._take, client, owner), owner)
            return
        self.answer(result, [client], owner)
        self.tasks.step(owner)

    def updates(self, weight: Callable[[int], int] | None = None) -> list[Update]:
        """Return what clients ended with, by partition id: sums do not depend on arrival.

        `weight` says for how many samples a client counts, instead of all that it holds. Those
        who ended too late are left out.
        """
        self.drop_late([*self.ends])
        found = [self.ends[client] for client in sorted(self.ends)]
        return [replace(u, samples=weight(u.client)) for u in found] if weight else found

    def average(self, updates: Sequence[Update]) -> dict[str, Weights]:
        """Average the weights that updates carry, by one of Flower's strategies."""
        aggregator = self.training.aggregator
        return aggregator(self.number, updates, self.weights, self.seed, self.statistics)

    def part_of_mean(self, updates: Sequence[Update], name: str) -> NDArray[np.float64]:
        """Return sum_k (n_k / n) vector_k over updates, where n counts all clients of the run."""
        first, *others = updates
        found: NDArray[np.float64] = first.weights[name].numpy() * np.float64(first.samples)
        for update in others:
            found += update.weights[name].numpy() * np.float64(update.samples)
        return found / sum(self.samples.values())

    @property
    def statistics(self) -> dict[str, Tensor | None]:
        """Where in the vectors of head and tail running statistics are, by name."""
        return {HEAD: self.training.head.statistics, TAIL: self.training.tail.statistics}

    def order(self, policy: str) -> list[int]:
        """Return the clients in the order of `policy`: cyclic, reverse or random."""
        if policy == "random":
            draw = generator(self.seed, "order", self.number)
            order = torch.randperm(len(self.clients), generator=draw).tolist()
            return [self.clients[i] for i in order]
        return self.clients[::-1] if policy == "reverse" else self.clients

    def train_pooled(self) -> None:
        """Train on the pooled data on the server, which is client SERVER in the results."""
        work = self.training.pooled_round(self.number, self.clients)
        self.losses[SERVER] = {0: work.loss}
        self.server_flops += work.flops
        self.tasks.add("train", SERVER, 0, work.flops)
        self.traffic[SERVER] = Traffic(samples=work.samples, steps=work.steps)


def _served(results: Sequence[Served], clients: Sequence[int]) -> list[int]:
    """Return those of `clients` that the tail has served."""
    there = {client for result in results for client in result.cuts}
    return [client for client in clients if client in there]
