"""Rates, clipping, accumulation, losses: compared with torch's own, or worked out by hand."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from fl_split.codecs import Received
from fl_split.flat import Flat
from fl_split.optimizers import OPTIMIZERS, SGD, AdamW
from fl_split.recipe.clipping import Norm
from fl_split.recipe.descent import Descent, Recipe, descend, finish
from fl_split.recipe.loss import CrossEntropy
from fl_split.recipe.schedules import SCHEDULES, Constant, Cosine, Linear, Moment, Stairs
from fl_split.specs import parse
from simulations.runs.budget import Patience

ROUNDS = 12


def torchs_factors(make, rounds=ROUNDS):
    """Rates that a scheduler of torch sets in each round, at a base rate of 1."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, found = make(optimizer), []
    for _ in range(rounds):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("schedule", "make"),
    [
        (
            Cosine(per="round", final=0.1),
            lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, ROUNDS, eta_min=0.1),
        ),
        (
            Linear(per="round", final=0.25),
            lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.25, ROUNDS),
        ),
        (
            Stairs(per="round", every=5, gamma=0.5),
            lambda o: torch.optim.lr_scheduler.StepLR(o, 5, gamma=0.5),
        ),
        (
            Constant(per="round", warmup=4),
            lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.25, 1.0, 3),
        ),
    ],
    ids=["cosine", "linear", "step", "constant"],
)
def test_rates_are_those_of_torchs_schedulers(schedule, make):
    ours = [schedule.factor(Moment(number, 0, 1, 5), ROUNDS) for number in range(1, ROUNDS + 1)]
    assert ours == pytest.approx(torchs_factors(make))


@pytest.mark.parametrize(
    ("spec", "step", "factor"),
    [
        ("constant()", (3, 2, 4), 1.0),
        ("constant(warmup=2)", (1, 0, 4), 1 / 8),  # the first of eight steps
        ("constant(warmup=2)", (2, 3, 4), 1.0),  # the last of them
        ("cosine(warmup=2)", (3, 0, 4), 1.0),  # nothing of the ten rounds is over
        ("cosine(warmup=2)", (8, 0, 4), 0.5),  # half of them are
        ("cosine(warmup=2)", (8, 2, 4), (1 + math.cos(math.pi * 0.55)) / 2),
        ("linear(final=0.5)", (4, 0, 4), 1 - 0.5 * 3 / 12),
        ("step(every=1.5, gamma=0.1)", (2, 1, 4), 1.0),
        ("step(every=1.5, gamma=0.1)", (2, 2, 4), 0.1),
        ("step(every=0.1, gamma=0.5)", (1, 3, 10), 0.125),  # 0.3 / 0.1 is less than 3
    ],
)
def test_rates_change_within_a_round(spec, step, factor):
    number, done, total = step
    assert parse(spec, SCHEDULES).factor(Moment(number, done, 1, total), ROUNDS) == pytest.approx(
        factor
    )


def test_steps_of_several_clients_at_once_count_as_several():
    """Ten of forty payloads: the rise over one round is at a quarter."""
    assert Constant(warmup=1).factor(Moment(1, 0, 10, 40), ROUNDS) == pytest.approx(0.25)


class Two(nn.Module):
    """A matrix and a bias, both of which decay or not."""

    def __init__(self, seed=0):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.layer = nn.Linear(4, 3)
        self.layer.weight.data = torch.randn(3, 4, generator=draw)
        self.layer.bias.data = torch.randn(3, generator=draw)


def gradients(count, size=15, scale=1.0):
    draw = torch.Generator().manual_seed(7)
    return [scale * torch.randn(size, generator=draw) for _ in range(count)]


def test_only_matrices_decay_as_in_torchs_groups():
    ours, theirs = Flat(Two()), Two()
    own = Descent(ours, AdamW(lr=0.1, weight_decay=0.3, no_decay=True))
    reference = torch.optim.AdamW(
        [
            {"params": [theirs.layer.weight], "weight_decay": 0.3},
            {"params": [theirs.layer.bias], "weight_decay": 0.0},
        ],
        lr=0.1,
    )
    for gradient in gradients(4):
        own.step(gradient)
        theirs.layer.weight.grad = gradient[:12].view(3, 4).clone()
        theirs.layer.bias.grad = gradient[12:].clone()
        reference.step()
    assert torch.equal(ours.module.layer.weight, theirs.layer.weight)
    assert torch.equal(ours.module.layer.bias, theirs.layer.bias)


@pytest.mark.parametrize("scale", [0.01, 10.0], ids=["short", "long"])
@pytest.mark.parametrize("halves", [False, True])
def test_gradients_are_clipped_as_torch_clips_them(scale, halves):
    first, second = gradients(2, scale=scale)
    wanted = [nn.Parameter(torch.zeros(15)) for _ in range(2)]
    for parameter, gradient in zip(wanted, (first, second), strict=True):
        parameter.grad = gradient.clone()
    for group in [[one] for one in wanted] if halves else [wanted]:
        nn.utils.clip_grad_norm_(group, 2.0)
    found = Norm(2.0, halves=halves).clipped([first, second])
    for ours, parameter in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, parameter.grad, atol=1e-6, rtol=1e-5)
    norms = [float(one.norm()) for one in found]
    assert max(norms if halves else [math.hypot(*norms)]) <= 2.0 * 1.0001


