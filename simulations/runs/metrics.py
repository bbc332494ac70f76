"""What rounds are described by: every column of rounds.csv, declared once.

Any other number that an observer returns becomes a column too, after these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["share", "bytes", "FLOP", "s", ""]
"""A share lies in 0..1 and is shown in %."""


@dataclass(frozen=True)
class Metric:
    """A column of rounds.csv.

    Attributes
    ----------
    title : str
        What tables and figures call it.
    adds_up : bool
        Whether a run has spent the sum over its rounds; else only the last value counts.
    """

    name: str
    title: str
    unit: Unit = ""
    adds_up: bool = False


METRICS = (
    Metric("round", "round"),
    Metric("accuracy", "accuracy", "share"),
    Metric("loss", "test loss"),
    Metric("train_loss", "training loss"),
    Metric("clients", "clients"),
    Metric("dropped", "clients dropped", adds_up=True),
    Metric("samples", "samples", adds_up=True),
    Metric("client_steps", "client steps", adds_up=True),
    Metric("payload_bytes_up", "payload up", "bytes", adds_up=True),
    Metric("payload_bytes_down", "payload down", "bytes", adds_up=True),
    Metric("head_bytes_up", "weights up", "bytes", adds_up=True),
    Metric("head_bytes_down", "weights down", "bytes", adds_up=True),
    Metric("smashed_bytes", "uncompressed smashed data", "bytes", adds_up=True),
    Metric("ratio", "ratio"),
    Metric("nominal_samples", "nominal samples", adds_up=True),
    Metric("client_flops", "client operations", "FLOP", adds_up=True),
    Metric("server_flops", "server operations", "FLOP", adds_up=True),
    Metric("wall_seconds", "wall", "s", adds_up=True),
    Metric("cpu_seconds", "CPU", "s", adds_up=True),
    Metric("balanced_accuracy", "balanced accuracy", "share"),
    Metric("performance_gap", "performance gap", "share"),
    Metric("backward_transfer", "backward transfer", "share"),
    Metric("client_accuracy", "client accuracy", "share"),
    Metric("worst_client_accuracy", "worst client accuracy", "share"),
    Metric("client_accuracy_std", "client accuracy std", "share"),
    Metric("jain", "Jain's index"),
    Metric("drift", "drift"),
)
"""Columns of rounds.csv, in this order.

`loss`: of the test images, after the round. `train_loss`, of any strategy: the mean over clients
that ended the round, weighted by all the samples each holds (whatever the aggregation), of a
client's mean loss over its steps, each before its update; `centralised`: the mean over its steps.
Payload: smashed data, labels and gradients, as the link serialises them. Head: synchronised
weights, of the whole model for FedAvg. `smashed_bytes`: what the same smashed data, and in a
U-shape the middle's output, are in fp32, uncompressed, one way. `ratio`: payload bytes of both
directions over twice that. `nominal_samples`: uncompressed samples in the ADC paper's account,
where it has the codec. Operations: of training, by closed form; the clients' all together.

Of classes: `balanced_accuracy`, their mean accuracy; `performance_gap`, best less worst;
`backward_transfer`, the mean of accuracy less the best so far (forgetting). Of clients, each on
its own held-out samples: their mean; the mean of the worst tenth; standard deviation; Jain's
index. `drift`: mean distance of the clients' heads, before averaging, to their mean. Empty where
there is nothing to measure.
"""

COLUMNS = [metric.name for metric in METRICS]
SUMS = [metric.name for metric in METRICS if metric.adds_up and metric.unit != "s"]
"""Columns of which the summary holds the exact sum."""

PAYLOAD = "payload_bytes_up", "payload_bytes_down"
WEIGHTS = "head_bytes_up", "head_bytes_down"
