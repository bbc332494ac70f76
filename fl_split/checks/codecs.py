"""Laws that every codec keeps."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fl_split.checks.laws import check_repr, hold, must, refuses
from fl_split.codecs import Codec, Identity, Mixed, Received, Smashed
from fl_split.exchange.link import Link
from fl_split.exchange.split import Split, encode
from fl_split.flat import Flat
from fl_split.models.cut import insert
from fl_split.models.vit import ViT
from fl_split.payload import Payload
from fl_split.recipe.loss import CrossEntropy
from fl_split.seeds import StepId, seeded

AT = StepId(5, 1, 2, 3)
SAMPLES, TOKENS, WIDTH, CLASSES = 9, 5, 16, 4
"""Of the smashed data on which codecs are checked."""

DAMAGES = 100
"""Ways in which a codec's bytes are spoilt."""


class _Trial:
    """A codec at the cut of a tiny model, with smashed data to send."""

    def __init__(self, codec: Codec) -> None:
        self.codec, self.link = codec, Link(codec, Identity())
        spec = ViT(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, patch_size=4)
        model = spec.build(image_size=8, channels=1, num_classes=CLASSES, seed=0)
        head, self.tail = spec.split(model, 1)
        insert(head, self.tail, codec, 0)
        self.encoder = head.encoder

    def smashed(self, batch: int = SAMPLES, requires_grad: bool = True) -> Smashed:
        """Return `batch` samples, the same each time."""
        draw = torch.Generator().manual_seed(0)
        tokens = torch.randn(batch, TOKENS, WIDTH, generator=draw).requires_grad_(requires_grad)
        attention = torch.rand(batch, TOKENS, generator=draw).softmax(dim=1)
        return Smashed(tokens, lambda: attention, torch.arange(batch) % CLASSES, CLASSES)

    def encode(self, data: Smashed) -> Payload:
        """Do as the head does: an encoder that the codec brings comes first."""
        tokens = self.encoder(data.tokens)
        return encode(self.codec, replace(data, tokens=tokens), AT)

    def packed(self, payload: Payload) -> Payload:
        """Return what is sent of a payload that is the client's first."""
        if self.codec.remembers:
            payload = self.codec.omit(payload, torch.arange(SAMPLES), {})
        return self.codec.pack(payload, AT.generator("pack"))

    def unpacked(self, packed: Payload) -> Payload:
        """Return what the server makes of it."""
        payload = self.codec.unpack(packed)
        return self.codec.complete(payload, {}) if self.codec.remembers else payload

    def sent(self, data: Smashed) -> bytes:
        """Return what goes up."""
        return self.link.up(self.encode(data), AT)

    def received(self, data: Smashed) -> Received:
        """Return what the tail is fed, of bytes alone."""
        return self.link.arrive(self.sent(data), AT, self.tail).received


def codec_trial(codec: Codec) -> bytes:
    """Return what `codec` makes of the smashed data on which codecs are checked."""
    trial = _Trial(codec)
    return trial.sent(trial.smashed())


def check_codec(codec: Codec) -> None:
    """Hold a codec to its laws; raise AssertionError with the one that it breaks.

    On a batch of 9 samples of 5 tokens, 16 wide, with attention, in 4 classes:

    - its repr is its spec;
    - what is decoded of the counted bytes alone is what is decoded of the packed payload;
    - unpacked values have names and shapes of those that were packed: so has their gradient;
    - rows, tokens, targets and weights that come out belong together;
    - labels that are mixed with others arrive so, if it says that it keeps samples;
    - the generator that it is given decides on all that is random;
    - packing changes nothing in place;
    - batches of 1, 2, 3 samples, of copies and of zeros work, and without gradient;
    - numbers that are not finite are refused, by the client and by the server;
    - the gradient that crosses as bytes is that of one graph through both halves;
    - damaged bytes raise ValueError and nothing else;
    - of one that remembers, what is sent again unchanged arrives as it did, in no more bytes, and
      a server that does not have what is left out refuses it.
    """
    check_repr(codec)
    trial = _Trial(codec)
    for law in (
        _changes_nothing,
        _counted_bytes,
        _belongs_together,
        _mixed_labels,
        _seeded,
        _odd_batches,
        _finite,
        _gradient_of_one_graph,
        _damaged,
        _remembers,
    ):
        law(trial)


