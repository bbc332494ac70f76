"""The recipe of an experiment: what its keys make of rates, gradients, losses and images."""

from __future__ import annotations

from dataclasses import replace

import torch

from fl_split.accelerators import check_bf16, find
from fl_split.codecs import CODECS
from fl_split.exchange.local_round import LocalRound
from fl_split.exchange.protocol import Batch, Exchange
from fl_split.experts import insert_experts
from fl_split.models.cut import Head, Tail
from fl_split.models.parts import parts_of
from fl_split.models.pretrained import Pretrained
from fl_split.models.sparse_linear import sparsify
from fl_split.recipe.descent import Recipe
from fl_split.recipe.loss import CrossEntropy
from fl_split.recipe.precision import Precision
from fl_split.recipe.schedules import check_length
from fl_split.seeds import StepId, generator
from fl_split.specs import shortened
from fl_split.tokens import insert as select
from simulations.clients.stack_size import can_stack
from simulations.data.augmentation import AUGMENTATIONS, augmented
from simulations.data.ragged import Ragged
from simulations.runs.budget import check_budgets, each
from simulations.runs.experiment import Experiment
from simulations.runs.experiment_data import named
from simulations.runs.lateness import check_system
from strategies.server.participants import Population


def recipe_of(e: Experiment) -> Recipe:
    """Return how gradients become steps."""
    return Recipe(e.parts.schedule, e.rounds, e.parts.clip, e.accumulate, e.parts.phases)


def exchange_of(e: Experiment, head: Head) -> Exchange:
    """Return what both halves do with one batch, with the loss and precision of `e`."""
    found = e.parts.strategy.exchange(head)
    loss, precision = CrossEntropy(e.label_smoothing), Precision(e.precision)
    return replace(found, loss=loss, precision=precision, phases=e.parts.phases)


def check_strategy(e: Experiment) -> None:
    """Raise ValueError if the strategy does not agree with the second cut or the aggregation."""
    strategy = e.parts.strategy
    if e.end and not strategy.works_in_u_shape:
        raise ValueError(
            f"strategy: {e.strategy.partition('(')[0]} needs labels on the server, and with "
            f"end={e.end} they stay on the clients; leave end at 0, or take strategy=parallel"
        )
    if e.aggregation == "fedavg()":
        return
    if not strategy.averages:
        raise ValueError(f"aggregation: {e.strategy} averages nothing; leave it at fedavg()")
    if strategy.needs_mean:
        raise ValueError(
            f"aggregation: {e.strategy} corrects by means over clients, which {e.aggregation} "
            "would not; leave it at fedavg()"
        )


def check_parts(e: Experiment) -> None:
    """Raise ValueError if a strategy whose runs have parts of their own cannot go through them."""
    least = e.parts.strategy.least_rounds
    if e.rounds < least:
        raise ValueError(
            f"strategy: with {e.strategy} the tail learns from round {least} on, got "
            f"rounds={e.rounds}; train longer"
        )
    if least > 1 and e.parts.phases.spares_parts:
        raise ValueError(
            f"phases: {e.strategy} says itself what learns in which rounds; leave phases at none()"
        )


def check_recipe(e: Experiment) -> None:
    """Raise ValueError if parts of a recipe do not agree with rounds, codec or strategy."""
    with named("schedule"):
        check_length(e.parts.schedule, e.rounds)
    with named("phases"):
        e.parts.phases.check(e.rounds)
    check_strategy(e)
    check_parts(e)
    strategy, mixing = e.parts.strategy, [one for one in e.parts.augment if one.mixes_labels]
    if len(mixing) > 1:
        raise ValueError(f"augment: {e.augment} mixes labels twice; leave mixup or cutmix out")
    if mixing and strategy.sends_smashed_data and not e.parts.codec.keeps_samples:
        raise ValueError(
            f"augment: {shortened(e.augment, AUGMENTATIONS)} mixes labels, and the codec "
            f"{shortened(e.codec, CODECS)} merges samples; leave mixup and cutmix out, or take "
            "another codec, as codec=identity"
        )
    if e.ema and strategy.keeps_models:
        raise ValueError(
            f"ema: {e.strategy} leaves models with the clients, and nothing to average over "
            "rounds; leave ema at 0"
        )


def check_augmentation(e: Experiment, head: Head, device: torch.device) -> None:
    """Raise ValueError for an augmentation that does not fit images or device."""
    if e.deterministic and device.type == "cuda":
        for one in e.parts.augment:
            if not getattr(one, "is_deterministic", True):
                raise ValueError(
                    f"{one} cannot give the same bits each time on CUDA; leave it out, or set "
                    "deterministic=false"
                )
    pixels = torch.rand((2, *head.image_shape), generator=generator(0, "trial"), device="cpu")
    batch = Batch(pixels, torch.zeros(2, dtype=torch.int64, device="cpu"), 2)
    found = augmented(batch, e.parts.augment, StepId(0, 0, 0, 0)).pixels
    if found.shape != pixels.shape:
        shapes = f"{tuple(found.shape)} of {tuple(pixels.shape)}"
        raise ValueError(f"{e.augment} makes images of another shape: {shapes}")


