"""Controllers of split inference: queues, gates and a learnt policy, by hand and on tiny runs."""

import random
from dataclasses import replace
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import fl_split as fs
from fl_split.seeds import global_state
from simulations.inference import bench, control, lyapunov, ppo
from simulations.inference.controller import optimum
from simulations.inference.gate import Gate, priced
from simulations.inference.inference import infer
from simulations.inference.latency import Latency
from simulations.inference.lyapunov import Lyapunov, chosen, largest_feasible, queued, run
from simulations.inference.offloading import GO_ON, LEAVE, SEND, Foreseen, Offloading, journeys
from simulations.inference.policies import AllLocal, Margin
from simulations.inference.policy import AllSent
from simulations.inference.ppo import Ppo
from simulations.inference.served import serve
from simulations.inference.serving import fitted
from simulations.inference.settings import Choices, Setting, Table, right, settings_of
from simulations.inference.trained import load
from simulations.inference.ways import Ways
from simulations.runs.experiment import Experiment
from simulations.system.networks import Cell
from simulations.system.system import parse_system

TWO = Table(np.array([np.nan]), np.array([[0.6], [0.9]]), np.array([[1.0], [3.0]]))
"""Two settings: 60 % at a cost of 1, 90 % at a cost of 3."""


def silent(*_):
    """Show no progress."""


def test_a_queue_by_hand():
    """At V = 10 and a rate of 2: -9 < -6; 3 - 9 < 1 - 6; but 2 - 6 < 6 - 9 at a backlog of 2."""
    paid, backlog = run(TWO, np.zeros((5, 1), int), np.array([10.0]), 2.0, 1.0, False)
    assert paid[:, 0].tolist() == [3, 3, 1, 3, 1] and backlog.tolist() == [[1.0]]
    assert chosen(np.array([1.0, 2.0]), TWO, np.zeros(2, int), 10.0).tolist() == [1, 0]
    assert queued(np.array([0.5]), np.array([1.0]), 2.0, 1.0, False).tolist() == [0.0]


def test_a_shared_queue_is_of_all_clients():
    """Costs of 3 and 1 at a rate of 2.5 are 1 below it, of 3 and 3 they are 1 above, mu = 2."""
    backlog = np.array([4.0, 4.0])
    assert queued(backlog, np.array([3.0, 1.0]), 2.5, 2.0, True).tolist() == [2.0, 2.0]
    assert queued(backlog, np.array([3.0, 3.0]), 2.5, 2.0, True).tolist() == [6.0, 6.0]


def test_the_excess_is_what_the_queue_holds_and_falls_with_v():
    """While a queue is never empty, its end is mu times slots times the excess: O(V / mu).

    Rate .005, mu 1 and 10,000 slots, as in the paper; costs .001 to .1, accuracy rises with them.
    The best setting is left for good at a backlog of V 0.5 / .099, so the excess is below that
    over the slots.
    """
    cost = np.geomspace(0.001, 0.1, 12)[:, None]
    table = Table(np.array([np.nan]), 0.5 + 0.5 * (cost - 0.001) / 0.099, cost)
    weights, slots = np.array([0.01, 1.0, 100.0, 1e4]), 10_000
    paid, backlog = run(table, np.zeros((slots, 1), int), weights, 0.005, 1.0, False)
    excess = paid.mean(axis=0) - 0.005
    assert (np.diff(excess) > 0).all() and abs(excess[0]) < 1e-4
    assert excess[1:] == pytest.approx(backlog[1:, 0] / slots)
    assert (excess <= (weights * 0.5 / 0.099 + 0.1) / slots).all()
    assert excess[3] == pytest.approx(0.095)  # 10,000 slots are too few to come back


def test_only_v_over_mu_matters():
    states = np.random.default_rng(0).integers(0, 2, (200, 3))
    draw = np.sort(np.random.default_rng(1).random((2, 4, 2)), axis=1)
    table = Table(np.array([0.0, 10.0]), draw[0], draw[1])
    one, _ = run(table, states, np.array([0.5, 8.0]), 0.4, 1.0, False)
    other, _ = run(table, states, np.array([2.0, 32.0]), 0.4, 4.0, False)
    assert one.tolist() == other.tolist() and len({*one[:, 0].tolist()}) > 4


