"""Experts: hand-worked routing, one expert against the dense tail, order, operations, runs."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fl_split.activations import activation_bytes, saved
from fl_split.codecs import Identity
from fl_split.exchange.graphs import GraphMemory
from fl_split.exchange.link import Link
from fl_split.exchange.protocol import Batch
from fl_split.exchange.served import HalfServed
from fl_split.exchange.serving import batches
from fl_split.exchange.split import Split
from fl_split.exchange.ushape import UShape, crossing
from fl_split.exchange.whole import joined, predict
from fl_split.experts import EXPERTS, NoExperts, insert_experts, mixtures
from fl_split.experts.noisy_top_k import NoisyTopK
from fl_split.experts.switch import Switch
from fl_split.flat import Flat
from fl_split.models.mixture import Mixture, Routing, balance_loss, watching
from fl_split.models.vit import ViT
from fl_split.seeds import StepId, generator, global_state, seeded
from fl_split.specs import parse
from simulations.report.experts import figures, table
from simulations.report.runs import collect
from simulations.runs.experiment import Experiment
from simulations.runs.routing import measures
from simulations.runs.saved_model import load_halves
from simulations.runs.setup import prepare
from strategies import STRATEGIES

SMALL = ViT(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=4)
SPECS = ["switch()", "noisy_top_k()"]
AT = StepId(0, 1, 0, 0)
DRAW = generator(0, "trial")


def test_specs_name_every_entry():
    assert {spec.partition("(")[0] for spec in SPECS} == {*EXPERTS} - {"none"}


def halves(spec, cut=1, end=0, are_copies=False):
    module = SMALL.build(image_size=8, channels=1, num_classes=4, seed=0)
    head, tail = SMALL.split(module.train(), cut, end)
    insert_experts(head, tail, parse(spec, EXPERTS), 0, are_copies)
    return head, tail


def batch(size=5, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return Batch(torch.randn(size, 1, 8, 8, generator=draw), torch.arange(size) % 4, 4)


def by_hand(gating, weight, factors):
    """Experts that multiply by `factors`, and a router of tokens (T, D) of this weight (E, D)."""
    router = gating.router(weight.shape[1], DRAW)
    router.layer.weight.data = weight
    experts = [torch.nn.Linear(weight.shape[1], weight.shape[1], bias=False) for _ in factors]
    for expert, factor in zip(experts, factors, strict=True):
        expert.weight.data = factor * torch.eye(weight.shape[1])
    return Mixture(experts, router)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_a_switch_by_hand():
    """Two experts, room for two tokens each; logits are the tokens, and three want expert 0."""
    gating = Switch(count=2, capacity=1.0, balance=0.01, jitter=0.0)
    mixture = by_hand(gating, torch.eye(2), (10.0, -1.0))
    tokens = torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [3.0, 0.0]]])
    with watching() as routings:
        found = mixture(tokens)
    share = [sigmoid(2), sigmoid(1), sigmoid(1)]
    sent = [[20 * share[0], 0.0], [0.0, -share[1]]], [[10 * share[2], 0.0], [0.0, 0.0]]
    torch.testing.assert_close(found, torch.tensor(sent))
    first = (sigmoid(2) + sigmoid(-1) + sigmoid(1) + sigmoid(3)) / 4
    expected = 0.01 * 2 * (0.75 * first + 0.25 * (1 - first))
    assert balance_loss(routings).item() == pytest.approx(expected)
    mixture.eval()
    assert mixture(tokens)[1, 1].tolist() == pytest.approx([30 * sigmoid(3), 0.0])


def test_noisy_top_k_by_hand():
    """Three experts, logits 1, 0 and -1 of each of two tokens; room for two tokens."""
    gating = NoisyTopK(count=3, chosen=2, noise=False, capacity=1.25)
    mixture = by_hand(gating, torch.tensor([[1.0], [0.0], [-1.0]]), (10.0, 100.0, 1000.0))
    found = mixture(torch.ones(1, 2, 1))
    expected = 10 * sigmoid(1) + 100 * sigmoid(-1)
    assert found.flatten().tolist() == pytest.approx([expected, expected])


def test_first_choices_come_before_second_ones():
    """Room for two: of the four choices of expert 0 the first ones of tokens 1 and 2 stay."""
    gating = NoisyTopK(count=4, chosen=2, noise=False, capacity=1.0)
    router = by_hand(gating, torch.eye(4), (1.0,) * 4).router
    routing = router(torch.tensor([[1.0, 2, 0, 0], [2, 1, 0, 0], [2, 1, 0, 0], [1, 0, 0, 2]]))
    assert routing.chosen.tolist() == [[1, 0], [0, 1], [0, 1], [3, 0]]
    assert routing.fits.tolist() == [[True, False], [True, True], [True, False], [True, False]]


def test_balance_of_uniform_and_of_collapsed_routing():
    whole = torch.ones(4, 1, dtype=torch.bool)
    even = Routing(torch.arange(4)[:, None], whole, whole, torch.full((4, 4), 0.25), 0.5)
    one = torch.zeros(4, 4).index_fill(1, torch.tensor([2]), 1.0)
    all_to_one = Routing(torch.full((4, 1), 2), whole, whole, one, 0.5)
    assert float(even.balance_loss()) == 0.5 and float(all_to_one.balance_loss()) == 4 * 0.5


def test_noise_has_the_deviation_that_its_layer_says_and_evaluation_has_none():
    """Softplus of 0, the logarithm of 2, before training."""
    router = NoisyTopK(count=2).router(1, DRAW)
    tokens = torch.zeros(20000, 1)
    with seeded(0, "trial"):
        drawn = router.logits(tokens)
    assert float(drawn.detach().std()) == pytest.approx(math.log(2), rel=0.02)
    jittered = Switch(jitter=0.3).router(1, DRAW)
    with seeded(0, "trial"):
        ratio = (jittered.logits(tokens + 1) / jittered.layer.weight.flatten()).flatten()
    assert float(ratio.detach().std()) == pytest.approx(0.6 / 12**0.5, rel=0.02)
    assert float(ratio.detach().min()) >= 0.7 - 1e-6
    before = global_state()
    assert not router.eval().logits(tokens).any()
    assert torch.equal(jittered.eval().logits(tokens + 1)[0], jittered.layer.weight.flatten())
    assert global_state() == before


def by_name(tail, gradient):
    """Part a gradient by names of weights, those of a first expert as in a dense tail."""
    names, weights = zip(*tail.named_parameters(), strict=True)
    parts = gradient.split([one.numel() for one in weights])
    return {k.replace("experts.0.", ""): part for k, part in zip(names, parts, strict=True)}


@pytest.mark.parametrize("end", [0, 2])
def test_one_expert_is_the_dense_tail_bit_for_bit(end):
    link, found = Link(Identity(), Identity()), batch()
    steps, names = [], []
    for spec in ("none()", "switch(count=1, jitter=0.0)"):
        head, tail = halves(spec, end=end)
        flats = Flat(head), Flat(tail)
        steps.append(crossing(head).step(*flats, link, found, AT))
        names.append(by_name(tail, steps[-1].of_tail))
    assert steps[0].loss == steps[1].loss and torch.equal(steps[0].of_head, steps[1].of_head)
    routers = {name for name in names[1] if "router" in name}
    assert len(routers) == (1 if end else 2) and not any(names[1][name].any() for name in routers)
    assert {*names[1]} - routers == {*names[0]}
    assert all(torch.equal(names[1][name], one) for name, one in names[0].items())


@pytest.mark.parametrize("end", [0, 2])
@pytest.mark.parametrize("spec", SPECS)
def test_gradients_are_those_of_one_model_with_the_balance_loss(spec, end):
    head, tail = halves(spec, end=end)
    found, weights = batch(), [*head.parameters(), *tail.parameters()]
    with seeded(0, "tail", *AT.path()), watching() as routings:
        logits = joined(head, tail, found.pixels)
    loss = functional.cross_entropy(logits, found.labels)
    expected = torch.autograd.grad(loss + balance_loss(routings), weights, materialize_grads=True)
    step = crossing(head).step(Flat(head), Flat(tail), Link(Identity(), Identity()), found, AT)
    assert step.loss == pytest.approx(float(loss.detach()))  # without the balance loss
    whole = torch.cat([one.flatten() for one in expected])
    torch.testing.assert_close(torch.cat([step.of_head, step.of_tail]), whole)
    routers = [one for name, one in by_name(tail, step.of_tail).items() if "router.layer" in name]
    assert routers and all(bool(one.any()) for one in routers)


def test_gradients_reach_the_chosen_expert_only():
    head, tail = halves("switch(capacity=4.0, blocks=3)")
    (mixture,) = mixtures(head, tail).values()
    mixture.router.layer.weight.data = torch.zeros(4, 16)
    mixture.router.layer.bias = torch.nn.Parameter(torch.tensor([0.0, 0.0, 9.0, 0.0]))
    logits = joined(head, tail, batch().pixels)
    functional.cross_entropy(logits, torch.zeros(5, dtype=torch.long)).backward()
    reached = [expert.fc1.weight.grad is not None for expert in mixture.experts]
    assert reached == [False, False, True, False]


@pytest.mark.parametrize("exchange", [Split(), UShape()])
@pytest.mark.parametrize("room", [GraphMemory().limit, 0])
def test_who_is_served_beside_a_client_changes_nothing_for_it(exchange, room):
    """Cut gradients of three clients together, in another order, and alone; weights are exact."""
    is_split = exchange == Split()
    head, tail = halves("switch(capacity=1.0, jitter=0.1)", end=0 if is_split else 2)
    link, flat = Link(Identity(), Identity()), Flat(tail)
    payloads = {}
    for client in range(3):
        at = replace(AT, client=client)
        sent = exchange.smash(head, link.codec, batch(4, seed=client), at, {})
        payloads[client] = (link.up(sent, at), at)

    def cuts(clients):
        arrivals = {k: link.arrive(*payloads[k], tail) for k in clients}
        assert batches(tail, arrivals) == [[client] for client in clients]
        weights = {k: 0.5**place for place, k in enumerate(clients)}
        served = exchange.serve(flat, arrivals, weights, AT, GraphMemory(room))
        if isinstance(served, HalfServed):
            values = {k: one.carried["tokens"] for k, one in served.outputs.items()}
            served = served.resume({k: (0.0, value.sin()) for k, value in values.items()})
        return {k: one.carried["tokens"] for k, one in served.cuts.items()}

    together, in_turn = cuts([0, 1, 2]), cuts([2, 1, 0])
    for client in range(3):
        alone = cuts([client])[client]
        assert torch.equal(together[client], alone) and torch.equal(in_turn[client], alone)


def test_an_image_s_answer_does_not_depend_on_the_images_beside_it():
    head, tail = (half.eval() for half in halves("switch(capacity=1.0)"))
    pixels = batch(6).pixels
    alone = torch.cat([predict(head, tail, one[None]) for one in pixels])
    torch.testing.assert_close(predict(head, tail, pixels), alone)


@pytest.mark.parametrize("spec", ["switch(capacity=4.0)", "noisy_top_k(capacity=4.0)"])
def test_operations_equal_torchs_counter(spec):
    _, tail = halves(spec)
    tokens = torch.randn(5, 7, 16, generator=DRAW, requires_grad=True)
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), seeded(0, "trial"), counter:
        output = tail(tokens)
        forward = counter.get_total_flops()
        output.sum().backward()
    assert tail.forward_flops(5, 7) == forward
    assert tail.flops(5, 7) == counter.get_total_flops()


def test_memory_is_estimated_within_a_factor_of_two():
    _, tail = halves("switch()")
    tokens = torch.randn(4, 40, 16, generator=DRAW, requires_grad=True)
    with saved() as sizes, seeded(0, "trial"):
        logits = tail(tokens)
    truth = activation_bytes(sizes, tail.parameters())
    del logits  # whose graph was kept so long
    assert truth / 2 <= tail.activation_bytes(4, 40) <= 2 * truth


def test_active_operations_by_hand():
    """One of four experts costs the dense tail and a router of 2 D E for each token and block."""
    (_, dense), (_, one), (_, two) = (
        halves(spec) for spec in ("none()", "switch()", "noisy_top_k(noise=False)")
    )
    router, mlp = 2 * 16 * 4, 2 * 2 * 16 * 64
    assert one.forward_flops(1, 7) - dense.forward_flops(1, 7) == 2 * 7 * router
    assert two.forward_flops(1, 7) - dense.forward_flops(1, 7) == 2 * 7 * (router + mlp)


def test_experts_are_copies_of_a_trained_mlp_or_drawn_apart():
    (head, dense), (_, copies), (_, drawn) = (
        halves("none()"),
        halves("noisy_top_k()", are_copies=True),
        halves("noisy_top_k()"),
    )
    pixels = batch().pixels
    models = [(head.eval(), tail.eval()) for tail in (dense, copies, drawn)]
    before, same, other = (predict(*model, pixels) for model in models)
    torch.testing.assert_close(same, before)
    assert not torch.allclose(other, before, atol=1e-3)
    experts = mixtures(head, drawn)[2].experts
    first, *others = (expert.fc1.weight.detach().flatten() for expert in experts)
    for one in others:
        assert float(one.std()) == pytest.approx(float(first.std()), rel=0.1)
        assert abs(float(functional.cosine_similarity(one, first, dim=0))) < 0.15


def test_without_experts_nothing_changes():
    (_, tail), dense = (
        halves("none()"),
        SMALL.build(image_size=8, channels=1, num_classes=4, seed=0),
    )
    before = SMALL.split(dense, 1)[1].state_dict()
    assert list(tail.state_dict()) == list(before) and not tail.serves_alone
    assert all(torch.equal(one, before[name]) for name, one in tail.state_dict().items())
    assert isinstance(Experiment().parts.experts, NoExperts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experts": "switch(blocks=1)"}, r"experts: blocks: the server has blocks 2\.\.3, got 1"),
        ({"experts": "switch(blocks='2, 2')"}, "name each block once"),
        ({"experts": "switch(blocks='last')"}, "'all' or numbers of blocks"),
        ({"experts": "switch(blocks=3)", "end": 2}, r"the server has blocks 2\.\.2, got 3"),
        ({"experts": "switch()", "freeze": "block2"}, "the MLP of block 2 is frozen"),
        ({"experts": "switch()", "model": "lenet(image_size=16)"}, "only blocks of a ViT"),
    ],
)
def test_what_cannot_have_experts_is_refused(changes, message):
    model = "vit(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=4)"
    with pytest.raises(ValueError, match=message):
        prepare(Experiment.from_dict({"model": model, "cut": 1, **changes}))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("noisy_top_k(chosen=1)", "chosen"),
        ("noisy_top_k(count=2, chosen=3)", "chosen must be at most count=2, got 3"),
        ("switch(capacity=0.5)", "capacity"),
        ("switch(count=0)", "count"),
    ],
)
def test_nonsense_in_a_spec_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        Experiment.from_dict({"experts": spec})


RUN = {"experts": "switch(jitter=0.1)", "clients": 3, "local_steps": 2, "batch_size": 8}


TRIED = {"parallel", "fedavg", "sflv1", "centralised"}
"""Strategies of other tests here."""


def same(one, other):
    """Bit-equality of all that two runs have trained, and of where experts' tokens come from."""
    weights = [load_file(run.folder / "codec.safetensors") for run in (one, other)]
    assert any("router" in name for name in weights[0])
    are_equal = all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    files = [(run.folder / "routing.csv").read_bytes() for run in (one, other)]
    return one.equals(other) and are_equal and files[0] == files[1]


