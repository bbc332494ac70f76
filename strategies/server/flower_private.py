"""All that we touch of Flower beside its public API, in this file alone; each with its reason.

Public are ``flwr.app``, ``flwr.clientapp`` and ``flwr.serverapp``, and of the latter's strategies
what their documentation names. A new version of Flower may break this file and nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from flwr.serverapp import strategy as flower
from flwr.supercore.run import Run as Run
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

MEMORIES = ("m_t", "v_t", "momentum_vector")
"""Attributes in which Flower's strategies remember earlier rounds."""


def some_run() -> Run:
    """Return a run of no content: a Grid must name one, and only a SuperLink makes real ones."""
    return Run.create_empty(run_id=1)


def be_in_a_run() -> None:
    """Let this process make messages.

    Outside a process of Flower's nobody sets the identity of this one, and ``Message(...)``
    refuses to be made without.
    """
    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message its id: a SuperLink's to set, and an engine of ours has none."""
    message.metadata.__dict__["_message_id"] = message_id


def array_of(dtype: str, shape: tuple[int, ...], stype: str, data: Any) -> Array:
    """Return an array on the very memory of `data`.

    The constructor takes bytes alone, so a view that it is given would have to be copied.
    """
    array = Array(dtype, shape, stype, b"")
    array.data = data if isinstance(data, bytes) else cast(bytes, memoryview(data))
    return array


def record_to_bytes(found: RecordDict) -> bytes:
    """Serialise by Flower's protobuf, for files: reading it back runs no code."""
    return recorddict_to_proto(found).SerializeToString()


def record_from_bytes(data: bytes) -> RecordDict:
    """Read what :func:`record_to_bytes` wrote."""
    return recorddict_from_proto(RecordDictProto.FromString(data))


def sample_nobody(strategy: flower.Strategy) -> None:
    """Let a strategy choose no clients: whom to ask is ours to say, and it has no grid."""
    inner: Any = getattr(strategy, "strategy", strategy)
    inner.fraction_train = 0.0


def expect_clients(strategy: flower.Strategy, clients: int) -> bool:
    """Set by how many clients a strategy divides its noise; tell whether it adds any.

    The number is an argument of the constructor, but which clients answer differs by round.
    """
    if not isinstance(strategy, flower.DifferentialPrivacyServerSideFixedClipping):
        return False
    strategy.num_sampled_clients = clients
    return True


def memory(strategy: flower.Strategy) -> dict[str, NDArray[Any]]:
    """Return what a strategy remembers of earlier rounds: it cannot be saved another way."""
    found: dict[str, NDArray[Any]] = {}
    for name in MEMORIES:
        kept = getattr(strategy, name, None) or {}
        items = kept.items() if isinstance(kept, dict) else enumerate(kept)
        found |= {f"{name}.{key}": np.asarray(value) for key, value in items}
    return found


def set_memory(strategy: flower.Strategy, found: Mapping[str, NDArray[Any]]) -> None:
    """Put back what :func:`memory` returned."""
    for name in MEMORIES:
        part = {
            key.partition(".")[2]: value
            for key, value in found.items()
            if key.partition(".")[0] == name
        }
        if part:
            is_list = name == "momentum_vector"
            setattr(strategy, name, [part[k] for k in sorted(part, key=int)] if is_list else part)


class PaperAdam(flower.FedAdam):
    """Adam of Reddi et al., algorithm 2: eta is not corrected, and v starts at tau^2."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Do as Flower's in a round so late that its correction of eta is 1."""
        start = self.current_arrays or {}
        self.v_t = self.v_t or {k: np.full_like(x, self.tau**2) for k, x in start.items()}
        return super().aggregate_train(sys.maxsize, replies)
