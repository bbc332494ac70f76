"""CSE-FSL (Mu and Shen, ICC 2023): clients learn from an auxiliary classifier of their own."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fl_split.exchange.one_way import OneWay
from fl_split.exchange.protocol import Exchange
from fl_split.models.auxiliary import Size
from fl_split.models.cut import Head
from fl_split.specs import STRICT
from strategies.server.aggregation import Update
from strategies.server.one_way import take
from strategies.server.round import Round
from strategies.server.strategy import Strategy


@dataclass(frozen=True, config=STRICT)
class CSEFSL(Strategy):
    """Heads learn from an auxiliary classifier; of every h batches the first one goes up.

    A client steps head and auxiliary on the auxiliary's loss, batch after batch. Smashed data and
    labels of the first of every `h` batches of a round go up, as the head made them before its
    step. Nothing comes down, and no client waits: the head never learns from the server, and
    `downlink` and `down_channel` have nothing to do. Heads and auxiliaries are averaged at round
    end, weights n_k/n; an auxiliary travels with the head, both ways, and takes its optimiser.

    One tail takes a step on each payload. All clients send one, and are served in their order,
    before any sends the next. In the code of FSL-SAGE's authors, the only one of CSE-FSL that could
    be read, all payloads of a client come before those of another. The server needs labels, so
    there is no U-shape. `train_loss` is that of the tail.

    With ``tails='per_client'`` every client has a tail, averaged at round end. With `h` 1 this is
    SplitFed on locally generated losses (Han, Bhatti, Lee and Moon, FL-ICML 2021), from which
    CSE-FSL comes.

    An auxiliary starts with the weights of the tail's first stages; in that code it is drawn. With
    a whole copy of the tail, `h` 1 and tails of clients, tails and auxiliaries stay the same to the
    bit where their optimisers are, and heads are those of `fedavg`.

    Parameters
    ----------
    h : int
        Of so many batches one goes up.
    auxiliary : int or "tail"
        Stages of the tail that the auxiliary has before its classifier: 0 is the classifier
        alone; "tail" the whole tail, and so is a number of no fewer stages than it has.
    tails : "shared" or "per_client"
        One for all, or one for each client.
    """

    h: Annotated[int, Field(ge=1)] = 5
    auxiliary: Size = 1
    tails: Literal["shared", "per_client"] = "shared"

    works_in_u_shape = False
    trains_end_to_end = False

    def exchange(self, head: Head) -> Exchange:
        """Payloads go up, nothing comes down."""
        return OneWay(every=self.h, auxiliary=self.auxiliary)

    def train_round(self, round: Round) -> list[Update]:
        """Take payloads, client after client, until nobody has one left."""
        tails = None
        if self.tails == "per_client":
            tails = dict(zip(round.clients, round.tail.forks(len(round.clients)), strict=True))
        active = round.begin(round.clients, head=round.head)
        while active:
            active = take(round, active, tails)
        updates = round.updates()
        if tails is None:
            return updates
        return [one.including(tail=tails[one.client].finish().weights()) for one in updates]