def check_stack(e: Experiment, head: Head) -> None:
    """Raise ValueError if heads shall run as one that cannot."""
    if e.stack not in {"auto", 1} and not can_stack(exchange_of(e, head), head):
        raise ValueError(
            f"heads of this run cannot run {e.stack} as one: that needs one cut through a ViT "
            "without dropout or exits, with nothing frozen and all tokens; leave stack at 'auto'"
        )


def check_device(e: Experiment) -> None:
    """Raise ValueError for a device that is not there, or cannot compute as asked."""
    with named("device"):
        device = find(e.device)
    if e.precision == "bf16":
        with named("precision"):
            check_bf16(device)


def check_halves(e: Experiment, head: Head, tail: Tail) -> None:
    """Raise ValueError if frozen stages, a stack or an augmentation do not fit the model."""
    check_trained(e, head, tail)
    check_phases(e, head, tail)
    if any(part.is_private for part in head.parts_beside):
        with named("exits"):
            check_private(e, head)
    if head.is_ragged and e.parts.downlink.error_feedback:
        raise ValueError(
            "downlink: error_feedback pays row by row, and images of different numbers of tokens "
            "have no rows of one size; leave it out, or tokens' rate_mode at 'exact_topk'"
        )
    with named("stack"):
        check_stack(e, head)
    with named("augment"):
        check_augmentation(e, head, find(e.device))


def check_phases(e: Experiment, head: Head, tail: Tail) -> None:
    """Raise ValueError if a phase trains a part that is not there."""
    known = {*parts_of(head).values(), *parts_of(tail).values()}
    with named("phases"):
        e.parts.phases.check_parts(known, head.learns_alone)


def check_private(e: Experiment, head: Head) -> None:
    """Raise ValueError if no client can have exits of its own beside a head that travels."""
    strategy = e.parts.strategy
    if strategy.trains_on_server:
        why = f"{e.strategy} trains on the server, and no client has exits to keep"
    elif strategy.keeps_models:
        why = f"{e.strategy} leaves whole heads with the clients, and exits with them"
    elif getattr(exchange_of(e, head), "local", LocalRound) is not LocalRound:
        why = f"{e.strategy} corrects whole models by what all clients share"
    elif e.ema:
        why = "ema averages what travels over rounds, and exits of clients learn on the last round"
    else:
        return
    raise ValueError(f"private: {why}; leave private at False")


def check_trained(e: Experiment, head: Head, tail: Tail) -> None:
    """Raise ValueError if freezing has left one of the two halves nothing to train."""
    for half, owner in ((head, "before"), (tail, "behind")):
        if not any(parameter.requires_grad for parameter in half.parameters()):
            raise ValueError(
                f"freeze: {e.freeze!r} leaves nothing to train {owner} cut={e.cut!r}; freeze less, "
                "or cut elsewhere: each side keeps something, also where models are not split"
            )


def conditional(e: Experiment, head: Head, tail: Tail) -> list[str]:
    """Give the head as few weights and tokens as `e` wants, and the tail its experts.

    Return what was decided about that.
    """
    is_trained = isinstance(e.parts.model, Pretrained)
    with named("sparsity"):
        notes = sparsify(head, e.parts.sparsity, is_trained=is_trained)
    with named("tokens"):
        select(head, e.parts.tokens, e.seed)
    with named("experts"):
        insert_experts(head, tail, e.parts.experts, e.seed, is_trained)
    return notes


def check_run(e: Experiment, partitions: Ragged) -> None:
    """Raise ValueError if strategy, codec, aggregation and number of clients do not agree."""
    strategy = e.parts.strategy
    with named("strategy"):
        strategy.check(e.parts.codec)
    check_recipe(e)
    check_budgets(each(e.parts.budget), e.parts.system, e.holdout)
    with named("system"):
        check_system(strategy, e.parts.system, e.clients, bool(e.end))
    sizes = dict(enumerate(partitions.sizes.tolist()))
    clients = len(Population(sizes, {}, e.fraction, e.batch_size, e.seed).sample(1))
    if e.parts.system and e.parts.system.first:
        clients = e.parts.system.first.of(clients)
    least = e.parts.aggregation().least_clients
    if clients < least:
        raise ValueError(
            f"aggregation: {e.aggregation} needs {least} clients or more in a round, got {clients} "
            f"(fraction={e.fraction:g} of clients={e.clients} that hold samples)"
        )
