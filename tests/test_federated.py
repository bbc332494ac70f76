"""Federated algorithms beside FedAvg: against their papers' formulas, and what they must equal."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flwr.app import Message
from torch.nn import functional
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from fl_split.exchange.records import HEAD, TAIL, Weights
from fl_split.flat import Flat
from fl_split.models.costs import whole_flops, whole_forward_flops
from fl_split.optimizers import SGD, Adam
from fl_split.recipe.descent import Descent
from fl_split.seeds import generator
from simulations.clients import client_app
from simulations.runs.experiment import Experiment
from simulations.runs.setup import prepare
from strategies.fednova import REACHES, FedNova, reach
from strategies.moon import contrast
from strategies.scaffold import VARIATES
from strategies.server import flower_messages
from strategies.server.aggregation import Update

LR = 0.1
PLAIN = {"head_optimizer": f"sgd(lr={LR})", "tail_optimizer": f"sgd(lr={LR})"}
HEAVY = {k: f"sgd(lr={LR}, momentum=0.9)" for k in PLAIN}
TWO = {
    "clients": 2, "rounds": 2, "local_steps": 0, "batch_size": 300,
    "partition": "dirichlet(alpha=0.5)", "cut": 1,
    "model": "vit(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=4)",
}  # fmt: skip
"""Two uneven clients; one takes more steps than the other."""

SHORT = {"clients": 3, "local_steps": 2, "partition": "dirichlet(alpha=0.5)"}
NAMES = ["scaffold", "fednova", "moon", "feddyn(alpha=0.1)"]


class Paper:
    """Two clients and a server in plain torch and float64, on one vector of weights."""

    def __init__(self):
        setup = prepare(Experiment.from_dict({**TWO, "engine": "inline()"}))
        self.model, self.train = copy.deepcopy(setup.model).double(), setup.train
        self.start = parameters_to_vector(self.model.parameters()).detach()
        held = [len(rows) for rows in self.train.partitions]
        self.shares = [count / sum(held) for count in held]
        self.steps = [-(-count // 300) for count in held]
        assert len({*self.steps}) == 2

    def batches(self, number, client):
        rows = self.train.partitions[client]
        order = torch.randperm(len(rows), generator=generator(0, "batches", number, client, 0))
        for part in order.split(300):
            pixels, labels = self.train.batch(rows[part.numpy()])
            yield pixels.double(), labels

    def represent(self, weights, pixels):
        vector_to_parameters(weights, self.model.parameters())
        return self.model.vit(pixels).last_hidden_state[:, 0]

    def gradient(self, weights, batch, term=lambda z: 0.0):
        z = self.represent(weights, batch[0])
        loss = functional.cross_entropy(self.model.classifier(z), batch[1]) + term(z)
        return parameters_to_vector(torch.autograd.grad(loss, [*self.model.parameters()]))

    def mean(self, vectors):
        return sum(p * vector for p, vector in zip(self.shares, vectors, strict=True))


def fedprox(paper, mu):
    x = paper.start
    for number in (1, 2):
        ends = []
        for client in range(2):
            y = x
            for batch in paper.batches(number, client):
                y = y - LR * (paper.gradient(y, batch) + mu * (y - x))
            ends.append(y)
        x = paper.mean(ends)
    return x


def scaffold(paper):
    """Algorithm 1 with option II; also return the server's variate."""
    x, c, own = paper.start, 0.0 * paper.start, [0.0 * paper.start] * 2
    for number in (1, 2):
        ends, changes = [], []
        for client, steps in enumerate(paper.steps):
            y = x
            for batch in paper.batches(number, client):
                y = y - LR * (paper.gradient(y, batch) - own[client] + c)
            new = own[client] - c + (x - y) / (steps * LR)
            ends.append(y)
            changes.append(new - own[client])
            own[client] = new
        x, c = paper.mean(ends), c + paper.mean(changes)
    return x, c


