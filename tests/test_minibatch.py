"""MiniBatch-SFL and S2FL: batches that add up alike, groups of clients, the mean of tails."""

from itertools import combinations

import numpy as np
import pytest
import torch
from torch.nn import functional

from fl_split.flat import Flat
from fl_split.optimizers import OPTIMIZERS
from fl_split.recipe.schedules import ONLY
from fl_split.seeds import generator
from fl_split.specs import parse
from simulations.runs.experiment import Experiment
from simulations.runs.setup import prepare
from strategies.minibatch import MiniBatch, dealt_out
from strategies.s2fl import S2FL, balanced, distance
from strategies.server.participants import Population
from strategies.server.tail import TrainedTail

EQUAL = {
    "clients": 4,
    "partition": "size(partition_sizes=[350, 350, 350, 350])",
    "batch_size": 70,
    "local_steps": 5,
}
"""Four clients, so that n_k / n = 1 / 4 is exact, and batches of one size."""

ONE_STEP = {
    "clients": 4,
    "partition": "dirichlet(alpha=0.5)",
    "batch_size": 40,
    "local_steps": 1,
    "rounds": 1,
    "cut": 1,
}


# Sizes of batches.


def test_samples_are_dealt_out_in_proportion():
    assert dealt_out(16, {0: 10, 1: 20, 2: 50}) == {0: 2, 1: 4, 2: 10}
    assert dealt_out(10, {0: 1, 1: 1, 2: 1}) == {0: 4, 1: 3, 2: 3}  # 10 / 3 each
    assert dealt_out(7, {4: 5, 2: 3, 9: 2}) == {4: 4, 2: 2, 9: 1}  # 3.5, 2.1, 1.4
    assert dealt_out(16, {0: 1, 1: 2, 2: 997}) == {0: 1, 1: 1, 2: 14}  # nobody gets none
    assert dealt_out(6, {0: 1, 1: 2, 2: 3}) == {0: 1, 1: 2, 2: 3}  # all that they hold


def test_batches_of_a_round_add_up_to_batch_size_times_clients():
    draw = np.random.default_rng(0)
    for count in (1, 7, 40):
        held = dict(enumerate(draw.geometric(0.02, count).tolist()))
        people = Population(held, {}, 0.5, 16, 0)
        for number in range(1, 5):
            chosen = MiniBatch().choose(people, number)
            assert list(chosen) == people.sample(number)
            sizes = {client: one.batch_size for client, one in chosen.items()}
            most = sum(held[client] for client in chosen)
            assert sum(sizes.values()) == min(16 * people.per_round, most)
            assert all(1 <= size <= held[client] for client, size in sizes.items())
            assert all(one.rate == 1 for one in chosen.values())


def test_a_union_stays_whole_where_fewer_clients_can_be_drawn():
    held = {client: 100 for client in range(10)}
    few = Population(held, {}, 1.0, 16, 0, away=frozenset(range(6)))
    assert [one.batch_size for one in MiniBatch().choose(few, 1).values()] == [40] * 4


def test_equal_shares_are_parallel_to_the_bit(reference):
    assert reference(strategy="minibatch", **EQUAL).equals(reference(strategy="parallel", **EQUAL))


