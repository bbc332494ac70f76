"""The rest of the baselines: what each must equal, and what must never happen in it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flwr.app import Message

from fl_split.exchange.records import GRADIENT, HEAD, TAIL, Weights
from fl_split.payload import Payload
from simulations.clients import client_app
from strategies.fedprox import Proximal, ProximalRound
from strategies.server import flower_messages, flower_private
from strategies.server.aggregation import (
    Aggregator,
    Update,
    dp,
    fedadam,
    fedavgm,
    fedyogi,
    krum,
    median,
    trimmed_mean,
)
from strategies.sglr import average

UNEVEN = {"partition": "dirichlet(alpha=0.3)"}
SGD = {"head_optimizer": "sgd(lr=0.1)", "tail_optimizer": "sgd(lr=0.1)"}


def close(first, second, atol=1e-6):
    return all(torch.allclose(first.model[k], second.model[k], atol=atol) for k in first.model)


def test_sflv3_averages_after_one_round_what_sflv1_does(simulate):
    """Its saved model is the mean over private heads; in later rounds these never meet."""
    assert close(simulate(strategy="sflv3", rounds=1), simulate(strategy="sflv1", rounds=1))
    outcome = simulate(strategy="sflv3", rounds=3)
    assert not close(outcome, simulate(strategy="sflv1", rounds=3), 1e-3)
    assert outcome.rounds[["head_bytes_up", "head_bytes_down"]].to_numpy().sum() == 0


def test_sflv3_heads_never_mix(simulate):
    """With a tail that does not learn, a client's head depends on its own data alone."""
    frozen = {"tail_optimizer": "sgd(lr=0.0)", "head_optimizer": "sgd(lr=0.1)", "rounds": 2}
    heads = {}

    def watch(message: Message, context):
        reply = client_app.app(message, context)
        if flower_messages.read(message).action == flower_messages.OWN_HEAD:
            found = flower_messages.read(reply).weights[HEAD].numpy()
            heads[context.node_config["partition-id"]] = found
        return reply

    simulate(watch, strategy="sflv3", **frozen)
    together = dict(heads)
    heads.clear()
    simulate(watch, strategy="parallel(average_heads=False)", **frozen)
    assert together.keys() == heads.keys() == set(range(6))
    for client in heads:
        np.testing.assert_allclose(together[client], heads[client], atol=1e-5)
    assert not np.allclose(heads[0], heads[1])


def test_sglr_without_averaging_and_scaling_is_psl(simulate):
    psl = simulate(strategy="parallel(average_heads=False)", **UNEVEN)
    assert simulate(strategy="sglr(phi=0.0, alpha=0.0)", **UNEVEN).equals(psl)


def test_sglr_scales_the_tails_learning_rate_by_clients_to_the_alpha(simulate):
    base = {"head_optimizer": "sgd(lr=0.1)", "clients": 4}
    scaled = simulate(strategy="sglr(phi=0.0, alpha=0.5)", tail_optimizer="sgd(lr=0.01)", **base)
    psl = "parallel(average_heads=False)"
    assert scaled.equals(simulate(strategy=psl, tail_optimizer="sgd(lr=0.02)", **base))


def test_sglr_averages_cut_gradients_of_one_shape_among_those_drawn():
    cuts = {c: Payload({"tokens": torch.full((2, 3), float(c))}) for c in (1, 2, 6, 7)}
    cuts[9] = Payload({"tokens": torch.full((1, 3), 9.0)})
    found = average([1, 2, 6, 9], cuts)
    values = {
        client: payload.carried["tokens"].unique().tolist() for client, payload in found.items()
    }
    assert values == {1: [3.0], 2: [3.0], 6: [3.0], 7: [7.0], 9: [9.0]}
    assert found[9].carried["tokens"].shape == (1, 3)


@pytest.mark.parametrize(("phi", "expected"), [(1.0, 1), (0.5, 4), (0.0, 6)])
def test_sglr_sends_one_gradient_to_the_drawn_clients(simulate, phi, expected):
    seen = {}

    def watch(message: Message, context):
        record = flower_messages.read(message)
        if record.action == GRADIENT:
            gradient = Payload.from_bytes(record.sent())
            seen.setdefault(context.node_config["partition-id"], gradient.carried["tokens"])
        return client_app.app(message, context)

    simulate(watch, strategy=f"sglr(phi={phi})", partition="iid", rounds=1, local_steps=1)
    distinct = {tensor.numpy().tobytes() for tensor in seen.values()}
    assert len(seen) == 6 and len(distinct) == expected


def test_fedprox_without_pull_is_fedavg(simulate):
    assert simulate(strategy="fedprox(mu=0.0)", **UNEVEN).equals(
        simulate(strategy="fedavg", **UNEVEN)
    )


