"""The gradient that reaches the smashed data, of every codec, against its truth.

Where decode(encode(.)) is differentiable, that is its finite differences; where something is
quantised, the paper's rule, written out here.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn

from fl_split.codecs import CODECS, Smashed, parse_codec
from fl_split.payload import Payload

SHAPE = (5, 4, 6)  # batch tokens dim
STEP = 1e-6


def generator(seed=5):
    return torch.Generator().manual_seed(seed)


def smashed(tokens):
    attention = torch.rand(SHAPE[:2], generator=generator(1)).softmax(dim=1).to(tokens.dtype)
    return Smashed(tokens, lambda: attention, torch.arange(len(tokens)) % 3, 3)


def networks(codec, dtype=torch.float32):
    """Encoder and decoder of a trainable codec, always the same; else nothing at all."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        pair = codec.modules(SHAPE[-1]) or (nn.Identity(), nn.Identity())
    return [network.to(dtype) for network in pair]


def exchange(spec):
    """What reaches the tokens for loss = sum(weights * decoded), by way of the wire."""
    codec = parse_codec(spec)
    tokens = torch.randn(SHAPE, generator=generator(0)).requires_grad_()
    encoder, decoder = networks(codec)
    payload = codec.encode(smashed(encoder(tokens)), generator())
    with torch.no_grad():
        packed = codec.pack(payload, generator())
    known = codec.unpack(Payload.from_bytes(packed.to_bytes()))
    values = {name: value.detach().requires_grad_() for name, value in known.carried.items()}
    decoded = decoder(codec.decode(Payload(values, known.side)).tokens)
    weights = torch.randn(decoded.shape, generator=generator(2))
    cut = torch.autograd.grad((weights * decoded).sum(), list(values.values()))
    torch.autograd.backward([payload.carried[name] for name in values], cut)
    return tokens.detach(), decoded.detach(), weights, tokens.grad


def finite_differences(spec, tokens, decoded, weights):
    """Central differences in double precision, every draw the same; nothing is packed."""
    codec = parse_codec(spec)
    encoder, decoder = networks(codec, torch.float64)

    @torch.no_grad()
    def loss(tokens):
        payload = codec.encode(smashed(encoder(tokens)), generator())
        return float((weights * decoder(codec.decode(payload).tokens)).sum())

    return slopes_of(loss, tokens.double())


def slopes_of(loss, tokens):
    """Central differences of a function of tokens."""
    slopes = torch.zeros(tokens.numel(), dtype=torch.float64)
    for place in range(len(slopes)):
        move = torch.zeros_like(slopes)
        move[place] = STEP
        move = move.view(SHAPE)
        slopes[place] = (loss(tokens + move) - loss(tokens - move)) / (2 * STEP)
    return slopes.view(SHAPE)


def straight_through(spec, tokens, decoded, weights):
    """As if nothing had been rounded."""
    return weights