def test_one_exchange_is_one_step_on_the_concatenated_batches(simulate):
    """Written out: the mean over the union for the tail, own means for heads, weights n_k / n."""
    rates = {"head_optimizer": "sgd(lr=0.5)", "tail_optimizer": "sgd(lr=0.3)"}
    outcome = simulate(strategy="minibatch", **ONE_STEP, **rates)
    setup = prepare(Experiment.from_dict(outcome.summary["experiment"]))
    asked, held = MiniBatch().choose(setup.population(), 1), setup.population().samples
    model, batches = setup.model, {}
    for client, rows in enumerate(setup.train.partitions):
        order = torch.randperm(len(rows), generator=generator(0, "batches", 1, client, 0))
        batches[client] = setup.train.batch(rows[order.numpy()][: asked[client].batch_size])
    pixels, labels = (torch.cat(parts) for parts in zip(*batches.values(), strict=True))
    assert len(labels) == 160 and len({len(batch[1]) for batch in batches.values()}) > 1

    def gradients(pixels, labels):
        model.zero_grad()
        functional.cross_entropy(model(pixels).logits, labels).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    joint = gradients(pixels, labels)
    heads = {client: gradients(*batch) for client, batch in batches.items()}
    for name, before in model.state_dict().items():
        is_head = "embeddings" in name or "layers.0." in name
        mean = sum(held[k] / 1433 * head[name] for k, head in heads.items())
        step = 0.5 * mean if is_head else 0.3 * joint[name]
        torch.testing.assert_close(outcome.model[name], before - step, atol=3e-7, rtol=1e-4)


# Groups.


def labels_of(*holders):
    return dict(enumerate(np.array(holders, float).tolist()))


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_those_that_exhaustive_search_finds(seed):
    """Halves that belong together, wherever the random start has put them."""
    labels = labels_of([9, 1, 0, 0], [8, 0, 0, 0], [0, 0, 9, 9], [1, 9, 8, 8])
    found = balanced(range(4), 2, labels, generator(seed, "groups", 1))

    def mean(pair):
        rest = [client for client in labels if client not in pair]
        halves = [np.sum([labels[k] for k in half], axis=0) for half in (pair, rest)]
        return np.mean([distance(half) for half in halves])

    best = min(combinations(range(4), 2), key=mean)
    assert sorted(found)[0] == list(best)


def test_distance_is_that_of_shares_to_uniform_ones():
    assert distance(np.array([3.0, 3.0, 3.0])) == pytest.approx(0)
    assert distance(np.array([7.0, 0.0])) == pytest.approx(np.sqrt(0.5))
    assert distance(np.array([1.0, 1.0, 2.0, 0.0])) == pytest.approx(np.sqrt(0.125))


@pytest.mark.parametrize("groups", [1, 2, 3, 7])
def test_groups_hold_each_client_once_and_are_never_worse_than_random_ones(groups):
    draw = np.random.default_rng(groups)
    better = 0
    for number in range(8):
        clients = sorted(draw.permutation(50)[:11].tolist())
        labels = dict(enumerate(draw.multinomial(40, draw.dirichlet([0.2] * 6), 50).tolist()))
        order = torch.randperm(11, generator=generator(0, "groups", number)).tolist()
        random = [[clients[i] for i in order[start::groups]] for start in range(groups)]
        found = balanced(clients, groups, labels, generator(0, "groups", number))
        assert sorted(client for group in found for client in group) == clients
        assert max(map(len, found)) - min(map(len, found)) <= 1
        means = [
            np.mean([distance(np.sum([labels[k] for k in part], axis=0)) for part in parts])
            for parts in (found, random)
        ]
        assert means[0] <= means[1] + 1e-12
        better += means[0] < means[1] - 1e-3
    assert better >= 6 or groups == 1


def test_there_are_never_more_groups_than_clients():
    assert balanced([3, 1], 5, {1: [1, 1], 3: [2, 0]}, generator(0, "groups", 1)) in (
        [[1], [3]],
        [[3], [1]],
    )


@pytest.mark.parametrize("optimizer", ["sgd(lr=0.1, momentum=0.9)", "adam(lr=0.003)"])
def test_one_group_is_parallel_to_the_bit(reference, optimizer):
    """Over two rounds, so that what the optimiser remembers goes on as well."""
    values = {**EQUAL, "tail_optimizer": optimizer}
    first, second = (reference(strategy=s, **values) for s in ("s2fl(groups=1)", "parallel"))
    assert first.equals(second)


def tail(optimizer):
    module = torch.nn.Linear(3, 1, bias=False)
    module.weight.data = torch.tensor([[1.0, -2.0, 0.5]])
    return TrainedTail(Flat(module), parse(optimizer, OPTIMIZERS), None)


