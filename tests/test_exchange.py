"""What goes between server and client: records, what a link reads, and room for graphs."""

from dataclasses import asdict, replace
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flwr.app import MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fl_split.codecs import Identity, parse_codec, parse_downlink
from fl_split.exchange.graphs import GraphMemory
from fl_split.exchange.link import Link
from fl_split.exchange.records import (
    END,
    HEAD,
    TAIL,
    Record,
    Weights,
    check_weights,
)
from fl_split.payload import Payload
from fl_split.seeds import StepId
from simulations.runs.experiment import Experiment
from simulations.runs.setup import prepare
from strategies.server import flower_messages, flower_private

TINY = {
    "model": "vit(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=4)",
    "cut": 1, "clients": 3, "batch_size": 32, "head_optimizer": "adam(lr=0.01)",
}  # fmt: skip
AT = StepId(0, 1, 2, 3)
every = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))

vectors = st.lists(st.floats(width=32, allow_nan=False), max_size=9).map(
    lambda numbers: np.array(numbers, np.float32)
)
numbers = st.floats(allow_nan=False) | st.lists(st.floats(allow_nan=False), min_size=1, max_size=3)
records = st.builds(
    Record,
    action=st.text(min_size=1, max_size=9),
    payload=st.none() | st.binary(max_size=40),
    weights=st.dictionaries(st.sampled_from([HEAD, TAIL]), vectors.map(Weights.of)),
    numbers=st.dictionaries(st.text(min_size=1, max_size=9), numbers, max_size=3),
)


@every
@given(vector=vectors)
def test_weights_are_numpys_own_file_and_come_back(vector):
    found = Weights.of(vector)
    assert np.array_equal(np.load(BytesIO(bytes(found.data))), vector)
    assert np.array_equal(found.numpy(), vector) and found.numpy().dtype == np.float32
    assert not found.numpy().flags.writeable


@every
@given(record=records)
def test_a_record_comes_back_from_flowers_bytes(record):
    data = flower_private.record_to_bytes(flower_messages.content(record))
    back = flower_messages.read(SimpleNamespace(content=flower_private.record_from_bytes(data)))
    assert (back.action, dict(back.numbers)) == (record.action, dict(record.numbers))
    assert (back.payload is None) == (record.payload is None)
    assert bytes(back.payload or b"") == bytes(record.payload or b"")
    assert back.weights.keys() == record.weights.keys()
    for name, vector in record.weights.items():
        assert asdict(replace(back.weights[name], data=b"")) == asdict(replace(vector, data=b""))
        assert bytes(back.weights[name].data) == bytes(vector.data)


@pytest.mark.parametrize(
    "content", [RecordDict(), RecordDict({"metrics": MetricRecord({"x": 1.0})})]
)
def test_a_message_of_somebody_else_is_refused(content):
    with pytest.raises(ValueError, match="none of fl-split"):
        flower_messages.read(SimpleNamespace(content=content))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: {}, "no head"),
        (lambda w: {HEAD: w, "leg": w}, "a leg that nobody asked for"),
        (lambda w: {HEAD: replace(w, shape=(2,))}, r"head of shape \(2,\), expected \(3,\)"),
        (lambda w: {HEAD: replace(w, shape=(-3,))}, r"head of shape \(-3,\)"),
        (lambda w: {HEAD: replace(w, dtype="complex64")}, "head of complex64, expected float32"),
        (lambda w: {HEAD: replace(w, dtype="junk")}, "head of junk, expected float32"),
        (lambda w: {HEAD: replace(w, data=w.data[-11:])}, "11 bytes, too short"),
        (lambda w: {HEAD: Weights.of(w.numpy() * np.inf)}, "a head that is not finite"),
    ],
)
def test_weights_that_cannot_be_averaged_are_refused(spoil, message):
    weights = Weights.of(np.arange(1, 4, dtype=np.float32))
    check_weights({HEAD: weights}, {HEAD: weights})
    with pytest.raises(ValueError, match=message):
        check_weights(spoil(weights), {HEAD: weights})


@pytest.mark.parametrize("spoil", [{"dtype": "complex64"}, {"extra": True}])
def test_a_client_with_weights_of_another_kind_is_dropped(simulate, spoilt, spoil):
    def change(reply):
        record = flower_messages.read(reply)
        if record.action != END:
            return reply
        head = record.weights[HEAD]
        other = Weights.of(head.numpy().astype(spoil.get("dtype", "float32")))
        weights = {HEAD: other, **({TAIL: head} if "extra" in spoil else {})}
        reply.content = flower_messages.content(replace(record, weights=weights))
        return reply

    outcome = simulate(spoilt({0}, change, 0), rounds=1)
    dropped = outcome.clients.query("dropped != ''")
    assert dropped["client"].tolist() == [0]
    assert dropped["dropped"].str.contains("complex64|a tail that nobody asked for").all()
    assert outcome.summary["status"] == "complete"


DOWNLINKS = [
    "identity()", "fp16()", "uniform(bits=3)", "rans(bits=4)", "zstd()", "topk(ratio=0.3)",
    "uniform(bits=6) | rans()",
]  # fmt: skip


@pytest.mark.parametrize("spec", DOWNLINKS)
@every
@given(data=st.data())
def test_gradients_of_hostile_bytes_are_refused_or_read_but_never_crash(spec, data):
    link = Link(Identity(), parse_downlink(spec))
    draw = torch.Generator().manual_seed(0)
    good = bytearray(link.down(Payload({"tokens": torch.randn(3, 5, 4, generator=draw)}), AT))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(good) - 1))
        good[place] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(good)) | st.just(len(good)))
    for sent in (bytes(good[:end]), data.draw(st.binary(max_size=60))):
        try:
            found = link.read(sent, AT)
        except ValueError:
            continue
        assert all(isinstance(value, torch.Tensor) for value in found.carried.values())


@pytest.fixture(scope="module")
def tail():
    return prepare(Experiment.from_dict(TINY)).tail


@every
@given(sent=st.binary(max_size=80))
@pytest.mark.parametrize("spec", ["identity()", "adc(ratio=0.3)", "topk(ratio=0.2) | rans()"])
def test_what_is_no_payload_never_arrives(tail, spec, sent):
    with pytest.raises(ValueError):
        Link(parse_codec(spec), Identity()).arrive(sent, AT, tail)


@every
@given(
    limit=st.integers(0, 50),
    moves=st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=40),
)
def test_room_for_graphs_is_never_more_than_the_limit_and_never_lost(limit, moves):
    graphs, held = GraphMemory(limit), []
    for is_taking, size in moves:
        if is_taking:
            fits = sum(held) + size <= limit
            assert graphs.has_room(size) == fits
            assert graphs.take(size) == fits
            held += [size] * fits
        elif held:
            graphs.give(held.pop(size % len(held)))
        assert graphs.used == sum(held) <= limit
    for size in held:
        graphs.give(size)
    assert graphs.used == 0 and graphs.take(limit) and not graphs.take(1)
