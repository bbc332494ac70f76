"""How weights are averaged at the end of a round: Flower's own strategies do it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import strategy as flower
from pydantic import Field, validate_call
from torch import Tensor

from fl_split.exchange.records import HELD, Number, Weights
from fl_split.seeds import seeded
from fl_split.specs import STRICT
from fl_split.tables import Table
from strategies.server import flower_messages, flower_private

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=0)]

OURS: dict[str, Any] = {"weighted_by_key": HELD}
"""Flower's strategies are to weight clients by n_k / n."""


@dataclass
class Update:
    """What a client ended its round with: weights, and the samples for which they count.

    `numbers` are what it said beside.
    """

    client: int
    samples: int
    weights: dict[str, Weights]
    numbers: Mapping[str, Number] = field(default_factory=dict)

    def including(self, **weights: Weights) -> Update:
        """Return this update with other weights beside its own."""
        return replace(self, weights={**self.weights, **weights})


class Aggregator:
    """One of Flower's strategies, put to use on the weights that clients end a round with.

    It sees weights only: heads, whole models for FedAvg, copies of the tail for SFLV1.
    Running statistics of batch norms are cut out before: norms, distances and memories are
    those of weights. What it remembers between rounds can be saved and set.

    Attributes
    ----------
    least_clients : int
        How many must take part in a round for it to be what its paper says.
    """

    def __init__(self, strategy: flower.Strategy, least_clients: int = 1) -> None:
        self.strategy: Any = strategy
        self.least_clients = least_clients
        flower_private.sample_nobody(strategy)

    def __call__(
        self,
        number: int,
        updates: Sequence[Update],
        before: Mapping[str, Weights],
        seed: int,
        statistics: Mapping[str, Tensor | None] | None = None,
    ) -> dict[str, Weights]:
        """Return the weights after round `number`, given those `before`.

        `statistics` tells where, by name of a vector, running statistics of batch norms
        are: these always become the mean with weights n_k / n.

        Raises
        ------
        ValueError
            The strategy made nothing of the updates, as with too few of them.
        """
        names = list(updates[0].weights)
        places = {
            name: where.cpu().numpy()
            for name, where in (statistics or {}).items()
            if name in names and where is not None
        }
        means = {name: _mean(updates, name, where) for name, where in places.items()}
        start = {name: before[name] for name in names}
        vectors = self._aggregate(
            number,
            [flower_messages.update(_without(places, one.weights), one.samples) for one in updates],
            flower_messages.arrays(_without(places, start)),
            seed,
        )
        for name, where in places.items():
            vectors[name] = _with(where, means[name], vectors[name])
        return {name: Weights.of(vector) for name, vector in vectors.items()}

    def _aggregate(
        self, number: int, replies: list[Message], start: ArrayRecord, seed: int
    ) -> dict[str, np.ndarray]:
        """Let the strategy make vectors of weights out of `start` and those in `replies`."""
        self.strategy.configure_train(number, start, ConfigRecord(), None)
        if flower_private.expect_clients(self.strategy, len(replies)):
            for reply in replies:  # the noise is for clients that count equally
                reply.content.metric_records[flower_messages.NUMBERS_PART][HELD] = 1
        with seeded(seed, "aggregation", number):  # noise of differential privacy
            found, _ = self.strategy.aggregate_train(number, replies)
        if found is None:
            raise ValueError(f"aggregation gave nothing for {len(replies)} clients")
        return {name: np.array(array.numpy(), np.float32) for name, array in found.items()}

    def state(self) -> dict[str, Tensor]:
        """What the strategy remembers of earlier rounds, by name."""
        found = flower_private.memory(self.strategy)
        return {name: torch.from_numpy(value) for name, value in found.items()}

    def set_state(self, state: dict[str, Tensor]) -> None:
        """Put back what :meth:`state` returned."""
        found = {name: value.numpy() for name, value in state.items()}
        flower_private.set_memory(self.strategy, found)


def _without(
    places: Mapping[str, np.ndarray], weights: Mapping[str, Weights]
) -> dict[str, Weights]:
    """Return vectors without their numbers at `places`."""
    return {
        name: Weights.of(np.delete(vector.numpy(), places[name])) if name in places else vector
        for name, vector in weights.items()
    }


