"""Which cut suits which device: what is foretold is what a run under the same system then takes."""

import numpy as np
import pytest
from typer.testing import CliRunner

from simulations.cli import main as cli
from simulations.runs.experiment import Experiment
from simulations.runs.setup import prepare
from simulations.studies import cut_choice
from simulations.studies.cut_choice import Choice, Chooser, Mixture, choose
from simulations.system.system import parse_system

VALUES = {
    "model": "vit(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, patch_size=4)",
    "clients": 4,
    "batch_size": 64,
    "local_steps": 2,
    "codec": "uniform(bits=4)",
    "downlink": "uniform(bits=8)",
    "rounds": 1,
    "engine": "inline()",
}
SYSTEM = "mix(pi_zero_2=1, jetson_nano=1) | lte() | server('2GFLOP/s')"


@pytest.mark.parametrize("strategy", ["parallel", "sflv1"])
def test_a_mixture_takes_the_time_that_was_foretold(simulate, strategy):
    """A server so slow that its queue counts; both mixtures, and one whose tail begins early."""
    values = {**VALUES, "strategy": strategy}
    setup, system = prepare(Experiment.from_dict({**values, "cut": 3})), parse_system(SYSTEM)
    chooser = Chooser(setup, system, [1, 2, 3])
    for cuts in [(1, 3), (2, 1)]:
        key = Mixture(dict(zip(["pi_zero_2", "jetson_nano"], cuts, strict=True)), 0.0).key
        found = simulate(**values, cut=key, system=SYSTEM)
        (seconds,) = found.rounds["virtual_seconds"]
        assert chooser.seconds([cut - 1 for cut in cuts]) == pytest.approx(seconds, rel=1e-9)


def test_a_long_round_is_foretold_from_its_begin():
    """Batches of one size over fast links: clients reach a pace, which two rehearsals tell."""
    even = {**VALUES, "partition": "iid", "batch_size": 8, "local_steps": 8}
    system = parse_system("mix(pi_zero_2=1, jetson_nano=1) | wifi()")
    setup = prepare(Experiment.from_dict({**even, "cut": 2}))
    whole, short = (Chooser(setup, system, [1, 2], most) for most in (8, 4))
    assert short.seconds([0, 1]) == pytest.approx(whole.seconds([0, 1]), rel=0.001)
    assert short.seconds([0, 1]) != whole.seconds([0, 1])


@pytest.fixture(scope="module")
def chosen(tmp_path_factory) -> Choice:
    """A slow device beside a fast one whose memory is too small for all but the first cut."""
    table = tmp_path_factory.mktemp("devices") / "mine.toml"
    watts = "compute_watts = 2.0\nsend_watts = 1.0\nreceive_watts = 1.0\nidle_watts = 0.5\n"
    table.write_text(
        f"[slow]\nsustained = '20MFLOP/s'\nbackward = 2.0\nmemory = '1GB'\n{watts}"
        f"[small]\nsustained = '10TFLOP/s'\nbackward = 2.0\nmemory = '500kB'\n{watts}"
    )
    system = parse_system(f"mix(table={str(table)!r}, slow=1, small=1) | network('1Gbit/s')")
    return choose(Experiment.from_dict({**VALUES, "cut": 2, "batch_size": 64}), system)


def test_devices_get_no_cut_for_which_they_have_no_memory(chosen):
    fits = {(one.device.name, one.cut): one.fits for one in chosen.table}
    assert fits == {
        ("slow", 1): True, ("slow", 2): True, ("slow", 3): True,
        ("small", 1): True, ("small", 2): False, ("small", 3): False,
    }  # fmt: skip
    assert [*chosen.singles] == [1] and chosen.tried == 3


def test_a_slow_device_computes_little_where_links_are_fast(chosen):
    """Its own work is nearly all computing: operations over 20 MFLOP/s, and 2 watts."""
    assert chosen.mixture.cuts == {"slow": 1, "small": 1}
    slow = {one.cut: one for one in chosen.table if one.device.name == "slow"}
    setup = prepare(Experiment.from_dict({**VALUES, "cut": 2}))
    operations = setup.exchange.flops(setup.head, setup.tail).total
    sizes = setup.train.partitions
    drawn = np.mean([min(64, len(rows)) for rows in sizes])
    assert slow[2].seconds == pytest.approx(2 * drawn * operations / 20e6, rel=0.5)
    assert slow[2].joules == pytest.approx(2 * slow[2].seconds, rel=0.05)
    assert slow[1].seconds < slow[2].seconds < slow[3].seconds


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["strategy=fedavg"], "fedavg() takes one cut for all clients; take sflv1 or"),
        (["strategy=sflv3"], "sflv3() takes one cut for all clients; take sflv1 or"),
        (["--cuts", "1,9"], "cuts must be in 1..3, got 9"),
        (["--cuts", "block1"], "--cuts must be numbers with commas between"),
        (
            ["system=devices('cortex_m7')", "batch_size=200"],
            "cortex_m7 has 1 MB of memory, and the",
        ),
        (["system=none"], "cuts are chosen for devices; give --system"),
    ],
)
def test_what_cannot_be_chosen_is_refused_in_one_line(words, message):
    given = ["quickstart", "clients=4", "engine=inline", "system=devices('pi5')"]
    given = [one for one in given if one.partition("=")[0] not in {w.split("=")[0] for w in words}]
    result = CliRunner().invoke(cli.app, ["cuts", *given, *words], catch_exceptions=False)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_the_command_prints_a_key_that_can_be_taken(monkeypatch):
    found = Choice([], {1: 3.0, 2: 4.0}, Mixture({"pi4": 1, "pi5": 2}, 2.4), 4, 7)
    monkeypatch.setattr(cut_choice, "choose", lambda *given: found)
    words = ["cuts", "quickstart", "-s", "mix(pi4=1, pi5=1)"]
    output = CliRunner().invoke(cli.app, words, catch_exceptions=False).output
    assert "best single cut: cut = 1, 3 s a round" in output
    assert "best of 4 mixtures: 2.4 s a round, 20 % less" in output
    assert output.strip().endswith('cut = "by_device(pi4=1, pi5=2)"')
