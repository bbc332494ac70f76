"""Codecs that send smashed data in another basis: LightSplit, SL-FAC, NSC-SL, by their formulas."""

import math

import numpy as np
import pytest
import torch
from scipy.fft import dct

from fl_split.codecs import Smashed, parse_codec
from fl_split.codecs.lightsplit import projection
from fl_split.codecs.nscsl import directions
from fl_split.codecs.slfac import bits_by_energy
from fl_split.payload import Payload

NAMES = 90
"""Bytes of names, shapes and labels, at most."""


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


def sent(spec, tokens):
    """Return what crosses as a payload, its bytes, and the tokens that are made of these."""
    codec, labels = parse_codec(spec), torch.arange(len(tokens)) % 10
    payload = codec.encode(Smashed(tokens, lambda: None, labels, 10), generator(1))
    packed = codec.pack(payload, generator(1))
    data = packed.to_bytes()
    return packed, len(data), codec.decode(codec.unpack(Payload.from_bytes(data))).tokens


# LightSplit.


@pytest.mark.parametrize(("width", "narrow"), [(48, 12), (7, 7), (5, 1)])
def test_a_projection_has_orthonormal_columns(width, narrow):
    found = projection(width, narrow, 3).double()
    torch.testing.assert_close(found.T @ found, torch.eye(narrow).double(), atol=1e-6, rtol=0)
    assert not torch.allclose(found.float(), projection(width, narrow, 4))


def test_as_many_directions_as_numbers_are_a_rotation():
    tokens = normal(4, 5, 16)
    packed, _, found = sent("lightsplit(ratio=1.0)", tokens)
    turned = packed.carried["tokens"]
    assert not torch.allclose(turned, tokens, atol=0.1)
    torch.testing.assert_close(turned.norm(dim=2), tokens.norm(dim=2))
    torch.testing.assert_close(found, tokens, atol=1e-5, rtol=1e-5)


def test_what_is_lifted_is_the_nearest_of_what_can_be_sent():
    """Its error stands at right angles to it; of random tokens it has the share 1 - d' / D."""
    tokens = normal(40, 25, 64)
    _, size, found = sent("lightsplit(ratio=0.25, seed=9)", tokens)
    assert 0 <= size - 4 * 40 * 25 * 16 < NAMES
    across = (found * (tokens - found)).sum(dim=2)
    assert float(across.abs().max()) < 1e-4
    share = float((tokens - found).square().mean())
    assert abs(share - 0.75) < 4 * math.sqrt(2 * 0.75 / tokens.numel())
    _, _, again = sent("lightsplit(ratio=0.25, seed=9)", found)
    torch.testing.assert_close(again, found, atol=1e-5, rtol=1e-5)


def test_a_width_that_cannot_be_is_refused():
    codec = parse_codec("lightsplit(ratio=0.5)")
    packed, _, _ = sent("lightsplit(ratio=0.5)", normal(2, 3, 8))
    with pytest.raises(ValueError, match="4 numbers for tokens of 80"):
        codec.decode(Payload(packed.carried, {**packed.side, "width": torch.tensor([80])}))


# SL-FAC.


@pytest.mark.parametrize(("along", "axis"), [("tokens", 1), ("width", 2)])
def test_the_spectrum_is_the_cosine_transform(along, axis):
    tokens = normal(3, 9, 14)
    data = Smashed(tokens, lambda: None, torch.zeros(3, dtype=torch.int64), 10)
    found = parse_codec(f"slfac(along={along!r})").encode(data, generator()).carried["spectrum"]
    wanted = dct(tokens.numpy(), norm="ortho", axis=axis)
    wanted = wanted.swapaxes(1, 2) if along == "tokens" else wanted
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5)


def test_bits_go_where_the_error_is_largest():
    """Errors 16, 4, 1 and 0: 16 and 4 of the first, 4 of the second, then 1 of each of three."""
    assert bits_by_energy(torch.tensor([16.0, 4.0, 1.0, 0.0]), 1.5).tolist() == [3, 2, 1, 0]
    assert bits_by_energy(torch.tensor([16.0, 4.0, 1.0, 0.0]), 0.5).tolist() == [2, 0, 0, 0]
    assert bits_by_energy(torch.tensor([0.0, 1.0]), 16.0).tolist() == [0, 16]
    assert bits_by_energy(torch.zeros(3), 4.0).tolist() == [0, 0, 0]


