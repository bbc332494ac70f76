"""The account: what crossed between server and clients, counted on the records themselves."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from fl_split.exchange.records import CPU_SECONDS, SAMPLES, SMASHED_BYTES, STEPS, Record


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


def payload_bytes(record: Record) -> int:
    """Bytes of the payload in a record, 0 without one."""
    return len(record.payload or b"")


def weights_bytes(record: Record) -> int:
    """Bytes of the synchronised weights in a record."""
    return sum(len(vector.data) for vector in record.weights.values())


@dataclass
class Account:
    """What crossed in one round, by client."""

    traffic: dict[int, Traffic] = field(default_factory=dict)

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
