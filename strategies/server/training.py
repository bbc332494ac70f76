"""What training on the server is given, and what it tells of each round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from fl_split.exchange.account import Crossed, Traffic
from fl_split.exchange.graphs import GraphMemory
from fl_split.exchange.link import Link
from fl_split.exchange.protocol import Exchange
from fl_split.exchange.records import Weights
from fl_split.flat import Flat
from fl_split.models.cut import Head, Tail
from fl_split.optimizers import Optimizer
from fl_split.recipe.descent import PLAIN, Recipe
from strategies.server.aggregation import Aggregator, fedavg
from strategies.server.assignment import Assignment
from strategies.server.attendance import Attendance, Everyone
from strategies.server.stand_ins import StandIns
from strategies.server.tasks import Task
from strategies.server.threads import ServerThreads, group_size


class TrainingFailed(RuntimeError):
    """Training cannot go on, as from numbers that are not finite or images lost; and why."""


@dataclass(frozen=True)
class Progress:
    """What a run that goes on must know beside weights.

    That is rounds done, what the tail's optimiser remembers, what the aggregation does, and what
    the link does of smashed data.
    """

    rounds: int = 0
    moments: dict[str, Tensor] = field(default_factory=dict)
    aggregator: dict[str, Tensor] = field(default_factory=dict)
    link: dict[str, Tensor] = field(default_factory=dict)


class OutOfMemory(TrainingFailed):
    """A GPU has too little memory for one batch of one client, or for the server's part."""

    def __init__(self, whose: str) -> None:
        super().__init__(
            f"the GPU ran out of memory ({whose}); take a smaller batch_size, a smaller model, "
            "precision='bf16', or device='cpu'"
        )


class PooledWork(NamedTuple):
    """What a round of training on pooled data took: mean loss, samples, steps, operations."""

    loss: float
    samples: int
    steps: int
    flops: int


@dataclass(frozen=True)
class Training:
    """What a strategy needs beside messages.

    Attributes
    ----------
    clients : int
        Number of virtual clients; training waits until so many nodes are there.
    fraction : float
        Share of the clients sampled per round, in (0, 1].
    exchange : Exchange
        What both halves do with one batch.
    link : Link
        The road to the clients.
    head, tail : Flat
        Where the global weights are trained; of several cuts the deepest divides them.
    pooled_round : Callable
        Train `head` and `tail` on pooled data for one round (the centralised baseline), given
        the round and the sampled clients.
    aggregator : Aggregator
        What averages weights at the end of a round.
    threads : ServerThreads
        The server's threads.
    graphs : GraphMemory
        The server's room for graphs between two messages.
    recipe : Recipe
        How gradients become steps.
    stand_ins : StandIns
        What the server trains for clients that are cut before `head` ends.
    stack : int
        Clients whose heads a GPU runs as one: groups are no smaller. 0 on a CPU.
    num_steps : Callable
        Gives the steps of a client's round, for the samples it holds and what it is asked to do.
    progress : Progress
        Where to go on; by default from the start.
    attendance : Attendance
        Says who is there and in time.
    speeds : Sequence
        (clients,) operations per second of the clients' devices; empty if nobody knows.
    on_round : Callable
        Called after every round with its :class:`RoundResult`; true ends the run.
    """

    clients: int
    fraction: float
    batch_size: int
    seed: int
    exchange: Exchange
    link: Link
    tail_optimizer: Optimizer
    head: Flat[Head]
    tail: Flat[Tail]
    pooled_round: Callable[[int, Sequence[int]], PooledWork]
    aggregator: Aggregator = field(default_factory=fedavg)
    threads: ServerThreads = field(default_factory=ServerThreads)
    graphs: GraphMemory = field(default_factory=GraphMemory)
    recipe: Recipe = PLAIN
    stand_ins: StandIns = field(default_factory=StandIns)
    stack: int = 0
    num_steps: Callable[[int, Assignment], int] = lambda samples, asked: 1
    progress: Progress = field(default_factory=Progress)
    attendance: Attendance = field(default_factory=Everyone)
    speeds: Sequence[float] = ()
    on_round: Callable[[RoundResult], bool | None] = lambda result: None

    @property
    def halves(self) -> tuple[Head, Tail]:
        """The modules in which the global weights are trained."""
        return self.head.module, self.tail.module

    def group_size(self, clients: int) -> int:
        """Return how many of `clients` are served together, at least: no fewer than in a stack."""
        return max(group_size(clients), self.stack)


@dataclass
class RoundResult:
    """What one round cost and gave.

    Attributes
    ----------
    round : int
        From 1.
    weights : dict[str, Weights]
        The global weights after it.
    own : dict
        By client, the weights that differ from these because it keeps its own; empty if none does.
    exits : dict
        By client, the weights of exits that it keeps while the rest of its head travels.
    train_loss : float
        See :func:`strategies.server.loop.train_loss`; clients dropped in the round are left out.
    traffic : dict[int, Traffic]
        What crossed, by client.
    drift : float, optional
        Mean distance of the clients' heads to their mean, before averaging.
    tasks : list of Task
        The task graph.
    crossed : dict[int, Crossed]
        What channels did to payloads, of clients whose payloads went over one.
    """

    round: int
    weights: dict[str, Weights] = field(repr=False)
    own: Mapping[int, Mapping[str, Weights]] = field(repr=False)
    train_loss: float
    traffic: dict[int, Traffic]
    progress: Progress = field(repr=False)
    client_flops: int
    server_flops: int
    drift: float | None
    tasks: list[Task] = field(repr=False)
    crossed: Mapping[int, Crossed] = field(default_factory=dict, repr=False)
    exits: Mapping[int, Weights] = field(default_factory=dict, repr=False)
