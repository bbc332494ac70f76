"""What one process keeps for the clients it serves, and nothing that is theirs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch

from fl_split.accelerators import CPU, computing
from fl_split.activations import saved
from fl_split.exchange.graphs import GraphMemory
from fl_split.exchange.link import Link
from fl_split.exchange.protocol import Batch, Exchange
from fl_split.exchange.stacked import (
    MEMBERS,
    StackedHead,
    StackSlot,
    gives_same_bits,
    is_faster,
    smash_together,
)
from fl_split.flat import Flat, copy_trained
from fl_split.models.cut import Head, Tail
from fl_split.optimizers import Optimizer
from fl_split.payload import Payload
from fl_split.recipe.descent import PLAIN, Recipe
from fl_split.seeds import StepId
from simulations.clients.epochs import Epochs
from simulations.clients.stack_size import can_stack
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
    stack : int
        How many clients' heads run as one; 0 leaves it to a trial, on a CPU.
    graphs : GraphMemory
        Room for autograd graphs between two messages.
    shallower : Mapping[int, Head]
        Heads of clients whose cut is not that of `head`, by client.
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
    epochs: Epochs
    recipe: Recipe = PLAIN
    augment: Sequence[Augmentation] = ()
    modules: Sequence[str] = ()
    device: torch.device = CPU
    is_deterministic: bool = False
    stack: int = 0
    graphs: GraphMemory = field(default_factory=GraphMemory)
    shallower: Mapping[int, Head] = field(default_factory=dict)
    _tail: Flat[Tail] | None = None
    _sizes: dict[int, int] = field(default_factory=dict)
    _of_head: dict[Head, Worker] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stacks = Stacks(self)

    def settle(self) -> None:
        """Put the models on the device, in the process that serves clients."""
        self.head, self.tail = self.head.to(self.device), self.tail.to(self.device)
        for head in {*self.shallower.values()}:
            head.to(self.device)

    def of(self, client: int) -> Worker:
        """Return what serves a client: this worker, or one like it with the client's own head."""
        head = self.shallower.get(client)
        if head is None:
            return self
        if head not in self._of_head:
            fresh: dict[str, Any] = {"shallower": {}, "_tail": None, "_sizes": {}, "_of_head": {}}
            self._of_head[head] = replace(self, head=head, **fresh)
        return self._of_head[head]

    def computing(self) -> AbstractContextManager[None]:
        """Compute in the block as the run wants it."""
        return computing(self.device, self.is_deterministic)

    def graph_bytes(self, samples: int) -> int:
        """Bytes that autograd saves for a batch of so many samples; 0 before the first one."""
        return self._sizes.get(samples, 0)

    @contextmanager
    def measure(self, clients: int, samples: int) -> Iterator[None]:
        """Note, the first time, how many bytes autograd saves for a batch of `samples`.

        Where a selector draws how many tokens there are, it is the most that was seen.
        Graphs of so many `clients` are made, together, in the block. The weights count, which
        only a stack has copies of: so one measurement, of either, serves both.
        """
        if samples in self._sizes and len(self.head.courses) == 1:
            yield
            return
        with saved() as sizes:
            yield
        size = sum(sizes.values()) // clients
        self._sizes[samples] = max(size, self.graph_bytes(samples))

    def scratch_tail(self) -> Flat[Tail]:
        """Return the one tail in which clients of this process train locally, in turn."""
        if self._tail is None:
            self._tail = Flat(copy_trained(self.tail))
        return self._tail


def short_of(size: int) -> str:
    """Say that memory is short for a stack of so many."""
    return f"memory is short for {size} clients' heads as one; from here on {size // 2}, or fewer"


@dataclass
class Stacks:
    """Decides for which batches the heads of several clients run as one.

    Attributes
    ----------
    pays : Callable
        Tells whether a stack pays for batches of a shape (B, C, H, W) on a CPU, where nobody has
        said how many clients are in it; by default it is tried.
    size : int
        Most clients of a stack, less where memory was short.
    """

    worker: Worker
    pays: Callable[[StackedHead, Head, Sequence[int]], bool] = is_faster
    head: StackedHead | None = None
    size: int = 0
    _together: int = 0
    _apart: int = 0
    _pays: dict[int, bool] = field(default_factory=dict)
    _has_told: bool = False

    def __post_init__(self) -> None:
        self.size = self.size or self.worker.stack or MEMBERS

    @property
    def is_filled_up(self) -> bool:
        """Whether all heads run in stacks of one size, as on a GPU, where shapes decide on bits."""
        return self.worker.device.type != "cpu" and self.size > 1 and self._is_possible

    def of(self, samples: int) -> StackedHead | None:
        """Return what runs several heads at once, where that is wanted for such batches.

        Left to a trial it is where that is faster, and not if clients that went forward together
        mostly do not come back together, as the order of a strategy may have it: each of them
        repeats its forward alone.
        """
        if self.size < 2 or not self._is_possible:
            return None
        head, is_on_cpu = self.worker.head, self.worker.device.type == "cpu"
        if not self.worker.stack and (
            self._apart > self._together + MOST_APART
            or samples * math.prod(head.smashed_shape) > MOST_NUMBERS
        ):
            return None
        if self.head is None:
            size, precision = 0 if is_on_cpu else self.size, self.worker.exchange.precision
            self.head = StackedHead(head, size, precision)
        if is_on_cpu and samples not in self._pays:
            shape = samples, *self.worker.data.pixels.shape[1:]
            is_asked = self.worker.stack > 0
            pays = partial(gives_same_bits, members=self.size) if is_asked else self.pays
            self._pays[samples] = pays(self.head, head, shape)
        return self.head if self._pays.get(samples, not is_on_cpu) else None

    def smash_alone(
        self, head: Flat[Head], batch: Batch, at: StepId
    ) -> tuple[Payload, StackSlot] | tuple[None, None]:
        """Run one head in a stack where all must; nothing where it runs as it is."""
        samples = len(batch.labels)
        while self.is_filled_up and (stacked := self.of(samples)):
            with suppress(torch.OutOfMemoryError), self.worker.measure(self.size, samples):
                codec, mixed = self.worker.link.codec, [batch.mixed]
                return smash_together(stacked, [head], codec, *batch[:3], [at], mixed)[0]
            self.halve()  # not in the handler, whose traceback would hold what failed
        return None, None

    def halve(self) -> None:
        """Run half as many heads as one from now on, as memory is short; say so the first time.

        Raises
        ------
        torch.OutOfMemoryError
            There is but one.
        """
        if self.size < 2:
            raise torch.OutOfMemoryError("one batch of one client")
        if not self._has_told:
            warnings.warn(short_of(self.size), stacklevel=2)
        self._has_told, self.size = True, self.size // 2
        if self.head:
            self.head.size = self.size if self.head.size else 0
        torch.cuda.empty_cache()

    def count(self, together: int = 0, apart: int = 0) -> None:
        """Count clients that went forward in a stack by how their gradients came back."""
        self._together += together
        self._apart += apart

    @cached_property
    def _is_possible(self) -> bool:
        """Whether heads can run as one at all, and on a CPU there is room for a trial."""
        worker = self.worker
        if not can_stack(worker.exchange, worker.head):
            return False
        return worker.device.type != "cpu" or self._trial_bytes() <= worker.graphs.limit

    def _trial_bytes(self) -> int:
        """Bytes of a trial: the weights of a stack, stacked too, and the gradients of both."""
        parameters = self.worker.head.parameters()
        return 4 * self.size * sum(4 * parameter.numel() for parameter in parameters)
