"""Records in Flower messages, and back; and how messages travel inside one machine.

A message to a client says its action by its type, ``train.begin``; a reply, whose type Flower
takes from the message it answers, says it in the record ACTION_PART.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, MutableMapping, Sequence
from io import BytesIO
from pickle import PickleBuffer
from typing import Any, TypeVar, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor, from_numpy

from fl_split.exchange.records import HELD, Record, Weights
from strategies.server.flower_private import array_of

R = TypeVar("R", ArrayRecord, ConfigRecord, MetricRecord)

TRAIN, QUERY = "train.", "query."
"""What Flower message types begin with: actions of exchanges, and questions."""

SAMPLE_COUNT, LABEL_COUNTS = "samples", "labels"
"""Questions: which partition a node holds and how many samples; of each class too."""
OWN_HEAD, OWN_MODEL, OWN_EXITS = OWN = "head", "model", "exits"
"""Questions: the head that a client keeps, its whole model, its exits; measurements, not
counted."""

PARTITION, NUM_LABELS = "partition-id", "num-labels"
"""Answers to SAMPLE_COUNT and LABEL_COUNTS, beside HELD."""

ACTION_PART, PAYLOAD_PART, WEIGHTS_PART, NUMBERS_PART = "action", "payload", "weights", "metrics"
"""Flower's records in a message: action and step; a payload; weight vectors; numbers."""

ACTION, STEP, DATA = "action", "step", "data"
"""Entries of ACTION_PART; the one array of PAYLOAD_PART."""

Arrays = MutableMapping[Weights, Array]
"""Arrays of weights that several messages carry: a transport sends the same array once."""


def content(record: Record, known: Arrays | None = None) -> RecordDict:
    """Wrap a record; arrays' data are not copied, and arrays that are `known` are used again."""
    found = RecordDict({ACTION_PART: ConfigRecord({ACTION: record.action, STEP: record.step})})
    if record.payload is not None:
        data = record.payload
        array = array_of("uint8", (len(data),), "fl_split.payload", data)
        found[PAYLOAD_PART] = _record({DATA: array})
    if record.weights:
        found[WEIGHTS_PART] = arrays(record.weights, known)
    if record.numbers:
        found[NUMBERS_PART] = MetricRecord(dict(record.numbers))
    return found


def read(message: Message) -> Record:
    """Return the record in a message or a reply.

    Raises
    ------
    ValueError
        The message is none of ours.
    """
    try:
        found = message.content
        action = _part(found, ACTION_PART, ConfigRecord)
        payload = _part(found, PAYLOAD_PART, ArrayRecord)
        if action is None:
            raise KeyError(ACTION_PART)
        return Record(
            str(action[ACTION]),
            None if payload is None else payload[DATA].data,
            weights(_part(found, WEIGHTS_PART, ArrayRecord) or {}),
            cast(Mapping[str, float], dict(_part(found, NUMBERS_PART, MetricRecord) or {})),
            int(str(action.get(STEP, 0))),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"a message that is none of fl-split: {error!r}") from None


def _part(content: RecordDict, name: str, kind: type[R]) -> R | None:
    """Return a record of one kind; Flower's views of a kind take long, as they check all again."""
    record = content.get(name)
    return record if isinstance(record, kind) else None


def reply(message: Message, record: Record) -> Message:
    """Answer a message."""
    return Message(content(record), reply_to=message)


def arrays(found: Mapping[str, Weights], known: Arrays | None = None) -> ArrayRecord:
    """Wrap weight vectors for Flower; `known` ones become the Array that they became before."""
    known = {} if known is None else known
    for vector in found.values():
        if vector not in known:
            known[vector] = array_of(vector.dtype, vector.shape, "numpy.ndarray", vector.data)
    return _record({name: known[vector] for name, vector in found.items()})


def weights(record: Mapping[str, Array]) -> dict[str, Weights]:
    """Read what :func:`arrays` wrapped."""
    return {
        name: Weights(array.data, tuple(array.shape), array.dtype) for name, array in record.items()
    }


def _record(found: dict[str, Array]) -> ArrayRecord:
    """Make a record of these very arrays; the constructor would copy them."""
    record = ArrayRecord()
    for name, array in found.items():
        record[name] = array
    return record


def update(vectors: Mapping[str, Weights], samples: float) -> Message:
    """Return weights that count as those of so many samples, as Flower's aggregators want them."""
    numbers = MetricRecord({HELD: samples})
    inside = RecordDict({WEIGHTS_PART: arrays(vectors), NUMBERS_PART: numbers})
    return Message(inside, dst_node_id=1, message_type="train")


def tensors_to_record(found: Mapping[str, Tensor]) -> ArrayRecord:
    """Wrap tensors for a client's state."""
    return ArrayRecord({name: Array(np.asarray(value.cpu())) for name, value in found.items()})


def tensors_from_record(record: ArrayRecord) -> dict[str, Tensor]:
    """Read what :func:`tensors_to_record` wrapped."""
    return {name: from_numpy(array.numpy()) for name, array in record.items()}


def to_wire(found: Any) -> list[bytes | PickleBuffer]:
    """Pickle messages or records for a transport in one machine, the arrays' data apart.

    The data are handed over as buffers, which a transport with shared memory copies once
    and the other side not at all. An array that several messages carry goes once.
    """
    file = BytesIO()
    buffers: list[PickleBuffer] = []
    pickler = pickle.Pickler(file, 5, buffer_callback=buffers.append)
    pickler.dispatch_table = {Array: _take_apart}
    pickler.dump(found)
    return [file.getvalue(), *buffers]


def from_wire(parts: Sequence[bytes | PickleBuffer]) -> Any:
    """Put together what :func:`to_wire` took apart."""
    return pickle.loads(parts[0], buffers=parts[1:])


def own(found: RecordDict) -> RecordDict:
    """Return a copy with arrays of its own, where they were views of a transport's memory."""
    parts = to_wire(found)
    return from_wire([parts[0], *(bytes(part) for part in parts[1:])])


def _take_apart(array: Array) -> tuple[Any, ...]:
    return array_of, (array.dtype, array.shape, array.stype, PickleBuffer(array.data))
