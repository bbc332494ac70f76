"""Answers that are carried along: mixtures, bytes and fitted shares by hand; one tiny run."""

import math

import numpy as np
import pytest

from simulations.inference.carrying import Shares, fit_shares
from simulations.inference.inference import infer
from simulations.inference.policies import AllSent, Threshold
from simulations.inference.served import serve
from simulations.inference.ways import Ways

LABELS = np.array([0, 1])


def ways(served, local, has_exit=(True, False)):
    """Two places: an exit, and the cut without one; two images, two classes."""
    return Ways(
        labels=LABELS,
        names=["exit1", "cut"],
        has_exit=np.array(has_exit),
        can_send=np.array([True, True]),
        local=np.array(local, float),
        served=np.array(served, float),
        sent_bytes=np.array([[100, 110], [40, 50]]),
        sent_uses=np.zeros((2, 2), np.int64),
        trunk_flops=np.array([900, 2700]),
        exit_flops=np.array([100, 100]),
        encoder_flops=0,
        server_flops=np.array([9000, 7000]),
        coding_flops=(0, 0),
        answer_bytes=9,
        owner=np.zeros(2, np.int64),
    )


GONE = [[math.nan, math.nan]] * 2
LOCAL = [[[0.75, 0.25], [0.5, 0.5]], GONE]
SERVED = [[[0.25, 0.75], [0.25, 0.75]], [[0.25, 0.75], [0.125, 0.875]]]


def test_an_answer_is_a_mixture_of_the_servers_and_of_the_exit_passed():
    """From the cut .5 (.25, .75) + .5 (.75, .25); whoever asks no exit takes nothing along."""
    found = Shares([1.0, 0.5]).carry(ways(SERVED, LOCAL))
    sure = serve(found, Threshold(tau=0.9))
    assert sure.decisions.place.tolist() == [1, 1] and sure.decisions.is_sent.all()
    assert sure.confidence.tolist() == [0.5, 0.6875]
    # a byte each for the number of dimensions and so on: 4 numbers of fp16 are 4 bytes more than 2
    plain, four = (
        serve(found, AllSent()),
        Shares([1.0, 0.5]).carry(ways(np.tile(SERVED, 2) / 2, np.tile(LOCAL, 2) / 2)),
    )
    assert plain.bytes_up.tolist() == [40, 50] and plain.confidence.tolist() == [0.75, 0.875]
    more = sure.bytes_up - plain.bytes_up
    assert more[0] == more[1] >= 4
    of_four = serve(four, Threshold(tau=0.9)).bytes_up - plain.bytes_up
    assert (of_four - more).tolist() == [4, 4]


def test_the_share_has_the_least_cross_entropy():
    """Of the true class the server has (.2, .8) and the exit (.6, .4).

    d/dg of log(.6 - .4 g) + log(.4 + .4 g) is zero at .6 - .4 g = .4 + .4 g, at g = 1/4.
    """
    served = [[[0.2, 0.8], [0.2, 0.8]]] * 2
    local = [[[0.6, 0.4], [0.6, 0.4]], GONE]
    found = fit_shares(ways(served, local))
    assert found.of_server == pytest.approx([0.25, 0.25], abs=1e-9)
    one_lost = [[[math.nan] * 2, [0.2, 0.8]], [[0.2, 0.8], [math.nan] * 2]]
    assert fit_shares(ways(one_lost, local)).of_server == pytest.approx([1, 0], abs=1e-3)
    assert fit_shares(ways(served, [GONE, GONE], (False, False))).of_server == [1.0, 1.0]


def test_where_no_exit_was_passed_nothing_is_carried():
    found = Shares([1.0, 1.0]).carry(ways(SERVED, [GONE, GONE], (False, False))).carrying
    assert found.sent_bytes.tolist() == [[100, 110], [40, 50]]
    np.testing.assert_array_equal(found.served, SERVED)


def test_what_is_lost_is_answered_by_the_exit_with_or_without():
    now = ways([GONE, GONE], LOCAL)
    found = serve(Shares([0.5, 0.5]).carry(now), Threshold(tau=0.9))
    assert found.is_lost.all() and found.confidence.tolist() == [0.75, 0.5]


def test_a_run_carries_and_its_controls_do_not(reference):
    """Images leave where they did; those that are sent take 10 numbers of fp16 along."""
    policy = "patience(count=2)"
    run = reference(exits="plain()", cut=2, holdout=0.3, codec="uniform(bits=8)")
    plain, carried = (infer(run.folder, [policy], carry=on) for on in (False, True))
    before, after = (one.table.set_index("policy") for one in (plain, carried))
    for control in ("all sent", "all local"):
        same = before.loc[control].drop("mixture"), after.loc[control].drop("mixture")
        assert same[0].equals(same[1])
    images = [one.images[policy] for one in (plain, carried)]
    sent = images[0]["left"].str.startswith("sent")
    assert images[0]["left"].equals(images[1]["left"]) and 0 < sent.sum() < len(sent)
    more = (images[1]["bytes_up"] - images[0]["bytes_up"]).astype(int)
    assert (more[~sent] == 0).all() and (more[sent] == more[sent].iloc[0]).all()
    assert more[sent].iloc[0] >= 2 * 10
    assert any(note.startswith("share of the server's answer") for note in carried.notes)
    with pytest.raises(ValueError, match="carry: no policy asks the exits"):
        infer(run.folder, ["all_sent"], carry=True)


def test_shares_need_rows_that_were_held_out(simulate):
    run = simulate(exits="plain()", cut=2, rounds=1, clients=2)
    with pytest.raises(ValueError, match="train with a holdout"):
        infer(run.folder, ["threshold"], carry=True)
