"""FSL-SAGE: whose gradient clients follow, how auxiliaries are fitted, what that takes."""

import numpy as np
import pytest
import torch
from torch.func import functional_call
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from fl_split.codecs import Received
from fl_split.exchange.aligned import AUXILIARY, guide_of
from fl_split.exchange.protocol import Batch
from fl_split.exchange.records import HEAD, TAIL, Weights
from fl_split.exchange.split import head_gradient
from fl_split.flat import Flat, flatten, trained
from fl_split.optimizers import Adam
from fl_split.recipe.descent import Descent
from fl_split.seeds import StepId, generator
from simulations.runs.experiment import Experiment
from simulations.runs.setup import prepare
from simulations.studies.cost import Estimator
from strategies.checks import check_tasks
from strategies.server.tasks import SERVER

AT = StepId(0, 1, 0, 0)
VIT = "vit(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=4)"
RESNET = {"model": "resnet18(width=4, small_images=True, norm='group')", "cut": "stage3.2"}
RUN = {
    "strategy": "fsl_sage(h=2, align=2, epochs=1, batch=40, keep=70)", "clients": 3,
    "rounds": 4, "local_steps": 3, "batch_size": 20, "partition": "iid",
}  # fmt: skip
"""Of each client 40 rows come in a round; all are aligned in rounds 2 and 4."""


def setup_of(**changes):
    return prepare(Experiment.from_dict({"model": VIT, "cut": 1, **changes}))


def moved(flat):
    """Load weights that differ from those at the start."""
    noise = torch.randn(flat.vector.shape, generator=generator(1, "trial"))
    flat.load(flat.vector.detach() + 0.05 * noise)
    return flat


def watched(simulate, **changes):
    """Run; return the outcome, and what each round has told."""
    results = []
    return simulate(watch=lambda row, result: results.append(result), **changes), results


def rows_of(setup, count):
    """Return smashed data and labels of some images."""
    pixels, labels = setup.train.batch(np.arange(count))
    return Received(setup.head(pixels)[0].detach(), labels)


# The gradient that clients follow.


@pytest.mark.parametrize("model", [{}, RESNET], ids=["vit", "resnet"])
def test_with_a_copy_of_the_tail_heads_follow_the_true_cut_gradient(model):
    """The tail has moved since the start, and the client has been sent a copy of it."""
    setup = setup_of(strategy="fsl_sage(h=1, auxiliary='tail')", **model)
    plain = setup_of(strategy="parallel", **model)
    tail, head, link = moved(Flat(plain.tail)), Flat(setup.head), setup.parts.link()
    batch = Batch(*setup.train.batch(np.arange(8)), setup.train.num_classes)
    true = plain.exchange.step(Flat(plain.head), tail, link, batch, AT).of_head
    found = []
    for memory in ({AUXILIARY: tail.vector.detach().clone()}, {}):
        payload = setup.exchange.smash(head.module, link.codec, batch, AT, memory)
        found.append(head_gradient(head, payload, None))
    torch.testing.assert_close(found[0], true, atol=1e-6, rtol=1e-4)
    assert (found[1] - true).norm() > 0.1 * true.norm()  # of an auxiliary as at the start


# Alignment.


def test_true_gradients_are_those_of_each_rows_own_loss():
    setup = setup_of(strategy="fsl_sage")
    rows, tail = rows_of(setup, 25), moved(Flat(setup.tail))
    found, flops = setup.exchange.true_gradients(tail, rows, 10, AT)
    tokens = rows.tokens.clone().requires_grad_()
    functional.cross_entropy(setup.tail(tokens), rows.targets, reduction="sum").backward()
    torch.testing.assert_close(found, tokens.grad, atol=1e-7, rtol=1e-4)
    assert flops == 25 * setup.tail.row_flops(5)[1]


@pytest.mark.parametrize("model", [{}, RESNET], ids=["vit", "resnet"])
def test_alignment_brings_the_auxiliarys_gradient_near_the_true_one(model):
    setup = setup_of(strategy="fsl_sage", **model)
    exchange, rows, tail = setup.exchange, rows_of(setup, 40), moved(Flat(setup.tail))
    true, _ = exchange.true_gradients(tail, rows, 40, AT)

    def after(rate):
        flat = Flat(guide_of(setup.head).to_fit())
        before = flat.vector.detach().clone()
        exchange.fit(Descent(flat, Adam(lr=rate)), rows, true, torch.arange(800).view(-1, 20) % 40)
        error = exchange.estimate(flat.module, rows).detach() - true
        return float(error.square().sum()), torch.equal(flat.vector, before)

    (start, stays), (end, stays_too) = after(0.0), after(0.001)
    assert stays and not stays_too
    assert end < 0.7 * start


