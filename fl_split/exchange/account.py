"""The account: what crossed between server and clients, counted on the records themselves."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Literal

from fl_split.channels import Crossing
from fl_split.exchange.records import CPU_SECONDS, SAMPLES, SMASHED_BYTES, STEPS, Record

Way = Literal["up", "down", "output", "way back"]
"""Messages of an exchange: smashed data up, the cut gradient down; and between them in a U-shape
the output down, and its gradient up."""

UPWARD: set[Way] = {"up", "way back"}


def ratio(payload_bytes: int, smashed_bytes: int) -> float | None:
    """Payload bytes of both directions over twice the fp32 data one way; None without any."""
    return payload_bytes / (2 * smashed_bytes) if smashed_bytes else None


@dataclass
class Traffic:
    """What crossed for one client in one round, and the work that the client reports.

    Payload, in bytes: smashed data, labels and gradients, as the link serialises them. Head, in
    bytes: synchronised weights (of the whole model for FedAvg), headers included.
    `smashed_bytes`: what the same smashed data are in fp32, uncompressed, one way. `steps`:
    batches trained on. `client_cpu_seconds`: CPU time that the client reports. `dropped` says
    why the client was left out of the rest of the round; empty if it was not.
    """

    samples: int = 0
    steps: int = 0
    payload_bytes_up: int = 0
    payload_bytes_down: int = 0
    head_bytes_up: int = 0
    head_bytes_down: int = 0
    smashed_bytes: int = 0
    client_cpu_seconds: float = 0.0
    dropped: str = ""

    def row(self) -> dict[str, int | float | str | None]:
        """Return the fields as a row of a table, with the ratio to uncompressed fp32."""
        sent = self.payload_bytes_up + self.payload_bytes_down
        return {**asdict(self), "ratio": ratio(sent, self.smashed_bytes)}


@dataclass
class Crossed:
    """What channels did to the payloads of one client in one round.

    Resent bytes: repetitions, which payload bytes include. Uses: of an analog channel. Damaged:
    numbers that arrived other than they were sent; zeroed: those of them that the receiver set
    to zero. Lost payloads: those from which nobody learnt.
    """

    resent_bytes_up: int = 0
    resent_bytes_down: int = 0
    channel_uses_up: int = 0
    channel_uses_down: int = 0
    damaged_values_up: int = 0
    damaged_values_down: int = 0
    zeroed_values_up: int = 0
    zeroed_values_down: int = 0
    lost_payloads_up: int = 0
    lost_payloads_down: int = 0

    def add(self, of: str, way: str, number: int) -> None:
        """Add to one of the counts, `way` up or down."""
        name = f"{of}_{way}"
        setattr(self, name, getattr(self, name) + number)


def payload_bytes(record: Record) -> int:
    """Bytes of the payload in a record, 0 without one."""
    return len(record.payload or b"")


def weights_bytes(record: Record) -> int:
    """Bytes of the synchronised weights in a record."""
    return sum(len(vector.data) for vector in record.weights.values())


@dataclass
class Account:
    """What crossed in one round, by client.

    Attributes
    ----------
    crossed : dict
        What channels did, of clients whose payloads went over one that is not perfect.
    """

    traffic: dict[int, Traffic] = field(default_factory=dict)
    crossed: dict[int, Crossed] = field(default_factory=dict)

    def of(self, client: int) -> Traffic:
        """Return the traffic of a client, empty at first."""
        return self.traffic.setdefault(client, Traffic())

    def count_down(self, client: int, record: Record) -> None:
        """Add what goes down to a client."""
        traffic = self.of(client)
        traffic.payload_bytes_down += payload_bytes(record)
        traffic.head_bytes_down += weights_bytes(record)

    def count_up(self, client: int, record: Record) -> None:
        """Add what came up from a client, and the work that it reports."""
        traffic = self.of(client)
        traffic.payload_bytes_up += payload_bytes(record)
        traffic.head_bytes_up += weights_bytes(record)
        traffic.samples += int(record.number(SAMPLES))
        traffic.steps += int(record.number(STEPS))
        traffic.smashed_bytes += int(record.number(SMASHED_BYTES))
        traffic.client_cpu_seconds += record.number(CPU_SECONDS)

    def count_crossing(self, client: int, way: Way, crossing: Crossing, size: int) -> None:
        """Count what the way of a payload of `size` bytes took.

        The payload of a record is counted as it comes up, and as it is sent down; here it gets
        the size that it had on the way.
        """
        traffic, found = self.of(client), self.crossed.setdefault(client, Crossed())
        if way in UPWARD:
            direction = "up"
            traffic.payload_bytes_up += crossing.size - size
        else:
            direction = "down"
            traffic.payload_bytes_down += crossing.size - len(crossing.data or b"")
        found.add("resent_bytes", direction, crossing.resent)
        found.add("channel_uses", direction, crossing.uses)
        found.add("damaged_values", direction, crossing.damaged)
        found.add("zeroed_values", direction, crossing.zeroed)

    def count_loss(self, client: int, way: str) -> None:
        """Count a payload from which nobody learns."""
        self.crossed.setdefault(client, Crossed()).add("lost_payloads", way, 1)
