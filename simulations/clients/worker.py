"""What one process keeps for the clients it serves, and nothing that is theirs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch

from fl_split.accelerators import CPU, deterministic
from fl_split.activations import saved
from fl_split.exchange.graphs import GraphMemory
from fl_split.exchange.link import Link
from fl_split.exchange.protocol import Exchange
from fl_split.exchange.stacked import MEMBERS, StackedHead, is_faster
from fl_split.flat import Flat, copy_trained
from fl_split.models.cut import Head, Tail
from fl_split.optimizers import Optimizer
from fl_split.recipe.descent import PLAIN, Recipe
from fl_split.recipe.precision import FP32
from simulations.clients.schedule import Schedule
from simulations.data.augmentation import Augmentation
from simulations.data.samples import Samples

MOST_NUMBERS = 2**16
"""Smashed numbers of a batch up to which it may pay to run several clients as one."""

MOST_APART = 64
"""Clients of stacks that came back alone, beyond those that did not, until stacks are given up."""


@dataclass
class Worker:
    """What one process keeps for all the virtual clients it serves.

    Attributes
    ----------
    recipe : Recipe
        How gradients become steps.
    augment : sequence of Augmentation
        What is done to the images of a batch.
    modules : sequence of str
        Names of the modules that the parts are of.
    device : torch.device
        What computes.
    is_deterministic : bool
        Whether a GPU must give the same bits each time.
    graphs : GraphMemory
        Room for autograd graphs between two messages.
    stacks : Stacks
        Whether and how heads of several clients run as one.
    """

    data: Samples
    head: Head
    tail: Tail
    exchange: Exchange
    link: Link
    head_optimizer: Optimizer
    tail_optimizer: Optimizer
    schedule: Schedule
    recipe: Recipe = PLAIN
    augment: Sequence[Augmentation] = ()
    modules: Sequence[str] = ()
    device: torch.device = CPU
    is_deterministic: bool = False
    graphs: GraphMemory = field(default_factory=GraphMemory)
    _tail: Flat[Tail] | None = None
    _sizes: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stacks = Stacks(self)

    def settle(self) -> None:
        """Put the models on the device, in the process that serves clients."""
        self.head, self.tail = self.head.to(self.device), self.tail.to(self.device)

    def computing(self) -> AbstractContextManager[None]:
        """Compute in the block as the run wants it."""
        return deterministic(self.device, self.is_deterministic)

    def graph_bytes(self, samples: int) -> int:
        """Bytes that autograd saves for a batch of so many samples; 0 before the first one."""
        return self._sizes.get(samples, 0)

    @contextmanager
    def measure(self, clients: int, samples: int) -> Iterator[None]:
        """Note, the first time, how many bytes autograd saves for a batch of `samples`.

        Graphs of so many `clients` are made, together, in the block. The weights count, which
        only a stack has copies of: so one measurement, of either, serves both.
        """
        if samples in self._sizes:
            yield
            return
        with saved() as sizes:
            yield
        self._sizes[samples] = sum(sizes.values()) // clients

    def scratch_tail(self) -> Flat[Tail]:
        """Return the one tail in which clients of this process train locally, in turn."""
        if self._tail is None:
            self._tail = Flat(copy_trained(self.tail))
        return self._tail


@dataclass
class Stacks:
    """Decides for which batches the heads of several clients run as one.

    Attributes
    ----------
    pays : Callable
        Tells whether a stack pays for batches of a shape (B, C, H, W); by default it is tried.
    """

    worker: Worker
    pays: Callable[[StackedHead, Head, Sequence[int]], bool] = is_faster
    head: StackedHead | None = None
    _together: int = 0
    _apart: int = 0
    _pays: dict[int, bool] = field(default_factory=dict)

    def of(self, samples: int) -> StackedHead | None:
        """Return what runs several heads at once, where that is faster for such batches.

        Not if clients that went forward together mostly do not come back together, as the
        order of a strategy may have it: each of them repeats its forward alone.
        """
        head = self.worker.head
        if not self._is_possible or self._apart > self._together + MOST_APART:
            return None
        if samples * math.prod(head.smashed_shape) > MOST_NUMBERS:
            return None
        if self.head is None:
            self.head = StackedHead(head)
        if samples not in self._pays:
            shape = samples, *self.worker.data.pixels.shape[1:]
            self._pays[samples] = self.pays(self.head, head, shape)
        return self.head if self._pays[samples] else None

    def count(self, together: int = 0, apart: int = 0) -> None:
        """Count clients that went forward in a stack by how their gradients came back."""
        self._together += together
        self._apart += apart

    @cached_property
    def _is_possible(self) -> bool:
        """Whether heads can run as one at all, and there is room for a trial."""
        worker = self.worker
        is_whole = worker.exchange.precision == FP32
        can_stack = is_whole and worker.exchange.can_stack and worker.head.can_stack
        return can_stack and self._trial_bytes() <= worker.graphs.limit

    def _trial_bytes(self) -> int:
        """Bytes of a trial: the weights of a stack, stacked too, and the gradients of both."""
        parameters = self.worker.head.parameters()
        return 4 * MEMBERS * sum(4 * parameter.numel() for parameter in parameters)
