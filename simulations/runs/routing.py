"""Which experts the images of each client are sent to, in a file of the run.

Routed by the trained model are training images, as in evaluation: uncompressed and without noise.
Of each client they are the first of its rows, about :data:`IMAGES` of all clients together, in
batches as in training, so that it can be told for how many choices a batch had no room.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score

from fl_split.exchange.whole import predict
from fl_split.experts import mixtures
from fl_split.models.mixture import Routing, watching
from fl_split.recipe.precision import Precision
from simulations.data.descriptions import Nodes
from simulations.runs.files import write_whole
from simulations.runs.setup import Setup

FILE = "routing.csv"

IMAGES = 1024
"""Images that are routed, but one of each client at least."""

SHUFFLES = 100
"""Times that clusters are dealt out anew among clients."""


def write(setup: Setup, folder: Path) -> None:
    """Write where the experts' tokens come from, if the run has experts and one model.

    A row is an expert, of a block, for a client: the `cluster` of the client (classes that it
    holds), `tokens` that choose the expert, and how many of them are `over` its room. Real nodes
    keep their images, so nothing is written of theirs.
    """
    has_images = not isinstance(setup.parts.dataset, Nodes)
    is_wanted = mixtures(setup.head, setup.tail) and not setup.parts.strategy.keeps_models
    if not (has_images and is_wanted):
        return
    halves = setup.head, setup.tail
    for half in halves:
        half.eval()
    rows = [row for client in range(setup.experiment.clients) for row in _rows(setup, client)]
    for half in halves:
        half.train()
    write_whole(folder / FILE, pd.DataFrame(rows).to_csv(index=False).encode())


def _rows(setup: Setup, client: int) -> Iterator[dict[str, int | str]]:
    held = setup.train.partitions[client]
    if not len(held):
        return
    classes = np.unique(setup.train.labels[held])
    chosen = held[: max(1, IMAGES // setup.experiment.clients)]
    starts = range(0, len(chosen), setup.experiment.batch_size)
    found = [_routed(setup, chosen[i : i + setup.experiment.batch_size]) for i in starts]
    for place, (block, mixture) in enumerate(mixtures(setup.head, setup.tail).items()):
        for expert in range(mixture.router.count):
            sent = [(one[place].chosen == expert, one[place].fits) for one in found]
            yield {
                "client": client,
                "cluster": " ".join(map(str, classes)),
                "block": block,
                "expert": expert,
                "tokens": sum(int(is_sent.sum()) for is_sent, _ in sent),
                "over": sum(int((is_sent & ~fits).sum()) for is_sent, fits in sent),
            }


def _routed(setup: Setup, rows: np.ndarray) -> list[Routing]:
    """Return the routing of each block."""
    pixels, _ = setup.train.batch(rows, setup.device)
    with watching() as routings:
        predict(setup.head, setup.tail, pixels, Precision(setup.experiment.precision))
    return routings


def measures(frame: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return what a table of :func:`write` says of each block.

    `load_cv2` is the squared coefficient of variation of the experts' tokens, 0 where all have
    the same. `nmi` is the mutual information of expert and cluster over the mean of their
    entropies, over all tokens; `nmi_shuffled` its mean where clusters are dealt out anew among
    clients, drawn from `seed`, and `p_value` the share of deals, the true one included, that
    reach it. All three are empty without two clusters, one of them with two clients.
    """
    return pd.DataFrame([_of_block(*one, seed) for one in frame.groupby("block")])


def _of_block(block: object, frame: pd.DataFrame, seed: int) -> dict[str, object]:
    counts = frame.pivot(index="client", columns="expert", values="tokens")
    clusters = frame.groupby("client")["cluster"].first().astype(str).loc[counts.index].to_numpy()
    load, names = counts.sum().to_numpy(), np.unique(clusters)
    found: dict[str, object] = {
        "block": block,
        "load_cv2": float(load.var() / load.mean() ** 2),
        "over": float(frame["over"].sum() / frame["tokens"].sum()),
        "nmi": None,
        "nmi_shuffled": None,
        "p_value": None,
    }
    if 1 < len(names) < len(clusters):
        draw = np.random.default_rng(seed)
        nmi = _nmi(counts, clusters)
        others = np.array([_nmi(counts, draw.permutation(clusters)) for _ in range(SHUFFLES)])
        reach = (1 + (others >= nmi).sum()) / (1 + SHUFFLES)
        found |= {"nmi": nmi, "nmi_shuffled": float(others.mean()), "p_value": float(reach)}
    return found


def _nmi(counts: pd.DataFrame, clusters: np.ndarray) -> float:
    """Return the normalised mutual information of experts (columns) and clusters of the rows."""
    table = counts.groupby(clusters).sum().to_numpy()
    mean = (entropy(table.sum(axis=0)) + entropy(table.sum(axis=1))) / 2
    return float(mutual_info_score(None, None, contingency=table) / mean)
