"""The public laws of selections of tokens and of exits: each is broken by something."""

import pytest
import torch
from pydantic.dataclasses import dataclass

from fl_split.exits.plain import Plain, PlainExits
from fl_split.models.selector import Rating
from fl_split.specs import STRICT
from fl_split.testing import check_exits, check_tokens
from fl_split.tokens.norm import Largest, Norm


class FaultySelector(Largest):
    """Ranks by norm, and breaks one law."""

    law = ""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.calls = 0
        self.register_buffer("seen", torch.zeros(()))
        if self.law == "idle":
            self.idle = torch.nn.Parameter(torch.ones(3))

    def rated(self, number, block, before, tokens, mask):
        scores = super().rated(number, block, before, tokens, mask).scores
        self.calls += 1
        if self.law == "repeat":
            scores = scores * (-1) ** self.calls
        if self.law == "evaluation" and not self.training:
            scores = torch.rand(scores.shape)
        if self.law == "other in evaluation" and not self.training:
            scores = -scores
        if self.law == "state":
            self.seen += 1
        return Rating(scores)

    def keeping(self, count, tokens):
        return super().keeping(max(2, count) if self.law == "counts" else count, tokens)

    def forward_flops(self, blocks, course):
        return 7 if self.law == "operations" else 0


@dataclass(frozen=True, config=STRICT)
class FaultyTokens(Norm):
    law: str = ""

    def selector(self, sizes):
        kind = type("Faulted", (FaultySelector,), {"law": self.law})
        return kind(self.rate, self.after, sizes)


@pytest.mark.parametrize(
    ("law", "message"),
    [
        ("idle", "a gradient must reach idle"),
        ("repeat", "the same seed must give the same tokens"),
        ("evaluation", "evaluation must draw nothing"),
        ("other in evaluation", "must give in training what it gives in evaluation"),
        ("state", "a forward must not change selector.seen"),
        ("counts", "of 16 patches 1 must go on"),
        ("operations", "operations must be those that torch counts"),
    ],
)
def test_each_law_of_selections_is_broken_by_something(law, message):
    with pytest.raises(AssertionError, match=message):
        check_tokens(FaultyTokens(law=law))


class FaultyExits(PlainExits):
    """Plain exits that break one law."""

    law = ""

    def logits(self, trace):
        found = super().logits(trace)
        if self.law == "shape":
            return found[:-1]
        if self.law == "draws":
            return [one + torch.rand(()) for one in found]
        if self.law == "images":
            return [one + one.mean(dim=0) for one in found]
        if self.law == "behind":
            return [one + trace.hidden[-1].mean(dim=(1, 2))[:, None] for one in found]
        if self.law == "reach":
            return [one.detach() + one.sum() * 0 + self.norms[0].weight.sum() for one in found]
        if self.law == "detach":
            return [one + trace.hidden[0].mean(dim=(1, 2))[:, None] for one in found]
        return found

    def loss(self, trace, of_logits):
        return (2 if self.law == "loss" else 1) * super().loss(trace, of_logits)

    def with_weights(self, vector):
        return self if self.law == "weights" else super().with_weights(vector)

    def forward_flops(self, samples):
        return super().forward_flops(samples) + (self.law == "operations")


@dataclass(frozen=True, config=STRICT)
class FaultyPlain(Plain):
    law: str = ""

    def build(self, head, tail, num_classes):
        if self.law == "trunk":
            torch.nn.init.zeros_(head.blocks[0].mlp.fc1.weight)
        found = super().build(head, tail, num_classes)
        for exits in filter(None, found):
            exits.__class__ = type("Faulted", (FaultyExits,), {"law": self.law})
        return found


@pytest.mark.parametrize(
    ("law", "message"),
    [
        ("trunk", "building exits must not change"),
        ("shape", "each of 3 exits must answer"),
        ("draws", "exits must draw nothing"),
        ("images", "answer each image by itself"),
        ("behind", "must not depend on blocks behind it"),
        ("loss", "weight times the sum"),
        ("reach", "a gradient must reach"),
        ("detach", "with detach no gradient"),
        ("weights", "must have these"),
        ("operations", "operations of exits must be those"),
    ],
)
def test_each_law_of_exits_is_broken_by_something(law, message):
    with pytest.raises(AssertionError, match=message):
        check_exits(FaultyPlain(law=law, detach=law == "detach"))


def test_what_the_faulty_ones_begin_with_keeps_the_laws():
    check_tokens(FaultyTokens())
    check_exits(FaultyPlain())
