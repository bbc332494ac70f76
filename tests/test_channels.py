"""Channels: laws of chance against their formulas, lossy runs, and what is refused."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from pydantic.dataclasses import dataclass

from fl_split.channels import CHANNELS, Crossing
from fl_split.channels import erasure as erasure_module
from fl_split.channels.bit_errors import CHECKSUM, FRAME
from fl_split.channels.channel import Channel, clean, count_of, hits
from fl_split.codecs import CODECS, Codec, Identity, Smashed, parse_codec, parse_downlink
from fl_split.exchange.account import Account
from fl_split.exchange.split import Split, encode
from fl_split.flat import Flat
from fl_split.payload import Payload, extents
from fl_split.seeds import StepId, generator
from fl_split.spec_errors import SpecError
from fl_split.specs import STRICT, parse
from fl_split.testing import check_channel
from simulations.clients.worker import Stacks, Worker
from simulations.runs.columns import OF_CHANNEL
from simulations.runs.experiment import Experiment
from simulations.runs.observers import Channels
from simulations.runs.setup import prepare
from strategies.checks import check_tasks

TINY = {
    "model": "vit(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=4)",
    "cut": 1, "clients": 3, "engine": "inline()",
}  # fmt: skip
ANALOG = {"identity", "adc", "attended", "bottlenet", "c3sl", "jscc", "topk", "randtopk"}
ANALOG |= {"lightsplit", "nscsl"}
OPAQUE = {"fedlite", "rans", "splitcom", "zstd"}
LOSSY = {
    "codec": "topk(ratio=0.5) | uniform(bits=4, rounding='stochastic')",
    "downlink": "uniform(bits=6) | zstd()",
    "channel": "bit_errors(ber=1e-3)",
    "down_channel": "erasure(p=0.2, packet=1000, mode='drop')",
    "rounds": 3, "local_steps": 3, "checkpoint_every": 1,
}  # fmt: skip
"""Damage up, and down messages that are lost as a whole."""


def draw(step=0):
    return StepId(0, 1, 2, step).generator("channel")


def build(spec):
    return parse(spec, CHANNELS)


def cross(spec, payload, codec=None, step=0):
    """Send a payload that has been packed; return what arrives, and the crossing."""
    found = build(spec).cross(payload.to_bytes(), codec or Identity(), draw(step))
    return Payload.from_bytes(found.data), found


def packed(codec, values, side=None):
    return codec.pack(Payload({"tokens": values}, side or {}), generator(0, "pack"))


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def within(found, mean, deviation):
    """Tell whether a number is within three standard deviations of its mean."""
    return abs(found - mean) <= 3 * deviation


# Laws.


@pytest.mark.parametrize(
    "spec",
    [
        *CHANNELS,
        "bit_errors(ber=0.02)",
        "bit_errors(protect='none')",
        "erasure(p=0.5, packet=64, mode='drop')",
        "rayleigh(csi=False)",
    ],
)
def test_every_channel_keeps_the_laws(spec):
    check_channel(build(spec))


@dataclass(frozen=True, config=STRICT)
class Faulty(Channel):
    """Breaks the law that it is asked to break."""

    law: str

    def cross(self, data, codec, generator):
        if self.law == "global":
            torch.rand(())
        payload = Payload.from_bytes(data)
        if self.law == "infinite":
            payload.carried = {k: v * math.inf for k, v in payload.carried.items()}
        if self.law == "names":
            payload.carried = {f"{k}!": v for k, v in payload.carried.items()}
        size = len(data) // 2 if self.law == "free" else len(data)
        return Crossing(None if self.law == "lost" else payload.to_bytes(), size)


@pytest.mark.parametrize(
    ("law", "sentence"),
    [
        ("free", "bytes must take as many or more"),
        ("global", "must come from the generator that is given"),
        ("infinite", "values that arrive must be finite"),
        ("lost", "must say so"),
        ("names", "names and shapes of old"),
    ],
)
def test_a_channel_that_breaks_a_law_is_told_which(law, sentence):
    with pytest.raises(AssertionError, match=sentence):
        check_channel(Faulty(law))
    check_channel(Faulty(""))


@pytest.mark.parametrize(
    "spec", ["perfect()", "bit_errors(ber=0.0)", "erasure(p=0.0)", "erasure(p=0.0, mode='drop')"]
)
def test_a_channel_without_faults_delivers_what_was_sent_and_draws_nothing(spec):
    data, source = Payload({"tokens": normal(5, 7)}, {"labels": torch.arange(5)}).to_bytes(), draw()
    before = source.get_state()
    found = build(spec).cross(data, Identity(), source)
    assert bytes(found.data) == data and found.resent == 0
    assert torch.equal(source.get_state(), before)


def test_extents_are_where_the_numbers_lie():
    payload = Payload({"a": torch.zeros(2, 3), "b": torch.ones(4).half()}, {"c": torch.arange(9)})
    data = payload.to_bytes()
    places = {one.name: (one.is_value, data[one.start : one.stop], one.bits)
              for one in extents(data)}  # fmt: skip
    assert places["a"] == (True, bytes(24), 32)
    assert places["b"] == (True, np.ones(4, "<f2").tobytes(), 16)
    assert places["c"][::2] == (False, 4) and len(places["c"][1]) == 5


# Bit errors.


@pytest.mark.parametrize("chance", [1e-4, 0.03, 0.7, 1.0])
def test_hits_are_binomial_and_spread_evenly(chance):
    count = 200_000
    places = hits(count, chance, draw())
    spread = math.sqrt(count * chance * (1 - chance))
    assert within(len(places), count * chance, spread)
    assert (np.diff(places) > 0).all() and 0 <= places.min() <= places.max() < count
    if chance < 1:
        mean = (count - 1) / 2
        assert within(places.mean(), mean, count / math.sqrt(12 * len(places)))


def test_flipped_bits_are_binomial_and_lie_in_the_data_alone():
    payload = Payload({"tokens": torch.zeros(60, 1000)}, {"labels": torch.arange(60)})
    channel, data = build("bit_errors(ber=1e-3, largest=1e38)"), payload.to_bytes()
    found = channel.cross(data, Identity(), draw())
    wrong = np.frombuffer(data, np.uint8) ^ np.frombuffer(found.data, np.uint8)
    bits, (spot, _) = 8 * 4 * 60_000, extents(data)
    assert not wrong[: spot.start].any() and not wrong[spot.stop :].any()
    flips = int(np.unpackbits(wrong).sum())
    assert within(flips, bits * 1e-3, math.sqrt(bits * 1e-3))
    assert flips * 0.9 < found.damaged <= flips


def test_levels_with_wrong_bits_stay_on_the_grid():
    codec, values, ber = parse_codec("uniform(bits=3)"), normal(50, 800), 0.01
    sent = packed(codec, values)
    arrived, found = cross(f"bit_errors(ber={ber})", sent, codec)
    numbers, wrong = values.numel(), 1 - (1 - ber) ** 3
    assert within(found.damaged, numbers * wrong, math.sqrt(numbers * wrong))
    before, after = codec.unpack(sent).carried["tokens"], codec.unpack(arrived).carried["tokens"]
    assert int((before != after).sum()) == found.damaged and found.zeroed == 0
    assert values.min() <= after.min() + 1e-6 and after.max() <= values.max() + 1e-6


def test_frames_are_repeated_as_often_as_the_geometric_law_says():
    labels, ber = torch.arange(2**15, 2**16), 1e-3
    payload = Payload({}, {"labels": labels})
    arrived, found = cross(f"bit_errors(ber={ber})", payload)
    assert torch.equal(arrived.side["labels"], labels)
    size = payload.nbytes
    frames, each = -(-size // FRAME), FRAME + CHECKSUM
    failure = 1 - (1 - ber) ** (8 * each)
    assert found.size == size + CHECKSUM * frames + found.resent
    spread = math.sqrt(failure) / (1 - failure) * math.sqrt(frames) * each
    assert within(found.resent, frames * each * failure / (1 - failure), spread)


def test_values_that_make_no_sense_become_zero_and_are_counted():
    payload = Payload({"a": torch.tensor([1.0, math.nan, -math.inf, 7e4, -2.0])})
    assert count_of(clean(payload, 65504.0)) == 3
    assert payload.carried["a"].tolist() == [1.0, 0.0, 0.0, 0.0, -2.0]
    arrived, found = cross("bit_errors(ber=1e-3)", Payload({"a": normal(100, 1000)}))
    assert float(arrived.carried["a"].abs().max()) <= 65504
    expected = 100_000 * 1e-3  # nearly each wrong bit at the top of an exponent
    assert within(found.zeroed, expected, math.sqrt(expected)) and found.zeroed < found.damaged


def test_without_protection_many_headers_are_lost():
    setup = prepare(Experiment.from_dict({**TINY, "channel": "bit_errors(protect='none')"}))
    link, lost = setup.parts.link(), 0
    payload = Payload({"tokens": normal(4, 17, 16)}, {"labels": torch.arange(4)})
    account = Accounted()
    for step in range(200):
        at = StepId(0, 1, 2, step)
        crossing = link.over(payload.to_bytes(), at, "up", account)
        lost += link.received(crossing, at, setup.tail) is None
    bits = 8 * (payload.nbytes - 4 * 4 * 17 * 16)
    touched = 200 * (1 - (1 - 1e-3) ** bits)
    assert touched / 3 < lost <= touched + 3 * math.sqrt(touched)


def test_what_is_left_of_a_cut_gradient_without_protection_has_its_shape():
    link = prepare(Experiment.from_dict(TINY)).parts.link()
    link.down_channel, lost = build("bit_errors(ber=3e-3, protect='none')"), 0
    data = Payload({"tokens": normal(2, 3)}).to_bytes()
    for step in range(300):
        at = StepId(0, 1, 2, step)
        left = link.over(data, at, "down", Accounted()).data
        lost += left is None
        if left is not None:
            (name, value), *_ = link.read(left, at).carried.items()
            assert (name, value.shape) == ("tokens", (2, 3)) and value.abs().max() <= 65504
    touched = 300 * (1 - (1 - 3e-3) ** (8 * (len(data) - 4 * 6)))
    assert abs(lost - touched) <= 3 * math.sqrt(touched)


class Accounted:
    def count_crossing(self, *numbers):
        pass


# Lost packets.


def test_packets_are_repeated_as_often_as_the_geometric_law_says():
    payload, p = Payload({"tokens": normal(100, 1000)}, {"labels": torch.arange(100)}), 0.3
    arrived, found = cross(f"erasure(p={p}, packet=100)", payload)
    assert torch.equal(arrived.carried["tokens"], payload.carried["tokens"])
    packets = -(-payload.nbytes // 100)
    spread = math.sqrt(p) / (1 - p) * math.sqrt(packets) * 100
    assert found.size == payload.nbytes + found.resent
    assert within(found.resent, 100 * packets * p / (1 - p), spread)


@pytest.fixture
def second_packet_is_lost(monkeypatch):
    monkeypatch.setattr(erasure_module, "hits", lambda *_: np.array([1]))


def test_numbers_in_a_lost_packet_become_zero(second_packet_is_lost):
    """Packets of 16 bytes: four values each, or five levels of 3 bits and parts of two."""
    values = torch.arange(1.0, 13.0).reshape(3, 4)
    payload = Payload({"tokens": values}, {"labels": torch.arange(3)})
    arrived, found = cross("erasure(packet=16, mode='drop')", payload)
    assert arrived.carried["tokens"].tolist() == [[1, 2, 3, 4], [0, 0, 0, 0], [9, 10, 11, 12]]
    assert torch.equal(arrived.side["labels"], torch.arange(3))
    assert (found.zeroed, found.damaged) == (4, 4)


def test_levels_in_a_lost_packet_become_what_is_nearest_to_zero(second_packet_is_lost):
    """Bits 128 to 255 are lost, levels of 3 bits: 42 (bits 126 to 128) to 85 (255 to 257)."""
    codec, values = parse_codec("uniform(bits=3)"), torch.linspace(-3, 4, 150)[None]
    sent = packed(codec, values)
    arrived, found = cross("erasure(packet=16, mode='drop')", sent, codec)
    before, after = (codec.unpack(one).carried["tokens"][0] for one in (sent, arrived))
    assert found.zeroed == 44
    assert after[42:86].tolist() == [0.0] * 44  # the grid is -3, -2 ... 4
    assert torch.equal(after[:42], before[:42]) and torch.equal(after[86:], before[86:])


@pytest.mark.parametrize("spec", ["uniform(bits=4, per='channel')", "splitfc(keep=1.0)"])
def test_lost_levels_of_a_column_become_what_its_own_grid_has_for_zero(spec):
    codec, tokens = parse_codec(spec), normal(6, 5, 8) * torch.arange(1.0, 9.0) + 0.5
    name = "columns" if spec.startswith("splitfc") else "tokens"
    side = {"labels": torch.arange(6), "mask": torch.full((8,), True)}
    sent = codec.pack(Payload({name: tokens}, side), generator(0, "pack"))
    found = build("erasure(p=0.998, packet=16, mode='drop')").cross(sent.to_bytes(), codec, draw())
    after = codec.unpack(Payload.from_bytes(found.data)).carried[name]
    steps = (tokens.amax(dim=(0, 1)) - tokens.amin(dim=(0, 1))) / 3  # at least two bits
    assert found.zeroed > 0.9 * tokens.numel()
    assert (after.abs() <= steps / 2 + 1e-4).float().mean() > 0.9


def test_a_message_that_is_needed_whole_is_lost_with_its_first_packet():
    codec, channel = parse_codec("zstd()"), build("erasure(p=0.1, packet=100, mode='drop')")
    data = packed(codec, normal(2, 100)).to_bytes()
    chance = 1 - 0.9 ** -(-len(data) // 100)
    crossings = [channel.cross(data, codec, draw(step)) for step in range(300)]
    lost = sum(one.data is None for one in crossings)
    assert {one.size for one in crossings} == {len(data)}
    assert within(lost, 300 * chance, math.sqrt(300 * chance * (1 - chance)))


# Noise.


def test_noise_has_the_power_that_the_ratio_says_for_each_sample():
    values = normal(64, 4096) * torch.arange(1.0, 65.0)[:, None]
    arrived, _ = cross("awgn(snr_db=7.0)", Payload({"tokens": values}))
    noise = arrived.carried["tokens"] - values
    ratios = noise.square().mean(dim=1) / values.square().mean(dim=1)
    assert abs(-10 * math.log10(float(ratios.mean())) - 7) < 0.1
    assert within(float(ratios[0]), 10**-0.7, 10**-0.7 * math.sqrt(2 / 4096))
    assert within(float(ratios[63]), 10**-0.7, 10**-0.7 * math.sqrt(2 / 4096))


def test_uses_and_bytes_of_values_are_those_of_a_code_at_capacity():
    """Three samples of 5 values: 3 uses each, the last one half empty."""
    payload = Payload({"tokens": normal(3, 5)}, {"labels": torch.arange(3)})
    _, found = cross("awgn(snr_db=10.0)", payload)
    assert found.uses == 9
    assert found.size == math.ceil(9 * math.log2(11) / 8) + payload.nbytes - 4 * 15
    _, found = cross("rayleigh(snr_db=0.0)", payload)
    assert found.size == math.ceil(9 / 8) + payload.nbytes - 4 * 15


def test_a_receiver_that_knows_the_gain_has_noise_over_its_square():
    """Gains h of Rayleigh: noise of power N / |h|^2, so that |h|^2 has the law of exp(1)."""
    values = normal(3000, 400)
    arrived, _ = cross("rayleigh(snr_db=10.0)", Payload({"tokens": values}))
    noise = (arrived.carried["tokens"] - values).square().mean(dim=1)
    squares = 0.1 * values.square().mean(dim=1) / noise
    assert within(float(squares.mean()), 1, 1 / math.sqrt(3000) + 0.005)
    chance = 1 - math.exp(-0.5)  # that |h|^2 is below 1/2
    spread = math.sqrt(chance * (1 - chance) / 3000)
    assert within(float((squares < 0.5).float().mean()), chance, spread + 0.002)


def test_a_receiver_that_does_not_know_the_gain_has_it_in_its_values():
    values = normal(3000, 6)
    arrived, _ = cross("rayleigh(snr_db=200.0, csi=False)", Payload({"tokens": values}))
    sent, came = (
        torch.view_as_complex(one.view(3000, 3, 2)) for one in (values, arrived.carried["tokens"])
    )
    gains = came / sent
    assert torch.allclose(gains, gains[:, :1].expand(-1, 3), atol=1e-3)
    assert within(float(gains[:, 0].abs().square().mean()), 1, 1 / math.sqrt(3000))


def test_a_channel_with_hardly_any_noise_delivers_what_was_sent():
    values = normal(8, 33)
    for spec in ("awgn(snr_db=300.0)", "rayleigh(snr_db=300.0)"):
        arrived, _ = cross(spec, Payload({"tokens": values}))
        assert torch.equal(arrived.carried["tokens"], values)


# Which codec goes over which channel.


@pytest.mark.parametrize("name", CODECS)
def test_codecs_are_carried_or_refused_by_what_they_pack(name):
    codec = parse_codec(name)
    cases = {
        "bit_errors": name not in OPAQUE,
        "erasure(mode='drop')": True,
        "erasure": True,
        "awgn": name in ANALOG,
        "rayleigh": name in ANALOG,
        "perfect": True,
    }
    for spec, works in cases.items():
        try:
            build(spec).check(codec)
        except ValueError as error:
            assert not works and "erasure(mode='retransmit')" in str(error)
            assert "\n" not in str(error)
        else:
            assert works, spec
    assert build("erasure(mode='drop')").can_lose(codec) == (name in OPAQUE)
    assert not build("erasure").can_lose(codec) and not build("bit_errors").can_lose(codec)


def test_chains_and_downlinks_are_as_their_weakest_stage():
    assert list(parse_codec("topk | uniform").exposed) == ["u:"]
    assert parse_codec("topk | uniform | rans").exposed is None
    assert parse_codec("topk | fp16").exposed == [] and not parse_codec("topk | fp16").analog
    assert parse_downlink("topk").analog and parse_downlink("topk").exposed == ()


@dataclass(frozen=True, config=STRICT)
class Encodes(Codec):
    def encode(self, smashed, generator):
        return Payload({"tokens": 2 * smashed.tokens}, {"labels": smashed.labels})


@dataclass(frozen=True, config=STRICT)
class Packs(Codec):
    def pack(self, payload, generator):
        return Payload({"words": payload.carried["tokens"]}, payload.side)


def test_own_codecs_that_say_nothing_are_safe():
    assert Encodes().exposed == () and Encodes().analog
    assert Packs().exposed is None and not Packs().analog


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"channel": "bit_errors", "codec": "topk | zstd"}, "channel: one wrong bit spoils all"),
        ({"down_channel": "bit_errors", "downlink": "rans"}, "down_channel: one wrong bit spoils"),
        ({"channel": "awgn", "codec": "uniform"}, "channel: awgn adds noise to numbers as they"),
        ({"down_channel": "rayleigh", "downlink": "fp16"}, "down_channel: rayleigh adds noise"),
        (
            {"channel": "erasure(mode='drop')", "codec": "zstd", "end": 2},
            "channel: Erasure(p=0.1, packet=1500, mode='drop') may lose messages of Zstd(level=1)",
        ),
        ({"channel": "awgn", "downlink": "fp16", "end": 2}, "channel: awgn adds noise"),
        ({"down_channel": "bit_errors(protect='none')", "end": 2}, "a U-shape needs all four"),
    ],
)
def test_what_cannot_be_carried_is_refused_in_one_line(values, message):
    with pytest.raises(ValueError) as error:
        prepare(Experiment.from_dict({**TINY, **values}))
    assert message in str(error.value) and "\n" not in str(error.value)
    prepare(Experiment.from_dict({**TINY, **values, "strategy": "fedavg"}))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bit_errors(ber=0.03)", "a frame of 36 bytes needs more than 1000 tries on average"),
        ("bit_errors(ber=0.6)", "ber must be less than or equal to 0.5, got 0.6"),
        ("erasure(p=0.9995)", "a packet needs more than 1000 tries on average at p=0.9995"),
        ("erasure(p=1.0)", "p must be less than 1, got 1"),
        ("awgn(snr=3)", "unknown argument 'snr'; did you mean 'snr_db'?"),
        ("awng", "did you mean 'awgn'?"),
        ("1", "is not of the form name(key=value, ...)"),
    ],
)
def test_channels_that_make_no_sense_are_refused_in_one_line(spec, message):
    with pytest.raises(SpecError) as error:
        Experiment.from_dict({"channel": spec})
    assert message in str(error.value) and "\n" not in str(error.value)


# Runs.


def test_a_perfect_channel_changes_nothing_and_has_no_columns(reference):
    usual, named = reference(), reference(channel="perfect()", down_channel="perfect()")
    assert usual.equals(named)
    assert list(usual.rounds) == list(named.rounds)
    assert not {one.name for one in OF_CHANNEL} & {*usual.rounds, *usual.clients}


def test_bit_errors_of_rate_zero_train_to_the_same_weights(reference):
    spec = "bit_errors(ber=0.0)"
    usual, other = reference(), reference(channel=spec, down_channel=spec)
    assert usual.equals(other)
    up = other.rounds["payload_bytes_up"] - usual.rounds["payload_bytes_up"]
    assert (up > 0).all() and (up % CHECKSUM == 0).all()
    assert other.rounds[[one.name for one in OF_CHANNEL]].to_numpy().sum() == 0


def numbers(outcome):
    frame = outcome.rounds
    return frame[[name for name in frame if "seconds" not in name]]


def test_a_lossy_run_is_the_same_through_states_and_after_a_resume(
    reference, simulate, through_state, resume, tmp_path
):
    usual, other = reference(**LOSSY), through_state(**LOSSY)
    assert usual.equals(other) and numbers(usual).equals(numbers(other))

    def stop(row, result):
        if row["round"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(watch=stop, **LOSSY)
    half = type(usual)(tmp_path / "run2")  # the first is that through states
    resume(half)
    assert usual.equals(half) and numbers(usual).equals(numbers(half))
    assert usual.rounds["lost_payloads_down"].sum() > 0 < usual.rounds["damaged_values_up"].sum()


def test_heads_that_run_as_one_lose_each_its_own_gradient(simulate, monkeypatch):
    """Members of a stack whose gradient has come step alone; the bits are those of no stack."""
    outcomes, apart = [], []
    for pays in (False, True):

        class Counted(Stacks):
            def count(self, together=0, apart=0, seen=apart):
                seen.append((together, apart))
                super().count(together, apart)

        make = partial(Counted, pays=lambda *_, pays=pays: pays)
        monkeypatch.setattr(
            Worker, "__post_init__", lambda w, make=make: setattr(w, "stacks", make(w))
        )
        outcomes.append(simulate(**{**LOSSY, "partition": "iid()", "batch_size": 16}))
    assert outcomes[0].equals(outcomes[1])
    assert numbers(outcomes[0]).equals(numbers(outcomes[1]))
    assert sum(together for together, _ in apart) > 0 < sum(alone for _, alone in apart)


@pytest.mark.slow
def test_a_lossy_run_is_the_same_on_ray(reference, on_ray):
    usual, other = reference(**LOSSY), on_ray(**LOSSY)
    assert usual.equals(other) and numbers(usual).equals(numbers(other))


def seen(simulate, **changes):
    """Run; return the outcome and what each round gave."""
    found = []
    outcome = simulate(watch=lambda row, result: found.append(result), **changes)
    return outcome, found


@pytest.mark.parametrize(
    "strategy", ["parallel", "sflv1", "sflv2(phi=1)", "sequential", "sglr", "mergesfl"]
)
def test_a_run_that_loses_most_payloads_goes_on(simulate, strategy):
    codec = "fp16 | zstd" if strategy == "sglr" else "adc(ratio=0.3) | zstd"
    outcome, results = seen(
        simulate, strategy=strategy, codec=codec, channel="erasure(p=0.3, packet=600, mode='drop')",
        downlink="zstd", down_channel="erasure(p=0.2, packet=1500, mode='drop')", rounds=1,
        local_steps=3,
    )  # fmt: skip
    (row,) = outcome.rounds.to_dict("records")
    assert outcome.summary["status"] == "complete" and row["dropped"] == 0
    assert row["client_steps"] == 3 * row["clients"]
    assert row["lost_payloads_up"] > 0
    assert row["lost_payloads_up"] + row["lost_payloads_down"] <= row["client_steps"]
    check_tasks(results[0])
    skipped = Channels().of_clients(results[0])
    by_client = outcome.clients.set_index("client")
    for client, found in skipped.items():
        assert by_client.loc[client, "lost_payloads_up"] == found["lost_payloads_up"]


def test_a_run_that_loses_everything_learns_nothing_and_ends(simulate):
    outcome, results = seen(
        simulate, codec="zstd", channel="erasure(p=0.999, packet=64, mode='drop')", rounds=2
    )
    rounds = outcome.rounds
    assert (rounds["lost_payloads_up"] == rounds["client_steps"]).all()
    assert (rounds["payload_bytes_down"] == 0).all() and rounds["train_loss"].isna().all()
    assert rounds["accuracy"].nunique() == 1 and rounds["loss"].nunique() == 1
    assert outcome.summary["status"] == "complete"
    for result in results:
        check_tasks(result)
    forward = [sum(t.amount for t in r.tasks if t.kind == "forward") for r in results]
    assert rounds["client_flops"].tolist() == forward


@pytest.mark.parametrize(
    "changes",
    [
        {**LOSSY, "rounds": 1},
        {"channel": "awgn(snr_db=5.0)", "down_channel": "rayleigh", "end": 2},
        {"channel": "bit_errors", "codec": "uniform(bits=4)", "downlink": "fp16",
         "down_channel": "erasure(mode='drop')", "end": 2, "strategy": "sflv1"},
        {"channel": "bit_errors(protect='none')", "down_channel": "bit_errors(protect='none')",
         "codec": "uniform(bits=4)", "downlink": "uniform(bits=8)"},
    ],
)  # fmt: skip
def test_tasks_have_the_bytes_of_the_columns_whatever_the_channel(simulate, changes):
    outcome, (result,) = seen(simulate, **{"rounds": 1, "local_steps": 2, **changes})
    check_tasks(result)
    row = outcome.rounds.iloc[0]
    assert row["dropped"] == 0 and math.isfinite(row["loss"])
    found = [row[one.name] for one in OF_CHANNEL]
    assert found == [outcome.clients[one.name].sum() for one in OF_CHANNEL]
    assert found == [outcome.summary[one.name] for one in OF_CHANNEL] and sum(found) > 0


def test_repetitions_are_part_of_the_payload_bytes_and_nothing_else_changes(reference):
    usual, other = reference(rounds=1), reference(rounds=1, channel="erasure(p=0.5, packet=200)")
    assert usual.equals(other)
    before, after = usual.rounds.iloc[0], other.rounds.iloc[0]
    grown = after["payload_bytes_up"] - before["payload_bytes_up"]
    assert grown == after["resent_bytes_up"]
    assert grown == pytest.approx(before["payload_bytes_up"], rel=0.3)
    assert after["payload_bytes_down"] == before["payload_bytes_down"]


def test_noise_of_a_cell_is_that_of_each_client_in_each_round():
    """By its definition a rate of W log2(1 + SNR) tells the SNR; the noise has that power."""
    experiment = Experiment.from_dict(
        {"clients": 5, "system": "cell(fading=True, station_watts=2.0)",
         "channel": "awgn(snr_db='cell')", "down_channel": "awgn(snr_db='cell')"}
    )  # fmt: skip
    link, cell, account = experiment.parts.link(), experiment.parts.system.network, Account()
    sent = Payload({"tokens": torch.randn(1, 1, 200_000, generator=generator(0, "trial"))})
    for number, client, way in ((1, 0, "up"), (1, 3, "up"), (2, 3, "up"), (2, 3, "down")):
        roads = cell.roads(5, number, 7)
        rate = (roads.up if way == "up" else roads.down)[client]
        snr_db = 10 * np.log10(2 ** (rate / 1e7) - 1)
        found = link.over(sent.to_bytes(), StepId(7, number, client, 0), way, account)
        noise = Payload.from_bytes(found.data).carried["tokens"] - sent.carried["tokens"]
        power = sent.carried["tokens"].square().mean() / noise.square().mean()
        assert 10 * np.log10(float(power)) == pytest.approx(snr_db, abs=0.1)


def test_noise_of_a_cell_needs_a_cell(simulate):
    with pytest.raises(ValueError, match="give a system with one, as 'cell"):
        simulate(channel="awgn(snr_db='cell')", system="wifi()")
    simulate(channel="awgn(snr_db='cell')", system="cell()", rounds=1, local_steps=1)


@pytest.mark.parametrize("codec", ["identity()", "fp16()", "uniform(bits=4)", "topk(ratio=0.5)"])
def test_no_gradient_goes_back_to_numbers_that_were_lost(codec):
    """What the receiver has put in their place does not depend on them; all others have one."""
    channel = "erasure(p=0.4, packet=16, mode='drop')"
    setup = prepare(Experiment.from_dict({**TINY, "codec": codec, "channel": channel}))
    link, at = setup.parts.link(), StepId(0, 1, 0, 0)
    draw = generator(0, "trial")
    tokens = torch.randn(3, *setup.head.smashed_shape, generator=draw)
    smashed = Smashed(tokens, lambda: tokens[..., 0], torch.arange(3), 10, setup.head.num_read)
    crossing = link.over(link.up(encode(link.codec, smashed, at), at), at, "up", Account())
    arrival = link.received(crossing, at, setup.tail)
    _, (cut,), _ = Split().cut_gradients(Flat(setup.tail), [arrival], [1.0], at)
    (gone,) = crossing.gone.values()
    (gradient,) = cut.carried.values()
    assert 0 < int(gone.sum()) == crossing.zeroed < gone.numel()
    assert torch.equal(gradient[gone], torch.zeros(crossing.zeroed))
    assert (gradient[~gone] != 0).float().mean() > 0.95