@pytest.mark.parametrize("changes", [{}, {"end": 2}, {"strategy": "fedavg()"}])
def test_ray_and_clients_without_memory_equal_inline(changes, reference, on_ray, through_state):
    inline = reference(**RUN, **changes)
    assert same(inline, on_ray(**RUN, **changes))
    assert same(inline, through_state(**RUN, **changes))


@pytest.mark.parametrize("strategy", sorted({*STRATEGIES} - TRIED - {"fsl_sage"}))
def test_every_other_strategy_trains_and_tests_experts(simulate, strategy):
    found = simulate(**{**RUN, "rounds": 1, "local_steps": 1}, strategy=strategy)
    assert found.rounds.loss.notna().all() and found.rounds.train_loss.notna().all()
    keeps_models = parse(strategy, STRATEGIES).keeps_models
    assert (found.folder / "routing.csv").exists() != keeps_models


def test_sflv1_equals_fedavg(reference):
    first, second = (reference(**RUN, strategy=one) for one in ("sflv1()", "fedavg()"))
    assert same(first, second)
    more = second.rounds["head_bytes_up"]  # whole models travel, with all experts
    setup = prepare(Experiment.from_dict({**second.summary["experiment"], "out": ""}))
    weights = sum(p.numel() for half in (setup.head, setup.tail) for p in half.parameters())
    assert (more >= 3 * 4 * weights).all() and (more < 3 * 4 * weights * 1.1).all()