def _mixed_labels(trial: _Trial) -> None:
    if not trial.codec.keeps_samples:
        return
    data = trial.smashed()
    others = data.labels.roll(1)
    mixed = replace(data, mixed=Mixed(others, 0.75))
    found = must("mixed labels must arrive", lambda: trial.received(mixed)).targets
    own = torch.arange(len(others))
    wanted = torch.zeros(len(others), CLASSES)
    wanted[own, data.labels] += 0.75
    wanted[own, others] += 0.25
    hold(found.shape == wanted.shape and torch.allclose(found, wanted), "mixed labels must arrive")


def _counted_bytes(trial: _Trial) -> None:
    codec, payload = trial.codec, trial.encode(trial.smashed())
    packed = trial.packed(payload)
    data = packed.to_bytes()
    hold(data == trial.link.up(payload, AT), "packing twice with the same generator differs")
    back = must(
        "what was packed must be unpacked", lambda: trial.unpacked(Payload.from_bytes(data))
    )
    here, there = codec.decode(trial.unpacked(packed)), codec.decode(back)
    is_same = torch.equal(here.tokens, there.tokens) and torch.equal(here.targets, there.targets)
    hold(is_same, "what is decoded must be made of the counted bytes alone")
    wanted = {name: value.shape for name, value in payload.carried.items()}
    found = {name: value.shape for name, value in back.carried.items()}
    hold(found == wanted, f"unpacked values must have the shapes {wanted}, got {found}")


def _belongs_together(trial: _Trial) -> None:
    found = trial.received(trial.smashed())
    rows, tokens, width = found.tokens.shape
    hold(rows <= SAMPLES and tokens <= TOKENS, "no more rows and tokens come out than went in")
    hold(width == trial.tail.width, f"tokens must be {trial.tail.width} wide, got {width}")
    shapes = {(rows,), (rows, CLASSES)}
    hold(tuple(found.targets.shape) in shapes, "every row must have a target, and no more")
    fits = found.weights is None or found.weights.shape == (rows,)
    hold(fits, "every row must have a weight, or none has")


def _seeded(trial: _Trial) -> None:
    def sent(number: int) -> bytes:
        with seeded(number, "trial"):
            return trial.sent(trial.smashed())

    hold(sent(1) == sent(2), "all that is random must come from the generator that is given")


def _changes_nothing(trial: _Trial) -> None:
    payload = trial.encode(trial.smashed(requires_grad=False))
    before = payload.to_bytes()
    packed = trial.packed(payload)
    sent = packed.to_bytes()
    trial.codec.decode(trial.unpacked(packed))
    hold(payload.to_bytes() == before, "packing must not change the payload")
    hold(packed.to_bytes() == sent, "unpacking must not change what was sent")


def _odd_batches(trial: _Trial) -> None:
    data = trial.smashed(4)
    batches = {f"a batch of {size}": trial.smashed(size) for size in (1, 2, 3)}
    for name, tokens in (
        ("copies of one sample", data.tokens[:1].expand(4, -1, -1)),
        ("zeros", torch.zeros(4, TOKENS, WIDTH)),
    ):
        even = partial(torch.full, (4, TOKENS), 1 / TOKENS)
        batches[name] = Smashed(tokens, even, data.labels, CLASSES)
    for name, batch in batches.items():
        found = must(f"{name} must work", partial(trial.received, batch))
        hold(bool(found.tokens.isfinite().all()), f"{name} must give finite tokens")
    with torch.no_grad():
        values = trial.encode(trial.smashed(requires_grad=False)).carried.values()
    hold(not any(v.requires_grad for v in values), "without gradients no graph may be made")