def fednova(paper, rho):
    """Equation 8 with a_k of SGD with momentum."""
    x = paper.start
    norms = [(k - rho * (1 - rho**k) / (1 - rho)) / (1 - rho) for k in paper.steps]
    for number in (1, 2):
        directions = []
        for client, norm in enumerate(norms):
            y, velocity = x, 0.0
            for batch in paper.batches(number, client):
                velocity = rho * velocity + paper.gradient(y, batch)
                y = y - LR * velocity
            directions.append((x - y) / LR / norm)
        x = x - LR * paper.mean(norms) * paper.mean(directions)
    return x


def moon(paper, mu, temperature):
    x, previous = paper.start, [None, None]
    for number in (1, 2):
        for client in range(2):
            y = x
            for batch in paper.batches(number, client):
                with torch.no_grad():
                    towards = paper.represent(x, batch[0])
                    away = towards if number == 1 else paper.represent(previous[client], batch[0])

                def term(z, towards=towards, away=away):
                    like, unlike = (
                        ((z * other).sum(1) / z.norm(dim=1) / other.norm(dim=1) / temperature).exp()
                        for other in (towards, away)
                    )
                    return -mu * (like / (like + unlike)).log().mean()

                y = y - LR * paper.gradient(y, batch, term)
            previous[client] = y
        x = paper.mean(previous)
    return x


def feddyn(paper, alpha):
    """Algorithm 1: the local minimum is sought by the steps that there are."""
    x, h, own = paper.start, 0.0 * paper.start, [0.0 * paper.start] * 2
    for number in (1, 2):
        ends = []
        for client in range(2):
            y = x
            for batch in paper.batches(number, client):
                y = y - LR * (paper.gradient(y, batch) - own[client] + alpha * (y - x))
            own[client] = own[client] - alpha * (y - x)
            ends.append(y)
        h = h - alpha * (paper.mean(ends) - x)
        x = paper.mean(ends) - h / alpha
    return x


@pytest.fixture(scope="module")
def paper():
    return Paper()


def whole(weights, names=(HEAD, TAIL)):
    """Return head and tail as one vector, in the order of the model's parameters."""
    return torch.cat([torch.from_numpy(weights[name].numpy().copy()) for name in names]).double()


