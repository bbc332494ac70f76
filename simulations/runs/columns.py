"""What rounds are described by: every column of rounds.csv, declared once.

Tables, figures and sums of results all read this list. An observer may declare metrics of its
own; a number that nobody declares becomes a column too, of which only the last value counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Unit = Literal["share", "bytes", "FLOP", "s", "J", ""]
"""A share lies in 0..1, a difference of shares in -1..1; without a unit it is a mere number."""

SHOWN: dict[Unit, tuple[str, float, str]] = {
    "share": ("%", 100, ".1f"),
    "bytes": ("MB", 1e-6, ",.1f"),
    "FLOP": ("GFLOP", 1e-9, ",.1f"),
    "s": ("s", 1, ",.0f"),
    "J": ("J", 1, ",.0f"),
    "": ("", 1, ".3f"),
}
"""How people read a unit: its name there, the factor to it, the format of a number."""


@dataclass(frozen=True)
class Metric:
    """A column of rounds.csv.

    Attributes
    ----------
    title : str
        What tables and figures call it.
    adds_up : bool
        Whether a run has spent the sum over its rounds; else only the last value counts.
    is_cost : bool
        Whether reports set accuracy against the sum, if there is one.
    """

    name: str
    title: str
    unit: Unit = ""
    adds_up: bool = False
    is_cost: bool = True

    @property
    def heading(self) -> str:
        """Title and unit, as people read them."""
        unit = SHOWN[self.unit][0]
        return f"{self.title}, {unit}" if unit else self.title

    @property
    def factor(self) -> float:
        """What a number is multiplied with to be shown."""
        return SHOWN[self.unit][1]

    @property
    def form(self) -> str:
        """Format of a number that is shown."""
        return SHOWN[self.unit][2]


METRICS = (
    Metric("round", "round"),
    Metric("accuracy", "accuracy", "share"),
    Metric("loss", "test loss"),
    Metric("train_loss", "training loss"),
    Metric("clients", "clients"),
    Metric("dropped", "clients dropped", adds_up=True, is_cost=False),
    Metric("samples", "samples", adds_up=True, is_cost=False),
    Metric("client_steps", "client steps", adds_up=True, is_cost=False),
    Metric("payload_bytes_up", "payload up", "bytes", adds_up=True),
    Metric("payload_bytes_down", "payload down", "bytes", adds_up=True),
    Metric("head_bytes_up", "weights up", "bytes", adds_up=True),
    Metric("head_bytes_down", "weights down", "bytes", adds_up=True),
    Metric("smashed_bytes", "uncompressed smashed data", "bytes", adds_up=True, is_cost=False),
    Metric("ratio", "ratio"),
    Metric("nominal_samples", "nominal samples", adds_up=True, is_cost=False),
    Metric("client_flops", "client compute", "FLOP", adds_up=True),
    Metric("server_flops", "server compute", "FLOP", adds_up=True),
    Metric("wall_seconds", "wall time", "s", adds_up=True),
    Metric("cpu_seconds", "CPU time", "s", adds_up=True),
    Metric("balanced_accuracy", "balanced accuracy", "share"),
    Metric("performance_gap", "performance gap", "share"),
    Metric("backward_transfer", "backward transfer", "share"),
    Metric("client_accuracy", "client accuracy", "share"),
    Metric("worst_client_accuracy", "worst client accuracy", "share"),
    Metric("client_accuracy_std", "client accuracy std", "share"),
    Metric("jain", "Jain's index"),
    Metric("drift", "drift"),
)
"""Columns of rounds.csv, in this order; a cell is empty where there is nothing to measure.

- `accuracy`, `loss`: on the test images, after the round.
- `train_loss`: the mean over the clients that ended the round, weighted by all the samples that
  each holds, whatever the aggregation. Of a client it is the mean over its steps, each before its
  update. For `centralised` it is the mean over the steps of the server.
- `payload_bytes_up`, `payload_bytes_down`: smashed data and labels up, gradients down, as the link
  serialises them.