def survivors(spec, tokens, decoded, weights):
    """SLICER: straight through where an entry is among the half of largest magnitude."""
    size = tokens.abs().flatten(1)
    least = size.sort(dim=1, descending=True).values[:, size.shape[1] // 2 - 1, None]
    return weights * (size >= least).view(SHAPE)


def passing_centres(spec, tokens, decoded, weights):
    """SemanticNN: as if values moved freely from the centres that they have become."""
    encoder, decoder = networks(parse_codec(spec), torch.float64)

    @torch.no_grad()
    def values(tokens):
        found = encoder.narrow(tokens)
        return found / found.square().mean(dim=(1, 2), keepdim=True).sqrt()

    start = tokens.double()
    left = encoder(start).detach()
    left[..., : values(start).shape[2]] -= values(start)

    @torch.no_grad()
    def loss(tokens):
        moved = left.clone()
        moved[..., : values(tokens).shape[2]] += values(tokens)
        return float((weights * decoder(moved)).sum())

    return slopes_of(loss, start)


def dropout(spec, tokens, decoded, weights):
    """SplitFC: mask / q, with q = D' (s + c) / sum(s + c), c as small as keeps q <= 1."""
    s, width, wanted = tokens.flatten(0, 1).std(dim=0, correction=0), SHAPE[-1], SHAPE[-1] / 2
    c = max(0.0, float((wanted * s.max() - s.sum()) / (width - wanted)))
    mask = decoded.abs().sum(dim=(0, 1)) > 0
    assert 0 < mask.sum() < width
    return weights * mask * (s + c).sum() / (wanted * (s + c))


def corrected(spec, tokens, decoded, weights):
    """FedLite: g + lambda (z - z')."""
    return weights + 0.5 * (tokens - decoded)


def of_the_subspace(spec, tokens, decoded, weights):
    """NSC-SL: the part in the two leading directions, here by numpy's own decomposition."""
    _, _, leading = np.linalg.svd(tokens.flatten(0, 1).numpy(), full_matrices=False)
    basis = torch.from_numpy(leading[:2])
    return weights @ basis.T @ basis


RULES = {
    "adc": (
        finite_differences,
        ["adc(batch_ratio=0.5, token_ratio=0.5)", "adc(batch_ratio=0.5, token_ratio=1.0)"],
    ),
    "attended": (finite_differences, ["attended(ratio=0.75)", "attended(0.75, rest=False)"]),
    "bf16": (straight_through, ["bf16()"]),
    "bottlenet": (finite_differences, ["bottlenet(0.5)", "bottlenet(0.5, final_relu=True)"]),
    "c3sl": (finite_differences, ["c3sl(factor=2)", "c3sl(factor=5, keys='unitary')"]),
    "fedlite": (corrected, ["fedlite(length=2, centroids=4, groups=2, strength=0.5)"]),
    "fp16": (straight_through, ["fp16()"]),
    "identity": (finite_differences, ["identity()"]),
    "jscc": (finite_differences, ["jscc(ratio=0.5)", "jscc(0.5, condition=False)"]),
    "randtopk": (finite_differences, ["randtopk(ratio=0.1)", "randtopk(ratio=0.5, alpha=0.3)"]),
    "rans": (straight_through, ["rans(bits=3)", "uniform(bits=2) | rans()"]),
    "semantic": (
        passing_centres,
        ["semantic(ratio=0.5, balance=0.0)", "semantic(4, 0.4, False, 0.0)"],
    ),
    "lightsplit": (finite_differences, ["lightsplit(ratio=0.5)", "lightsplit(0.3, seed=4)"]),
    "nscsl": (of_the_subspace, ["nscsl(energy=1.0, most=2)", "nscsl(1.0, 2) | uniform(bits=3)"]),
    "slfac": (straight_through, ["slfac(bits=2.0)", "slfac(bits=0.5, along='width')"]),
    "slicer": (survivors, ["slicer()", "slicer(blocks=1, guard='int', threshold=0.02)"]),
    "splitcom": (straight_through, ["splitcom()", "splitcom(0.2) | uniform(bits=3)"]),
    "splitfc": (dropout, ["splitfc()", "splitfc(bits=0.5) | zstd()"]),
    "topk": (
        finite_differences,
        ["topk(ratio=0.1)", "topk(ratio=0.5)", "topk(ratio=0.5) | uniform(bits=3)"],
    ),
    "uniform": (
        straight_through,
        ["uniform(bits=2)", "uniform(bits=3, per='channel', rounding='stochastic')"],
    ),
    "zstd": (straight_through, ["zstd()"]),
}
"""What the gradient of a codec is held against, and specs that differ in their backward."""


def test_every_codec_states_its_rule():
    assert RULES.keys() == CODECS.keys()


@pytest.mark.parametrize(
    ("spec", "rule"), [(spec, rule) for rule, specs in RULES.values() for spec in specs]
)
def test_the_gradient_that_reaches_the_smashed_data_is_the_true_one(spec, rule):
    tokens, decoded, weights, found = exchange(spec)
    expected = rule(spec, tokens, decoded, weights)
    assert 0 < float(expected.norm()) < math.inf
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-4, atol=1e-5)