@pytest.mark.parametrize(
    ("spec", "optimizers", "formula"),
    [
        ("fedprox(mu=0.5)", PLAIN, lambda paper: fedprox(paper, 0.5)),
        ("fednova()", PLAIN, lambda paper: fednova(paper, 0.0)),
        ("fednova()", HEAVY, lambda paper: fednova(paper, 0.9)),
        ("moon(mu=2.0, temperature=0.3)", PLAIN, lambda paper: moon(paper, 2.0, 0.3)),
        ("feddyn(alpha=0.2)", PLAIN, lambda paper: feddyn(paper, 0.2)),
        ("scaffold()", PLAIN, lambda paper: scaffold(paper)[0]),
    ],
    ids=["fedprox", "fednova", "fednova-momentum", "moon", "feddyn", "scaffold"],
)  # fmt: skip
def test_two_rounds_of_two_clients_are_those_of_the_paper(
    simulate, paper, spec, optimizers, formula
):
    results = []
    simulate(**TWO, **optimizers, strategy=spec, watch=lambda row, result: results.append(result))
    found, expected = whole(results[-1].weights), formula(paper)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-4)
    averaged = fedprox(paper, 0.0)
    assert (expected - averaged).abs().max() > 1e-4, "else FedAvg would pass"
    if spec == "scaffold()":
        variate = whole(results[-1].weights, VARIATES.values())
        torch.testing.assert_close(variate, scaffold(paper)[1], atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("spec", ["moon(mu=0.0)", "feddyn(alpha=0.0)"])
def test_without_their_terms_they_are_fedavg(simulate, reference, spec):
    assert simulate(**SHORT, strategy=spec).equals(reference(**SHORT, strategy="fedavg"))


def test_a_first_round_is_that_of_fedavg_and_a_second_one_is_not(simulate, reference):
    """There are no variates and no previous models yet."""
    for spec in ("scaffold", "moon"):
        for rounds in (1, 2):
            fedavg = reference(**SHORT, rounds=rounds, strategy="fedavg")
            found = simulate(**SHORT, rounds=rounds, strategy=spec)
            assert found.equals(fedavg) == (rounds == 1), spec


def test_scaffold_whose_variates_stay_zero_is_fedavg(simulate, reference):
    def forgetful(message: Message, context):
        reply = client_app.app(message, context)
        record = flower_messages.read(reply)
        if record.weights:
            context.state.clear()
            for key in VARIATES.values():
                zeros = Weights.of(0 * record.weights[key].numpy())
                record.weights[key] = zeros
            part = flower_messages.WEIGHTS_PART
            reply.content[part] = flower_messages.arrays(record.weights)
        return reply

    found = simulate(forgetful, **SHORT, strategy="scaffold")
    assert found.equals(reference(**SHORT, strategy="fedavg"))


@pytest.mark.parametrize("optimizers", [PLAIN, HEAVY], ids=["plain", "momentum"])
def test_fednova_of_equal_steps_is_fedavg_and_of_unequal_ones_is_not(simulate, optimizers):
    for steps in (2, 0):  # 0: as many as a client has batches
        values = {"clients": 3, "partition": "linear", "rounds": 1, "local_steps": steps}
        first, second = (
            simulate(**values, **optimizers, strategy=name) for name in ("fednova", "fedavg")
        )
        assert first.equals(second) == (steps == 2)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (SGD(lr=0.5), 3 * 0.5),
        (SGD(lr=0.5, momentum=0.5), 0.5 * (1 + 1.5 + 1.75)),
        (SGD(lr=0.5, weight_decay=0.2), 0.5 * (1 + 0.9 + 0.81)),
        (Adam(lr=0.5, eps=0.0), 3 * 0.5),
    ],
    ids=str,
)
def test_reach_by_hand(optimizer, expected):
    """Three steps; with weight decay d step i counts (1 - lr d)^(2 - i)."""
    descent = Descent(Flat(torch.nn.Linear(2, 2)), optimizer)
    before = descent.flat.vector.detach().clone()
    assert reach(descent, 1, 3) == pytest.approx(expected, rel=1e-6)
    assert torch.equal(descent.flat.vector.detach(), before)


