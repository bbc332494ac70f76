"""The recipe of an experiment: what its keys make of rates, gradients, losses and images."""

from __future__ import annotations

from dataclasses import replace

import torch

from fl_split.exchange.protocol import Batch, Exchange
from fl_split.models.cut import Head, Tail
from fl_split.recipe.descent import Recipe
from fl_split.recipe.loss import CrossEntropy
from fl_split.recipe.precision import Precision
from fl_split.recipe.schedules import check_length
from fl_split.seeds import StepId, generator
from simulations.data.augmentation import augmented
from simulations.runs.experiment import Experiment
from simulations.runs.experiment_data import named


def recipe_of(e: Experiment) -> Recipe:
    """Return how gradients become steps."""
    return Recipe(e.parts.schedule, e.rounds, e.parts.clip, e.accumulate)


def exchange_of(e: Experiment, head: Head) -> Exchange:
    """Return what both halves do with one batch, with the loss and precision of `e`."""
    found = e.parts.strategy.exchange(head)
    return replace(found, loss=CrossEntropy(e.label_smoothing), precision=Precision(e.precision))


def check_recipe(e: Experiment) -> None:
    """Raise ValueError if parts of a recipe do not agree with rounds, codec or strategy."""
    with named("schedule"):
        check_length(e.parts.schedule, e.rounds)
    strategy, mixing = e.parts.strategy, [one for one in e.parts.augment if one.mixes_labels]
    if len(mixing) > 1:
        raise ValueError(f"augment: {e.augment} mixes labels twice; leave mixup or cutmix out")
    if mixing and strategy.sends_smashed_data and not e.parts.codec.keeps_samples:
        raise ValueError(
            f"augment: {e.augment} mixes labels, and {e.codec} merges samples, whose labels it "
            "mixes itself; leave mixup and cutmix out, or take a codec that keeps samples"
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


def check_trained(e: Experiment, head: Head, tail: Tail) -> None:
    """Raise ValueError if freezing has left one of the two halves nothing to train."""
    for half, owner in ((head, "client"), (tail, "server")):
        if not any(parameter.requires_grad for parameter in half.parameters()):
            raise ValueError(
                f"freeze: {e.freeze!r} leaves the {owner} nothing to train with cut={e.cut!r}; "
                "freeze less, or cut elsewhere"
            )
