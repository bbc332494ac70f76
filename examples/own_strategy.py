"""A strategy of your own: SplitFed V2 in which the client with the most samples is served last.

python examples/own_strategy.py
fl-split run quickstart plugins=examples/own_strategy.py strategy="own_strategy:LargestLast"
fl-split check "own_strategy:LargestLast" --plugin examples/own_strategy.py
"""

from dataclasses import dataclass

from strategies import Strategy
from strategies.server.aggregation import Update
from strategies.server.round import Round


@dataclass(frozen=True)
class LargestLast(Strategy):
    """The shared tail steps after every batch, clients one after the other; heads are averaged."""

    def train_round(self, round: Round) -> list[Update]:
        """Serve every client to its end, those with few samples first."""
        round.begin(round.clients, head=round.head)
        for client in sorted(round.clients, key=lambda client: round.samples[client]):
            while (arrival := round.payload(client)) is not None:
                round.serve(client, arrival)
        return round.updates()


if __name__ == "__main__":
    import fl_split as fs

    run = fs.run(strategy=LargestLast(), clients=20, rounds=3, engine="inline()")
    print(run.rounds[["round", "accuracy", "train_loss"]])
