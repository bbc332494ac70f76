"""CycleSL (Wang, Bozkir and Kasneci, 2025, arXiv 2511.18611): first the tail, then the heads."""

from __future__ import annotations

from itertools import count
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from fl_split.exchange.serving import pooled, shuffled_parts
from fl_split.seeds import generator
from fl_split.specs import STRICT
from strategies.parallel import Parallel
from strategies.server.aggregation import Update
from strategies.server.round import Round


@dataclass(frozen=True, config=STRICT)
class CycleSL(Parallel):
    """The tail is trained on the pooled rows of all clients; what it is then answers them.

    In each exchange all clients send a batch. The server pools the rows, shuffles them anew for
    each epoch and takes a step of the tail on every mini-batch. Then the tail is frozen, and each
    client gets the cut gradient of its own loss on the batch that it sent.

    A row counts in a mini-batch by n_k over the rows of its client, so that the loss of the whole
    pool is that of `parallel`. In the authors' code it counts by n_k, the same where batches are
    of one size. Pooled rows share the statistics of batch norms, as there. The server computes
    `epochs` + 1 times what it does in `parallel`. It needs labels, so there is no U-shape.

    Parameters
    ----------
    average_heads : bool
        True averages heads at round end, weights n_k/n (CycleSFL). False keeps them with the
        clients (CyclePSL).
    epochs : int
        Passes over the pool in each exchange.
    batch : int
        Rows of a mini-batch of the server; 0 is the experiment's `batch_size`, as in their code.
    """

    epochs: Annotated[int, Field(ge=1)] = 1
    batch: Annotated[int, Field(ge=0)] = 0

    works_in_u_shape = False
    trains_end_to_end = False  # the tail has learnt from the batch before the head does

    def train_round(self, round: Round) -> list[Update]:
        """Train the tail on what all have sent, then answer, until nobody has a batch left."""
        active = round.begin(round.clients, **({"head": round.head} if self.average_heads else {}))
        for exchange in count():
            if not active:
                break
            if arrivals := round.gather(active):
                received = {client: arrival.received for client, arrival in arrivals.items()}
                pool = pooled(received, round.samples, round.tail.flat.module.num_classes)
                draw = generator(round.seed, "pool", round.number, exchange)
                size = self.batch or round.training.batch_size
                parts = shuffled_parts(len(pool.tokens), size, self.epochs, draw)
                round.train_tail(arrivals, pool, [*parts])
            active = round.serve_together([*arrivals], is_frozen=True)
        return round.updates()