@pytest.mark.parametrize(
    ("last", "number"),
    [
        ([[1, 1, 3], [2, 3.5, 3]], 0),  # means 1.5, 2.25, 3
        ([[1, 1, 2], [2, 3, 3]], 1),  # 1.5, 2, 2.5
        ([[3, 1, 3], [3, 3, 3]], 1),
        ([[3, 3, 3], [3, 3, 3]], 0),
    ],
)
def test_the_largest_v_that_keeps_the_rate_at_the_end(last, number):
    """The last tenth of 20 slots are two; what was before does not count."""
    paid = np.vstack([np.full((18, 3), 9.0), last])
    assert largest_feasible(paid, 2.0) == number


def test_the_optimum_of_a_table_by_hand():
    """Two states, as often: the dear setting gains .1 in one and .4 in the other, and costs 2 more.

    A rate of 2 pays for one of them. Of constants half of each is the best mixture.
    """
    accuracy, cost = np.array([[0.5, 0.5], [0.6, 0.9]]), np.array([[1.0, 1.0], [3.0, 3.0]])
    found = optimum(accuracy, cost, np.array([0.5, 0.5]), 2.0)
    assert found == pytest.approx(np.array([[1, 0], [0, 1]]), abs=1e-9)
    mixed = optimum(accuracy.mean(1)[:, None], cost[:, :1], np.ones(1), 2.0)
    assert mixed[:, 0] == pytest.approx([0.5, 0.5])
    with pytest.raises(ValueError, match=r"no mixture of settings costs as little as 0\.5"):
        optimum(accuracy, cost, np.array([0.5, 0.5]), 0.5)


def test_a_ratio_is_snapped_to_the_nearest():
    table = Table(np.array([0.0, 10.0]), np.zeros((1, 2)), np.zeros((1, 2)))
    assert table.state(np.array([[-20.0, 4.9], [5.1, 80.0]])).tolist() == [[0, 0], [1, 1]]
    assert TWO.state(np.array([np.nan, np.nan])).tolist() == [0, 0]


def choices(features=None):
    """Two settings of 10 and 40 bytes; the cheap one is right on images 0 and 2 alone."""
    answers = np.array([[[0.8, 0.2], [0.9, 0.1]] * 20, [[0.8, 0.2], [0.2, 0.8]] * 20])
    images = 40
    return Choices(
        np.arange(images) % 2,
        answers,
        np.repeat([[10.0], [40.0]], images, axis=1),
        np.zeros(images, int),
        np.arange(images),
        np.full(images, np.nan),
        features if features is not None else np.zeros((images, 1)),
    )


def test_the_target_of_a_gate_by_hand():
    """Nats of .8, .1 and .8; bytes of 40 cost .5, those of 10 a quarter of that; lost: 1e-6."""
    found = choices()
    expected = [[-np.log(0.8) + 0.125, -np.log(0.1) + 0.125], [-np.log(0.8) + 0.5] * 2]
    assert priced(found, 0.5, 40.0)[:, :2] == pytest.approx(np.array(expected))
    found.answers[0, 0] = np.nan
    assert priced(found, 0.0, 40.0)[0, 0] == pytest.approx(-np.log(1e-6))


def gate_bench(features, price):
    held = choices(features)
    one = SimpleNamespace(exits=None)
    bench = SimpleNamespace(
        held_out=held,
        trained=[one],
        known_after=1,
        settings=[1, 2],
        names=["a", "b"],
        again_flops=np.array([0, 500]),
        rule=AllSent(),
    )
    return Gate(price=price).fit(bench), held


def test_a_gate_learns_what_its_features_tell():
    """The feature says which images need the dear setting; a mixture at 25 bytes knows not."""
    telling = np.tile([[0.0], [1.0]], (20, 1))
    chooser, held = gate_bench(telling, price=0.5)
    found = chooser.choose(held)
    assert found.tolist() == [0, 1] * 20
    controls = chooser.controls(held, found)
    assert controls["random mixture"][:, 0] == pytest.approx([0.5, 0.5])
    assert controls["dearest"][:, 7].tolist() == [0, 1]
    assert controls["best constant"][:, 7].tolist() == [0, 1]  # 1.6 nats are worth 30 bytes
    assert chooser.flops.tolist() == [2 * 1 * 2, 500 + 2 * 1 * 2]


def test_a_gate_whose_target_is_one_setting_is_that_setting():
    chooser, held = gate_bench(np.zeros((40, 1)), price=1000.0)
    assert {*chooser.choose(held).tolist()} == {0}


LOCAL = np.array([[[0.6, 0.3, 0.1], [0.5, 0.4, 0.1]], [[0.5, 0.4, 0.1], [0.2, 0.8, 0.0]]])
"""Two exits, two images: margins .3 and .1, then .1 and .6."""


