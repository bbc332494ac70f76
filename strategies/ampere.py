"""After Ampere (Zhang, Wong and Varghese, 2025, arXiv 2507.07130): one way, block after block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from fl_split.codecs import Codec, Received
from fl_split.exchange.account import weights_bytes
from fl_split.exchange.protocol import Exchange
from fl_split.exchange.records import BEGIN, HEAD, TAIL, Record, Weights
from fl_split.exchange.sent_once import SentOnce
from fl_split.exchange.serving import of_rows, pooled, shuffled_parts
from fl_split.flat import flatten, travelling
from fl_split.models.auxiliary import Size
from fl_split.models.cut import Head
from fl_split.recipe.schedules import Moment
from fl_split.seeds import generator
from fl_split.specs import STRICT
from strategies.server.aggregation import Update
from strategies.server.assignment import Assignment
from strategies.server.kept_rows import keep_rows, packed, pool_of
from strategies.server.one_way import collect
from strategies.server.participants import Population
from strategies.server.round import Round
from strategies.server.strategy import Strategy
from strategies.server.tasks import SERVER
from strategies.server.training import TrainingFailed

SENT = "clients-that-sent"
"""Name of the vector of clients that have sent, among the global weights."""

Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, config=STRICT)
class Ampere(Strategy):
    """First heads learn alone, as in FedAvg; then all samples cross once, and the tail learns.

    After the abstract; no code was found. Of what it says: the device block is trained with a
    lightweight auxiliary network by a local loss, federated; then the server trains its block on
    the activations of all devices, pooled, that it was sent once. The rest is ours:

    - In rounds 1 to `alone` clients step head and auxiliary on the auxiliary's loss; both are
      averaged, weights n_k/n, and take the head's optimiser. Nothing else crosses. The tail does
      not learn, so that accuracy is that of an untrained tail behind trained heads.
    - Then heads stay. A client that takes part for the first time gets head and auxiliary (one
      vector, of which it uses the head) and sends smashed data and labels of all its samples,
      each once, whatever `local_steps` and `local_epochs` say. The head makes them as in
      evaluation, from augmented images where there is `augment`; a batch is a payload and
      counts as a step. Who has sent is not asked again: it has no row in clients.parquet. Who
      takes part in none of these rounds never sends.
    - In each of these rounds the tail goes `epochs` times over all that has come, in shuffled
      mini-batches of `batch` rows, of whatever clients; samples count alike. Optimiser and
      schedule go on from round to round as usual. `train_loss` is that of the tail.

    What a channel loses is not sent again. Of a client that drops out on its way the server keeps
    what has come, of one that is too late nothing; both send anew when they next take part, and
    that replaces what was kept. A loss on the pool that is not finite ends the run.

    The server keeps the pool, 4 N D bytes a sample (after a codec that merges samples, a row), and
    as much again while the tail learns; checkpoints have it too. It needs labels, so there is no
    U-shape. `phases` are refused, and so are codecs that remember what was sent.

    Parameters
    ----------
    alone : int
        Rounds in which heads learn; a run needs more than these.
    auxiliary : int or "tail"
        Stages of the tail that the auxiliary has before its classifier: 0 is the classifier
        alone; "tail" the whole tail, and so is a number of no fewer stages than it has.
    epochs : int
        Passes of the tail over the pool in a round.
    batch : int
        Rows of a mini-batch of the server; 0 is the experiment's `batch_size`.
    """

    alone: Count = 1
    auxiliary: Size = 1
    epochs: Count = 1
    batch: Annotated[int, Field(ge=0)] = 0

    works_in_u_shape = False
    trains_end_to_end = False

    @property
    def least_rounds(self) -> int:  # type: ignore[override]
        """One more than those of heads."""
        return self.alone + 1

    def exchange(self, head: Head) -> Exchange:
        """Nothing crosses at first; later all goes up, once."""
        return SentOnce(alone=self.alone, auxiliary=self.auxiliary)

    def check(self, codec: Codec) -> None:
        """Refuse codecs that remember what was sent."""
        if codec.remembers:
            raise ValueError(
                f"ampere sends every sample once, so {codec!r} has nothing to leave out; take "
                "another codec, as codec=identity"
            )

    def bytes_beside(self, head: Head, rounds: Sequence[int]) -> int:
        """Return those of the head with which a client sends, if it does."""
        own = Weights.of(flatten(travelling(head)).cpu().numpy())
        return weights_bytes(Record(BEGIN, weights={HEAD: own})) if rounds else 0

    def choose(self, population: Population, server_round: int) -> dict[int, Assignment]:
        """Ask for one pass over all samples, once heads have learnt."""
        chosen = super().choose(population, server_round)
        return chosen if server_round <= self.alone else dict.fromkeys(chosen, Assignment(passes=1))

    def train_round(self, round: Round) -> list[Update]:
        """Let heads learn, or gather what clients send and train the tail on all of it."""
        if round.number <= self.alone:
            round.begin(round.clients, head=round.head)
            round.finish()
            return round.updates()
        round.kept |= {k: one for k, one in round.weights.items() if k not in (HEAD, TAIL)}
        before = _sent(round)
        ends, came = self._gather(round, [k for k in round.clients if k not in before])
        sent = sorted(before | {update.client for update in ends})
        round.kept[SENT] = packed(torch.tensor(sent, device="cpu"))
        self._train_tail(round, came)
        there = [k for k in round.clients if k in before]
        return [*ends, *(Update(client, round.samples[client], {}) for client in there)]

    def _gather(self, round: Round, clients: Sequence[int]) -> tuple[list[Update], list[int]]:
        """Let clients send all they have; return updates, and the clients whose rows have come."""
        came: dict[int, list[tuple[Received, int]]] = {}

        def keep(client: int, rows: Received) -> None:
            rows = replace(rows, tokens=rows.tokens.detach())
            came.setdefault(client, []).append((rows, round.batch_samples[client]))

        round.beside |= {client: {HEAD: round.head} for client in clients}
        active = round.begin(clients)
        while active:
            active = collect(round, active, keep)
        ends = round.updates()
        for client in round.late:
            came.pop(client, None)
        for client, payloads in came.items():
            received = {number: rows for number, (rows, _) in enumerate(payloads)}
            samples = {number: count for number, (_, count) in enumerate(payloads)}
            keep_rows(round.kept, client, pooled(received, samples, self._classes(round)))
        return ends, sorted(came)

    def _train_tail(self, round: Round, came: Sequence[int]) -> None:
        """Take a step on each mini-batch of the pool, to which clients who `came` have added."""
        pool = pool_of(round.kept, self._classes(round))
        if pool is None:  # a channel may have lost all
            return
        draw = generator(round.seed, "pool", round.number)
        size = self.batch or round.training.batch_size
        parts = [*shuffled_parts(len(pool.tokens), size, self.epochs, draw)]
        device, losses, flops = round.training.tail.vector.device, list[float](), 0
        for number, part in enumerate(parts):
            moment = Moment(round.number, number, 1, len(parts))
            served = round.step_on(of_rows(pool, part).to(device), moment)
            if served.failed:
                raise TrainingFailed(
                    f"round {round.number}: step {number + 1} of the tail on the pool gave a loss "
                    "that is not finite; a smaller learning rate may help, results so far are kept"
                )
            losses.extend(served.losses.values())
            flops += served.flops
        round.losses[SERVER] = dict(enumerate(losses))
        round.tasks.train(SERVER, came, flops)

    def _classes(self, round: Round) -> int:
        return round.tail.flat.module.num_classes


def _sent(round: Round) -> set[int]:
    """Return who has sent all it has, before a round."""
    found = round.weights.get(SENT)
    return {int(client) for client in found.numpy()} if found else set()