@pytest.mark.parametrize("strategy", ["parallel()", "centralised()"])
def test_a_stopped_run_goes_on_as_if_it_never_stopped(strategy, simulate, resume):
    changes = {**RUN, "checkpoint_every": 1, "strategy": strategy}

    def stop(row, result):
        if row["round"] == 1:
            raise KeyboardInterrupt

    whole = simulate(**changes)
    with pytest.raises(KeyboardInterrupt):
        simulate(watch=stop, **changes)
    half = type(whole)(whole.folder.parent / "run2")
    resume(half)
    assert same(whole, half)


def test_the_saved_model_has_the_loss_of_the_run(reference):
    outcome = reference(**RUN)
    setup = prepare(Experiment.from_dict({**outcome.summary["experiment"], "out": ""}))
    found = load_halves(outcome.folder, setup.experiment, setup.model_input)
    head, tail = (one.eval() for one in found[1:])
    pixels, labels = setup.test.batch(np.arange(len(setup.test.labels)))
    loss = functional.cross_entropy(predict(head, tail, pixels), labels)
    assert outcome.rounds["loss"].iloc[-1] == pytest.approx(float(loss), rel=1e-5)


def test_routing_of_a_run_counts_the_tokens_of_each_client(reference):
    """Three clients, 341 images of each at most, of 4 patches and CLS."""
    frame = pd.read_csv(reference(**RUN).folder / "routing.csv")
    assert frame.groupby(["client", "block"])["tokens"].sum().mod(5).eq(0).all()
    held = frame.groupby(["client", "block"])["tokens"].sum() / 5
    assert held.max() <= 341 and len(frame) == 3 * 2 * 4
    assert (frame["over"] <= frame["tokens"]).all()