def test_fedprox_pulls_to_the_global_model(simulate):
    """The first step starts at the anchor, so one step is FedAvg's; a second one is not."""
    one, two = {"local_steps": 1, **SGD}, {"local_steps": 2, **SGD}
    assert simulate(strategy="fedprox(mu=3.0)", **one).equals(simulate(strategy="fedavg", **one))
    assert not close(
        simulate(strategy="fedprox(mu=3.0)", **two), simulate(strategy="fedavg", **two)
    )
    weights, came = torch.tensor([3.0, 2.0]), torch.tensor([1.0, 2.0])
    half = SimpleNamespace(vector=weights, statistics=None)
    local = SimpleNamespace(exchange=Proximal(mu=0.5), halves={HEAD: half}, starts={HEAD: came})
    found = ProximalRound.corrected(local, HEAD, torch.tensor([0.25, 0.5]))
    assert found.tolist() == [1.25, 0.5]


def test_local_training_of_one_client_is_centralised(simulate):
    one = {"clients": 1, "partition": "iid", "rounds": 3}
    assert simulate(strategy="local", **one).equals(simulate(strategy="centralised", **one))


def test_local_models_never_travel_and_all_clients_count(simulate):
    outcome = simulate(strategy="local", fraction=0.5, rounds=3)
    traffic = [column for column in outcome.rounds if "_bytes_" in column]
    assert outcome.rounds[traffic].to_numpy().sum() == 0
    assert outcome.rounds["client_flops"].iloc[0] > 0
    assert (outcome.clients.groupby("round").size() == 3).all()


def test_the_official_scripts_change_nothing_where_they_cannot(simulate):
    """Plain SGD has no state to lose and equal clients have equal weights."""
    even = {"clients": 6, "partition": "iid", "local_steps": 2, **SGD}
    for name in ("sflv1", "sflv2(order='cyclic'", "sequential(order='cyclic'"):
        plain = name + (")" if "(" in name else "")
        official = name + (", " if "(" in name else "(") + "official_scripts=True)"
        first, second = simulate(strategy=plain, **even), simulate(strategy=official, **even)
        assert close(first, second, 1e-3)  # 239 and 238 samples are nearly equal
        adam = {**even, "tail_optimizer": "adam(lr=0.01)"}
        assert not close(
            simulate(strategy=plain, **adam), simulate(strategy=official, **adam), 1e-3
        )


def replies(*vectors, examples=None):
    flower_private.be_in_a_run()
    counts = examples or [1] * len(vectors)
    return [
        Update(client, count, start(*vector))
        for client, (count, vector) in enumerate(zip(counts, vectors, strict=True))
    ]


def start(*numbers):
    return {HEAD: Weights.of(np.asarray(numbers, np.float32))}


def head(weights):
    return weights[HEAD].numpy()


def test_server_momentum_by_hand():
    """v <- 0.5 v + (w - mean), w <- w - 0.1 v, in two rounds."""
    aggregator = fedavgm(server_learning_rate=0.1, server_momentum=0.5)
    first = head(aggregator(1, replies([2.0], [4.0]), start(1.0), 0))  # mean 3, v = -2
    np.testing.assert_allclose(first, [1.2], rtol=1e-6)
    second = head(aggregator(2, replies([2.2]), start(*first), 0))  # v = -1 - 1
    np.testing.assert_allclose(second, [1.4], rtol=1e-6)


def test_server_adam_by_hand():
    """Flower corrects the bias by powers of round + 1."""
    aggregator = fedadam(eta=0.1, beta_1=0.9, beta_2=0.99, tau=0.001)
    found = head(aggregator(1, replies([3.0], [5.0], examples=[3, 1]), start(1.0), 0))
    delta = 3.5 - 1.0
    step = 0.1 * np.sqrt(1 - 0.99**2) / (1 - 0.9**2)
    expected = 1.0 + step * (0.1 * delta) / (np.sqrt(0.01 * delta**2) + 0.001)
    np.testing.assert_allclose(found, [expected], rtol=1e-6)
    assert found.dtype == np.float32


def algorithm_2(weights, deltas, eta, beta_1, beta_2, tau):
    """Reddi et al., with v starting at tau^2; return the weights after every round, float64."""
    m, v, found = np.zeros_like(weights), np.full_like(weights, tau**2), []
    for delta in deltas:
        m = beta_1 * m + (1 - beta_1) * delta
        v = beta_2 * v + (1 - beta_2) * delta**2
        weights = weights + eta * m / (np.sqrt(v) + tau)
        found.append(weights)
    return found