def ways(**changes):
    served = np.full((2, 2, 3), 0.1)
    served[:, :, 1] = 0.8  # the server says 1
    values = {
        "labels": np.array([0, 1]),
        "names": ["exit1", "exit2"],
        "has_exit": np.array([True, True]),
        "can_send": np.array([True, True]),
        "local": LOCAL,
        "served": served,
        "sent_bytes": np.array([[100, 110], [40, 50]]),
        "sent_uses": np.zeros((2, 2), np.int64),
        "trunk_flops": np.array([900, 2700]),
        "exit_flops": np.array([100, 300]),
        "encoder_flops": 0,
        "server_flops": np.array([0, 0]),
        "coding_flops": (0, 0),
        "answer_bytes": 9,
        "owner": np.zeros(2, np.int64),
    }
    return Ways(**{**values, **changes})


def test_what_a_channel_loses_is_answered_by_the_last_exit():
    served = ways().served.copy()
    served[1, 0] = np.nan
    found = serve(ways(served=served), AllSent()).answers
    assert found.tolist() == [LOCAL[1, 0].tolist(), [0.1, 0.8, 0.1]]
    assert right(found, np.array([0, 2])).tolist() == [True, False]


ASKED = 2 * (5 * 64 + 64 * 64 + 64 * 3)
"""Operations of the network of PPO at one exit; 9.216 s on the device below."""


class Slow:
    """A second for 1000 operations of the device, and one for 100 bytes."""

    @staticmethod
    def of(device, server, up, down, is_sent, owner):
        return device / 1000 + up / 100, np.zeros(len(device))


class Quick:
    """A second for 10^6 operations of the device, and one for 100 bytes."""

    @staticmethod
    def of(device, *others):
        return Slow.of(device / 1000, *others)


def test_journeys_by_hand():
    """Leaving takes 1 and 3 s, sending 1 + 1 and 3 + .4 s of image 0, at .1 a second.

    Payloads have 105 and 45 bytes on average, which is what the device expects. The network is
    asked at each exit that an image has come to.
    """
    found = journeys(ways(), Slow(), 0.1, Foreseen.of(ways()))
    asked = 0.1 * ASKED / 1000 * np.array([[1], [2]])
    assert found.left + asked == pytest.approx(np.array([[0.9, -0.1], [0.7, 0.7]]))
    assert found.sent + asked == pytest.approx(np.array([[-0.2, 0.79], [-0.34, 0.65]]))
    assert found.onward == pytest.approx(found.sent[1])
    expected = [[0.5, 0.3, 0, 0.3, 0.105], [1.0, 0.1, 0.3, -0.2, 0.045]]
    assert found.states[:, 0] == pytest.approx(np.array(expected), abs=1e-6)
    stuck = journeys(ways(can_send=np.array([False, True])), Slow(), 0.1, Foreseen.of(ways()))
    assert stuck.sent + asked == pytest.approx(np.array([[-0.34, 0.65]] * 2))


def test_a_state_does_not_know_what_the_channel_will_do():
    """One payload is sent thrice, another is lost: rewards tell, states do not."""
    network = "devices('pi5') | network(up='1Mbit/s', down='2Mbit/s', latency='10ms')"
    latency = Latency.of_system(parse_system(network), Experiment.from_dict({"clients": 1}))
    kept = ways(coding_flops=(10**6, 10**7), server_flops=np.array([10**9, 10**9]))
    served = kept.served.copy()
    served[:, 1] = np.nan
    drawn = replace(kept, served=served, sent_bytes=kept.sent_bytes * [[3, 1]])
    plain, other = (journeys(one, latency, 1.0, Foreseen.of(kept)) for one in (kept, drawn))
    assert other.states.tolist() == plain.states.tolist()
    assert (other.sent[:, 0] < plain.sent[:, 0]).all()
    even = replace(kept, sent_bytes=np.array([[100, 100], [40, 40]]))
    found = journeys(even, latency, 1.0, Foreseen.of(even))
    sent, left = (serve(even, policy(), latency).seconds for policy in (AllSent, AllLocal))
    exits = 300 / latency.now.flops[0]  # which nobody asks who sends all
    assert found.states[1, :, 4] == pytest.approx(sent + exits - left, rel=1e-5)


