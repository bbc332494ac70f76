"""What every codec must do; a new one is tested by being in the table."""

from contextlib import suppress

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fl_split.codecs import CODECS, Identity, Smashed, parse_codec, parse_downlink
from fl_split.exchange.link import Link
from fl_split.exchange.split import Split
from fl_split.flat import Flat
from fl_split.models.cut import insert
from fl_split.models.vit import ViT, split
from fl_split.payload import Payload
from fl_split.recipe.loss import CrossEntropy
from fl_split.seeds import StepId

CHAINS = [
    "adc(ratio=0.25) | uniform(bits=8) | rans()",
    "topk(ratio=0.2) | fp16()",
    "splitfc(keep=0.7) | zstd()",
    "slicer() | rans(layout='sparse')",
    "bottlenet(ratio=0.5) | uniform(bits=4, per='channel', rounding='stochastic')",
]
AT = StepId(0, 0, 0, 0)
every_codec = pytest.mark.parametrize("spec", [*CODECS, *CHAINS])


def smashed(batch=9, seed=0, requires_grad=True):
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, 5, 16, generator=draw).requires_grad_(requires_grad)
    attention = torch.rand(batch, 5, generator=draw).softmax(dim=1)
    return Smashed(tokens, lambda: attention, torch.arange(batch) % 4, 4)


def halves(codec):
    spec = ViT(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=4)
    head, tail = split(spec.build(image_size=8, channels=1, num_classes=4, seed=0), 1)
    insert(head, tail, codec, 0)
    return head, tail


def generator():
    return torch.Generator().manual_seed(5)


def encode(codec, data):
    """As the head does: its encoder, if the codec brings one, comes first."""
    tokens = halves(codec)[0].encoder(data.tokens)
    return codec.encode(Smashed(tokens, data.attention, data.labels, data.num_classes), generator())


def up(codec, payload):
    """Return the bytes that a client sends."""
    return Link(codec, Identity()).up(payload, AT)


def down(codec, gradient):
    """Return the bytes that a server sends, and what a client makes of them."""
    link = Link(Identity(), codec)
    sent = link.down(gradient, AT)
    return sent, link.read(sent, AT)


def arrive(codec, data):
    """Return what a server makes of the bytes."""
    return Link(codec, Identity()).arrive(data, AT, halves(codec)[1])


def wire(codec, data):
    return up(codec, encode(codec, data))


def received(codec, data):
    return arrive(codec, wire(codec, data)).received


@every_codec
def test_the_receiver_decodes_from_the_counted_bytes_alone(spec):
    codec, data = parse_codec(spec), smashed()
    link, tail = Link(codec, Identity()), halves(codec)[1]
    here = link.carry(encode(codec, data), AT, tail).received
    there = received(parse_codec(spec), data)
    assert torch.equal(here.tokens, there.tokens)
    assert torch.equal(here.targets, there.targets)


@every_codec
def test_rows_tokens_and_targets_belong_together(spec):
    codec = parse_codec(spec)
    found = received(codec, smashed())
    rows, tokens, width = found.tokens.shape
    assert rows <= 9 and tokens <= 5 and width == halves(codec)[1].width
    assert found.targets.shape in {(rows,), (rows, 4)}
    assert found.weights is None or found.weights.shape == (rows,)


@every_codec
def test_what_is_packed_comes_back_with_the_names_and_shapes_of_the_values(spec):
    codec = parse_codec(spec)
    payload = encode(codec, smashed())
    back = codec.unpack(Payload.from_bytes(up(codec, payload)))
    expected = {name: value.shape for name, value in payload.carried.items()}
    assert {name: value.shape for name, value in back.carried.items()} == expected


@every_codec
def test_a_seeded_generator_decides(spec):
    codec = parse_codec(spec)
    torch.manual_seed(1)
    first = wire(codec, smashed())
    torch.manual_seed(2)
    assert wire(codec, smashed()) == first


@every_codec
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_tiny_batches_work(spec, batch):
    assert received(parse_codec(spec), smashed(batch)).tokens.isfinite().all()


