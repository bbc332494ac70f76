"""Split inference: policies by hand, costs by hand, controls, and the command on a tiny run."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import fl_split as fs
from fl_split.exchange.link import Link
from fl_split.exchange.whole import predict_by_exit
from fl_split.metrics import calibration_error
from fl_split.payload import Payload
from simulations.cli.main import app
from simulations.inference import trained
from simulations.inference.gate import Gate
from simulations.inference.inference import infer
from simulations.inference.latency import Latency
from simulations.inference.lyapunov import Lyapunov
from simulations.inference.outcome import write
from simulations.inference.policies import (
    POLICIES,
    AllLocal,
    Margin,
    Oracle,
    Patience,
    Threshold,
    Trend,
    name_of,
)
from simulations.inference.policy import AllSent
from simulations.inference.ppo import Ppo
from simulations.inference.served import serve
from simulations.inference.serving import area, fitted, frontier, histogram, mixture
from simulations.inference.ways import Behind, Ways, ways_of
from simulations.runs.experiment import Experiment
from simulations.system.system import parse_system

LOCAL = np.array(
    [
        [[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.9, 0.1, 0.0], [0.4, 0.3, 0.3]],
        [[0.5, 0.4, 0.1], [0.2, 0.8, 0.0], [0.8, 0.1, 0.1], [0.3, 0.4, 0.3]],
    ]
)
"""Two exits, four images, three classes."""


def ways(**changes):
    served = np.full((2, 4, 3), 0.1)
    served[0, :, 1], served[1, :, 2] = 0.8, 0.8  # from exit1 it says 1, from exit2 it says 2
    values = {
        "labels": np.array([0, 1, 0, 2]),
        "names": ["exit1", "exit2"],
        "has_exit": np.array([True, True]),
        "can_send": np.array([True, True]),
        "local": LOCAL,
        "served": served,
        "sent_bytes": np.array([[100, 110, 120, 130], [40, 50, 60, 70]]),
        "sent_uses": np.zeros((2, 4), np.int64),
        "trunk_flops": np.array([900, 2700]),
        "exit_flops": np.array([100, 300]),
        "encoder_flops": 50,
        "server_flops": np.array([9000, 7000]),
        "coding_flops": (11, 13),
        "answer_bytes": 9,
        "owner": np.zeros(4, np.int64),
    }
    return Ways(**{**values, **changes})


@pytest.mark.parametrize(
    ("policy", "place", "is_sent"),
    [
        (Threshold(tau=0.6), [0, 1, 0, 1], [False, False, False, True]),
        (Threshold(tau=0.0), [0, 0, 0, 0], [False] * 4),
        (Margin(tau=0.6), [1, 1, 0, 1], [True, False, False, True]),
        (Patience(count=2), [1, 1, 1, 1], [False, True, False, True]),
        (Patience(count=3), [1, 1, 1, 1], [True] * 4),
        # margins .3 .1 .8 .1, then .1 .6 .7 .1: growths -.2 .5 -.1 0
        (Trend(tau=0.7, least=0.05), [1, 1, 0, 1], [True, True, False, True]),
        (AllLocal(), [1, 1, 1, 1], [False] * 4),
        (AllSent(), [1, 1, 1, 1], [True] * 4),
        (Oracle(), [0, 1, 0, 1], [False, False, False, True]),
    ],
)
def test_decisions_by_hand(policy, place, is_sent):
    found = policy.decide(ways())
    assert (found.place.tolist(), found.is_sent.tolist()) == (place, is_sent)


def test_a_trend_hands_over_at_an_exit_before_the_last():
    """Three exits; the margin of the first image falls at the second: the server goes on there."""
    local = np.concatenate([LOCAL, LOCAL[1:]])
    three = ways(
        local=local,
        served=np.full((3, 4, 3), 1 / 3),
        names=["exit1", "exit2", "exit3"],
        has_exit=np.ones(3, bool),
        can_send=np.ones(3, bool),
        sent_bytes=np.tile([[10], [20], [30]], 4),
        sent_uses=np.zeros((3, 4), np.int64),
        trunk_flops=np.array([1, 2, 3]),
        exit_flops=np.array([1, 2, 3]),
        server_flops=np.array([3, 2, 1]),
    )
    found = Trend(tau=0.7, least=0.05).decide(three)
    assert found.place.tolist() == [1, 2, 0, 1] and found.is_sent.tolist() == [
        True,
        True,
        False,
        True,
    ]
    cannot = ways(**{**vars(three), "can_send": np.array([False, False, True])})
    assert Trend(tau=0.7, least=0.05).decide(cannot).place.tolist() == [2, 2, 0, 2]


def test_every_policy_is_tried_above():
    tried = {Threshold, Margin, Patience, Trend, AllLocal, AllSent, Oracle}
    fitted_first = {Lyapunov, Gate, Ppo}  # test_control.py
    assert tried | fitted_first == {*POLICIES.values()}


def test_costs_by_hand():
    """Images 0 to 2 leave at exits 1, 2, 1; image 3 is sent from the second: 70 bytes, 9 back.

    Only what is sent from the cut runs through the encoder, and who sends all asks no exit.
    """
    one = serve(ways(), Threshold(tau=0.6))
    assert one.right.tolist() == [True, True, True, True]
    assert one.bytes_up.tolist() == [0, 0, 0, 70] and one.bytes_down.tolist() == [0, 0, 0, 9]
    assert one.device_flops.tolist() == [1000, 3000, 1000, 3050]
    assert serve(ways(), AllSent()).device_flops.tolist() == [2750] * 4
    assert serve(ways(), AllLocal()).device_flops.tolist() == [3000] * 4
    assert one.server_flops.tolist() == [0, 0, 0, 7000]
    assert one.confidence.tolist() == [0.6, 0.8, 0.9, 0.8]
    assert histogram(one, ways()) == {"exit1": 2, "exit2": 1, "sent from exit2": 1}
    assert one.summary()["accuracy"] == 1 and one.summary()["sent"] == 0.25


def behind(*answers, names=("exit3",)):
    """What the server's exits say of each image, wherever it comes from; 10 more operations each.

    From the two places it is 900 and 500 operations to the first, 9000 and 7000 to the end.
    """
    count = len(answers)
    told = np.array(answers)[:, None].repeat(2, axis=1)
    flops = [[900 + 10 * n, 500 + 10 * n] for n in range(1, count + 1)]
    return Behind(names, told, np.array([*flops, [9000 + 10 * count, 7000 + 10 * count]]))


SURE, UNSURE = [0.1, 0.2, 0.7], [0.3, 0.5, 0.2]


def test_what_is_sent_leaves_at_an_exit_of_the_server_that_is_sure():
    """Image 3 is sent from the second place, by the rule that is sure at .6."""
    system = parse_system("devices('pi5') | network(up='1Mbit/s', down='2Mbit/s', latency='10ms')")
    latency = Latency.of_system(system, Experiment.from_dict({"clients": 1}))
    found = {}
    for answer in (SURE, UNSURE):
        now = ways(behind=behind([[1.0, 0.0, 0.0]] * 3 + [answer]))
        found[answer[0]] = one = serve(now, Threshold(tau=0.6), latency)
        assert one.right.all() and one.decisions.is_sent.tolist() == [False] * 3 + [True]
        assert one.bytes_up.tolist() == [0, 0, 0, 70] and one.device_flops[3] == 3050
        where = "server's exit3" if answer is SURE else "sent from exit2"
        assert histogram(one, now) == {"exit1": 2, "exit2": 1, where: 1}
        assert one.confidence[3] == (0.7 if answer is SURE else 0.8)
        assert serve(now, AllSent()).server_flops.tolist() == [7000] * 4
    sooner, later = found[0.1], found[0.3]
    assert sooner.server_flops.tolist() == [0, 0, 0, 510]
    assert later.server_flops.tolist() == [0, 0, 0, 7010]
    saved = later.seconds - sooner.seconds
    assert saved.tolist() == pytest.approx([0, 0, 0, 6500 / 1e12], rel=1e-3)


def test_patience_of_the_server_counts_its_own_exits():
    """Both exits of the device say different classes of image 1, and of image 2 the same."""
    told = behind([UNSURE] * 4, [UNSURE] * 4, names=("exit3", "exit4"))
    found = Patience(count=2).decide(ways(behind=told, local=LOCAL[:, [1, 1, 1, 1]]))
    assert found.is_sent.all() and found.behind.tolist() == [1] * 4
    assert Patience(count=3).decide(ways(behind=told)).behind.tolist() == [-1] * 4


def test_what_is_lost_leaves_at_no_exit_of_the_server():
    gone = np.full((4, 3), np.nan)
    now = ways(behind=behind(gone, gone), served=np.full((2, 4, 3), np.nan))
    for policy in (Patience(count=3), Threshold(tau=0.99)):
        found = serve(now, policy)
        assert (found.decisions.behind == -1).all() and found.is_lost.all()
        assert not found.server_flops.any()


def test_an_oracle_knows_what_exits_of_the_server_say():
    """Nobody but the server's exit is right on image 0, and but the device's on image 1."""
    labels = np.array([2, 1, 0, 2])
    served = np.full((2, 4, 3), [0.1, 0.8, 0.1])
    one = serve(ways(labels=labels, served=served, behind=behind([SURE] * 4)), Oracle())
    assert one.right.all() and one.decisions.is_sent.tolist() == [True, False, False, True]
    assert one.decisions.behind[[0, 3]].tolist() == [0, 0]
    without = serve(ways(labels=labels, served=served), Oracle())
    assert without.right.tolist() == [False, True, True, False]


def test_what_the_channel_loses_is_answered_by_the_last_exit():
    served = np.full((2, 4, 3), np.nan)
    one = serve(ways(served=served), AllSent())
    assert one.is_lost.all() and one.right.tolist() == [True, True, True, False]
    assert one.bytes_up.tolist() == [40, 50, 60, 70] and one.bytes_down.sum() == 0
    nobody = serve(ways(served=served, has_exit=np.zeros(2, bool), local=served), AllSent())
    assert not nobody.right.any() and not nobody.is_known.any()


def test_an_oracle_takes_whatever_is_right_for_the_fewest_bytes():
    """No exit is right on the last image; the server is, from the first exit, and from the cut."""
    served = ways().served.copy()
    served[0, 3], served[1, 3] = [0.1, 0.1, 0.8], [0.1, 0.1, 0.8]
    found = Oracle().decide(ways(served=served))
    assert (found.place[3], found.is_sent[3]) == (1, True)
    served[1, 3] = [0.8, 0.1, 0.1]
    found = Oracle().decide(ways(served=served))
    assert (found.place[3], found.is_sent[3]) == (0, True)


def test_controls_by_hand():
    """All local is right on 3 of 4, all sent on 1 of 4, at a mean of 55 bytes."""
    found = ways()
    assert mixture(found, 0) == 0.75 and mixture(found, 55) == 0.25
    assert mixture(found, 11) == pytest.approx(0.75 - 0.2 * 0.5)
    swept = frontier(found, Threshold())
    assert swept["bytes_up"].is_monotonic_increasing and len(swept) == 21
    # .9 and more of accuracy: everything up to tau=.4 leaves at exit 1, where 2 of 4 are right
    assert swept["accuracy"].iloc[0] in {0.5, 0.75}
    frame = pd.DataFrame({"bytes_up": [0.0, 10.0, 40.0], "accuracy": [0.5, 0.8, 0.7]})
    assert area(frame, 50.0) == pytest.approx(0.2 * 0.5 + 0.8 * 0.8)
    assert np.isnan(area(frame[:1], 50.0))  # one policy has no frontier


def test_over_a_channel_with_noise_a_mixture_has_equal_uses():
    """All sent takes 8 uses on average, and bytes say nothing: half of them is half the way."""
    noisy = ways(sent_uses=np.array([[0] * 4, [4, 8, 8, 12]]), sent_bytes=np.ones((2, 4), int))
    assert mixture(noisy, 4.0) == pytest.approx((0.75 + 0.25) / 2)
    swept = frontier(noisy, Threshold())
    assert np.isnan(swept["channel_uses"].iloc[0]) and swept["mixture"].iloc[0] == 0.75
    assert swept["channel_uses"].iloc[-1] == 8 and swept["mixture"].iloc[-1] == 0.25
    frame = pd.DataFrame({"channel_uses": [2.0, np.nan], "accuracy": [0.8, 0.5]})
    assert area(frame, 8.0, "channel_uses") == pytest.approx(0.25 * 0.5 + 0.75 * 0.8)


def test_a_fit_takes_what_is_worth_most():
    """At no price accuracy alone counts; at a high one nothing is sent."""
    free, dear = (fitted(Threshold(), ways(), price) for price in (0.0, 100.0))
    assert serve(ways(), free).right.mean() == 1.0
    assert serve(ways(), dear).bytes_up.sum() == 0


def test_calibration_by_hand():
    """Two bins of two: (.9 + .8 - 1) / 2 and (.3 + .2 - 0) / 2, each of half the samples."""
    confidence, right = np.array([0.9, 0.8, 0.3, 0.2]), np.array([True, False, False, False])
    assert calibration_error(confidence, right, bins=2) == pytest.approx((0.7 + 0.5) / 4)
    assert calibration_error(np.ones(3), np.ones(3, bool)) == 0


def test_seconds_and_joules_by_hand():
    system = parse_system("devices('pi5') | network(up='1Mbit/s', down='2Mbit/s', latency='10ms')")
    latency = Latency.of_system(system, Experiment.from_dict({"clients": 1}))
    speed, watts = (
        latency.now.flops[0],
        {
            key: latency.fleet.of(f"{key}_watts")[0]
            for key in ("compute", "send", "receive", "idle")
        },
    )
    seconds, joules = latency.of(
        np.array([10**9, 10**9]), np.array([0, 10**9]), np.array([0, 125]), np.array([0, 250]),
        np.array([False, True]), np.zeros(2, np.int64),
    )  # fmt: skip
    compute, send, receive = 1e9 / speed, 8 * 125 / 1e6, 8 * 250 / 2e6
    wait = 0.02 + 1e9 / 1e12
    assert seconds.tolist() == pytest.approx([compute, compute + send + receive + wait])
    more = watts["send"] * send + watts["receive"] * receive + watts["idle"] * wait
    assert joules.tolist() == pytest.approx([watts["compute"] * compute] * 2 + np.array([0, more]))


TINY = {"exits": "plain()", "cut": 2, "holdout": 0.3, "codec": "uniform(bits=8)"}


def test_a_run_serves_its_test_images(reference, tmp_path):
    """All sent without a codec is the accuracy of training; all local that of the last exit."""
    run = reference(**TINY)
    found = infer(run.folder, ["threshold(tau=0.5)", "trend()"], codec="identity()")
    table = found.table.set_index("policy")
    last = run.rounds.iloc[-1]
    assert table.loc["all sent", "accuracy"] == pytest.approx(last["accuracy"])
    assert table.loc["all local", "accuracy"] == pytest.approx(last["accuracy_exit2"])
    images = found.images["threshold(tau=0.5)"]
    assert len(images) == len(found.images["trend(tau=0.8)"]) == 364
    assert images["image"].tolist() == [*range(364)]
    assert images["label"].tolist() == trained.load(run.folder).test.labels.tolist()
    assert images["right"].mean() == table.loc["threshold(tau=0.5)", "accuracy"]
    tokens, label = torch.zeros(1, 5, 16), torch.zeros(1, dtype=torch.int64)
    payload = Payload({"tokens": tokens}, {"labels": label})
    assert table.loc["all sent", "bytes_up"] == payload.nbytes
    assert table.loc["oracle", "accuracy"] >= table["accuracy"].drop("oracle").max()
    assert sorted(found.clients["client"].unique()) == [*range(6)]
    files = write(found, tmp_path / "infer")
    assert all(file.is_file() for file in files)
    assert {f"JPEG {q}" for q in (5, 95)} <= {*table.index}


def test_exits_of_the_server_answer_what_is_sent(simulate):
    """Blocks 1 and 3 of four, with a cut behind 2: from block 1 as from the cut."""
    model = "vit(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, patch_size=4)"
    run = simulate(model=model, cut=2, exits="plain(after='1, 3')", rounds=1, clients=2)
    read = trained.load(run.folder)
    found = ways_of(read, read.test, np.arange(60), read.experiment.parts.link())
    assert (found.names, found.behind.names) == (["exit1", "cut"], ["exit3"])
    *_, exit3 = predict_by_exit(read.head, read.tail, read.test.batch(slice(60))[0])
    for answers in found.behind.answers[0]:
        np.testing.assert_allclose(answers, exit3.softmax(dim=1), atol=1e-5)
    block, classifier = 5 * 2 * (4 * 16 * 16 + 2 * 16 * 64) + 4 * 25 * 16, 2 * 16 * 10
    assert found.behind.flops[0].tolist() == [2 * block + classifier, block + classifier]
    assert found.behind.flops[1].tolist() == (found.server_flops + classifier).tolist()
    tau = float(np.median(exit3.softmax(dim=1).amax(dim=1)))
    one = serve(found, Threshold(tau=tau))
    stops = one.decisions.is_sent & (one.decisions.behind == 0)
    assert 0 < stops.sum() < 60 and {"server's exit3"} == {*one.images(found)["left"][stops]}
    assert (one.server_flops[stops] == block + classifier).all()
    assert (one.confidence[stops] >= tau).all()
    assert (found.local[0, one.decisions.is_sent].max(axis=1) < tau).all()


def test_thresholds_are_fitted_to_rows_that_nobody_trained_on(reference):
    run = reference(**TINY)
    found = infer(run.folder, ["threshold"], price=0.1)
    assert any("was fitted to held-out rows" in note for note in found.notes)
    read = trained.load(run.folder)
    (held, owner), used = read.held_out, np.concatenate(read.setup.train.partitions)
    assert len(held) and not np.isin(held, used).any()
    assert all(row in read.setup.shards[client] for row, client in zip(held, owner, strict=True))
    ways = ways_of(read, read.setup.train, held, read.experiment.parts.link(), owner)
    assert [*found.histograms] == [name_of(fitted(Threshold(), ways, 0.1))]


@pytest.mark.parametrize(
    ("keys", "options", "message"),
    [
        ({}, {}, "the run has none; train with exits"),
        ({"exits": "plain(after=2)"}, {}, "behind the cut alone; train with some of the device"),
        ({"exits": "plain()"}, {"price": 0.1}, "has kept no rows back.*holdout=0.1"),
        ({"exits": "plain()", "end": 2}, {}, "keeps its classifier on the device"),
        (
            {"exits": "plain()", "strategy": "parallel(average_heads=False)"},
            {},
            "leaves models with the clients",
        ),
        (
            {"exits": "plain()", "codec": "bottlenet()"},
            {"codec": "topk()"},
            "one is trained; leave",
        ),
    ],
)
def test_what_cannot_be_served_is_refused(simulate, keys, options, message):
    run = simulate(rounds=1, **keys)
    with pytest.raises(ValueError, match=message):
        infer(run.folder, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"price": float("nan")}, "price must be 0 or more, got nan"),
        ({"policies": []}, "policies: give at least one"),
        ({"policies": "treshold()"}, "did you mean 'threshold'"),
        ({"rate": 0.5}, "rate: the run selects no tokens"),
        ({"channel": "awgn(snr_db=10)", "codec": "zstd()"}, "channel: .*awgn"),
        (
            {"channel": "awgn(snr_db='cell')", "codec": "identity()"},
            "channel: .*asks for the noise in a cell",
        ),
        ({"prise": 0.1}, "unknown argument 'prise'; did you mean 'price'"),
    ],
)
def test_bad_arguments_are_one_line(reference, options, message):
    with pytest.raises(ValueError, match=message):
        fs.infer(reference(**TINY).folder, **options)


def test_noise_is_that_of_the_device_that_sends(reference, monkeypatch):
    """Image n is of client n mod 6, in round 1 of the run's seed, as its seconds are."""
    asked = []
    over = Link.over
    monkeypatch.setattr(Link, "over", lambda *words: (asked.append(words[2]), over(*words))[1])
    run = reference(**TINY)
    infer(run.folder, "all_sent()", channel="bit_errors(ber=0.001)")
    steps = {(one.seed, one.round, one.client, one.step) for one in asked if one.round}
    assert {(0, 1, n % 6, n) for n in range(364)} <= steps


