"""A rule and a controller in one policy: who leaves, and how the others are sent."""

import numpy as np
import pytest

from simulations.inference.inference import infer

TINY = {"exits": "plain()", "cut": 2, "holdout": 0.1, "local_steps": 0}
CODECS = ["uniform(bits=2)", "uniform(bits=8)"]
RULE = "threshold(tau=0.16)"


@pytest.fixture(scope="module")
def run(reference):
    return reference(**TINY)


@pytest.fixture(scope="module")
def alone(run):
    """Serve by the rule alone, with each codec."""
    return [infer(run.folder, RULE, codec=codec) for codec in CODECS]


@pytest.mark.parametrize("price", ["100.0", "0.05"])
def test_a_rule_and_a_gate_share_out_the_images(run, alone, price):
    """Who leaves is as by the rule alone; the rest has the bytes of its setting, and one more.

    The gate reads 3 numbers of CLS, a margin and an entropy of 2 exits, and has 2 settings: 28
    operations, for what is sent alone. Exits are counted once.
    """
    name = f"{RULE} | gate(price={price})"
    found = infer(run.folder, name, codecs=CODECS)
    images, each = found.images[name], [one.images[RULE] for one in alone]
    is_sent = each[0]["left"].str.startswith("sent").to_numpy()
    assert 20 < is_sent.sum() < 344
    assert (images["left"] == each[0]["left"])[~is_sent].all()
    chosen = images["left"].eq(CODECS[1]).to_numpy().astype(int)
    assert {*images["left"][is_sent]} <= {*CODECS} and (price != "100.0" or not chosen.any())
    for key, more in (("right", 0), ("bytes_up", is_sent), ("device_flops", 28 * is_sent)):
        expected = np.stack([one[key] for one in each])[chosen, np.arange(364)] + more
        assert images[key].tolist() == expected.tolist()
    row = found.table.set_index("policy").loc[name]
    assert row["accuracy"] == images["right"].mean() and row["sent"] == is_sent.mean()
    assert sum(found.histograms[name].values()) == 364


def test_its_control_is_the_same_rule_in_the_best_setting(run, alone):
    name = f"{RULE} | gate(price=100.0)"
    table = infer(run.folder, name, codecs=CODECS).table.set_index("policy")
    for key, one in (("best constant", alone[0]), ("dearest", alone[1])):
        expected = one.table.set_index("policy").loc[RULE]
        for column in ("accuracy", "sent", "bytes_up", "device_flops", "server_flops"):
            assert table.loc[f"{key} of {name}", column] == pytest.approx(expected[column])


def test_a_rate_is_kept_over_all_images_also_those_that_leave(run, alone):
    """A queue falls while images leave. At a small V it ends below the cost of one image.

    So the mean of 60 slots exceeds the rate by less than that cost over 60.
    """
    low, high = (one.table.set_index("policy").loc[RULE, "bytes_up"] for one in alone)
    rate = round((low + high) / 2 + 1)
    name = f"{RULE} | lyapunov(rate={rate}.0, V=1.0, slots=100)"
    found = infer(run.folder, name, codecs=CODECS)
    images = found.images[name]
    assert low < images["bytes_up"].mean() <= rate + images["bytes_up"].max() / 60
    assert {*CODECS} <= {*images["left"]}


def test_exits_before_the_choice_are_asked_at_the_first_rate(simulate):
    """Block 1 is told a rate before any is chosen; behind it exit 2 is asked at the chosen rate."""
    keys = {**TINY, "clients": 2, "rounds": 1, "tokens": "dual_gate(after=1)"}
    run, rule = simulate(**keys), "threshold(tau=0.15)"
    name = f"{rule} | gate(price=100.0)"
    images = infer(run.folder, name, rates=[1.0, 0.25]).images[name]
    first, cheap = (infer(run.folder, rule, rate=rate).images[rule] for rate in (1.0, 0.25))
    at_once = first["left"] == "exit1"
    assert at_once.any() and not at_once.all()
    assert (images["left"].eq("exit1") == at_once).all()
    of_exit1 = cheap["device_flops"][cheap["left"] == "exit1"].unique()
    assert images["device_flops"][at_once].unique().tolist() == of_exit1.tolist()  # no gate
    alone = {"rate 1": first["left"], "rate 0.25": cheap["left"]}
    for rate, left in alone.items():
        is_so = images["left"].eq(rate) & left.ne("exit1")
        assert left[is_so].eq("sent from exit2").all()
    is_second = images["left"].eq("exit2") & cheap["left"].ne("exit1")
    assert (alone["rate 1"].eq("exit2") | alone["rate 0.25"].eq("exit2"))[is_second].all()
    assert is_second.any() and images["left"].eq("rate 0.25").any()


@pytest.mark.parametrize(
    ("policy", "options", "message"),
    [
        ("gate() | threshold()", {"codecs": CODECS}, "expected a rule .* and a controller"),
        ("threshold() | margin()", {"codecs": CODECS}, "expected a rule .* and a controller"),
        ("trend() | gate()", {"codecs": CODECS}, "a rule that sends from the cut"),
        ("threshold() | gate() | gate()", {"codecs": CODECS}, "expected a rule"),
        ("threshold() | gaet()", {"codecs": CODECS}, "did you mean 'gate'"),
        ("threshold() | gate()", {}, "needs two settings or more"),
        ("threshold() | gate()", {"codecs": CODECS, "carry": True}, "carry: no policy asks"),
        ("threshold() | gate()", {"codecs": CODECS, "price": 0.1}, "gate has a price of its own"),
    ],
)
def test_where_a_part_is_missing_it_is_refused_in_one_line(run, policy, options, message):
    with pytest.raises(ValueError, match=message):
        infer(run.folder, policy, **options)


def test_a_run_without_exits_or_held_out_rows_is_refused(reference):
    both = "threshold() | gate()"
    with pytest.raises(ValueError, match=r"\) \| gate.* asks exits, and the run has none"):
        infer(reference().folder, both, codecs=CODECS)
    with pytest.raises(ValueError, match="has kept no rows back"):
        infer(reference(exits="plain()", cut=2).folder, both, codecs=CODECS)