@every_codec
def test_a_batch_of_copies_and_a_batch_of_zeros_work(spec):
    codec, data = parse_codec(spec), smashed(4)
    for tokens in (data.tokens[:1].expand(4, -1, -1), torch.zeros(4, 5, 16)):
        alike = Smashed(tokens, lambda: torch.full((4, 5), 0.2), data.labels, 4)
        assert received(codec, alike).tokens.isfinite().all()


@every_codec
def test_works_without_gradients(spec):
    codec = parse_codec(spec)
    with torch.no_grad():
        payload = encode(codec, smashed(requires_grad=False))
    assert not any(value.requires_grad for value in payload.carried.values())


@every_codec
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(spec, bad):
    codec, data = parse_codec(spec), smashed(requires_grad=False)
    data.tokens[:] = bad
    with pytest.raises(ValueError, match="not finite"):
        wire(codec, data)


@every_codec
def test_the_server_refuses_what_a_client_did_not_check(spec):
    """Not finite once unpacked: every float on the wire spoilt, past the client's own check."""
    codec = parse_codec(spec)
    packed = codec.pack(encode(codec, smashed(requires_grad=False)), generator())
    if not any(t.is_floating_point() for t in [*packed.carried.values(), *packed.side.values()]):
        pytest.skip("sends no float as such")
    for tensors in (packed.carried, packed.side):
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                tensors[name] = torch.full_like(tensor, float("nan"))
    with pytest.raises(ValueError):
        arrive(codec, packed.to_bytes())


@every_codec
def test_nothing_that_is_packed_changes(spec):
    codec = parse_codec(spec)
    payload = encode(codec, smashed(requires_grad=False))
    before = payload.to_bytes()
    packed = codec.pack(payload, generator())
    sent = packed.to_bytes()
    codec.decode(codec.unpack(packed))
    assert payload.to_bytes() == before and packed.to_bytes() == sent


class StraightThrough(torch.autograd.Function):
    """Forward what was unpacked, backward to what was packed."""

    @staticmethod
    def forward(ctx, packed, unpacked):
        return unpacked.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


@every_codec
def test_gradient_over_the_wire_equals_the_gradient_of_one_graph(spec):
    codec, data = parse_codec(spec), smashed()
    _, tail = halves(codec)
    payload = encode(codec, data)
    sent = up(codec, payload)
    arrival = Link(codec, Identity()).arrive(sent, AT, tail)
    losses, gradients, _ = Split().cut_gradients(Flat(tail), [arrival], [1.0], AT)
    _, back = down(Identity(), gradients[0])
    assert back.carried.keys() == payload.carried.keys()
    for name, value in payload.carried.items():
        value.backward(back.carried[name], retain_graph=True)
    over_the_wire = data.tokens.grad.clone()

    fresh = smashed()
    payload, known = encode(codec, fresh), codec.unpack(Payload.from_bytes(sent))
    values = {
        name: StraightThrough.apply(value, known.carried[name])
        for name, value in payload.carried.items()
    }
    found = codec.decode(Payload(values, known.side))
    value = CrossEntropy().of(tail(found.tokens), found)
    value.backward()
    assert losses[0] == value.item()
    assert torch.equal(over_the_wire, fresh.tokens.grad)


@every_codec
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_bytes_are_refused_or_read_but_never_crash(spec, data):
    codec = parse_codec(spec)
    good = bytearray(wire(codec, smashed(4)))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(good) - 1))
        good[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)) | st.just(len(good)))
    with suppress(ValueError):
        arrive(codec, bytes(good[:cut]))


@pytest.mark.parametrize("spec", ["bf16", "fp16", "uniform(bits=8)", "rans(bits=8)", "zstd",
                                  "uniform(bits=6, rounding='stochastic') | rans()"])  # fmt: skip
def test_cut_gradients_can_be_packed(spec):
    codec = parse_downlink(spec)
    gradient = Payload({"tokens": 1e-4 * torch.randn(3, 5, 16, generator=generator())})
    data, found = down(codec, gradient)
    assert len(data) < 1.1 * gradient.nbytes
    back, sent = found.carried["tokens"], gradient.carried["tokens"]
    assert (back - sent).abs().max() < 0.03 * sent.abs().max()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("uniform() | adc()", "ADC encodes, so it can only come first"),
        ("uniform(bits=8) | uniform(bits=4)", "only once"),
        ("uniform(bits=17)", "bits"),
        ("uniform() | adk()", "did you mean 'adc'"),
        ("topk(ratio=0.1) |", "not of the form"),
        ("uniform(bits=4) || rans()", "not of the form"),
    ],
)
def test_chains_that_cannot_be_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        parse_codec(spec)