def test_the_mean_of_tails_that_adam_has_moved_by_hand():
    """The first step of Adam is the rate times the sign: each copy begins without moments."""
    found = tail("adam(lr=0.1)")
    found.descend_apart([torch.tensor([1.0, 5.0, 2.0]), torch.tensor([3.0, -1.0, 4.0])], ONLY)
    wanted = torch.tensor([0.9, -2.0, 0.4])
    torch.testing.assert_close(found.flat.vector.detach(), wanted, atol=1e-6, rtol=0)
    state = found.descent.state()
    torch.testing.assert_close(state["exp_avg"], 0.1 * torch.tensor([2.0, 2.0, 3.0]))
    torch.testing.assert_close(state["exp_avg_sq"], 0.001 * torch.tensor([5.0, 13.0, 10.0]))
    assert float(state["step"]) == 1


def test_with_momentum_the_mean_of_tails_is_a_step_on_the_mean_gradient():
    """As the docstring says; what momentum remembers is linear in gradients."""
    apart, joint = tail("sgd(lr=0.1, momentum=0.9)"), tail("sgd(lr=0.1, momentum=0.9)")
    for seed in range(3):
        both = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed))
        apart.descend_apart(list(both), ONLY)
        joint.descend(both.mean(dim=0), ONLY)
    torch.testing.assert_close(apart.flat.vector, joint.flat.vector)


@pytest.mark.parametrize("kind", [{}, {"end": 2}], ids=["split", "u-shape"])
def test_tails_of_groups_by_the_formulas(simulate, kind):
    """One exchange, SGD: the plain mean of what the mean loss over each group's samples makes."""
    same = "sgd(lr=0.3)"
    rates = {"head_optimizer": same, "tail_optimizer": same}
    outcome = simulate(strategy="s2fl", **ONE_STEP, **rates, **kind)
    setup = prepare(Experiment.from_dict(outcome.summary["experiment"]))
    people = setup.population()
    groups = balanced(range(4), 2, people.labels, generator(0, "groups", 1))
    asked, model = S2FL().choose(people, 1), setup.model
    expected = {}
    for group in groups:
        rows = []
        for client in group:
            held = setup.train.partitions[client]
            draw = generator(0, "batches", 1, client, 0)
            order = torch.randperm(len(held), generator=draw).numpy()
            rows.extend(held[order][: asked[client].batch_size])
        pixels, labels = setup.train.batch(np.array(rows))
        model.zero_grad()
        functional.cross_entropy(model(pixels).logits, labels).backward()
        for name, p in model.named_parameters():
            expected[name] = expected.get(name, 0) + p.grad / 2
    before = model.state_dict()
    middle = [name for name in before if "layers.1." in name]
    assert middle and {len(group) for group in groups} == {2}
    for name in middle:
        wanted = before[name] - 0.3 * expected[name]
        torch.testing.assert_close(outcome.model[name], wanted, atol=3e-7, rtol=1e-4)


def test_a_group_that_lost_its_clients_has_no_part_in_the_mean(simulate, spoilt):
    """Two groups of one: without client 1 the tail follows client 0 alone, as in parallel."""

    def fail(reply):
        raise RuntimeError("battery is empty")

    two = {"clients": 2, "partition": "size(partition_sizes=[350, 350])", "local_steps": 3}
    two |= {"rounds": 1, "head_optimizer": "sgd(lr=0.1)", "tail_optimizer": "sgd(lr=0.1)"}
    first, second = (
        simulate(spoilt({1}, fail, 0), strategy=strategy, **two)
        for strategy in ("s2fl", "parallel")
    )
    assert first.clients.query("dropped != ''")["client"].tolist() == [1]
    whole = simulate(strategy="s2fl", **two)
    for name, value in first.model.items():
        torch.testing.assert_close(value, second.model[name], atol=1e-6, rtol=1e-5)
    name = "vit.embeddings.cls_token"
    assert not torch.allclose(first.model[name], whole.model[name], atol=1e-5)