def routed(rows):
    """Return a table of one block: cluster and tokens of each of two experts, by client."""
    return pd.DataFrame(
        {"client": client, "cluster": cluster, "block": 3, "expert": expert, "tokens": n, "over": 0}
        for client, (cluster, *tokens) in enumerate(rows)
        for expert, n in enumerate(tokens)
    )


def test_measures_by_hand():
    """Experts that follow clusters, that ignore them, and one that has three quarters."""
    follow = routed([("0", 10, 0)] * 4 + [("1", 0, 10)] * 4)
    (found,) = measures(follow, 0).to_dict("records")
    assert (found["load_cv2"], found["nmi"]) == (0.0, pytest.approx(1.0))
    assert found["nmi_shuffled"] < 0.6 and found["p_value"] < 0.1
    (found,) = measures(routed([("0", 9, 3)] * 2 + [("1", 9, 3)] * 2), 0).to_dict("records")
    assert found["load_cv2"] == pytest.approx(0.25)  # 3/4 and 1/4 of a mean of 1/2: (1/2)^2
    assert found["nmi"] == pytest.approx(0, abs=1e-12) and found["p_value"] == 1.0
    (found,) = measures(routed([("0", 1, 2), ("1", 3, 4)]), 0).to_dict("records")
    assert found["nmi"] is None  # dealing out two clusters of one client each changes nothing


def test_a_report_shows_experts(reference):
    collection = collect([reference(**RUN).folder])
    shown = table(collection)
    assert [row[0].rpartition(": ")[2] for row in shown.rows] == ["block 2", "block 3"]
    assert len(figures(collection)) == 1
    assert table(collect([reference().folder])) is None


def test_images_of_different_numbers_of_tokens_are_refused_in_one_line():
    with pytest.raises(ValueError, match="experts: experts give room to a whole batch"):
        prepare(
            Experiment.from_dict(
                {"experts": "switch()", "tokens": "dual_gate(rate_mode='threshold')"}
            )
        )


def test_a_client_without_images_is_no_cluster(simulate):
    """Of clients some hold nothing, some a single class, whose name reads as a number."""
    partition = "dirichlet(alpha=0.02)"
    run = simulate(experts="switch(count=2)", clients=40, partition=partition, rounds=1)
    frame = pd.read_csv(run.folder / "routing.csv")
    assert 0 < frame["client"].nunique() < 40 and frame["cluster"].notna().all()
    assert len(measures(frame, 0)) == frame["block"].nunique()