@pytest.mark.parametrize("statistics", [None, {HEAD: torch.tensor([2, 4])}])
def test_server_adam_of_the_paper_is_algorithm_2(statistics):
    """Twelve rounds, going on from what is saved after six."""
    draw, settings = np.random.default_rng(0), (0.1, 0.9, 0.99, 0.5)
    deltas = draw.normal(size=(12, 5))
    expected = algorithm_2(np.zeros(5), deltas, *settings)
    aggregator, weights = fedadam(*settings, paper=True), np.zeros(5)
    stepped = [0, 1, 3] if statistics else range(5)
    for number, delta in enumerate(deltas, start=1):
        clients = replies(weights + delta + 0.1, weights + delta - 0.3, examples=[3, 1])
        weights = head(aggregator(number, clients, start(*weights), 0, statistics))
        np.testing.assert_allclose(weights[stepped], expected[number - 1][stepped], atol=1e-5)
        if number == 6:
            state, aggregator = aggregator.state(), fedadam(*settings, paper=True)
            aggregator.set_state(state)


@pytest.mark.parametrize(("number", "factor"), [(1, 0.74), (2, 0.64), (10, 0.47)])
def test_flowers_server_adam_takes_less_of_eta_by_the_factor_that_is_documented(number, factor):
    """From v = 0 the first step is eta * factor * 0.1 delta / (0.1 delta), with a tiny tau."""
    aggregator = fedadam(eta=1.0, tau=1e-9)
    found = head(aggregator(number, replies([4.0]), start(0.0), 0))
    assert found[0] == pytest.approx(factor, abs=0.005)


def test_robust_aggregations_ignore_a_wild_client():
    vectors = [[1.0, 9.0], [2.0, 8.0], [3.0, 7.0], [4.0, 6.0], [1e6, -1e6]]
    zero = start(0.0, 0.0)
    np.testing.assert_array_equal(head(median()(1, replies(*vectors), zero, 0)), [3.0, 7.0])
    trimmed = trimmed_mean(beta=0.2)(1, replies(*vectors), zero, 0)
    np.testing.assert_array_equal(head(trimmed), [3.0, 7.0])  # means of the middle three
    assert head(krum(malicious=1)(1, replies(*vectors), zero, 0)).tolist() in vectors[:4]


