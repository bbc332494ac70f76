"""FSL-SAGE (Nair et al., ICML 2025): auxiliaries that the server fits guide the clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from fl_split.codecs import Received
from fl_split.exchange.aligned import AUXILIARY, Aligned, guide_of
from fl_split.exchange.protocol import Exchange
from fl_split.exchange.records import HEAD, TAIL
from fl_split.exchange.serving import of_rows, pooled, shuffled_parts
from fl_split.flat import Flat
from fl_split.models.auxiliary import Size
from fl_split.models.cut import Head
from fl_split.optimizers import Adam
from fl_split.recipe.descent import Descent
from fl_split.seeds import StepId, generator
from fl_split.specs import STRICT
from strategies.server.aggregation import Update
from strategies.server.kept_rows import keep_rows, of_client, packed, rows_of
from strategies.server.one_way import send_beside, take
from strategies.server.round import Round
from strategies.server.strategy import Strategy
from strategies.server.tasks import SERVER

ALIGNED = "aligned-in"
"""Name of the round in which a client was aligned, among the global weights, with its number."""

Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, config=STRICT)
class FSLSAGE(Strategy):
    """Heads follow an auxiliary whose gradient the server fits to that of the tail.

    A client steps its head, batch after batch, on the cut gradient that its own auxiliary
    estimates; it does not train the auxiliary. Smashed data and labels of the first of every `h`
    batches of a round go up, and one tail steps on each, as in `cse_fsl`; no cut gradient comes
    down, and no client waits. Heads are averaged at round end, weights n_k/n; auxiliaries never.

    The server keeps the last `keep` rows of each client. Every `align` rounds it computes the
    tail's cut gradient at each of them, and fits the client's auxiliary: `epochs` passes in
    shuffled mini-batches of `batch` rows, Adam at `rate`, on the squared distance between the
    auxiliary's gradient and the true one. The auxiliary then goes down, its bytes counted once.

    After the authors' code, whose classes say 5 epochs of 100 rows, as here; its configuration says
    100 epochs of 1,000. It differs in this:

    - A client is aligned at the start of the first round in which the server has rows of it, its
      second one, and then where `align` rounds have gone by. Their code does it in the midst of
      rounds 1, 1 + `align` and so on, after the first payload.
    - Their true gradient is that of the mean over all kept rows, the estimate that of the mean over
      a mini-batch: the scales differ unless one batch has all rows. Here both are of each row's own
      loss, which is what a client needs for any size of its batches. The distance is the mean
      over the rows of a mini-batch, theirs the sum.
    - Adam starts afresh with each alignment; auxiliaries start with the weights of the tail's first
      stages, which are not sent. Gradients are fitted without dropout in the auxiliary.

    What is kept is what has come, after codec and channel; the estimate of a client is that
    at its uncompressed smashed data. Of a codec that merges samples, merged rows are kept. The
    server keeps `keep` rows of N D numbers and an auxiliary for each client, in checkpoints too. It
    needs labels, so there is no U-shape. `train_loss` is that of the tail.

    Parameters
    ----------
    h : int
        Of so many batches one goes up.
    align : int
        Rounds between two alignments of a client.
    auxiliary : int or "tail"
        Stages of the tail that the auxiliary has before its classifier: 0 is the classifier
        alone; "tail" the whole tail, and so is a number of no fewer stages than it has.
    epochs, batch, rate : int, int, float
        How an auxiliary is fitted: passes over kept rows, rows of a step, learning rate.
    keep : int
        Most rows that are kept of a client.
    """

    h: Count = 5
    align: Count = 10
    auxiliary: Size = 1
    epochs: Count = 5
    batch: Count = 100
    rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.001
    keep: Count = 1000

    works_in_u_shape = False
    trains_end_to_end = False

    def exchange(self, head: Head) -> Exchange:
        """Payloads go up, auxiliaries come down."""
        return Aligned(every=self.h, auxiliary=self.auxiliary)

    def bytes_beside(self, head: Head, rounds: Sequence[int]) -> int:
        """Return those of an auxiliary for each alignment of a client."""
        aligned = [0]
        for number in rounds[1:]:
            if self._is_due(number, aligned[-1]):
                aligned.append(number)
        each = packed(torch.zeros(guide_of(head).size, device="cpu"))
        return len(each.data) * (len(aligned) - 1)

    def train_round(self, round: Round) -> list[Update]:
        """Align who is due, then take payloads until nobody has one left."""
        round.kept |= {k: one for k, one in round.weights.items() if k not in (HEAD, TAIL)}
        for client in round.clients:
            self._align(round, client)
        active = round.begin(round.clients, head=round.head)
        for client, sent in round.beside.items():
            if not round.mailbox.dropped(client):  # else it has none of it
                now = torch.tensor([round.number], dtype=torch.float32, device="cpu")
                found = {AUXILIARY: sent[AUXILIARY], ALIGNED: packed(now)}
                round.kept |= {of_client(name, client): one for name, one in found.items()}
        came: dict[int, list[Received]] = {}

        def keep(client: int, rows: Received) -> None:
            came.setdefault(client, []).append(replace(rows, tokens=rows.tokens.detach()))

        while active:
            active = take(round, active, keep=keep)
        for client, rows in came.items():
            self._keep(round, client, rows)
        return round.updates()

    def _is_due(self, number: int, aligned: int) -> bool:
        """Tell whether to align in a round, last done in round `aligned`, 0 if never."""
        return not aligned or number - aligned >= self.align

    def _align(self, round: Round, client: int) -> None:
        """Fit a client's auxiliary anew, to be sent, if it is its turn."""
        exchange, last = round.exchange, round.weights.get(of_client(ALIGNED, client))
        assert isinstance(exchange, Aligned)
        is_due = self._is_due(round.number, int(last.numpy()[0]) if last else 0)
        if not is_due or exchange.is_silent(round.number):  # then nobody asks the auxiliary
            return
        if (rows := self._rows(round, client)) is None:
            return
        flat = Flat(guide_of(round.training.head.module).to_fit())
        if before := round.weights.get(of_client(AUXILIARY, client)):
            flat.load(before.numpy())
        # Steps that no other client's rows have, as the tail may draw dropout.
        at = StepId(round.seed, round.number, SERVER, client * self.keep)
        true, of_tail = exchange.true_gradients(round.tail.flat, rows, self.batch, at)
        draw = generator(round.seed, "alignment", round.number, client)
        parts = shuffled_parts(len(true), self.batch, self.epochs, draw)
        flops = exchange.fit(Descent(flat, Adam(lr=self.rate)), rows, true, parts)
        send_beside(round, client, AUXILIARY, packed(flat.vector.detach()), of_tail + flops)

    def _keep(self, round: Round, client: int, came: Sequence[Received]) -> None:
        """Put the rows of a round behind those that are kept; the last ones stay."""
        before = self._rows(round, client)
        received = dict(enumerate([*([before] if before else []), *came]))
        classes = round.tail.flat.module.num_classes
        pool = pooled(received, dict.fromkeys(received, 1.0), classes)
        places = torch.arange(len(pool.tokens), device=pool.tokens.device)
        last = of_rows(pool, places[-self.keep :])
        keep_rows(round.kept, client, replace(last, weights=None))

    def _rows(self, round: Round, client: int) -> Received | None:
        return rows_of(round.weights, client, round.training.tail.vector.device)