def test_operations_of_fitting_a_row_are_those_of_a_second_derivative():
    """Six times a forward pass, nine times its products of activations with each other.

    Of y = W x: y, the gradient W' g, then the derivatives of both products, two each. Where both
    factors are activations the gradient is two products, and each has two derivatives.
    """
    setup = setup_of(strategy="fsl_sage(auxiliary=1)")
    auxiliary = guide_of(setup.head).to_fit()
    attention = 2 * (2 * 5 * 5 * 16)
    found = setup.exchange.fitting_flops(auxiliary, 5, 16)
    assert found == 6 * auxiliary.forward_flops(1, 5) + 3 * attention


def test_two_rounds_by_the_formulas(simulate):
    """One client: what is kept, the auxiliary of round 2 by Adam, the head that follows it."""
    values = {**RUN, "clients": 1, "rounds": 2, "head_optimizer": "sgd(lr=0.5)"}
    outcome, (first, second) = watched(simulate, **values)
    setup = prepare(Experiment.from_dict({**outcome.summary["experiment"], "out": ""}))
    kept, labels = (
        torch.from_numpy(first.weights[f"kept-{name}-0"].numpy().copy())
        for name in ("tokens", "targets")
    )
    head, order, batches = Flat(setup.head), {}, {}
    for number in (1, 2):
        own = setup.train.partitions[0]
        draw = generator(0, "batches", number, 0, 0)
        order[number] = own[torch.randperm(len(own), generator=draw).numpy()][:60]
        batches[number] = [setup.train.batch(rows) for rows in np.split(order[number], 3)]
    head.load(setup.initial_weights()[HEAD].numpy())
    assert torch.equal(kept[:20], setup.head(batches[1][0][0])[0])
    assert labels.tolist() == [*batches[1][0][1], *batches[1][2][1]]

    tail, auxiliary = Flat(setup.tail), guide_of(setup.head).to_fit()
    tail.load(first.weights[TAIL].numpy())
    tokens = kept.clone().requires_grad_()
    functional.cross_entropy(setup.tail(tokens), labels.long(), reduction="sum").backward()
    names = {k: p for k, p in auxiliary.named_parameters() if p.requires_grad}
    optimizer = torch.optim.Adam(names.values(), lr=0.001)
    draw = generator(0, "alignment", 2, 0)
    (rows,) = torch.randperm(40, generator=draw).split(40)
    leaf = kept[rows].requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        loss = functional.cross_entropy(auxiliary(leaf), labels[rows].long(), reduction="sum")
        (estimate,) = torch.autograd.grad(loss, leaf, create_graph=True)
        ((estimate - tokens.grad[rows]) ** 2).sum().div(40).backward()
    optimizer.step()
    found = torch.from_numpy(second.weights["auxiliary-0"].numpy().copy())
    # Adam's first step is by the sign: a gradient of nothing but rounding may go either way.
    near = (found - flatten([*names.values()])).abs() < 1e-5
    assert near.float().mean() > 0.99

    head.load(first.weights[HEAD].numpy())
    parts = dict(zip(names, found.split([p.numel() for p in names.values()]), strict=True))
    own = {name: part.view_as(names[name]) for name, part in parts.items()}
    for pixels, targets in batches[2]:
        logits = functional_call(guide_of(setup.head).tail, own, (setup.head(pixels)[0],))
        gradient, _ = head.differentiate([functional.cross_entropy(logits, targets)])
        head.load(head.vector.detach() - 0.5 * gradient)
    expected = torch.from_numpy(second.weights[HEAD].numpy().copy())
    torch.testing.assert_close(head.vector.detach(), expected, atol=1e-6, rtol=1e-4)


# What it takes.