def test_a_run_without_exits_sends_all(simulate):
    """The one policy that its error names; there is nothing to mix with."""
    run = simulate(rounds=1)
    found = infer(run.folder, "all_sent()")
    table = found.table.set_index("policy")
    assert table.loc["all sent", "accuracy"] == pytest.approx(run.rounds["accuracy"].iloc[-1])
    assert found.frontiers["all_sent"]["mixture"].isna().all()


def test_a_resnet_is_served(simulate):
    run = simulate(exits="plain()", model="resnet18(width=4)", cut=2, rounds=1, local_steps=1)
    table = infer(run.folder, codec="identity()").table.set_index("policy")
    last = run.rounds.iloc[-1]
    assert table.loc["all sent", "accuracy"] == pytest.approx(last["accuracy"])
    assert table.loc["all local", "accuracy"] == pytest.approx(last["accuracy_exit2"])


def test_tokens_are_served_at_other_rates(simulate):
    """16 patches of two by two pixels and CLS; at a rate of 1 all of them, else a quarter."""
    run = simulate(exits="plain()", tokens="norm(rate=0.25)", cut=2, rounds=1)
    few, all_tokens = (
        infer(run.folder, rate=rate).table.set_index("policy") for rate in (None, 1.0)
    )
    bytes_of = [one.loc["all sent", "bytes_up"] for one in (few, all_tokens)]
    assert bytes_of[1] - bytes_of[0] == 4 * 16 * (4 - 1)
    last = run.rounds.iloc[-1]
    assert few.loc["all sent", "accuracy"] == pytest.approx(last["accuracy"])