def test_a_downlink_that_encodes_is_refused():
    for spec in ("slicer()", "adc() | uniform()", "bottlenet()"):
        with pytest.raises(ValueError, match="can only be packed"):
            parse_downlink(spec)


@pytest.mark.parametrize(
    "spec", ["topk(ratio=0.1)", "topk(ratio=0.5)", "randtopk(ratio=0.2) | fp16()"]
)
@pytest.mark.parametrize("shape", [(3, 5, 16), (3, 40)])
def test_a_sparsifier_of_gradients_keeps_the_largest_of_every_row(spec, shape):
    codec = parse_downlink(spec)
    gradient = Payload({"tokens": torch.randn(*shape, generator=generator())})
    back, sent = down(codec, gradient)[1].carried["tokens"], gradient.carried["tokens"]
    assert back.shape == sent.shape
    count = round(float(spec.partition("=")[2][:3]) * sent[0].numel())
    assert back.flatten(1).count_nonzero(dim=1).tolist() == [count] * 3
    kept = back != 0
    assert torch.allclose(back[kept], sent[kept], rtol=1e-3)
    if spec.startswith("topk"):
        least = sent.abs().flatten(1).sort(dim=1, descending=True).values[:, count - 1]
        assert ((sent.abs().flatten(1) >= least[:, None]) == kept.flatten(1)).all()


def test_error_feedback_is_refused_for_samples():
    codec = parse_codec("topk(ratio=0.1, error_feedback=True)")
    with pytest.raises(ValueError, match="downlink"):
        encode(codec, smashed())


@pytest.mark.parametrize(
    ("spec", "expected"),  # the ADC authors' account, DeiT-T at 224 pixels, batches of 128
    [
        ("identity()", 1), ("adc(ratio=0.1)", 0.1), ("topk(ratio=0.1)", 0.1359375),
        ("randtopk(ratio=0.3)", 0.4078125), ("c3sl(factor=8)", 0.125),
        ("bottlenet(ratio=0.2)", 0.2), ("adc(batch_ratio=0.5, token_ratio=0.4)", 0.2),
        ("fp16()", None), ("adc() | uniform()", None),
    ],
)  # fmt: skip
def test_nominal_ratios_are_the_published_ones(spec, expected):
    found = parse_codec(spec).nominal_ratio(128, 197 * 192)
    assert found == (expected if expected is None else pytest.approx(expected))


def test_error_feedback_sends_later_what_it_left_out():
    """What was sent and what is still owed add up to all gradients; another shape starts anew."""
    link = Link(Identity(), parse_downlink("topk(ratio=0.1, error_feedback=True)"))
    gradients = torch.randn(30, 3, 5, 16, generator=generator())
    plain = Link(Identity(), parse_downlink("topk(ratio=0.1)"))

    def send(link, gradient, step, client=7):
        at = StepId(0, 1, client, step)
        return link.read(link.down(Payload({"tokens": gradient}), at), at).carried["tokens"]

    sent, lost = torch.zeros(3, 5, 16), gradients.sum(dim=0)
    for step, gradient in enumerate(gradients):
        sent += send(link, gradient, step)
        lost -= send(plain, gradient, step)
        send(link, gradient * 9, step, client=8)  # its own account
    owed = gradients.sum(dim=0) - sent
    assert owed.norm() < 0.6 * lost.norm()
    for step in range(30, 100):  # with no new gradient, all that is owed gets there
        sent += send(link, torch.zeros(3, 5, 16), step)
    assert torch.allclose(sent, gradients.sum(dim=0), atol=1e-4)
    assert send(link.renewed(), torch.zeros(3, 5, 16), 30, client=8).eq(0).all()
    assert send(link, torch.zeros(2, 5, 16), 30, client=8).eq(0).all()
