"""What is written into Flower messages: every action, record name and key, once."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from pickle import PickleBuffer
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

# Private to Flower, and needed: a message has no public way to tell its length in bytes.
from flwr.common.serde import (
    array_to_proto,
    config_record_to_proto,
    metric_record_to_proto,
    recorddict_from_proto,
    recorddict_to_proto,
)
from flwr.proto.message_pb2 import Metadata as MetadataProto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto

from fl_split.payload import Payload

# Actions, as Flower message types.
ROLL_CALL = "query.roll_call"
"""Ask a node which partition it holds and how many samples; with SETTINGS, of each class too."""
REPORT = "query.report"
"""Ask a node for the head it keeps, or with SETTINGS for its whole model; a measurement, not
counted as traffic."""
STEP = "train.step"
"""Fused exchange: cut gradient of the last batch down, payload of the next batch up. In a
U-shape also the other half: the middle's output down, its gradient up."""
LOCAL = "train.local"
"""Train head and tail on the client for one round; without WEIGHTS those that it keeps."""

# Records of a message.
WEIGHTS = "weights"
"""ArrayRecord with the flat float32 vectors HEAD and TAIL."""
PAYLOAD = "payload"
"""ArrayRecord with one array DATA, the bytes of a payload: what goes forward over a cut."""
GRADIENT = "gradient"
"""ArrayRecord with one array DATA, the bytes of a gradient: what goes back over a cut."""
SETTINGS = "settings"
"""ConfigRecord on the message that starts a round: ROUND, MU for FedProx, and SHARE where a client
takes smaller batches than the experiment says."""
METRICS = "metrics"
"""MetricRecord of a reply; LOSS where the client has it: of its round of whole models, or in a
U-shape of the batch, beside the gradient of the output."""

# Keys inside records.
HEAD, TAIL, DATA, ROUND, MU, SHARE = "head", "tail", "data", "round", "mu", "share"
PARTITION, NUM_EXAMPLES, NUM_LABELS = "partition-id", "num-examples", "num-labels"
NUM_SAMPLES, NUM_STEPS, SMASHED_BYTES, LOSS = "num-samples", "num-steps", "smashed-bytes", "loss"
CPU_SECONDS = "cpu-seconds"

# Metrics of an evaluation that are lists: per class, and per client with held-out samples.
CLASSES, SHARDS, SHARD_CLIENTS = "class-accuracy", "shard-accuracy", "shard-accuracy-of"


def weights(**vectors: Array | np.ndarray) -> ArrayRecord:
    """Wrap flat weight vectors; an Array that already is one is passed on as it is."""
    return _record({k: v if isinstance(v, Array) else _array(v) for k, v in vectors.items()})


def _record(arrays: dict[str, Array]) -> ArrayRecord:
    """Make a record of these very arrays; the constructor would copy them."""
    record = ArrayRecord()
    for name, array in arrays.items():
        record[name] = array
    return record


def _array(vector: np.ndarray) -> Array:
    """Do what ``Array(vector)`` does, copying the data once instead of three times."""
    data = b"".join(
        [_npy_header(vector.dtype.str, vector.shape), np.ascontiguousarray(vector).data]
    )
    return Array(str(vector.dtype), vector.shape, "numpy.ndarray", data)


@lru_cache
def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    file = BytesIO()
    fields = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, fields)
    return file.getvalue()


def numbers(array: Array) -> np.ndarray:
    """Look at the numbers of an Array without copying them; they cannot be written to.

    Raises
    ------
    ValueError
        The data are not as long as dtype and shape say.
    """
    dtype, count = np.dtype(array.dtype), math.prod(array.shape)
    offset = len(array.data) - count * dtype.itemsize
    if array.stype != "numpy.ndarray" or offset < 0:
        raise ValueError(f"an array of {len(array.data)} bytes, too short for {array.shape}")
    return np.frombuffer(array.data, dtype, count, offset).reshape(array.shape)


def wrap(payload: Payload) -> ArrayRecord:
    """Put a payload, as its own bytes, into a record."""
    data = payload.to_bytes()
    return _record({DATA: Array("uint8", (len(data),), "fl_split.payload", data)})


def unwrap(record: ArrayRecord) -> Payload:
    """Read back what :func:`wrap` wrote."""
    return Payload.from_bytes(record[DATA].data)


def start_of_round(server_round: int, head: Array | None, share: float = 1.0) -> RecordDict:
    """Content of the message that starts a client's round; `head` None keeps its own.

    `share` is that of the batch size which the client is to take.
    """
    content = RecordDict({SETTINGS: ConfigRecord({ROUND: server_round})})
    if share != 1.0:
        content.config_records[SETTINGS][SHARE] = share
    if head is not None:
        content[WEIGHTS] = weights(head=head)
    return content


def metric(message: Message, key: str) -> float:
    """Read one number from the metrics of a reply, 0 if it is not there."""
    record = message.content.get(METRICS)
    value = record.get(key, 0) if isinstance(record, MetricRecord) else 0
    assert not isinstance(value, list)
    return value


def metrics(message: Message, key: str) -> list[float]:
    """Read a list of numbers from the metrics of a reply, empty if it is not there."""
    record = message.content.get(METRICS)
    value = record.get(key, []) if isinstance(record, MetricRecord) else []
    return [float(number) for number in value] if isinstance(value, list) else []


def vector(message: Message, key: str) -> Array:
    """Read one weight vector of a message."""
    return message.content.array_records[WEIGHTS][key]


