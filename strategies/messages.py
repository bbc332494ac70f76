"""What is written into Flower messages: every action, record name and key, once."""

from __future__ import annotations

from collections.abc import Sequence
from pickle import PickleBuffer

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

# Private to Flower, and needed: a message has no public way to bytes and back.
from flwr.common.serde import (
    array_to_proto,
    config_record_to_proto,
    message_from_proto,
    metric_record_to_proto,
    recorddict_to_proto,
)
from flwr.common.serde_utils import error_to_proto, metadata_to_proto
from flwr.proto.message_pb2 import Message as MessageProto

from fl_split.payload import Payload

# Actions, as Flower message types.
ROLL_CALL = "query.roll_call"
"""Ask a node which partition it holds and how many samples."""
REPORT_HEAD = "query.report_head"
"""Ask a node for its private head; a measurement, not counted as traffic."""
STEP = "train.step"
"""Fused exchange: cut gradient of the last batch down, payload of the next batch up."""
LOCAL = "train.local"
"""Train head and tail on the client for one round (FedAvg)."""

# Records of a message.
WEIGHTS = "weights"
"""ArrayRecord with the flat float32 vectors HEAD and TAIL."""
PAYLOAD = "payload"
"""ArrayRecord with one array DATA, the bytes of a payload."""
GRADIENT = "gradient"
"""ArrayRecord with one array DATA, the bytes of a cut gradient."""
SETTINGS = "settings"
"""ConfigRecord with ROUND, on the message that starts a round."""
METRICS = "metrics"
"""MetricRecord of a reply."""

# Keys inside records.
HEAD, TAIL, DATA, ROUND = "head", "tail", "data", "round"
PARTITION, NUM_EXAMPLES = "partition-id", "num-examples"
NUM_SAMPLES, NUM_STEPS, SMASHED_BYTES, LOSS = "num-samples", "num-steps", "smashed-bytes", "loss"
CPU_SECONDS = "cpu-seconds"


def weights(**vectors: Array | np.ndarray) -> ArrayRecord:
    """Wrap flat weight vectors; an Array that already is one is passed on as it is."""
    return ArrayRecord({k: v if isinstance(v, Array) else Array(v) for k, v in vectors.items()})


def wrap(payload: Payload) -> ArrayRecord:
    """Put a payload, as its own bytes, into a record."""
    data = payload.to_bytes()
    return ArrayRecord({DATA: Array("uint8", (len(data),), "fl_split.payload", data)})


def unwrap(record: ArrayRecord) -> Payload:
    """Read back what :func:`wrap` wrote."""
    return Payload.from_bytes(record[DATA].data)


def start_of_round(server_round: int, head: Array | None) -> RecordDict:
    """Content of the message that starts a client's round; `head` None keeps its own."""
    content = RecordDict({SETTINGS: ConfigRecord({ROUND: server_round})})
    if head is not None:
        content[WEIGHTS] = weights(head=head)
    return content


def metric(message: Message, key: str) -> float:
    """Read one number from the metrics of a reply, 0 if it is not there."""
    record = message.content.metric_records.get(METRICS, MetricRecord())
    value = record.get(key, 0)
    assert not isinstance(value, list)
    return value


def vector(message: Message, key: str) -> Array:
    """Read one weight vector of a message."""
    return message.content.array_records[WEIGHTS][key]


def payload_bytes(content: RecordDict) -> int:
    """Bytes of payloads and cut gradients in a message."""
    return _data_bytes(content, PAYLOAD) + _data_bytes(content, GRADIENT)


def head_bytes(content: RecordDict) -> int:
    """Bytes of synchronised weights: heads, and whole models for FedAvg."""
    return _data_bytes(content, WEIGHTS)


def wire_bytes(message: Message) -> int:
    """Bytes of a whole Flower message as protobuf, without copying its arrays.

    Everything but the arrays' data is serialised; their bytes are added by protobuf's own
    rule for nested fields. Ids, times and addresses count at full length: as they are they
    would depend on random ids and on the engine.
    """
    metadata = metadata_to_proto(message.metadata)
    metadata.run_id = metadata.src_task_id = metadata.dst_task_id = 2**64 - 1
    metadata.src_node_id = metadata.dst_node_id = 2**64 - 1
    metadata.message_id = metadata.reply_to_message_id = "0" * 64
    metadata.created_at = metadata.ttl = 1.5
    records = sum(
        _field(_field(len(name)) + _field(_record_bytes(record)))
        for name, record in message.content.items()
    )
    return _field(metadata.ByteSize()) + _field(records)


def _record_bytes(record: ArrayRecord | MetricRecord | ConfigRecord) -> int:
    if isinstance(record, MetricRecord):
        return metric_record_to_proto(record).ByteSize()
    if isinstance(record, ConfigRecord):
        return config_record_to_proto(record).ByteSize()
    return sum(
        _field(_field(len(key)) + _field(_array_bytes(array))) for key, array in record.items()
    )


def _array_bytes(array: Array) -> int:
    data = _field(len(array.data)) if array.data else 0
    return array_to_proto(_empty(array)).ByteSize() + data


def _field(length: int) -> int:
    """Bytes of a protobuf field of `length` bytes: a tag of one, a varint, the content."""
    return 1 + max(1, -(-length.bit_length() // 7)) + length


def to_wire(message: Message) -> list[bytes | PickleBuffer]:
    """Take a message apart for a transport in one machine: protobuf, then its arrays' data.

    The data are handed over as buffers, so that a transport with shared memory copies them
    once instead of once per level of protobuf's nesting.
    """
    parts: list[bytes | PickleBuffer] = [b""]
    content = None
    if message.has_content():
        content = recorddict_to_proto(_hollow(message.content))
        parts += [PickleBuffer(array.data) for array in _arrays(message.content)]
    error = error_to_proto(message.error) if message.has_error() else None
    metadata = metadata_to_proto(message.metadata)
    proto = MessageProto(metadata=metadata, content=content, error=error)
    parts[0] = proto.SerializeToString()
    return parts


def from_wire(parts: Sequence[bytes | PickleBuffer]) -> Message:
    """Put together what :func:`to_wire` took apart; nothing is unpickled."""
    message = message_from_proto(MessageProto.FromString(parts[0]))
    if message.has_content():
        for array, data in zip(_arrays(message.content), parts[1:], strict=True):
            array.data = bytes(data)
    return message


def _arrays(content: RecordDict) -> list[Array]:
    return [array for record in content.array_records.values() for array in record.values()]


def _hollow(content: RecordDict) -> RecordDict:
    """Copy `content` without the arrays' data."""
    return RecordDict(
        {
            name: ArrayRecord({key: _empty(array) for key, array in record.items()})
            if isinstance(record, ArrayRecord)
            else record
            for name, record in content.items()
        }
    )


def _empty(array: Array) -> Array:
    return Array(array.dtype, array.shape, array.stype, b"")


def _data_bytes(content: RecordDict, name: str) -> int:
    record = content.array_records.get(name, ArrayRecord())
    return sum(len(array.data) for array in record.values())