def test_no_way_to_deal_out_bits_has_a_smaller_error():
    energy = torch.tensor([5.0, 0.7, 2.0])

    def error(bits):
        return sum(e / 4**b for e, b in zip(energy.tolist(), bits, strict=True))

    found = bits_by_energy(energy, 2.0).tolist()
    ways = [(a, b, 6 - a - b) for a in range(7) for b in range(7 - a)]
    assert sum(found) == 6 and error(found) == pytest.approx(min(map(error, ways)))


@pytest.mark.parametrize("along", ["tokens", "width"])
def test_numbers_are_off_by_half_a_cell_at_most_and_take_the_bits_that_were_dealt_out(along):
    tokens = normal(6, 9, 16)
    codec = parse_codec(f"slfac(bits=3.0, along={along!r})")
    data = Smashed(tokens, lambda: None, torch.zeros(6, dtype=torch.int64), 10)
    payload = codec.encode(data, generator())
    packed = codec.pack(payload, generator())
    wanted, bits = payload.carried["spectrum"], packed.side["bits"]
    found = codec.unpack(Payload.from_bytes(packed.to_bytes())).carried["spectrum"]
    width = (wanted.flatten(0, 1).amax(0) - wanted.flatten(0, 1).amin(0)) / 2.0**bits
    assert ((found - wanted).abs() <= width / 2 + 1e-5).all() and int(bits.min()) > 0
    frequencies = len(bits)
    assert int(bits.sum()) == 3 * frequencies
    numbers = 3 * tokens.numel() / 8 + 8 * frequencies + frequencies / 2
    assert abs(len(packed.to_bytes()) - numbers) < NAMES + 14 * len(bits.unique())


def test_smooth_tokens_are_nearer_than_with_as_many_bits_for_all():
    """A slow wave over the tokens and a little noise: two bits per number."""
    places = torch.arange(32.0)[None, :, None]
    tokens = torch.cos(places * math.pi / 32 * normal(8, 1, 24).abs()) + 0.02 * normal(8, 32, 24)
    errors = [float((sent(s, tokens)[2] - tokens).norm()) for s in ("slfac(2.0)", "uniform(2)")]
    assert errors[0] < errors[1] / 2


def test_what_gets_no_bits_is_zero():
    """Constant tokens have one frequency; with 16 bits of it they come back."""
    tokens = normal(4, 1, 8).expand(4, 10, 8)
    packed, _, found = sent("slfac(bits=1.6)", tokens)
    assert packed.side["bits"].tolist() == [16] + [0] * 9
    torch.testing.assert_close(found, tokens, atol=1e-3, rtol=0)


# NSC-SL.


@pytest.mark.parametrize("energy", [0.4, 0.9, 0.995])
def test_the_rank_is_the_least_that_has_the_energy(energy):
    rows = normal(60, 12) * torch.linspace(0.1, 3, 12)
    values = np.linalg.svd(rows.numpy(), compute_uv=False) ** 2
    wanted = 1 + int(np.sum(np.cumsum(values) < energy * values.sum()))
    found = directions(rows, energy)
    assert found.shape == (12, wanted) and 1 < wanted < 12
    assert directions(rows, energy, most=2).shape[1] == min(2, wanted)
    torch.testing.assert_close(found.T @ found, torch.eye(wanted), atol=1e-5, rtol=0)


def test_what_arrives_is_the_best_approximation_of_that_rank():
    tokens = normal(5, 6, 10)
    _, size, found = sent("nscsl(energy=1.0, most=3)", tokens)
    assert 0 <= size - 4 * (5 * 6 * 3 + 10 * 3) < NAMES
    left, values, right = np.linalg.svd(tokens.flatten(0, 1).numpy(), full_matrices=False)
    best = (left[:, :3] * values[:3]) @ right[:3]
    np.testing.assert_allclose(found.flatten(0, 1).numpy(), best, atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 6, 10), (2, 2, 10)], ids=["tall", "flat"])
def test_all_directions_give_back_what_went_in(shape):
    tokens = normal(*shape)
    packed, _, found = sent("nscsl(energy=1.0)", tokens)
    assert packed.carried["tokens"].shape[2] == min(10, shape[0] * shape[1])
    torch.testing.assert_close(found, tokens, atol=1e-5, rtol=1e-5)


def test_data_of_a_low_rank_cost_that_rank():
    tokens = normal(8, 7, 2) @ normal(2, 16, seed=1)
    packed, _, found = sent("nscsl(energy=0.999999)", tokens)
    assert packed.carried["tokens"].shape[2] == 2
    torch.testing.assert_close(found, tokens, atol=1e-4, rtol=1e-4)