def test_differential_privacy_clips_and_adds_seeded_noise():
    zero, vectors = start(0.0, 0.0), ([3.0, 4.0], [0.0, -0.5])
    quiet = head(dp(0.0, 1.0)(1, replies(*vectors), zero, 0))
    np.testing.assert_allclose(quiet, [0.3, 0.15], rtol=1e-6)  # the first clipped to length 1
    many = start(*np.zeros(20000))
    draws = [head(dp(2.0, 1.0)(1, replies(np.full(20000, 1e-9)), many, seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    assert draws[0].std() == pytest.approx(2.0, rel=0.03)


def test_differential_privacy_counts_clients_equally():
    found = dp(0.0, 100.0)(1, replies([1.0], [3.0], examples=[99, 1]), start(0.0), 0)
    assert head(found).tolist() == [2.0]


@pytest.mark.parametrize("make", [fedavgm, fedadam, lambda: dp(3.0, 1.0), median])
def test_running_statistics_are_averaged_whatever_becomes_of_weights(make):
    """Number 1 of the vector is one: its mean is (3 * 0.2 + 0.6) / 4."""
    aggregator, statistics = make(), {HEAD: torch.tensor([1])}
    for number in (1, 2):
        clients = replies([5.0, 0.2], [7.0, 0.6], examples=[3, 1])
        found = head(aggregator(number, clients, start(1.0, 1.0), 0, statistics))
        assert found[1] == pytest.approx(0.3, rel=1e-6)


def nearest(vectors, malicious):
    """Krum by its definition: the least sum of squared distances to the n - f - 2 nearest."""
    closest = len(vectors) - malicious - 2
    scores = []
    for mine in vectors:
        distances = sorted(float(((mine - other) ** 2).sum()) for other in vectors)
        scores.append(sum(distances[1 : closest + 1]))  # the first is its own
    return int(np.argmin(scores))


def test_krum_takes_the_client_that_is_nearest_by_weights_alone():
    draw, where, differ = np.random.default_rng(0), np.array([1, 2, 5]), 0
    for _ in range(20):
        clients = draw.normal(size=(6, 8)).astype(np.float32)
        clients[:, where] *= 10
        weights, counts = np.delete(clients, where, axis=1), [1, 2, 3, 4, 5, 6]
        chosen = nearest(weights, malicious=1)
        differ += chosen != nearest(clients, malicious=1)
        statistics = {HEAD: torch.from_numpy(where), TAIL: None}
        sent = replies(*clients, examples=counts)
        found = head(krum(malicious=1)(1, sent, start(*np.zeros(8)), 0, statistics))
        np.testing.assert_array_equal(np.delete(found, where), weights[chosen])
        mean = np.average(clients[:, where], axis=0, weights=counts)
        np.testing.assert_allclose(found[where], mean, rtol=1e-5, atol=1e-6)
    assert differ > 5  # with running statistics others would have been taken


def test_differential_privacy_clips_by_the_norm_of_weights_alone():
    """The weights move by 3 and 4, norm 5, clipped to 1; the statistics by 100 and 300."""
    statistics = {HEAD: torch.tensor([1])}
    sent = replies([3.0, 100.0, 4.0], [0.0, 300.0, 0.5], examples=[3, 1])
    found = head(dp(0.0, 1.0)(1, sent, start(0.0, 0.0, 0.0), 0, statistics))
    np.testing.assert_allclose(found, [0.3, 150.0, 0.65], rtol=1e-6)


def test_updates_of_weights_below_the_clipping_norm_are_not_clipped(simulate):
    """One small step: weights move by less than 0.1, running statistics by more than 1."""
    resnet = {
        "model": "resnet18(width=4, small_images=True, image_size=16)", "cut": "stage1.1",
        "strategy": "fedavg", "rounds": 1, "local_steps": 1,
        "head_optimizer": "sgd(lr=0.01)", "tail_optimizer": "sgd(lr=0.01)",
    }  # fmt: skip
    tight, wide = (simulate(**resnet, aggregation=f"dp(0.0, {norm})") for norm in (0.5, 1e6))
    assert tight.equals(wide)
    assert not tight.equals(simulate(**resnet, aggregation="dp(0.0, 0.01)"))


@pytest.mark.parametrize("make", [fedavgm, fedadam, fedyogi])
def test_memories_are_of_weights_alone_and_can_be_set(make):
    statistics, weights, whole = {HEAD: torch.tensor([0])}, start(0.0, 1.0, 2.0), make()
    for number in (1, 2):
        weights = whole(number, replies([9.0, number, 5.0]), weights, 0, statistics)
    assert {len(memory) for memory in whole.state().values()} == {2}
    resumed: Aggregator = make()
    resumed.set_state(whole.state())
    first, second = (
        head(one(3, replies([7.0, 0.5, 0.25]), weights, 0, statistics)) for one in (whole, resumed)
    )
    np.testing.assert_array_equal(first, second)
    assert first[0] == 7.0


@pytest.mark.parametrize("strategy", ["sequential()", "local()", "parallel(average_heads=False)"])
def test_an_aggregation_of_nothing_is_refused(simulate, strategy):
    with pytest.raises(ValueError, match="averages nothing"):
        simulate(strategy=strategy, aggregation="median()")


@pytest.mark.parametrize("codec", ["adc(ratio=0.5)", "topk(ratio=0.5) | fp16()", "splitfc()"])
def test_sglr_refuses_codecs_that_send_other_places_of_every_sample(simulate, codec):
    with pytest.raises(ValueError, match="place by place"):
        simulate(strategy="sglr", codec=codec)
    assert simulate(strategy="sglr(phi=0.0)", codec=codec, rounds=1).summary["rounds"] == 1


@pytest.mark.parametrize("make", [fedavgm, fedadam])
def test_what_an_aggregation_remembers_can_be_set(make):
    whole, weights = make(), start(1.0, 2.0)
    for number in (1, 2):
        weights = whole(number, replies([number, 5.0]), weights, 0)
    resumed: Aggregator = make()
    resumed.set_state(whole.state())
    following = replies([0.5, 0.25])
    first, second = whole(3, following, weights, 0), resumed(3, following, weights, 0)
    np.testing.assert_array_equal(head(first), head(second))


@pytest.mark.parametrize(
    "aggregation", ["fedavgm()", "fedadam(eta=0.05)", "median()", "dp(0.1, 5.0)"]
)
def test_sflv1_is_fedavg_under_any_aggregation(simulate, reference, aggregation):
    first = simulate(strategy="sflv1", aggregation=aggregation, **UNEVEN)
    assert first.equals(simulate(strategy="fedavg", aggregation=aggregation, **UNEVEN))
    assert not first.equals(reference(strategy="sflv1", **UNEVEN))


@pytest.mark.parametrize(
    "changes",
    [{"strategy": "fedavg", "aggregation": "fedadam(eta=0.05)"}, {"strategy": "local"},
     {"strategy": "sflv3"}, {"strategy": "sglr"}],
)  # fmt: skip
def test_these_too_go_on_where_they_stopped(simulate, resume, changes):
    import shutil

    whole = simulate(rounds=4, checkpoint_every=2, **changes)

    def stop(row, result):
        if row["round"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(rounds=4, checkpoint_every=2, watch=stop, **changes)
    folder = whole.folder.parent / "run2"
    stopped = type(whole)(folder)
    resume(stopped)
    assert stopped.equals(whole)
    shutil.rmtree(folder)
