"""ADC against hand-worked numbers and against the tables of its authors' code."""

import pytest
import torch
from torch.nn import functional

from fl_split.codecs.adc import ADC, label_mixtures, merge_and_select, read_mixtures
from fl_split.codecs.clusters import kmeans
from fl_split.codecs.codec import Smashed
from fl_split.payload import Payload
from fl_split.recipe.loss import CrossEntropy

# (K, T) of the square-root rule, as the official code computes them.
SQRT = {
    (128, 197): [(12, 19), (28, 44), (40, 62), (57, 88), (70, 107), (80, 124), (90, 139)],
    (32, 197): [(3, 19), (7, 44), (10, 62), (14, 88), (17, 107), (20, 124), (22, 139)],
    (128, 65): [(12, 6), (28, 14), (40, 20), (57, 29), (70, 35), (80, 41), (90, 45)],
    (32, 65): [(3, 6), (7, 14), (10, 20), (14, 29), (17, 35), (20, 41), (22, 45)],
    (16, 17): [(2, 1), (3, 3), (5, 5), (7, 7), (8, 9), (10, 10), (11, 12)],
}
FIFTH = [(50, 4), (70, 17), (80, 31), (92, 54), (100, 75), (106, 94), (111, 113)]
RATIOS = [0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("batch", "tokens"), SQRT)
def test_sizes_follow_the_square_root_rule(batch, tokens):
    assert [ADC(ratio=r).sizes(batch, tokens) for r in RATIOS] == SQRT[batch, tokens]


def test_sizes_follow_the_fifth_rule():
    assert [ADC(ratio=r, split="fifth").sizes(128, 197) for r in RATIOS] == FIFTH


def test_explicit_ratios_override():
    assert ADC(batch_ratio=0.5, token_ratio=0.25).sizes(16, 17) == (8, 4)
    assert ADC(ratio=0.25, token_ratio=1.0).sizes(16, 17) == (8, 17)
    assert ADC(ratio=0.01).sizes(1, 17) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "expected"),  # beta tau, by hand
    [
        ({}, 0.1),
        ({"ratio": 0.04}, 0.04),
        ({"ratio": 0.04, "split": "fifth"}, 0.04),
        ({"ratio": 0.04, "batch_ratio": 1.0}, 0.2),
        ({"ratio": 0.04, "token_ratio": 0.5}, 0.1),
        ({"ratio": 2**-5, "split": "fifth", "batch_ratio": 1.0}, 1 / 16),
        ({"ratio": 2**-5, "split": "fifth", "token_ratio": 1.0}, 1 / 2),
        ({"batch_ratio": 0.5, "token_ratio": 0.4}, 0.2),
        ({"ratio": 0.2, "batch_ratio": 0.5, "token_ratio": 0.4}, 0.2),
        ({"ratio": 0.1, "batch_ratio": 1.0}, 128 * 62 / (128 * 197)),
    ],
)
def test_the_nominal_ratio_is_what_is_sent_but_for_rounding(arguments, expected):
    codec = ADC(**arguments)
    assert codec.nominal_ratio(128, 197 * 192) == pytest.approx(expected, rel=0.005)
    clusters, tokens = codec.sizes(10_000, 10_000)
    assert clusters * tokens / 1e8 == pytest.approx(codec.nominal_ratio(1e4, 192), rel=0.01)


def test_kmeans_by_hand():
    points = torch.tensor([[0.0], [1.0], [9.0], [10.0], [11.0]])
    assignment, centroids = kmeans(points, 2, init=torch.tensor([0, 1]))
    # Start 0, 1: {0}, {1, 9, 10, 11}; means 0, 7.75; then {0, 1}, {9, 10, 11}: 0.5, 10.
    assert assignment.dtype == torch.int64
    assert assignment.tolist() == [0, 0, 1, 1, 1]
    assert centroids.flatten().tolist() == [0.5, 10.0]


def test_kmeans_returns_the_assignment_before_the_last_update():
    points = torch.tensor([[0.0], [1.0], [9.0], [10.0], [11.0]])
    assignment, centroids = kmeans(points, 2, init=torch.tensor([0, 1]), max_iter=1)
    assert assignment.tolist() == [0, 1, 1, 1, 1]
    assert centroids.flatten().tolist() == [0.0, 7.75]


def test_kmeans_breaks_ties_to_the_lowest_cluster():
    assignment, _ = kmeans(
        torch.tensor([[0.0], [2.0], [1.0]]), 2, init=torch.tensor([0, 1]), max_iter=1
    )
    assert assignment.tolist() == [0, 1, 0]