def test_contrast_by_hand():
    """Cosines 1 and 0 at temperature 0.5: log(1 + e^-2); the other way round log(1 + e^2)."""
    east, north = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    near, far = contrast(east, east, north, 0.5), contrast(east, north, east, 0.5)
    assert float(near) == pytest.approx(0.126928, abs=1e-6)
    assert float(far) == pytest.approx(2.126928, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_end_of_a_u_shape_changes_no_bit(simulate, name):
    """Arithmetic has moved and nothing else, with exits too."""
    values = {**SHORT, "exits": "plain()", "strategy": name}
    without, other = simulate(**values), simulate(**values, end=2)
    assert other.equals(without)
    same = ["train_loss", "client_flops", "head_bytes_up", "head_bytes_down"]
    assert other.rounds[same].equals(without.rounds[same])


@pytest.mark.parametrize("name", NAMES)
def test_what_clients_keep_goes_through_flowers_state(reference, through_state, name):
    values = {**SHORT, "rounds": 3, "fraction": 0.7, "strategy": name}
    live, other = reference(**values), through_state(**values)
    assert live.equals(other)
    assert live.rounds["train_loss"].equals(other.rounds["train_loss"])


@pytest.mark.parametrize("name", ["scaffold", "moon", "feddyn(alpha=0.1)"])
def test_a_client_that_diverged_is_back_in_the_next_round(simulate, name):
    """What it keeps is that of its last good round."""

    def poisoned(message: Message, context):
        record = flower_messages.read(message)
        is_hit = message.metadata.group_id == "2" and context.node_config["partition-id"] == 1
        if is_hit and record.weights:
            nan = {
                key: Weights.of(vector.numpy() * np.nan) for key, vector in record.weights.items()
            }
            message.content[flower_messages.WEIGHTS_PART] = flower_messages.arrays(nan)
        return client_app.app(message, context)

    outcome = simulate(poisoned, **SHORT, rounds=3, strategy=name)
    dropped = outcome.clients.query("dropped != ''")
    assert dropped[["round", "client"]].to_numpy().tolist() == [[2, 1]]
    assert dropped["dropped"].str.contains("not finite").all()


def test_bytes_and_operations_are_those_of_what_is_sent_and_computed(reference):
    """Variates are two more vectors each way; MOON runs two models forward from round 2 on."""
    fedavg, scaffold, moon = (
        reference(**SHORT, strategy=name).rounds for name in ("fedavg", "scaffold", "moon")
    )
    for way in ("head_bytes_up", "head_bytes_down"):
        assert scaffold[way].tolist() == (2 * fedavg[way]).tolist()
        assert moon[way].tolist() == fedavg[way].tolist()
    assert scaffold["client_flops"].tolist() == fedavg["client_flops"].tolist()
    setup = prepare(Experiment.from_dict(reference(**SHORT, strategy="moon").summary["experiment"]))
    both = whole_flops(setup.head, setup.tail, 1), whole_forward_flops(setup.head, setup.tail, 1)
    samples = moon["samples"].tolist()
    assert moon["client_flops"].tolist() == [
        samples[0] * both[0],
        samples[1] * (both[0] + 2 * both[1]),
    ]


def test_running_statistics_have_no_part_in_corrections(simulate, reference):
    """Nothing learns but the statistics of batch norms, and these as in FedAvg."""
    still = {"head_optimizer": "sgd(lr=0.0)", "tail_optimizer": "sgd(lr=0.0)", **SHORT,
             "model": "resnet18(width=4, small_images=True, image_size=16)", "cut": "stage1.1",
             "local_steps": 1}  # fmt: skip
    fedavg = reference(**still, strategy="fedavg")
    for name in ("scaffold", "feddyn(alpha=0.1)"):
        assert simulate(**still, strategy=name).equals(fedavg), name


def test_fednova_normalises_weights_and_leaves_running_statistics():
    """Reaches 1 and 3 of 30 and 10 samples: tau = 1.5, and updates are times 1.5 and 0.5."""
    numbers = [dict.fromkeys(REACHES.values(), told) for told in (1.0, 3.0)]
    ends = [{k: Weights.of(np.float32([5.0, 7.0])) for k in REACHES} for _ in numbers]
    updates = [Update(k, n, ends[k], numbers[k]) for k, n in enumerate((30, 10))]
    start = {k: Weights.of(np.float32([1.0, 1.0])) for k in REACHES}
    round = SimpleNamespace(
        weights=start, statistics={HEAD: torch.tensor([1]), TAIL: None}, average=list
    )
    found = FedNova().aggregate(round, updates)
    assert [one.weights[TAIL].numpy().tolist() for one in found] == [[7.0, 10.0], [3.0, 4.0]]
    assert [one.weights[HEAD].numpy().tolist() for one in found] == [[7.0, 7.0], [3.0, 7.0]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": "scaffold", "aggregation": "median()"}, "corrects by means over clients"),
        ({"strategy": "feddyn", "aggregation": "fedadam()"}, "corrects by means over clients"),
        (
            {"strategy": "moon", "tokens": "residual_gate(after=1, trained_at='image')"},
            "as many tokens of all images",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(simulate, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        simulate(**changes)
    assert "\n" not in str(error.value)


def test_a_client_that_tells_no_possible_reach_is_dropped(simulate, spoilt):
    def lie(reply):
        record = flower_messages.read(reply)
        if "head-reach" in record.numbers:
            reply.content[flower_messages.NUMBERS_PART]["head-reach"] = float("inf")
        return reply

    outcome = simulate(spoilt({1}, lie, 0), **SHORT, strategy="fednova")
    dropped = outcome.clients.query("dropped != ''")
    assert dropped["dropped"].tolist() == ["sent a head-reach of inf"] * 2
    assert all(value.isfinite().all() for value in outcome.model.values())