def test_the_environment_by_hand():
    found = journeys(ways(), Slow(), 0.1, Foreseen.of(ways()))
    env = Offloading(found)
    with pytest.warns(UserWarning, match="infinity"):  # margins and prices have no common bound
        check_env(env, skip_render_check=True)
    assert isinstance(env, gymnasium.Env)
    for actions, worth in [
        ([LEAVE], 0.9),
        ([SEND], -0.2),
        ([GO_ON, LEAVE], 0.7),
        ([GO_ON, GO_ON], -0.34),
        ([GO_ON, SEND], -0.34),
    ]:
        reward = worth - 0.1 * ASKED / 1000 * len(actions)
        state, _ = env.reset(options={"image": 0})
        assert state.tolist() == found.states[0, 0].tolist()
        for action in actions[:-1]:
            state, now, is_over, _, _ = env.step(np.int64(action))
            assert state.tolist() == found.states[1, 0].tolist() and not is_over and now == 0
        *_, now, is_over, _, _ = env.step(np.int64(actions[-1]))
        assert is_over and now == pytest.approx(reward)


def test_the_same_seed_learns_the_same_and_draws_from_nothing_global():
    """A second costs more than an answer is worth, and the server is never right: all leave."""
    many = ways(
        labels=np.zeros(40, np.int64),
        local=np.repeat(LOCAL[:, :1], 40, axis=1),
        served=np.repeat(ways().served[:, :1], 40, axis=1),
        sent_bytes=np.full((2, 40), 500),
        sent_uses=np.zeros((2, 40), np.int64),
        owner=np.zeros(40, np.int64),
    )
    before, python = global_state(), random.getstate()
    told = []
    first, again, other = (
        Ppo(steps=2048).learn(many, Quick(), 0.3, seed, lambda *words: told.append(words))
        for seed in (0, 0, 1)
    )
    assert global_state() == before and random.getstate() == python
    weights = [
        torch.cat([one.flatten() for one in found.model.policy.state_dict().values()])
        for found in (first, again, other)
    ]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    decisions = first.decide(many)
    assert not decisions.is_sent.any() and not decisions.place.any()
    assert serve(many, first).device_flops.tolist() == [900 + 100 + ASKED] * 40
    actor = first.model.policy.mlp_extractor.policy_net, first.model.policy.action_net
    weights = [w for one in actor for w in one.parameters() if w.ndim == 2]
    assert 2 * sum(w.numel() for w in weights) == ASKED
    assert told[-1] == ("ppo", 2048, 2048) and repr(first) == "ppo(steps=2048)"