def test_kmeans_stops_on_the_square_of_the_summed_moves():
    points = torch.tensor([[0.0], [1.0], [9.0], [10.0], [11.0]])
    # The first update moves the centroids by 0 + 6.75; (6.75)^2 = 45.5625.
    stopped, _ = kmeans(points, 2, init=torch.tensor([0, 1]), tol=45.57)
    went_on, _ = kmeans(points, 2, init=torch.tensor([0, 1]), tol=45.56)
    assert stopped.tolist() == [0, 1, 1, 1, 1]
    assert went_on.tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("seed", range(5))
def test_centroids_are_the_means_of_their_members(seed):
    points = torch.rand(40, 9, generator=generator(seed)).softmax(dim=1)
    assignment, centroids = kmeans(points, 12, generator=generator(seed))
    for cluster in assignment.unique():
        torch.testing.assert_close(centroids[cluster], points[assignment == cluster].mean(dim=0))


def test_kmeans_depends_on_its_generator_alone():
    points = torch.rand(40, 9, generator=generator())
    torch.manual_seed(1)
    first = kmeans(points, 7, generator=generator(3))[0]
    torch.manual_seed(2)
    assert torch.equal(first, kmeans(points, 7, generator=generator(3))[0])


@pytest.mark.parametrize("num_clusters", [0, 4])
def test_kmeans_refuses_more_clusters_than_points(num_clusters):
    with pytest.raises(ValueError, match="num_clusters"):
        kmeans(torch.zeros(3, 2), num_clusters)


def test_merge_and_select_by_hand():
    tokens = torch.arange(3 * 4 * 2, dtype=torch.float32).reshape(3, 4, 2)
    attention = torch.tensor([[0.9, 0.1, 0.0, 0.0], [0.1, 0.3, 0.4, 0.2], [0.1, 0.1, 0.2, 0.6]])
    # Cluster 0 = {1, 2}: mean attention .1 .2 .3 .4 keeps CLS, 3, 2. Cluster 1 = {0}: CLS, 1, 2.
    merged, kept = merge_and_select(tokens, attention, torch.tensor([1, 0, 0]), 3)
    assert kept.tolist()[0] == [0, 3, 2]
    assert kept[1, 0] == 0 and kept[1, 1] == 1
    assert merged.shape == (2, 3, 2)
    assert torch.equal(merged[0], (tokens[1] + tokens[2])[[0, 3, 2]] / 2)
    assert torch.equal(merged[1, :2], tokens[0, :2])


def test_a_second_token_that_is_read_is_kept_and_not_ranked():
    tokens = torch.arange(2 * 5 * 1, dtype=torch.float32).reshape(2, 5, 1)
    attention = torch.tensor([[0.2, 0.0, 0.1, 0.4, 0.3], [0.2, 0.1, 0.4, 0.3, 0.0]])
    # One cluster, mean attention .2 .05 .25 .35 .15: the first two, then 3, 2.
    merged, kept = merge_and_select(tokens, attention, torch.tensor([0, 0]), 4, num_read=2)
    assert kept.tolist() == [[0, 1, 3, 2]]
    assert torch.equal(merged, (tokens[:1] + tokens[1:])[:, [0, 1, 3, 2]] / 2)
    with pytest.raises(ValueError, match="num_tokens must be at least 2, got 1"):
        merge_and_select(tokens, attention, torch.tensor([0, 0]), 1, num_read=2)


def test_members_share_the_gradient_of_kept_tokens_and_dropped_tokens_get_none():
    tokens = torch.randn(7, 6, 3, generator=generator(), requires_grad=True)
    attention = torch.rand(7, 6, generator=generator(1))
    assignment = torch.tensor([0, 1, 0, 2, 1, 0, 1])
    merged, kept = merge_and_select(tokens, attention, assignment, 4)
    assert (kept[:, 0] == 0).all()
    gradient = torch.randn(merged.shape, generator=generator(2))
    merged.backward(gradient)
    expected = torch.zeros_like(tokens)
    for sample, cluster in enumerate(assignment.tolist()):
        size = (assignment == cluster).sum()
        expected[sample, kept[cluster]] = gradient[cluster] / size
    assert torch.equal(tokens.grad, expected)


def test_one_token_is_cls():
    _, kept = merge_and_select(torch.zeros(2, 5, 1), torch.rand(2, 5), torch.tensor([0, 1]), 1)
    assert kept.tolist() == [[0], [0]]


def encode(attention, labels, codec=None):
    tokens = torch.randn(*attention.shape, 4, generator=generator(), requires_grad=True)
    smashed = Smashed(tokens, lambda: attention, labels, 3)
    return tokens, (codec or ADC(ratio=0.25)).encode(smashed, generator())


