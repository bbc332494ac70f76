"""A round at each of several cuts, of which the task graph of any mixture is made.

All clients of a round take part for a few steps, with real images, heads and codecs; nothing is
evaluated or written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fl_split.exchange.graphs import GraphMemory
from fl_split.exchange.records import Weights
from fl_split.exchange.stand_in import Shallower
from fl_split.flat import Flat
from simulations.clients import client_app
from simulations.engines.inline import InlineGrid
from simulations.runs.setup import Setup
from simulations.system.graph import Graph
from strategies import RoundResult, Training, train
from strategies.server.tasks import SERVER, Task, in_order
from strategies.server.training import PooledWork

Key = tuple[str, int, int]
"""What finds a task in the rehearsal of another cut: kind, client and step."""


class Rehearsals:
    """One round at each of several cuts: what every task takes, by cut.

    In all of them the server stands in for every client that is not cut at the deepest place, so
    that graphs are alike and differ in amounts.

    Attributes
    ----------
    steps : int
        Of every client.
    tasks : list of Task
        Those of the shallowest cut.
    amounts : array
        (cuts, n) of the same tasks at each cut; of the tail's work those of the shallowest.
    """

    def __init__(self, setup: Setup, cuts: Sequence[int], steps: int) -> None:
        self.steps = steps
        weights = setup.initial_weights()
        rounds = [_rehearsed(setup, weights, cut, steps) for cut in cuts]
        self.tasks = tasks = rounds[0].tasks
        self.keys = _keys(tasks)
        known = [dict(zip(_keys(one.tasks), one.tasks, strict=True)) for one in rounds]
        self.amounts = np.array(
            [[found[key].amount if key in found else 0 for key in self.keys] for found in known]
        )
        self.owners = np.array([client for _, client, _ in self.keys])
        self.stands_in = np.array([task.kind == "stand in" for task in tasks])
        self._serving = _serving(tasks, self.keys)

    def mixed(self, places: NDArray[np.int64]) -> Graph:
        """Return the graph of a round whose clients (clients,) are cut at so many-th places.

        The tail then begins at the deepest of them: what the server does of later stages for
        each client alone, it does for all together.
        """
        amounts = self.amounts[0].copy()
        mine = np.flatnonzero(self.owners != SERVER)
        amounts[mine] = self.amounts[places[self.owners[mine]], mine]
        joint = self.amounts[places.max()] * self.stands_in
        amounts = amounts - joint
        np.add.at(amounts, self._serving[1], joint[self._serving[0]])
        return Graph.of(in_order(self._without(self.stands_in & (amounts == 0), amounts)))

    def _without(self, gone: NDArray[np.bool_], amounts: NDArray[np.int64]) -> list[Task]:
        """Return tasks with these amounts, but those that are `gone`: nobody waits for them."""
        found: list[Task] = []
        before: list[tuple[int, ...]] = []  # what waits for a task waits for these
        for number, task in enumerate(self.tasks):
            after = tuple(sorted({one for old in task.after for one in before[old]}))
            if gone[number]:
                before.append(after)
                continue
            before.append((len(found),))
            found.append(task._replace(amount=int(amounts[number]), after=after))
        return found


def _rehearsed(setup: Setup, weights: Mapping[str, Weights], cut: int, steps: int) -> RoundResult:
    """Run one round, on made-up time, in which all clients are cut after so many stages."""
    e = setup.experiment
    places: dict[int, Shallower] = {}
    if cut != setup.head.num_stages:
        head, _ = setup.parts.model.split(setup.model, cut, e.end)
        _, middle = setup.parts.model.split(setup.model, cut, setup.head.num_stages)
        places = dict.fromkeys(range(e.clients), Shallower.of(head, middle, setup.head))
    short = replace(
        setup,
        experiment=e.model_copy(update={"local_steps": steps}),
        shallower=places,
    )
    graphs, rounds = GraphMemory(), list[RoundResult]()
    training = Training(
        clients=e.clients,
        fraction=e.fraction,
        batch_size=e.batch_size,
        seed=e.seed,
        exchange=short.exchange,
        link=short.parts.link(),
        tail_optimizer=short.parts.tail_optimizer,
        head=Flat(setup.head),
        tail=Flat(setup.tail),
        pooled_round=_nothing_pooled,
        graphs=graphs,
        stand_ins=short.stand_ins(graphs),
        recipe=short.recipe(),
        num_steps=short.num_steps,
        on_round=rounds.append,
    )
    grid = InlineGrid(client_app.app, short.worker(stack=1), e.clients, e.timeout)
    train(short.parts.strategy, grid, weights, 1, e.timeout, training)
    training.threads.close()
    return rounds[0]


def _nothing_pooled(number: int, clients: Sequence[int]) -> PooledWork:
    raise NotImplementedError("strategies that train on the server have no cut")


def _keys(tasks: Sequence[Task]) -> list[Key]:
    """Return what finds each task in another rehearsal; of the tail's work that is its number."""
    owners, back = [task.client for task in tasks], set[int]()
    for number, task in enumerate(tasks):
        before = owners[task.after[0]] if task.after else SERVER
        if task.kind in {"decode", "stand in"}:
            owners[number] = before
            if before == SERVER:
                back.add(number)
    for number in reversed(range(len(tasks))):  # what is made of the tail's answer
        for before in tasks[number].after:
            if before in back or tasks[before].kind == "pack":
                owners[before] = owners[number]
    return [
        (task.kind + " back" * (number in back), owner, number if owner == SERVER else task.step)
        for number, (task, owner) in enumerate(zip(tasks, owners, strict=True))
    ]


def _serving(tasks: Sequence[Task], keys: Sequence[Key]) -> NDArray[np.int64]:
    """Return the numbers of all stands-in, and those of the tail's work that each goes with."""
    found: dict[int, int] = {}
    for number, task in enumerate(tasks):
        if keys[number][0] == "stand in back":
            found[number] = task.after[0]
        for before in task.after if keys[number][1] == SERVER else ():
            if keys[before][0] == "stand in":
                found.setdefault(before, number)
    return np.array([[*found], [*found.values()]], dtype=np.int64)
