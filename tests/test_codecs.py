"""What every codec must do; a new one is tested by being in the table."""

import pytest
import torch

from fl_split.codecs import CODECS, Smashed
from fl_split.flat import Flat
from fl_split.payload import Payload
from fl_split.specs import parse
from fl_split.step import Place, arrive, cut_gradients
from fl_split.vit import ViT, split

pytestmark = pytest.mark.parametrize("name", CODECS)


def smashed(batch=9, requires_grad=True):
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randn(batch, 5, 16, generator=draw).requires_grad_(requires_grad)
    attention = torch.rand(batch, 5, generator=draw).softmax(dim=1)
    return Smashed(tokens, lambda: attention, torch.arange(batch) % 4, 4)


def generator():
    return torch.Generator().manual_seed(5)


def test_the_receiver_decodes_from_the_counted_bytes_alone(name):
    codec = parse(name, CODECS)
    payload = codec.encode(smashed(), generator())
    data = payload.to_bytes()
    assert payload.nbytes == len(data)
    here, there = (
        codec.decode(payload),
        parse(repr_spec(codec), CODECS).decode(Payload.from_bytes(data)),
    )
    assert torch.equal(here.tokens, there.tokens)
    assert torch.equal(here.targets, there.targets)


def repr_spec(codec):
    text = repr(codec)
    return text[0].lower() + text[1:] if text[:3] != "ADC" else "adc" + text[3:]


def test_rows_tokens_and_targets_belong_together(name):
    received = parse(name, CODECS).decode(parse(name, CODECS).encode(smashed(), generator()))
    rows, tokens, width = received.tokens.shape
    assert rows <= 9 and tokens <= 5 and width == 16
    assert received.targets.shape in {(rows,), (rows, 4)}
    assert received.weights is None or received.weights.shape == (rows,)


def test_a_seeded_generator_decides(name):
    codec = parse(name, CODECS)
    torch.manual_seed(1)
    first = codec.encode(smashed(), generator()).to_bytes()
    torch.manual_seed(2)
    assert codec.encode(smashed(), generator()).to_bytes() == first


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_tiny_batches_work(name, batch):
    codec = parse(name, CODECS)
    received = codec.decode(codec.encode(smashed(batch), generator()))
    assert received.tokens.isfinite().all()


def test_works_without_gradients(name):
    codec = parse(name, CODECS)
    with torch.no_grad():
        payload = codec.encode(smashed(requires_grad=False), generator())
    assert not any(value.requires_grad for value in payload.values.values())


def test_gradient_over_the_wire_equals_the_gradient_of_one_graph(name):
    codec, data = parse(name, CODECS), smashed()
    spec = ViT(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=4)
    _, tail = split(spec.build(image_size=8, channels=1, num_classes=4, seed=0), 1)
    payload = codec.encode(data, generator())
    sent = Payload.from_bytes(payload.to_bytes())
    losses, gradients, _ = cut_gradients(
        Flat(tail), [arrive(tail, codec, sent)], [1.0], Place(0, 0, 0, 0)
    )
    back = Payload.from_bytes(gradients[0].to_bytes())
    torch.autograd.backward(list(payload.values.values()), list(back.values.values()))
    over_the_wire = data.tokens.grad.clone()

    from fl_split.step import loss

    fresh = smashed()
    received = codec.decode(codec.encode(fresh, generator()))
    value = loss(tail(received.tokens), received)
    value.backward()
    assert losses[0] == value.item()
    assert torch.equal(over_the_wire, fresh.tokens.grad)