def test_labels_become_mixtures_and_clusters_of_equal_samples_are_found():
    attention = torch.tensor([[1.0, 0, 0, 0]] * 3 + [[0, 0, 0, 1.0]])
    labels = torch.tensor([2, 2, 0, 1])
    _, payload = encode(attention, labels, ADC(batch_ratio=0.5, token_ratio=0.5))
    received = ADC().decode(payload)
    rows = sorted(received.targets.tolist())
    assert rows == [[0.0, 1.0, 0.0], [pytest.approx(1 / 3), 0.0, pytest.approx(2 / 3)]]
    # 6 counts of up to 2, two bits each.
    assert Payload({}, payload.side).nbytes == 1 + (1 + 1 + len("counts") + 1 + 2 * 4) + 2


def test_many_classes_send_members_instead_of_counts():
    """40 clusters of 128 samples, 100 classes: 128 x 7 bits and 40 x 4 bits, not 4,000 counts."""
    draw = generator()
    cluster = torch.cat([torch.arange(40), torch.randint(40, (88,), generator=draw)])
    labels = torch.randint(100, (128,), generator=draw)
    labels[0] = 99
    side = label_mixtures(cluster, labels, 100)
    assert side.keys() == {"labels", "sizes", "classes"}
    bits = int(torch.bincount(cluster).max()).bit_length()
    headers = sum(7 + len(name) for name in side)  # one-dimensional: 3 bytes and 4 of the size
    assert Payload({}, side).nbytes == 1 + headers + 128 * 7 // 8 + -(-40 * bits // 8) + 1
    expected = torch.zeros(40, 100, dtype=torch.int64)
    for k, label in zip(cluster.tolist(), labels.tolist(), strict=True):
        expected[k, label] += 1
    assert torch.equal(read_mixtures(side), expected)
    assert torch.equal(read_mixtures({"counts": expected}), expected)
    with pytest.raises(ValueError, match="labels for clusters"):
        read_mixtures({**side, "labels": labels[1:]})


@pytest.mark.parametrize(
    "attention",
    [
        torch.full((1, 5), 0.2),
        torch.full((16, 5), 0.2),
        torch.eye(5)[[0, 0, 0, 1, 1, 1, 2, 2, 2, 2]],
        torch.eye(5)[[0, 1]],
        torch.eye(5)[[0, 0, 0]],
    ],
    ids=["batch of one", "all alike", "three distinct rows", "two samples", "three alike"],
)
@pytest.mark.parametrize("ratio", [0.01, 0.5, 1.0])
def test_degenerate_batches_stay_finite(attention, ratio):
    labels = torch.arange(len(attention)) % 3
    for weighted in (False, True):
        codec = ADC(ratio=ratio, weighted_loss=weighted)
        tokens, payload = encode(attention, labels, codec)
        received = codec.decode(payload)
        clusters = len(received.tokens)
        assert 1 <= clusters <= len(torch.unique(attention, dim=0))
        torch.testing.assert_close(received.targets.sum(dim=1), torch.ones(clusters))
        value = CrossEntropy().of(received.tokens[:, 0, :3], received)
        value.backward()
        assert value.isfinite() and tokens.grad.isfinite().all()


def test_loss_is_the_mean_over_clusters_or_weighted_by_size():
    attention = torch.tensor([[1.0, 0, 0, 0]] * 3 + [[0, 0, 0, 1.0]])
    labels = torch.tensor([0, 0, 0, 1])
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.1, 0.3]])
    for weighted in (False, True):
        codec = ADC(batch_ratio=0.5, token_ratio=0.5, weighted_loss=weighted)
        received = codec.decode(encode(attention, labels, codec)[1])
        big = int(received.targets[0, 0] != 1)  # which row is the cluster of three
        targets = torch.tensor([0, 1] if big == 0 else [1, 0])
        rows = functional.cross_entropy(logits, targets, reduction="none")
        sizes = torch.tensor([3.0, 1.0] if big == 0 else [1.0, 3.0])
        expected = (rows * sizes).sum() / 4 if weighted else rows.mean()
        torch.testing.assert_close(CrossEntropy().of(logits, received), expected)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"ratio": 0}, "ratio"),
        ({"ratio": 1.5}, "ratio"),
        ({"split": "half"}, "split"),
        ({"batch_ratio": -1}, "batch_ratio"),
        ({"ratio": float("nan")}, "ratio"),
    ],
)
def test_bad_parameters_are_named(arguments, name):
    with pytest.raises(ValueError, match=name):
        ADC(**arguments)