def test_without_its_extra_ppo_is_one_line(monkeypatch):
    monkeypatch.setattr(ppo, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'fl-split\[rl\]'"):
        Ppo().learn(ways(), Slow(), 0.1, 0, silent)


def test_a_margin_is_fitted_to_the_return():
    """Image 0 is right at exit 1 alone, image 1 at exit 2 and at the server, which is dear.

    At .01 a second margins .3 < tau: returns of leaving at once .5 - .01, of tau .35: image 0 is
    sent and wrong. tau in [.1, .3]: image 0 leaves right, image 1 goes on and leaves right.
    """
    found = fitted(Margin(), ways(), 0.0, 0.01, Slow())
    assert 0.1 <= found.tau <= 0.3
    assert fitted(Margin(), ways(), 0.0, 10.0, Slow()).tau <= 0.05


def test_settings_are_all_pairs():
    found = settings_of([0.1, 0.5], ["uniform(bits=4)"])
    assert found == [Setting(0.1, "uniform(bits=4)"), Setting(0.5, "uniform(bits=4)")]
    assert [*map(str, found)] == ["uniform(bits=4) at rate 0.1", "uniform(bits=4) at rate 0.5"]
    assert str(Setting(codec="identity()")) == "identity" and str(Setting(0.1)) == "rate 0.1"


TINY = {"exits": "plain()", "cut": 2, "holdout": 0.1}
TWO_CODECS = ["uniform(bits=2)", "uniform(bits=8)"]


@pytest.mark.parametrize(
    ("policy", "options", "message"),
    [
        ("lyapunov(rate=200.0)", {}, "a controller or a sweep needs two settings or more"),
        ("all_sent()", {"codecs": TWO_CODECS[:1]}, "a sweep needs two settings or more"),
        ("all_sent()", {"rates": [0.5, 1.0]}, "rates: the run selects no tokens"),
        ("lyapunov(rate=200.0)", {"rates": [0.5, 1.0]}, "rates: the run selects no tokens"),
        ("gate()", {"rates": [0.5, 1.5]}, r"rates must be in \(0, 1\], got 1.5"),
        ("gate()", {"rates": [0.5, 0.5]}, r"rates: 0.5 is given twice"),
        ("gate()", {"codecs": ["zsdt()", "zstd()"]}, "did you mean 'zstd'"),
        (
            "gate()",
            {"codecs": ["uniform(bits=8)", "uniform(bits = 8)", "uniform()"]},
            r"codecs: uniform\(bits=8, .*\) is given twice",
        ),
        (["gate()", "gate(price=0.1)"], {}, r"policies: gate\(price=0.1\) is given twice"),
        ("lyapunov(rate=-1.0)", {}, "rate"),
        ("lyapunov(rate=1e308)", {}, r"rate.*1e\+?12|rate.*1000000000000"),
        ("lyapunov()", {}, "rate must be given"),
        ("lyapunov(rate=9.0)", {"codecs": TWO_CODECS}, "the cheapest setting costs .* bytes"),
        ("gate()", {"codecs": TWO_CODECS, "price": 0.1}, "price fits thresholds; gate has a"),
        ("ppo()", {}, "ppo.* learns what a second is worth; give delay_price"),
        ("margin()", {"delay_price": 1.0}, "delay_price: seconds need devices and a network"),
        ("margin()", {"delay_price": -1.0}, "delay_price must be 0 or more, got -1"),
    ],
)
def test_what_cannot_be_controlled_is_one_line(reference, policy, options, message):
    with pytest.raises(ValueError, match=message):
        fs.infer(reference(**TINY).folder, policy, **options)


def test_controllers_need_held_out_rows_and_ppo_exits(reference):
    run_ = reference()
    with pytest.raises(ValueError, match="has kept no rows back"):
        infer(run_.folder, "lyapunov(rate=200.0)", codecs=TWO_CODECS)
    with pytest.raises(ValueError, match=r"ppo.* asks exits, and the run has none"):
        infer(run_.folder, "ppo()", delay_price=1.0, system="devices('pi5')")


@pytest.fixture(scope="module")
def served(reference):
    """Serve a run by both controllers and PPO, and note which rows were asked in which setting."""
    run_, asked, ways_of = reference(**TINY), [], bench.ways_of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "ways_of", lambda *words: (asked.append(words), ways_of(*words))[1])
        found = infer(
            run_.folder,
            ["lyapunov(rate=100.0, slots=100)", "gate(price=0.05)", "margin()", "ppo(steps=1)"],
            codecs=TWO_CODECS,
            system="devices('pi5') | lte()",
            delay_price=2.0,
        )
    return run_, found, asked