def test_a_trained_codec_sends_from_the_cut_alone(simulate):
    run = simulate(rounds=1, exits="plain(after='1')", cut=2, codec="bottlenet()")
    found = infer(run.folder, ["trend(tau=1.0, least=1.0)", "margin()"])
    assert {*found.images["trend(tau=1.0, least=1.0)"]["left"]} == {"sent from cut"}
    (note,) = [note for note in found.notes if "sent from the cut alone" in note]
    assert note.startswith("trend(tau=1.0, least=1.0): ") and "trained codec" in note


@pytest.mark.parametrize("policy", ["margin()", "trend()"])
def test_who_cannot_hand_over_before_the_cut_is_told_so(reference, policy):
    keys = {"exits": "plain()", "cut": 2, "clients": 2, "rounds": 1}
    chosen, whole = reference(**keys, tokens="norm(rate=0.25)"), reference(**keys)
    notes = [note for note in infer(chosen.folder, policy).notes if "from the cut alone" in note]
    assert len(notes) == (policy == "trend()") and all("how tokens are" in one for one in notes)
    assert not any("from the cut alone" in note for note in infer(whole.folder, policy).notes)


def test_the_command(reference, tmp_path):
    folder = shutil.copytree(reference(**TINY).folder, tmp_path / "run")
    words = ["infer", folder, "-p", "margin()", "-s", "devices('pi5') | lte()"]
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == 0, done.output
    table = pd.read_csv(folder / "infer" / "infer.csv").set_index("policy")
    assert table.loc["all sent", "bytes_up"] < 0.5 * 4 * 5 * 16  # packed by the run's codec
    assert table.loc["all sent", "seconds"] > table.loc["all local", "seconds"] > 0
    assert "oracle" in done.output and "frontier.csv" in done.output
    places = pd.read_csv(folder / "infer" / "places.csv")
    assert places["images"].sum() == 364 and places["share"].sum() == pytest.approx(1)
    page = tmp_path / "report.md"
    shown = CliRunner().invoke(app, ["report", str(folder), "-o", str(page)])
    assert shown.exit_code == 0, shown.output
    text = page.read_text()
    row = next(line for line in text.splitlines() if ": all sent |" in line)
    assert f"{100 * table.loc['all sent', 'accuracy']:.1f}" in row
    assert "Frontiers of split inference" in text and "Where images left" in text
    again = CliRunner().invoke(app, ["infer", str(folder)])
    assert again.exit_code == 2 and "holds an inference already; give another" in again.output
    unfinished = CliRunner().invoke(app, ["infer", str(tmp_path)])
    assert unfinished.exit_code == 2 and "holds no run" in unfinished.output
