"""Aligned: as one way, but the auxiliary is the server's, and guides a client that never trains it.

    client: head -> auxiliary -> loss ; the head steps, batch after batch
    client: head -> encode ─── payload of every h-th batch ───►  decode -> tail -> loss   :server
    client: auxiliary ◄── weights, now and then ───  fitted so that its gradient is the tail's

The server keeps what has come. It computes the tail's gradient at each row of that, and fits the
auxiliary's gradient to it, which takes a derivative of a derivative.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fl_split.codecs import Codec, Received
from fl_split.exchange.link import Arrival
from fl_split.exchange.one_way import OneWay
from fl_split.exchange.protocol import Batch, ClientSide
from fl_split.exchange.records import BEGIN, Record
from fl_split.exchange.serving import of_rows, serving_flops, through
from fl_split.exchange.tail_loss import learning_exits
from fl_split.flat import Flat
from fl_split.models.auxiliary import Auxiliary, Guide
from fl_split.models.cut import Head, Tail
from fl_split.payload import Payload
from fl_split.recipe.descent import Descent
from fl_split.seeds import StepId

AUXILIARY = "auxiliary"
"""Name of its weights: in BEGIN, and in a client's memory."""


@dataclass(frozen=True, kw_only=True)
class Aligned(OneWay):
    """One way, with an auxiliary that the server fits; a client keeps what it was sent last."""

    # The client's half.

    def receive(self, client: ClientSide, record: Record) -> Record | None:
        """Do as one way; keep an auxiliary that has come."""
        if record.action == BEGIN and AUXILIARY in record.weights:
            vector = torch.from_numpy(record.weights[AUXILIARY].numpy().copy())
            vector = vector.to(client.head.vector.device)
            guide_of(client.head.module).holding(vector)  # or raise
            client.memory[AUXILIARY] = vector
        return super().receive(client, record)

    def smash(
        self, head: Head, codec: Codec, batch: Batch, at: StepId, memory: dict[str, Tensor]
    ) -> Payload:
        """Run head and auxiliary, this one with the weights that the client keeps."""
        if AUXILIARY in memory:
            head = _with_auxiliary(head, memory[AUXILIARY])
        return super().smash(head, codec, batch, at, memory)

    # The server's half.

    def true_gradients(
        self, tail: Flat[Tail], rows: Received, size: int, at: StepId
    ) -> tuple[Tensor, int]:
        """Return d loss_i / d z_i of each row, (R, T, D), and the operations.

        loss_i is that of row i alone, so that nothing depends on how many there are. `size` rows
        run through the tail at once, from `at` on, a step each.
        """
        exits = learning_exits(tail.module, self.phases.trains(at.round))
        found, flops = [], 0
        places = torch.arange(len(rows.tokens), device=rows.tokens.device)
        for number, some in enumerate(places.split(size)):
            part = of_rows(rows, some)
            leaf = part.tokens.requires_grad_()
            arrival = Arrival({AUXILIARY: leaf}, replace(part, tokens=leaf, weights=None))
            step = replace(at, step=at.step + number)
            _, (cut,), _ = self.cut_gradients(tail, [arrival], [1.0], step)
            missing = rows.tokens.shape[1] - leaf.shape[1]
            gradient = cut.carried[AUXILIARY] * len(some)
            found.append(nn.functional.pad(gradient, (0, 0, 0, missing)))
            flops += serving_flops(tail.module, {0: arrival}, exits)
        return torch.cat(found), flops

    def fit(self, descent: Descent, rows: Received, true: Tensor, parts: Iterable[Tensor]) -> int:
        """Take a step on the mismatch of each of `parts`, which are rows; return the operations.

        `descent` trains the auxiliary. The mismatch is the squared distance of its gradient to
        the true one, (R, T, D), summed over all values of a row, the mean over rows.
        """
        flat, samples = descent.flat, dict[int, int]()
        for some in parts:
            part = of_rows(rows, some)
            target = true[some.to(true.device)][:, : part.tokens.shape[1]]
            with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
                error = (self.estimate(flat.module, part) - target).square().sum() / len(some)
                gradient, _ = flat.differentiate([error])
            descent.step(gradient)
            for count in part.lengths.tolist():
                samples[count] = samples.get(count, 0) + 1
        width = rows.tokens.shape[2]
        each = {count: self.fitting_flops(flat.module, count, width) for count in samples}
        return sum(samples[count] * each[count] for count in samples)

    def estimate(self, auxiliary: Tail, rows: Received) -> Tensor:
        """Return the auxiliary's d loss_i / d z_i of each row, (R, T, D), with a graph."""
        tokens = rows.tokens.detach().requires_grad_()
        alone = replace(rows, tokens=tokens, weights=None)
        loss = self.loss.of(through(auxiliary, [alone]).float(), alone) * len(tokens)
        (found,) = torch.autograd.grad(loss, tokens, create_graph=True)
        return found

    def fitting_flops(self, auxiliary: Tail, tokens: int, width: int) -> int:
        """Count the operations of fitting a row: gradient, and gradient of the mismatch."""
        device = next(auxiliary.parameters()).device
        targets = torch.zeros(1, dtype=torch.int64, device=device)
        row = Received(torch.zeros(1, tokens, width, device=device), targets)
        weights = [one for one in auxiliary.parameters() if one.requires_grad]
        with sdpa_kernel(SDPBackend.MATH), _Counter() as counter:
            error = self.estimate(auxiliary, row).square().sum()
            torch.autograd.grad(error, weights, allow_unused=True)
        return counter.flops

    # Both halves in one process.

    def prepare(self, head: Head, tail: Tail, seed: int) -> None:
        """Put the auxiliary beside the head, frozen.

        Raises
        ------
        ValueError
            Rows of a batch change each other in the tail, or as of one way.
        """
        if tail.serves_alone:
            raise ValueError(
                "strategy: gradients are fitted row by row, and a batch norm or experts in the "
                "tail make rows depend on each other; take a model without, as "
                "resnet18(norm='group')"
            )
        super().prepare(head, tail, seed)
        made = head.parts_beside[-1]
        assert isinstance(made, Auxiliary)
        head.beside[-1] = Guide(made.tail, made.tokens)


class _Counter(TorchDispatchMode):
    """Counts operations by torch's formulas; its own counter does not go with autograd.grad."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and add what it takes."""
        found = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.flops += int(formula(*args, **(kwargs or {}), out_val=found))
        return found


def guide_of(head: Head) -> Guide:
    """Return the auxiliary beside a head."""
    return next(part for part in head.parts_beside if isinstance(part, Guide))


def _with_auxiliary(head: Head, vector: Tensor) -> Head:
    """Return a head that shares all with `head` but the weights of the auxiliary."""
    parts = [one.holding(vector) if isinstance(one, Guide) else one for one in head.beside]
    found = copy.copy(head)
    found._modules = {**head._modules, "beside": nn.ModuleList(parts)}
    return found