def test_both_halves_are_clipped_together():
    """Norms 3 and 4 make 5: a limit of 1 divides both by 5."""
    flats = Flat(nn.Linear(1, 1, bias=False)), Flat(nn.Linear(1, 1, bias=False))
    recipe = Recipe(clip=Norm(1.0))
    before = [flat.numpy() for flat in flats]
    descents = [Descent(flat, SGD(lr=1.0), recipe) for flat in flats]
    descend(descents, [torch.tensor([3.0]), torch.tensor([-4.0])], Moment(1, 0, 1, 1))
    moved = [float(old[0] - flat.numpy()[0]) for old, flat in zip(before, flats, strict=True)]
    assert moved == pytest.approx([0.6, -0.8], rel=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd(lr=0.1, momentum=0.9)", "adamw(lr=0.1)"])
def test_an_accumulated_step_is_one_on_the_mean(optimizer):
    """Seven gradients by threes: of the last one alone the round makes a step."""
    spec, found = parse(optimizer, OPTIMIZERS), gradients(7)
    flat, reference = Flat(Two()), Flat(Two())
    own, plain = Descent(flat, spec, Recipe(accumulate=3)), Descent(reference, spec)
    for number, gradient in enumerate(found):
        own.step(gradient, Moment(1, number, 1, 7))
        if number == 1:  # saved in between, as a client is between two messages
            state = own.state()
            own = Descent(flat, spec, Recipe(accumulate=3))
            own.restore(state)
    finish([own], Moment(1, 6, 1, 7))
    for group in (found[:3], found[3:6], found[6:]):
        plain.step(torch.stack(group).mean(dim=0))
    torch.testing.assert_close(flat.vector, reference.vector)


def test_the_rate_of_each_step_is_that_of_its_moment():
    flat, recipe = Flat(Two()), Recipe(Linear(), rounds=2)
    before, own = flat.numpy(), Descent(flat, SGD(lr=1.0), recipe)
    for number in (1, 2):
        for step in (0, 1):
            own.step(torch.ones(15), Moment(number, step, 1, 2))
    # The line falls from 1 to 0 in four steps: 1, 3/4, 1/2, 1/4.
    assert before - flat.numpy() == pytest.approx(2.5, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["labels", "mixtures"])
def test_smoothed_losses_follow_the_formula(smoothing, kind):
    """Targets move by the smoothing towards all classes alike, worked out row by row."""
    draw = torch.Generator().manual_seed(0)
    parts, expected = [], []
    for weighted, count in ((False, 3), (True, 4)):
        targets = torch.randint(5, (count,), generator=draw)
        soft = functional.one_hot(targets, 5).float()
        if kind == "mixtures":
            targets = soft = 0.7 * soft + 0.3 * soft.roll(1, dims=1)
        weights = torch.rand(count, generator=draw) if weighted else None
        parts.append(Received(torch.zeros(count, 1, 1), targets, weights))
        logits = torch.randn(count, 5, generator=draw)
        smooth = (1 - smoothing) * soft + smoothing / 5
        rows = -(smooth * logits.log_softmax(dim=1)).sum(dim=1)
        shares = torch.full((count,), 1 / count) if weights is None else weights / weights.sum()
        expected.append((logits, float((rows * shares).sum())))
    loss = CrossEntropy(smoothing)
    for received, (logits, value) in zip(parts, expected, strict=True):
        assert float(loss.of(logits, received)) == pytest.approx(value, rel=1e-5)
    joint, each = loss.joint(torch.cat([logits for logits, _ in expected]), parts, [0.25, 0.75])
    assert each == pytest.approx([value for _, value in expected], rel=1e-5)
    assert float(joint) == pytest.approx(0.25 * expected[0][1] + 0.75 * expected[1][1], rel=1e-5)


@pytest.mark.parametrize(
    ("budget", "values", "ends"),
    [
        (Patience(2), [3.0, 2.0, 2.5, 2.1], True),  # two rounds without a lower loss
        (Patience(2), [3.0, 2.0, 2.5], False),
        (Patience(2), [3.0, 2.0, 2.5, 1.9], False),
        (Patience(1, least=0.5), [3.0, 2.8], True),
        (Patience(2, of="client_accuracy"), [0.5, 0.6, 0.55, 0.6], True),
        (Patience(2, of="client_accuracy"), [0.5, 0.4, 0.6], False),
        (Patience(1), [], False),
    ],
)
def test_patience_ends_a_run_that_gets_no_better(budget, values, ends):
    assert budget.is_spent({"by_round": {budget.of: values}}) is ends