- `head_bytes_up`, `head_bytes_down`: synchronised weights, of the whole model for FedAvg.
- `smashed_bytes`: what the same smashed data, and in a U-shape the middle's output, are in fp32,
  uncompressed and with all tokens, one way.
- `ratio`: payload bytes of both directions over twice `smashed_bytes`.
- `nominal_samples`: uncompressed samples in the ADC paper's account, where it has the codec.
- `client_flops`, `server_flops`: operations of training, by closed form, of all clients together
  and of the server. Where images keep different numbers of tokens, of those that were kept.
- `balanced_accuracy`: the mean accuracy of classes.
- `performance_gap`: accuracy of the best class less that of the worst.
- `backward_transfer`: the mean over classes of accuracy less the best so far (forgetting): 0 or
  negative.
- `client_accuracy`, `worst_client_accuracy`, `client_accuracy_std`, `jain`: of clients, each on
  its own held-out samples: mean, mean of the worst tenth, standard deviation, Jain's index (1 if
  all are equal).
- `drift`: mean Euclidean distance of the clients' heads, before averaging, to their mean.
"""

COLUMNS = [metric.name for metric in METRICS]

PAYLOAD = "payload_bytes_up", "payload_bytes_down"
WEIGHTS = "head_bytes_up", "head_bytes_down"
SENT = PAYLOAD + WEIGHTS

WATCHED = "wall_seconds", "cpu_seconds"
"""What a watch tells of this machine."""

VIRTUAL_SECONDS, ENERGY_JOULES = "virtual_seconds", "energy_joules"

OF_SYSTEM = (
    Metric(VIRTUAL_SECONDS, "virtual time", "s", adds_up=True),
    Metric(ENERGY_JOULES, "client energy", "J", adds_up=True),
)
"""Columns of a run that has a `system`: the length of the round, and the energy of all clients."""


OF_CHANNEL = (
    Metric("resent_bytes_up", "resent up", "bytes", adds_up=True, is_cost=False),
    Metric("resent_bytes_down", "resent down", "bytes", adds_up=True, is_cost=False),
    Metric("channel_uses_up", "channel uses up", adds_up=True, is_cost=False),
    Metric("channel_uses_down", "channel uses down", adds_up=True, is_cost=False),
    Metric("damaged_values_up", "values damaged up", adds_up=True, is_cost=False),
    Metric("damaged_values_down", "values damaged down", adds_up=True, is_cost=False),
    Metric("zeroed_values_up", "values zeroed up", adds_up=True, is_cost=False),
    Metric("zeroed_values_down", "values zeroed down", adds_up=True, is_cost=False),
    Metric("lost_payloads_up", "payloads lost up", adds_up=True, is_cost=False),
    Metric("lost_payloads_down", "payloads lost down", adds_up=True, is_cost=False),
)
"""Columns of a run that has a `channel` or `down_channel`, of all clients together.

- `resent_bytes_up`, `resent_bytes_down`: repetitions, which are part of the payload bytes.
- `channel_uses_up`, `channel_uses_down`: uses of an analog channel, two values each.
- `damaged_values_up`, `damaged_values_down`: numbers that arrived other than they were sent, by
  bit errors or lost packets. Noise of an analog channel changes all and counts none.
- `zeroed_values_up`, `zeroed_values_down`: those of them that the receiver set to zero.
- `lost_payloads_up`, `lost_payloads_down`: payloads and cut gradients from which nobody learnt.
"""


def declared(summary: Mapping[str, Any]) -> dict[str, Metric]:
    """Return the metrics of a run by name: ours, and those that its summary says of observers."""
    others = [Metric(**values) for values in summary.get("metrics", ())]
    return {metric.name: metric for metric in (*METRICS, *others)}


def sums(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return all sums over rounds that a summary holds; None where an older run has none."""
    return {name: summary.get(name) for name, one in declared(summary).items() if one.adds_up}
