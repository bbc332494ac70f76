"""Codecs that learn with the channel: symbols with noise, codewords with wrong bits."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from fl_split.channels import CHANNELS
from fl_split.codecs import Identity, Smashed, parse_codec
from fl_split.codecs.jscc import network
from fl_split.exchange.account import Account
from fl_split.exchange.link import Link
from fl_split.exchange.split import encode
from fl_split.exchange.stacked import StackedHead
from fl_split.flat import Flat
from fl_split.models.cut import insert
from fl_split.models.vit import ViT
from fl_split.payload import Payload, extents
from fl_split.seeds import StepId
from fl_split.spec_errors import SpecError
from fl_split.specs import parse
from simulations.inference.inference import infer
from simulations.runs.checkpoint import read_experiment
from simulations.runs.setup import prepare
from simulations.studies.cost import Estimator

WIDTH, TOKENS = 40, 5
NESTED = "jscc(ratios=[0.5, 0.25, 0.1])"


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def build(spec):
    return parse(spec, CHANNELS)


def halves(codec):
    spec = ViT(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, patch_size=4)
    head, tail = spec.split(spec.build(image_size=8, channels=1, num_classes=4, seed=0), 1)
    insert(head, tail, codec, 0)
    return head, tail


def smashed(encoder, samples=6, scale=1.0):
    tokens = scale * torch.randn(samples, TOKENS, WIDTH, generator=draw(3))
    return Smashed(encoder(tokens), lambda: tokens[..., 0], torch.arange(samples) % 4, 4)


def sent(spec, step=0, samples=6, scale=1.0):
    codec = parse_codec(spec)
    data = smashed(halves(codec)[0].encoder, samples, scale)
    return codec, encode(codec, data, StepId(0, 1, 2, step))


# Symbols.


def test_the_widths_of_a_network_go_evenly():
    layers = [one for one in network(64, 16) if isinstance(one, torch.nn.Linear)]
    assert [(one.in_features, one.out_features) for one in layers] == [(64, 48), (48, 32), (32, 16)]


def test_a_symbol_is_a_real_and_an_imaginary_part_of_its_own_network():
    encoder = parse_codec("jscc(ratio=0.25, condition=False)").modules(WIDTH)[0]
    tokens = torch.randn(3, 2, WIDTH, generator=draw())
    found = torch.view_as_complex(encoder(tokens).view(3, 2, 10, 2))
    wanted = torch.complex(encoder.real(tokens), encoder.imaginary(tokens))
    wanted = wanted / wanted.abs().square().sum(dim=2, keepdim=True).sqrt()
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("channel", ["awgn(snr_db=7.0)", "rayleigh(snr_db=7.0)"])
def test_each_token_has_the_ratio_that_the_channel_says_whatever_its_scale(channel):
    """Of tokens between a thousandth and a thousand: norm 1, and 7 dB each."""
    scale = torch.tensor([1e-3, 0.1, 1.0, 30.0, 1e3])[:, None]
    codec, payload = sent("jscc(ratio=0.25)", samples=4000, scale=scale)
    values = payload.carried["tokens"].detach()
    assert values.shape == (4000, TOKENS, 2 * 10)
    torch.testing.assert_close(values.norm(dim=2), torch.ones(4000, TOKENS))
    crossing = build(channel).cross(payload.to_bytes(), codec, draw())
    noise = Payload.from_bytes(crossing.data).carried["tokens"] - values
    if channel.startswith("rayleigh"):  # undo what the receiver says of each gain
        noise = noise * (10 ** ((crossing.state["snr_db"] - 7) / 20))[:, None, None]
    found = -10 * noise.square().sum(dim=2).mean(dim=0).log10()
    assert (found - 7).abs().max() < 0.1


def test_nested_ratios_send_the_first_symbols_and_count_them():
    """Of d = 20 symbols 20, 10 or 4; a symbol is one use of the channel and eight bytes."""
    counts = set()
    for step in range(25):
        codec, payload = sent(NESTED, step)
        full = (
            halves(codec)[0]
            .encoder(
                torch.randn(6, TOKENS, WIDTH, generator=draw(3))  # as in `smashed`
            )[..., :40]
            .detach()
        )
        (values,) = payload.carried.values()
        kept = values.shape[2]
        counts.add(kept // 2)
        prefix = full[..., :kept] / full[..., :kept].norm(dim=2, keepdim=True)
        torch.testing.assert_close(values.detach(), prefix)
        decoded = codec.decode(Payload.from_bytes(payload.to_bytes())).tokens
        assert decoded.shape == (6, TOKENS, 41) and not decoded[..., kept:].any()
        data = payload.to_bytes()
        (place,) = [one for one in extents(data) if one.is_value]
        assert place.stop - place.start == 6 * TOKENS * 8 * (kept // 2)
        assert build("awgn").cross(data, codec, draw()).uses == 6 * TOKENS * (kept // 2)
        again = sent(NESTED, step)[1]
        assert again.to_bytes() == data
    assert counts == {20, 10, 4}


def test_without_gradient_the_ratio_is_the_one_that_is_asked_for():
    for ratio, symbols in ((0.5, 20), (0.25, 10), (0.1, 4)):
        codec = parse_codec(NESTED.replace("])", f"], ratio={ratio})"))
        head, tail = (half.eval() for half in halves(codec))
        with torch.no_grad():
            data = smashed(head.encoder)
            payload = encode(codec, data, StepId(0, 1, 2, 0))
            received = Link(codec, Identity()).carry(payload, StepId(0, 1, 2, 0), tail).received
        assert payload.carried["tokens"].shape[2] == 2 * symbols
        torch.testing.assert_close(received.tokens, data.tokens)  # as evaluation has them
    with pytest.raises(SpecError, match=r"ratio=0.2 is none of ratios=\[0.5, 0.1\]"):
        parse_codec("jscc(ratio=0.2, ratios=[0.5, 0.1])")


def test_a_width_that_somebody_made_up_is_refused():
    codec, payload = sent(NESTED, step=1)
    for width in (0, 2**40):
        side = {**payload.side, "width": torch.tensor(width)}
        with pytest.raises(ValueError, match=r"a tensor of shape|numbers of a token of 0"):
            codec.decode(Payload(payload.carried, side))


# What the receiver knows.


def arrived(spec, channel, step=0):
    codec = parse_codec(spec)
    head, tail = halves(codec)
    link, account = Link(codec, Identity(), build(channel)), Account()
    at = StepId(0, 1, 2, step)
    data = link.up(encode(codec, smashed(head.encoder), at), at)
    crossing = link.over(data, at, "up", account)
    return crossing, link.received(crossing, at, tail).received.tokens, len(data)


def test_the_decoder_is_told_the_share_of_noise_of_each_sample():
    crossing, tokens, _ = arrived("jscc()", "awgn(snr_db=10.0)")
    assert crossing.state["snr_db"].tolist() == [10.0] * 6
    torch.testing.assert_close(tokens[..., -1], torch.full((6, TOKENS), 1 / 11))
    crossing, tokens, _ = arrived("jscc()", "rayleigh(snr_db=10.0)")
    snr = 10 ** (crossing.state["snr_db"] / 10)
    assert len({*snr.tolist()}) == 6
    torch.testing.assert_close(tokens[..., -1], (1 / (1 + snr))[:, None].expand(-1, TOKENS))
    assert not arrived("jscc()", "perfect()")[1][..., -1].any()
    blind = arrived("jscc()", "rayleigh(snr_db=10.0, csi=False)")[0]
    assert blind.state["snr_db"].tolist() == [10.0] * 6


def test_the_decoder_is_told_the_decade_of_bit_errors():
    """1e-3 is half way from 1e-6 to 1."""
    for channel, wanted in (
        ("bit_errors(ber=1e-3)", 0.5), ("bit_errors(ber=0.01)", 2 / 3), ("bit_errors(ber=0.0)", 0),
        ("perfect()", 0), ("erasure(mode='drop')", 0),
    ):  # fmt: skip
        tokens = arrived("semantic()", channel)[1]
        torch.testing.assert_close(tokens[..., -1], torch.full((6, TOKENS), float(wanted)))


@pytest.mark.parametrize(
    ("spec", "channel"),
    [("jscc({})", "awgn()"), ("semantic(ratio=0.25, {})", "bit_errors(ber=0.01)")],
)
def test_what_the_receiver_measures_is_not_sent(spec, channel):
    told, control = (arrived(spec.format(f"condition={is_told}"), channel)
                     for is_told in (True, False))  # fmt: skip
    assert told[2] == control[2] and told[0].size == control[0].size
    assert told[1].shape[2] == control[1].shape[2] + 1


@pytest.mark.parametrize("spec", ["jscc()", "semantic()"])
def test_the_same_values_mean_something_else_to_a_decoder_that_is_told_so(spec):
    decoder = parse_codec(spec).modules(WIDTH)[1]
    for weight in decoder.parameters():
        torch.nn.init.normal_(weight, std=0.3, generator=draw())
    width = next(decoder.parameters()).shape[1] - (spec == "jscc()")
    values = torch.randn(2, TOKENS, width, generator=draw())
    quiet, noisy = (
        decoder(torch.cat([values, torch.full((2, TOKENS, 1), state)], dim=2))
        for state in (0.0, 0.8)
    )
    assert (quiet - noisy).abs().mean() > 0.05 * quiet.abs().mean()


# Channels that draw.


def test_each_message_draws_its_own_noise_evenly_between_two_ratios():
    payload = Payload({"tokens": torch.ones(1, 2)})
    channel, found = build("awgn(snr_db=-20, up_to=20)"), []
    for step in range(400):
        at = StepId(0, 1, 2, step)
        one = channel.cross(payload.to_bytes(), Identity(), at.generator("channel"))
        found.append(float(one.state["snr_db"]))
    assert -20 <= min(found) < -19 and 19 < max(found) <= 20
    spread = 40 / math.sqrt(12)
    assert abs(np.mean(found)) < 3 * spread / 20 and np.std(found) == pytest.approx(spread, rel=0.1)
    fixed = build(f"awgn(snr_db={found[7]})")
    generator = StepId(0, 1, 2, 7).generator("channel")
    torch.rand((), generator=generator)  # the draw of the ratio
    again = channel.cross(payload.to_bytes(), Identity(), StepId(0, 1, 2, 7).generator("channel"))
    assert bytes(fixed.cross(payload.to_bytes(), Identity(), generator).data) == again.data


def test_each_message_draws_its_own_rate_of_errors_evenly_in_decades():
    payload, channel = Payload({"tokens": torch.ones(3)}), build("bit_errors(ber=1e-4, up_to=0.01)")
    found = [
        math.log10(channel.cross(payload.to_bytes(), Identity(), draw(seed)).state["ber"])
        for seed in range(400)
    ]
    assert -4 <= min(found) < -3.95 and -2.05 < max(found) <= -2
    assert abs(np.mean(found) + 3) < 3 * 2 / math.sqrt(12 * 400)


def test_a_code_at_capacity_protects_what_frames_cannot():
    """At 5 % of wrong bits H = 0.2864: 1.4013 bits for each bit of side information."""
    codec, payload = parse_codec("uniform(bits=4)"), {"tokens": torch.randn(40, 50)}
    packed = codec.pack(Payload(payload, {"labels": torch.arange(40)}), draw())
    data = packed.to_bytes()
    found = build("bit_errors(ber=0.05, protect='coded')").cross(data, codec, draw())
    (spot,) = [one for one in extents(data) if one.name == "u:tokens"]
    side, exposed = len(data) - (spot.stop - spot.start), spot.stop - spot.start
    assert found.size == exposed + math.ceil(side * 1.40134)
    assert found.resent == 0 and found.data is not None
    arrived = Payload.from_bytes(found.data).side
    assert torch.equal(arrived["labels"], torch.arange(40))
    assert torch.equal(arrived["r:tokens"], packed.side["r:tokens"])
    assert found.damaged > 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("awgn(snr_db='cell', up_to=3)", "up_to=3 needs a number of snr_db"),
        ("rayleigh(snr_db=10, up_to=3)", "not larger, got 10"),
        ("bit_errors(ber=0.0, up_to=0.01)", "up_to=0.01 needs a ber above 0"),
        ("bit_errors(ber=1e-4, up_to=0.05)", "at ber=0.05; take a ber below 0.023"),
        ("bit_errors(ber=0.499, protect='coded')", "no code carries anything at ber=0.499"),
    ],
)
def test_ranges_that_make_no_sense_are_refused(spec, message):
    with pytest.raises(SpecError, match=message.replace("(", r"\(")):
        build(spec)


# Codewords.


def test_values_are_the_nearest_centres_of_samples_of_one_power():
    encoder = parse_codec("semantic(ratio=0.5, condition=False)").modules(WIDTH)[0]
    tokens = torch.tensor([1e-2, 1.0, 1e3])[:, None, None] * torch.randn(3, TOKENS, WIDTH)
    values = encoder.narrow(tokens)
    values = values / values.square().mean(dim=(1, 2), keepdim=True).sqrt()
    away = (values[..., None] - encoder.centres).abs()
    found = encoder(tokens)
    assert torch.equal(found, encoder.centres[away.argmin(dim=-1)])
    normal = torch.randn(80_000, generator=draw())
    counts = (normal[:, None] - encoder.centres).abs().argmin(dim=1).bincount(minlength=8)
    assert counts.min() > 0.08 * 80_000 and counts.max() < 0.17 * 80_000  # near an eighth each


def test_codewords_are_packed_and_neighbours_differ_in_one_bit():
    codec, payload = sent("semantic(ratio=0.5)", samples=20)
    packed = codec.pack(payload, draw())
    data = packed.to_bytes()
    (words,) = [one for one in extents(data) if one.name == "words"]
    assert words.bits == 3 and words.stop - words.start == 20 * TOKENS * 20 * 3 // 8
    back = codec.unpack(Payload.from_bytes(data)).carried["tokens"]
    assert torch.equal(back, payload.carried["tokens"])
    centres = packed.side["centres"]
    assert len(centres) == 8 and (centres.diff() > 0).all()
    in_order = [int(packed.side["words"][back == one][0]) for one in centres]
    assert sorted(in_order) == list(range(8))
    assert {(a ^ b).bit_count() for a, b in pairwise(in_order)} == {1}
    assert codec.fill(packed, "words") == in_order[int(centres.abs().argmin())]


def test_wrong_bits_hit_codewords_alone_and_give_other_centres():
    codec, payload = sent("semantic(ratio=0.5)", samples=40)
    packed = codec.pack(payload, draw())
    data = packed.to_bytes()
    found = build("bit_errors(ber=0.02)").cross(data, codec, draw())
    wrong = np.frombuffer(data, np.uint8) ^ np.frombuffer(found.data, np.uint8)
    (words,) = [one for one in extents(data) if one.name == "words"]
    assert not wrong[: words.start].any() and not wrong[words.stop :].any()
    numbers, chance = 40 * TOKENS * 20, 1 - 0.98**3
    spread = math.sqrt(numbers * chance * (1 - chance))
    assert abs(found.damaged - numbers * chance) < 3 * spread
    values = codec.unpack(Payload.from_bytes(found.data)).carried["tokens"]
    assert {*values.unique().tolist()} <= {*packed.side["centres"].tolist()}
    with pytest.raises(ValueError, match="one wrong bit spoils all"):
        build("bit_errors()").check(parse_codec("semantic() | zstd()"))


def test_centres_learn_from_the_values_that_they_share():
    """d value / d centre is the softmax share; the layer before gets the gradient as it comes."""
    encoder = parse_codec("semantic(ratio=0.5, condition=False, balance=0.0)").modules(WIDTH)[0]
    encoder = encoder.double()
    tokens = torch.randn(4, TOKENS, WIDTH, generator=draw()).double()
    weights = torch.randn(4, TOKENS, 20, generator=draw(1)).double()
    (encoder(tokens) * weights).sum().backward()
    values = encoder.narrow(tokens)
    values = values / values.square().mean(dim=(1, 2), keepdim=True).sqrt()
    shares = torch.exp(-10 * (values[..., None] - encoder.centres).abs())
    shares = shares / shares.sum(dim=-1, keepdim=True)
    wanted = (weights[..., None] * shares).sum(dim=(0, 1, 2))
    torch.testing.assert_close(encoder.centres.grad, wanted.detach())
    (straight,) = torch.autograd.grad((values * weights).sum(), [encoder.narrow.weight])
    torch.testing.assert_close(encoder.narrow.weight.grad, straight)


def test_the_client_minimises_the_balance_beside_the_loss():
    """The gradient is that of loss + 2 mean_l (share_l - 1/8)^2; in evaluation there is none."""
    grads = {}
    for balance in (0.0, 2.0):
        encoder = parse_codec(f"semantic(ratio=0.5, balance={balance})").modules(WIDTH)[0]
        for weight in encoder.parameters():
            torch.nn.init.normal_(weight, std=0.5, generator=draw())
        tokens = torch.randn(4, TOKENS, WIDTH, generator=draw(1))
        encoder(tokens).square().sum().backward()
        grads[balance] = [weight.grad.clone() for weight in encoder.parameters()]
    values = encoder.narrow(tokens)
    values = values / values.square().mean(dim=(1, 2), keepdim=True).sqrt()
    shares = (-10 * (values[..., None] - encoder.centres).abs()).softmax(dim=-1)
    term = 2 * (shares.mean(dim=(0, 1, 2)) - 1 / 8).square().mean()
    wanted = torch.autograd.grad(term, list(encoder.parameters()))
    for with_it, without, own in zip(grads[2.0], grads[0.0], wanted, strict=True):
        torch.testing.assert_close(with_it - without, own, rtol=1e-3, atol=1e-5)


# Together with all else.


@pytest.mark.parametrize("spec", ["jscc()", NESTED, "semantic()"])
def test_heads_with_their_encoders_run_as_one(spec):
    """Tokens and gradients of three clients are close to those of each alone."""
    heads = [halves(parse_codec(spec))[0] for _ in range(3)]
    for number, head in enumerate(heads):
        for weight in head.parameters():
            weight.data += 0.05 * torch.randn(weight.shape, generator=draw(number))
    flats, pixels = [Flat(head) for head in heads], torch.randn(12, 1, 8, 8, generator=draw())
    found = StackedHead(heads[0]).run([flat.vector for flat in flats], pixels)
    weights = torch.randn(found.tokens.shape, generator=draw())
    gradients = found.differentiate(weights)
    for number, flat in enumerate(flats):
        rows = slice(4 * number, 4 * number + 4)
        alone = flat.module(pixels[rows])[0]
        torch.testing.assert_close(found.tokens[rows], alone, rtol=1e-4, atol=1e-5)
        gradient = flat.differentiate([alone], [weights[rows]])[0]
        torch.testing.assert_close(gradients[number], gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("spec", "changes"),
    [
        ("jscc(ratios=[0.5, 0.25])", {"channel": "awgn(snr_db=-10, up_to=20)"}),
        ("jscc()", {"channel": "rayleigh(csi=False)", "precision": "bf16", "end": 2}),
        ("semantic()", {"channel": "bit_errors(ber=1e-4, up_to=0.02)", "precision": "fp16"}),
    ],
)
def test_runs_over_noise_are_the_same_again(simulate, spec, changes):
    changes = {"rounds": 1, "local_steps": 2, "codec": spec, **changes}
    one, other = simulate(**changes), simulate(**changes, stack=1)
    assert one.equals(other)
    assert math.isfinite(one.rounds["loss"].iloc[0]) and one.rounds["dropped"].sum() == 0
    assert (one.folder / "codec.safetensors").read_bytes() == (
        other.folder / "codec.safetensors"
    ).read_bytes()


def test_a_run_is_served_at_other_ratios_of_its_codec(simulate):
    """Four patches and CLS, 16 wide: 8 or 4 symbols of 8 bytes each; the width takes 9 bytes."""
    run = simulate(rounds=1, codec="jscc(ratios=[0.5, 0.25])")
    few, all_symbols = (
        infer(run.folder, "all_sent()", codec=codec).table.set_index("policy").loc["all sent"]
        for codec in (None, "jscc(ratios=[0.5, 0.25], ratio=0.5)")
    )
    assert few["accuracy"] == pytest.approx(run.rounds["accuracy"].iloc[-1])
    assert few["bytes_up"] - 5 * 8 * 4 - 9 == all_symbols["bytes_up"] - 5 * 8 * 8
    for other in ("jscc()", "jscc(ratios=[0.5, 0.25], condition=False)", "topk()"):
        with pytest.raises(ValueError, match="has other weights than that of the run"):
            infer(run.folder, "all_sent()", codec=other)


def test_an_estimate_of_several_ratios_is_near_what_is_sent(simulate):
    changes = {"codec": "jscc(ratio=0.5, ratios=[0.5, 0.125])", "batch_size": 16, "rounds": 4}
    run = simulate(**changes)
    cost = Estimator()(prepare(read_experiment(run.folder, {})))
    sent = run.summary["payload_bytes_up"] + run.summary["payload_bytes_down"]
    assert cost.payload_bytes == pytest.approx(sent, rel=0.25)  # one ratio alone is 60 % off