def _with(where: np.ndarray, statistics: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the vector that has `statistics` at `where`, and `weights` in the other places."""
    is_weight = np.ones(len(where) + len(weights), bool)
    is_weight[where] = False
    vector = np.empty(is_weight.shape, np.float32)
    vector[where], vector[is_weight] = statistics, weights
    return vector


def _mean(updates: Sequence[Update], name: str, where: np.ndarray) -> np.ndarray:
    """Mean of the numbers `where` in one vector, with weights n_k / n."""
    counts = [one.samples for one in updates]
    vectors = [one.weights[name].numpy()[where] for one in updates]
    return np.average(vectors, axis=0, weights=counts).astype(np.float32)


@validate_call(config=STRICT)
def fedavg() -> Aggregator:
    """Mean with weights n_k / n (McMahan et al., AISTATS 2017)."""
    return Aggregator(flower.FedAvg(**OURS))


@validate_call(config=STRICT)
def fedavgm(server_learning_rate: Positive = 1.0, server_momentum: Share = 0.9) -> Aggregator:
    """Momentum on the server (Hsu et al., 2019, arXiv 1909.06335)."""
    return Aggregator(
        flower.FedAvgM(
            **OURS,
            server_learning_rate=server_learning_rate,
            server_momentum=server_momentum,
        )
    )


@validate_call(config=STRICT)
def fedadam(
    eta: Positive = 0.01,
    beta_1: Share = 0.9,
    beta_2: Share = 0.99,
    tau: Positive = 0.001,
    paper: bool = False,
) -> Aggregator:
    """Flower's FedAdam: .74, .64, .47 of eta in rounds 1, 2, 10; `paper`: Reddi et al., ICLR 2021.

    Flower's multiplies eta by sqrt(1 - beta_2^(t+1)) / (1 - beta_1^(t+1)) in round t = 1,
    2, ...; the numbers are for the default betas. Algorithm 2 of Reddi et al. (arXiv
    2003.00295) does not, and its v starts at tau^2 instead of 0.
    """
    kind = flower_private.PaperAdam if paper else flower.FedAdam
    return Aggregator(kind(**OURS, eta=eta, beta_1=beta_1, beta_2=beta_2, tau=tau))


@validate_call(config=STRICT)
def fedyogi(
    eta: Positive = 0.01, beta_1: Share = 0.9, beta_2: Share = 0.99, tau: Positive = 0.001
) -> Aggregator:
    """Yogi on the server (Reddi et al., ICLR 2021), but v starts at 0, not tau^2, in Flower."""
    return Aggregator(flower.FedYogi(**OURS, eta=eta, beta_1=beta_1, beta_2=beta_2, tau=tau))


@validate_call(config=STRICT)
def median() -> Aggregator:
    """Coordinate-wise median, unweighted (Yin et al., ICML 2018)."""
    return Aggregator(flower.FedMedian(**OURS))


@validate_call(config=STRICT)
def trimmed_mean(beta: Annotated[float, Field(ge=0, lt=0.5)] = 0.2) -> Aggregator:
    """Coordinate-wise mean without the share `beta` at either end (Yin et al., ICML 2018)."""
    return Aggregator(flower.FedTrimmedAvg(**OURS, beta=beta))


@validate_call(config=STRICT)
def krum(malicious: Count = 0) -> Aggregator:
    """The weights of the client nearest to its neighbours (Blanchard et al., NeurIPS 2017).

    Of n clients in a round, 2 malicious + 2 < n: else those could choose the outcome.
    Running statistics of batch norms have no part in the distance, and are all clients' mean.
    """
    return Aggregator(flower.Krum(**OURS, num_malicious_nodes=malicious), 2 * malicious + 3)


@validate_call(config=STRICT)
def dp(noise_multiplier: Annotated[float, Field(ge=0)], clipping_norm: Positive) -> Aggregator:
    """Clip every client's update, average, add Gaussian noise (McMahan et al., ICLR 2018).

    Clients count equally, and the noise has a standard deviation of noise_multiplier *
    clipping_norm / clients. It protects weights only: what crosses the cut is not noisy,
    and running statistics of batch norms are neither clipped nor noisy.
    """
    kind = flower.DifferentialPrivacyServerSideFixedClipping
    return Aggregator(kind(flower.FedAvg(**OURS), noise_multiplier, clipping_norm, 1))


AGGREGATIONS: Table[Callable[..., Aggregator]] = Table(
    Aggregator,
    "fl_split.aggregations",
    {
        "dp": dp,
        "fedadam": fedadam,
        "fedavg": fedavg,
        "fedavgm": fedavgm,
        "fedyogi": fedyogi,
        "krum": krum,
        "median": median,
        "trimmed_mean": trimmed_mean,
    },
)
