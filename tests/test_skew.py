"""What makes clients' training data differ beside who holds which samples."""

from dataclasses import replace

import numpy as np
import pytest

from fl_split.spec_errors import SpecError
from simulations.data.samples import Samples
from simulations.data.skew import LabelNoise, Noise, Rotation, parse_skew, skewed
from simulations.runs.experiment import Experiment
from simulations.runs.experiment_data import prepare_labels
from simulations.runs.setup import prepare


def table(clients=4, each=50, size=8):
    draw = np.random.default_rng(0)
    count = clients * each
    pixels = draw.integers(100, 150, (count, 1, size, size), dtype=np.uint8)
    labels = draw.integers(0, 5, count)
    parts = np.split(draw.permutation(count), clients)
    return Samples(pixels, labels, [*parts, np.empty(0, np.int64)], 5, [0.5], [0.5])


class QuarterTurn(Rotation):
    """Every client turns its images by the same angle."""

    def angle(self, owner):
        return 90.0


def test_a_quarter_turn_is_that_of_numpy():
    before = table()
    after = skewed(before, [QuarterTurn()], 0, {})
    assert np.array_equal(after.pixels[:], np.rot90(before.pixels, axes=(2, 3)))


class Noted(Rotation):
    """Tells by which angles it turns."""

    def __init__(self, degrees, seen):
        super().__init__(degrees)
        object.__setattr__(self, "seen", seen)

    def angle(self, owner):
        self.seen.append(super().angle(owner))
        return self.seen[-1]


def test_every_client_has_an_angle_of_its_own_for_good():
    seen, before = [], table()
    skew = [Noted(30.0, seen)]
    first, again, other = (skewed(before, skew, seed, {}).pixels[:] for seed in (0, 0, 1))
    assert seen[:4] == seen[4:8] and len(set(seen)) == 8
    assert all(-30 <= angle <= 30 for angle in seen)
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_noise_grows_with_the_client():
    before = table()
    after = skewed(before, [Noise(std=0.1)], 0, {})
    differences = after.pixels[:].astype(int) - before.pixels
    spread = [differences[part].std() for part in before.partitions[:4]]
    # Client 0 of 5 (one has no samples) has none, client 3 has 0.1 * 3 / 5 of 255.
    assert spread == pytest.approx([25.5 * client / 5 for client in range(4)], rel=0.05, abs=0.01)


@pytest.mark.parametrize("skew", [Noise(std=0.2), Rotation(degrees=60)])
def test_an_image_is_the_same_whichever_others_are_read_with_it(skew):
    after = skewed(table(), [skew], 0, {}).pixels
    order = np.random.default_rng(1).permutation(after.shape[0])
    alone = np.concatenate([after[order[k : k + 1]] for k in range(len(order))])
    assert np.array_equal(alone, after[:][order])


def test_sixteen_bits_are_skewed_as_eight_are():
    eight = table()
    deep = replace(eight, pixels=eight.pixels.astype(np.uint16) * 257)  # 255 -> 65,535
    for skew in (Noise(std=0.1), Rotation(degrees=60)):
        few, many = (
            skewed(one, [skew], 0, {}).pixels[:] / top
            for one, top in ((eight, 255), (deep, 65_535))
        )
        assert np.abs(few - many).max() <= 0.5 / 255 + 1e-4


def test_label_noise_replaces_a_share_by_any_other_class():
    before = table(each=4000, size=1)
    after = skewed(before, [LabelNoise(rate=0.3)], 0, {})
    assert after.pixels.tolist() == before.pixels.tolist()
    for part in before.partitions:
        is_wrong = after.labels[part] != before.labels[part]
        assert is_wrong.sum() == round(0.3 * len(part))
    steps = (after.labels - before.labels) % 5
    shares = np.bincount(steps, minlength=5) / len(steps)
    assert shares.tolist() == pytest.approx([0.7, *4 * [0.3 / 4]], abs=0.01)


def test_skews_come_one_after_the_other_and_leave_the_table_as_it_was():
    before = table()
    kept = before.pixels.copy(), before.labels.copy()
    both = skewed(before, parse_skew("rotation() | label_noise(rate=1)"), 0, {})
    assert np.array_equal(both.pixels[:], skewed(before, [Rotation()], 0, {}).pixels[:])
    assert np.array_equal(both.labels, skewed(before, [LabelNoise(1.0)], 0, {}).labels)
    assert np.array_equal(before.pixels, kept[0]) and np.array_equal(before.labels, kept[1])
    assert skewed(before, parse_skew("none()"), 0, {}) is before


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rotate", "did you mean 'rotation'?"),
        ("noise(std=-1)", "std must be"),
        ("label_noise(rate=2)", "rate must be"),
        ("noise() | noise(0.2)", "only once"),
    ],
)
def test_skews_that_make_no_sense_are_refused(spec, message):
    with pytest.raises(SpecError, match="skew"):
        Experiment.from_dict({"skew": spec})
    with pytest.raises(SpecError) as error:
        parse_skew(spec)
    assert message in str(error.value)


def test_training_data_are_skewed_and_the_test_split_is_not():
    plain = prepare(Experiment.from_dict({"clients": 5}))
    spec = "rotation(degrees=90) | noise() | label_noise(rate=0.5)"
    experiment = Experiment.from_dict({"clients": 5, "skew": spec})
    odd = prepare(experiment)
    assert np.array_equal(plain.test.pixels, odd.test.pixels)
    assert np.array_equal(plain.test.labels, odd.test.labels)
    assert not np.array_equal(plain.train.pixels, odd.train.pixels[:])
    assert all(map(np.array_equal, plain.train.partitions, odd.train.partitions))
    assert (plain.train.labels != odd.train.labels).mean() == pytest.approx(0.5, abs=0.01)
    assert np.array_equal(prepare_labels(experiment)[0].labels, odd.train.labels)


def test_a_skewed_run_is_reproducible_and_another_one(simulate):
    first, again, plain = (
        simulate(rounds=1, skew=skew) for skew in ("noise(0.3)", "noise(std=0.3)", "none")
    )
    assert first.equals(again) and not first.equals(plain)


def test_held_out_samples_are_seen_as_the_client_sees_its_own():
    """Same angle as the client's training images; labels stay right."""
    before = table()
    shard = {1: before.partitions[1][:2]}
    kept = [p if k != 1 else p[2:] for k, p in enumerate(before.partitions)]
    smaller = replace(before, partitions=kept)
    turned = skewed(smaller, [Rotation()], 0, shard)
    assert np.array_equal(turned.pixels[:], skewed(before, [Rotation()], 0, {}).pixels[:])
    noisy = skewed(smaller, [LabelNoise(rate=1.0)], 0, shard)
    assert np.array_equal(noisy.labels[shard[1]], before.labels[shard[1]])