def test_controllers_serve_a_run(served):
    """Every image is sent in one setting, for its bytes and one more; means are of images."""
    _, found, _ = served
    table = found.table.set_index("policy")
    sizes = found.frontiers["settings"].set_index("policy")["bytes_up"]
    for name in ("lyapunov(rate=100.0, slots=100)", "gate(price=0.05)"):
        images = found.images[name]
        assert len(images) == 364 and sum(found.histograms[name].values()) == 364
        assert images["bytes_up"].tolist() == (sizes[images["left"]] + 1).tolist()
        assert table.loc[name, "bytes_up"] == pytest.approx(images["bytes_up"].mean())
        assert (images["slot"] == np.arange(364) // 6).all()
    assert {f"{key} of gate(price=0.05)" for key in ("best constant", "dearest")} <= {*table.index}
    expected = table["accuracy"] - 2 * table["seconds"]
    assert table["return"].to_numpy() == pytest.approx(expected.to_numpy())
    assert any("ppo(steps=1) has learnt from held-out rows" in note for note in found.notes)
    assert any(
        note.startswith("dearest of gate(price=0.05): uniform(bits=8)") for note in found.notes
    )


def test_a_controller_keeps_its_rate(served):
    """The queue is warm, so the mean cost of 61 slots is off by its change over them alone."""
    _, found, _ = served
    table = found.table.set_index("policy")
    name = "lyapunov(rate=100.0, slots=100)"
    assert table.loc[name, "bytes_up"] <= 100 * 1.05
    assert table.loc[f"best constant of {name}", "bytes_up"] <= 100
    assert table.loc[f"optimum of the table of {name}", "bytes_up"] <= 100


def test_nothing_is_fitted_to_test_images(served):
    """Test images are served once in each setting; all else are rows that clients held out."""
    run_, _, asked = served
    test, held = load(run_.folder).test, load(run_.folder).held_out[0]
    of_test = [words for words in asked if len(words[1].labels) == len(test.labels)]
    others = [words for words in asked if len(words[1].labels) != len(test.labels)]
    assert len(of_test) == 2 and len(others) == 4
    assert all({*words[2].tolist()} == {*held.tolist()} for words in others)


def test_a_channel_with_noise_has_a_table_by_ratio(simulate, monkeypatch):
    """A cell fades from slot to slot. One or four patches and CLS of width 16: 16 or 40 uses."""
    monkeypatch.setattr(lyapunov, "SNRS", 2)
    run_ = simulate(tokens="norm(rate=0.25)", holdout=0.1, rounds=1, local_steps=1)
    cell, benches, made = Cell(fading=True), [], bench.Bench.__init__
    monkeypatch.setattr(
        bench.Bench, "__init__", lambda *words: (benches.append(words[0]), made(*words))[1]
    )
    found = infer(
        run_.folder,
        ["lyapunov(rate=0.4, slots=50)"],
        channel="awgn(snr_db='cell')",
        system="cell(fading=True)",
        rates=[0.25, 1.0],
    )
    table = found.table.set_index("policy")
    uses = found.frontiers["settings"]["channel_uses"]
    assert uses.tolist() == [2 * 16 / 2, 5 * 16 / 2]
    name = "lyapunov(rate=0.4, slots=50)"
    assert table.loc[name, "uses_per_number"] == pytest.approx(
        found.images[name]["uses"].mean() / 64
    )
    assert 16 / 64 <= table.loc[name, "uses_per_number"] <= 0.4 * 1.1
    images = found.images[name]
    up = [cell.snrs_db(6, slot + 1, 0)[0][n % 6] for n, slot in enumerate(images["slot"][:20])]
    assert images["snr_db"][:20].tolist() == pytest.approx(up)
    assert benches[0].snrs_db(3)[0] == pytest.approx(cell.snrs_db(6, 62, 0)[0])


def test_a_gate_that_chooses_another_rate_runs_blocks_again(simulate):
    """The budget token tells block 1 the rate; it has 4 patches, CLS and that token, of width 16.

    Behind it patches are chosen: at a rate of 1 block 2 has 3 patches more than at .25.
    """
    run_ = simulate(tokens="dual_gate(after=1)", exits="plain()", cut=2, holdout=0.1, rounds=1)
    found = infer(run_.folder, ["gate(price=100.0)", "gate(price=0.0)"], rates=[1.0, 0.25])
    sent = found.frontiers["settings"]["device_flops"].to_numpy()
    block = 6 * 2 * (4 * 16 * 16 + 2 * 16 * 64) + 4 * 6**2 * 16
    looking = 2 * 16 * 10 + 2 * (3 + 2) * 2  # an exit, and the gate: 5 features, 2 settings
    for name in ("gate(price=100.0)", "gate(price=0.0)"):
        images = found.images[name]
        is_other = (images["left"] == "rate 0.25").to_numpy()
        assert name != "gate(price=100.0)" or is_other.all()
        expected = sent[is_other.astype(int)] + looking + block * is_other
        assert images["device_flops"].tolist() == expected.tolist()


def test_constants_are_judged_without_the_byte_that_tells_a_setting():
    """The dear setting costs 3 with 1 that tells it: alone it keeps a rate of 2."""
    states, table = np.zeros((2, 1), int), replace(TWO, telling=1.0)
    chooser = lyapunov._Queues(Lyapunov(rate=2.0, V=10.0), table, states)
    for chances in chooser.controls(choices(), np.zeros(40, int)).values():
        assert chances[:, 0] == pytest.approx([0, 1])


def test_a_queue_is_carried_from_held_out_to_test_images():
    """With a backlog of 2 at first, as by hand above: 1, 3, 1, 3."""
    states = np.zeros((2, 1), int)  # costs of 3 and 3, so a backlog of 2
    chooser = lyapunov._Queues(Lyapunov(rate=2.0, V=10.0), TWO, states)
    test = choices()
    test.cost[:] = [[1.0], [3.0]]
    assert chooser.choose(test)[:4].tolist() == [0, 1, 0, 1]
    found = chooser.controls(test, chooser.choose(test))
    assert found["best constant"][:, 0].tolist() == [1, 0]
    assert found["optimum of the table"][:, 5] == pytest.approx([0.5, 0.5])
    assert control.means(
        [
            SimpleNamespace(**dict.fromkeys(control.MEANS.values(), np.array([v, v])))
            for v in (1, 3)
        ],
        np.array([[0.5, 1.0], [0.5, 0.0]]),
    )["bytes_up"] == pytest.approx(1.5)
