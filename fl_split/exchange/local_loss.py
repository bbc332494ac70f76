"""The loss of what is beside a head: the client minimises it without the server.

In a phase that trains nothing else, nothing but weights crosses the cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from fl_split.codecs import Received
from fl_split.exchange.mixing import mixed_targets
from fl_split.exchange.protocol import Batch, ClientSide, Flops
from fl_split.exchange.records import LOSS, SAMPLES, STEPS, WORK, Number, Record
from fl_split.models.beside import Beside, Trace
from fl_split.models.cut import Head
from fl_split.models.parts import EXITS_ALONE, Parts
from fl_split.recipe.loss import CrossEntropy


def learning(head: Head, trains: Parts) -> list[Beside]:
    """Return what is beside `head` whose losses count in a phase."""
    return [one for one in head.parts_beside if one.counts(trains)]


def local_loss(parts: Sequence[Beside], trace: Trace, batch: Batch, loss: CrossEntropy) -> Tensor:
    """Return the sum of the losses of parts beside a head, on one batch."""
    targets = mixed_targets(batch.labels, batch.mixed, batch.num_classes)

    def of_logits(logits: Tensor) -> Tensor:
        return loss.of(logits.float(), Received(logits, targets))

    losses = [part.loss(trace, of_logits) for part in parts]
    total: Tensor = sum(losses[1:], start=losses[0])
    return total.float()


def train_beside(client: ClientSide) -> Record:
    """Take all steps of a round on the losses of what is beside the head; return its END."""
    losses, samples, work = [], 0, 0
    while client.has_batch():
        samples += client.batch_samples
        payload = client.forward()
        assert payload.local is not None
        losses.append(float(payload.local.detach()))
        work += sum(payload.work or ())
        client.learn(client.backward(None))
    end = client.end()
    numbers = {LOSS: sum(losses) / len(losses), SAMPLES: samples, STEPS: len(losses)}
    return replace(end, numbers={**end.numbers, **numbers, **told((work, 0))})


def told(work: tuple[int, int] | None) -> dict[str, Number]:
    """Return what a client says of its operations, where the server cannot know them."""
    return {WORK: [float(one) for one in work]} if work and any(work) else {}


def work_of(record: Record, each: Flops, samples: int) -> Flops:
    """Return the operations of a reply: what the client says, or `each` times its samples."""
    said = [int(number) for number in record.list(WORK)]
    return Flops(*said) if said else Flops(samples * each.forward, samples * each.backward)


def flops_of_batch(trains: Parts, head: Head, kept: Tensor | int, images: int) -> Flops:
    """Operations of a client on a batch of which so many patches were kept, of each image (B,).

    They are worked out once for each number: walking a model takes long.
    """
    known: dict[tuple[Parts, int], Flops] = head.__dict__.setdefault("_flops_of_kept", {})
    counts = [kept] * images if isinstance(kept, int) else kept.tolist()
    for count in {*counts}:
        if (trains, count) not in known:
            known[trains, count] = flops_of_phase(trains, head.keeping(count))
    found = [known[trains, count] for count in counts]
    return Flops(sum(one.forward for one in found), sum(one.backward for one in found))


def flops_of_phase(trains: Parts, head: Head) -> Flops:
    """Operations of a client on one image, where all learns or parts of it.

    A pass runs through all of the head, whichever part of it learns, unless exits learn alone.
    """
    trunk, parts = head.forward_flops(1), learning(head, trains)
    forward = sum(part.forward_flops(1) for part in parts)
    both = sum(part.flops(1) for part in parts) + head.flops(1) * (trains != EXITS_ALONE)
    back = both - forward - (trunk if trains != EXITS_ALONE else 0)
    return Flops(trunk + forward, back)