def _finite(trial: _Trial) -> None:
    for number in (float("nan"), float("inf"), float("-inf")):
        data = trial.smashed(requires_grad=False)
        data.tokens[:] = number
        refuses(f"values of {number} must raise ValueError", partial(trial.received, data))
    payload = trial.encode(trial.smashed(requires_grad=False))
    packed = trial.packed(payload)
    floats = [
        (tensors, name)
        for tensors in (packed.carried, packed.side)
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
    ]
    for tensors, name in floats:  # past the client's own check
        tensors[name] = torch.full_like(tensors[name], float("nan"))
    if floats:
        law = "the server must refuse numbers that are not finite with ValueError"
        refuses(law, lambda: trial.link.arrive(packed.to_bytes(), AT, trial.tail))


class _StraightThrough(torch.autograd.Function):
    """Forward what was unpacked, backward to what was packed."""

    @staticmethod
    def forward(context: Any, packed: Tensor, unpacked: Tensor) -> Tensor:
        return unpacked.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _gradient_of_one_graph(trial: _Trial) -> None:
    codec, data = trial.codec, trial.smashed()
    payload = trial.encode(data)
    sent = trial.link.up(payload, AT)
    arrival = trial.link.arrive(sent, AT, trial.tail)
    losses, gradients, _ = Split().cut_gradients(Flat(trial.tail), [arrival], [1.0], AT)
    back = Payload.from_bytes(trial.link.renewed().down(gradients[0], AT)).carried
    hold(back.keys() == payload.carried.keys(), "every value must have a gradient")
    values = list(payload.carried.values())
    hold(all(v.requires_grad for v in values), "gradients must flow through every value")
    torch.autograd.backward(values, [back[name] for name in payload.carried])
    fresh = trial.smashed()
    payload, known = trial.encode(fresh), trial.unpacked(Payload.from_bytes(sent))
    joined = {
        name: _StraightThrough.apply(value, known.carried[name])
        for name, value in payload.carried.items()
    }
    found = codec.decode(Payload(joined, known.side))
    value = CrossEntropy().of(trial.tail(found.tokens), found)
    value.backward()
    hold(losses[0] == value.item(), "the loss must be that of one graph through both halves")
    ours, theirs = data.tokens.grad, fresh.tokens.grad
    assert ours is not None and theirs is not None
    is_same = torch.equal(ours, theirs)
    hold(is_same, "the gradient that crosses must be that of one graph through both halves")


def _damaged(trial: _Trial) -> None:
    good, draw = trial.sent(trial.smashed(4)), random.Random(0)
    law = "damaged bytes must raise ValueError and nothing else"
    for _ in range(DAMAGES):
        data = bytearray(good)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        data = data[: draw.choice([len(data), draw.randint(0, len(data))])]
        try:
            trial.link.arrive(bytes(data), AT, trial.tail)
        except ValueError:
            continue
        except Exception as error:
            raise AssertionError(f"{law}, got {type(error).__name__}: {error}") from error


def _remembers(trial: _Trial) -> None:
    if not trial.codec.remembers:
        return
    payload, memory = trial.encode(trial.smashed()), dict[str, Tensor]()
    sent = [trial.link.up(payload, AT, torch.arange(SAMPLES), memory) for _ in range(2)]
    first, second = (trial.link.arrive(data, AT, trial.tail).received.tokens for data in sent)
    hold(torch.equal(first, second), "what is sent again unchanged must arrive as it did")
    hold(len(sent[1]) <= len(sent[0]), "what is sent again unchanged must take no more bytes")
    if len(sent[1]) < len(sent[0]):
        other = Link(trial.codec, Identity())
        law = "a server that does not have what is left out must raise ValueError"
        refuses(law, lambda: other.arrive(sent[1], AT, trial.tail))