def check_weights(message: Message, names: Sequence[str], like: ArrayRecord) -> None:
    """Raise ValueError or KeyError if a weight vector is missing or cannot be used."""
    for name in names:
        found, expected = numbers(vector(message, name)), tuple(like[name].shape)
        if found.shape != expected:
            raise ValueError(f"{name} of shape {found.shape}, expected {expected}")
        if not np.isfinite(found).all():
            raise ValueError(f"a {name} that is not finite")


def payload_bytes(content: RecordDict) -> int:
    """Bytes of payloads and cut gradients in a message."""
    return _data_bytes(content, PAYLOAD) + _data_bytes(content, GRADIENT)


def head_bytes(content: RecordDict) -> int:
    """Bytes of synchronised weights: heads, and whole models for FedAvg."""
    return _data_bytes(content, WEIGHTS)


def wire_bytes(message: Message) -> int:
    """Bytes of a whole Flower message as protobuf, without copying its arrays.

    The arrays' data are added by protobuf's own rule for nested fields. Ids, times and
    addresses count at full length: as they are they would depend on random ids and on the
    engine.
    """
    metadata = message.metadata
    records = sum(
        _field(_field(len(name)) + _field(_record_bytes(record)))
        for name, record in message.content.items()
    )
    return _field(_metadata_bytes(metadata.message_type, metadata.group_id)) + _field(records)


@lru_cache
def _metadata_bytes(message_type: str, group_id: str) -> int:
    top = 2**64 - 1
    return MetadataProto(
        run_id=top,
        src_task_id=top,
        dst_task_id=top,
        src_node_id=top,
        dst_node_id=top,
        message_id="0" * 64,
        reply_to_message_id="0" * 64,
        created_at=1.5,
        ttl=1.5,
        message_type=message_type,
        group_id=group_id,
    ).ByteSize()


def _record_bytes(record: ArrayRecord | MetricRecord | ConfigRecord) -> int:
    if isinstance(record, ArrayRecord):
        return sum(
            _field(_field(len(key)) + _field(_array_bytes(array))) for key, array in record.items()
        )
    return _entries_bytes(type(record), tuple((k, _like(v)) for k, v in record.items()))


def _like(value: Any) -> Any:
    """Something hashable of the same length: a float has one length whatever its value."""
    if isinstance(value, float):
        return 0.5
    return tuple(value) if isinstance(value, list) else value


@lru_cache(maxsize=4096)
def _entries_bytes(
    kind: type[MetricRecord | ConfigRecord], entries: tuple[tuple[str, Any], ...]
) -> int:
    values = {key: list(v) if isinstance(v, tuple) else v for key, v in entries}
    if issubclass(kind, MetricRecord):
        return metric_record_to_proto(MetricRecord(values)).ByteSize()
    return config_record_to_proto(ConfigRecord(values)).ByteSize()


def _array_bytes(array: Array) -> int:
    data = _field(len(array.data)) if array.data else 0
    return _description_bytes(array.dtype, tuple(array.shape), array.stype) + data


@lru_cache(maxsize=4096)
def _description_bytes(dtype: str, shape: tuple[int, ...], stype: str) -> int:
    return array_to_proto(Array(dtype, shape, stype, b"")).ByteSize()


def _field(length: int) -> int:
    """Bytes of a protobuf field of `length` bytes: a tag of one, a varint, the content."""
    return 1 + max(1, -(-length.bit_length() // 7)) + length


def to_wire(content: Any) -> list[bytes | PickleBuffer]:
    """Pickle messages or records for a transport in one machine, the arrays' data apart.

    The data are handed over as buffers, which a transport with shared memory copies once
    and the other side not at all. An array that several messages carry goes once.
    """
    file = BytesIO()
    buffers: list[PickleBuffer] = []
    pickler = pickle.Pickler(file, 5, buffer_callback=buffers.append)
    pickler.dispatch_table = {Array: _take_apart}
    pickler.dump(content)
    return [file.getvalue(), *buffers]


def from_wire(parts: Sequence[bytes | PickleBuffer]) -> Any:
    """Put together what :func:`to_wire` took apart."""
    return pickle.loads(parts[0], buffers=parts[1:])


def record_to_bytes(content: RecordDict) -> bytes:
    """Serialise by Flower's protobuf, for files: reading it back runs no code."""
    return recorddict_to_proto(content).SerializeToString()


def record_from_bytes(data: bytes) -> RecordDict:
    """Read what :func:`record_to_bytes` wrote."""
    return recorddict_from_proto(RecordDictProto.FromString(data))


def own(content: RecordDict) -> RecordDict:
    """Return `content` with arrays of its own, where they were views of a transport's memory."""
    parts = to_wire(content)
    return from_wire([parts[0], *(bytes(part) for part in parts[1:])])


def _take_apart(array: Array) -> tuple[Any, ...]:
    return _put_together, (array.dtype, array.shape, array.stype, PickleBuffer(array.data))


def _put_together(dtype: str, shape: tuple[int, ...], stype: str, data: Any) -> Array:
    array = Array(dtype, shape, stype, b"")
    array.data = data if isinstance(data, bytes) else cast(bytes, memoryview(data))
    return array


def _data_bytes(content: RecordDict, name: str) -> int:
    record = content.get(name)
    if not isinstance(record, ArrayRecord):
        return 0
    return sum(len(array.data) for array in record.values())