def test_an_auxiliary_goes_down_once_for_each_alignment_and_its_work_is_the_servers(simulate):
    found, results = watched(simulate, **RUN)
    never, _ = watched(simulate, **{**RUN, "rounds": 1})
    setup = prepare(Experiment.from_dict({**found.summary["experiment"], "out": ""}))
    guide, rounds = guide_of(setup.head), found.rounds
    size = len(Weights.of(np.zeros(guide.size, np.float32)).data)
    assert guide.size == len(flatten(trained(setup.tail))) - len(
        flatten(trained(setup.tail.blocks[1]))
    )
    assert rounds.head_bytes_up.tolist() == 4 * [3 * len(results[0].weights[HEAD].data)]
    more = (rounds.head_bytes_down - rounds.head_bytes_up).tolist()
    assert more == [0, 3 * size, 0, 3 * size]
    assert rounds.payload_bytes_down.tolist() == [0, 0, 0, 0]
    fitting = setup.exchange.fitting_flops(guide.to_fit(), 5, 16)
    each = setup.tail.row_flops(5)[1] + fitting
    work = (rounds.server_flops - int(never.rounds.server_flops[0])).tolist()
    assert work == [0, 3 * 40 * each, 0, 3 * 70 * each]
    images = setup.head.flops(1) + guide.tail.flops(1, 5)
    assert rounds.client_flops.tolist() == 4 * [3 * 60 * images]
    for number, result in enumerate(results, start=1):
        check_tasks(result)
        made = [
            n for n, one in enumerate(result.tasks) if (one.kind, one.client) == ("train", SERVER)
        ]
        down = [one for one in result.tasks if one.kind == "sync down"]
        assert [one.after for one in down] == ([(n,) for n in made] or [()] * 3)
        assert len(made) == 3 * (number % 2 == 0)
        shape = result.weights["kept-tokens-2"].shape
        assert shape == (min(70, 40 * number), 5, 16)
    auxiliaries = [result.weights.get("auxiliary-1") for result in results]
    assert auxiliaries[0] is None and auxiliaries[1] is auxiliaries[2]
    assert (auxiliaries[1].numpy() != auxiliaries[3].numpy()).any()


def test_who_is_away_keeps_its_own_and_an_estimate_is_what_the_run_takes(simulate):
    """Two of four clients a round: each is aligned when it is back and its turn has come."""
    values = {**RUN, "clients": 4, "fraction": 0.5, "rounds": 5, "codec": "fp16"}
    found, results = watched(simulate, **values)
    cost = Estimator()(prepare(Experiment.from_dict({**found.summary["experiment"], "out": ""})))
    rounds = found.rounds
    size = len(results[-1].weights[HEAD].data)
    of_auxiliary = int((rounds.head_bytes_down - rounds.head_bytes_up).sum())
    aligned, last = 0, {}
    for number, result in enumerate(results, start=1):
        for client in result.traffic:
            if client in last and (not last[client] or number - last[client] >= 2):
                aligned, last[client] = aligned + 1, number
            last.setdefault(client, 0)
        for client, turn in last.items():
            kept = result.weights.get(f"aligned-in-{client}")
            assert (kept is None and not turn) or int(kept.numpy()[0]) == turn
    assert aligned and of_auxiliary == aligned * len(results[-1].weights["auxiliary-0"].data)
    assert cost.head_bytes == int(rounds.head_bytes_up.sum() + rounds.head_bytes_down.sum())
    assert int(rounds.head_bytes_up.sum()) == 10 * size
    assert cost.client_flops == rounds.client_flops.sum()
    assert cost.payload_bytes == rounds.payload_bytes_up.sum()


def test_engines_states_and_a_stop_change_nothing(
    simulate, reference, through_state, on_ray, resume, tmp_path
):
    """With averaged weights beside, whose average does not ask for what is kept."""
    run = {**RUN, "rounds": 3, "ema": 0.5}

    def stop(row, result):
        if row["round"] == 2:
            raise KeyboardInterrupt

    whole = reference(**run)
    with pytest.raises(KeyboardInterrupt):
        simulate(watch=stop, checkpoint_every=1, **run)
    half = type(whole)(tmp_path / "run1")
    resume(half)
    for found in (half, through_state(**run), on_ray(**run)):
        assert found.equals(whole)
    assert not reference(**{**run, "strategy": "fsl_sage(h=2, align=2, rate=0.0)"}).equals(whole)


# What does not go with it.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"end": 3}, "needs labels on the server"),
        ({"tokens": "residual_gate()"}, "as many tokens of all images"),
        ({"codec": "bottlenet()"}, "a codec that is trained"),
        ({"stack": 4}, "cannot run 4 as one"),
        ({"model": "resnet18(width=4, small_images=True)", "cut": 1}, "batch norm or experts"),
        ({"experts": "switch()"}, "batch norm or experts"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as found:
        setup_of(strategy="fsl_sage", **changes)
    assert "\n" not in str(found.value)
