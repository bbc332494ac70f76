"""Laws of strategies that need no simulation: on a task graph, and on who is chosen."""

from __future__ import annotations

from collections.abc import Callable, Collection

from fl_split.checks.laws import hold
from strategies.server.participants import Population
from strategies.server.strategy import Strategy
from strategies.server.tasks import BYTES, SERVER, Kind, Task
from strategies.server.training import RoundResult

UP: set[Kind] = {"up", "output gradient up"}
DOWN: set[Kind] = {"down", "output down"}
OF_CLIENTS: set[Kind] = {"forward", "backward", "end", "train"}
OF_SERVER: set[Kind] = {"stand in", "middle", "serve", "step", "train"}


def check_tasks(result: RoundResult) -> None:
    """Hold the task graph of a round to its laws; AssertionError with the one it breaks.

    - every task waits only for earlier ones, and a client's tasks follow each other;
    - every payload is served once, and every cut gradient waits for what made it;
    - in a round without dropped clients bytes add up to those of the traffic, payloads and
      weights, up and down; operations to those of clients and server; and each client sends
      as many payloads as it takes steps.
    """
    tasks = result.tasks
    last: dict[int, int] = {}
    for number, task in enumerate(tasks):
        earlier = all(0 <= before < number for before in task.after)
        hold(earlier, f"{task} of number {number} must wait for earlier tasks only")
        hold(task.amount >= 0, f"{task} must not have a negative amount")
        if task.client != SERVER:
            follows = last.get(task.client, -1) in {-1, *task.after}
            hold(follows, f"{task} must wait for the client's task before")
            last[task.client] = number
    _check_served(tasks)
    if not any(traffic.dropped for traffic in result.traffic.values()):
        _check_sums(result)


def _check_served(tasks: list[Task]) -> None:
    reads: set[Kind] = {"serve", "decode", "stand in"}
    served = [before for task in tasks if task.kind in reads for before in task.after]
    for number, task in enumerate(tasks):
        if task.kind == "serve":
            came = any(tasks[before].kind in {*UP, "decode", "stand in"} for before in task.after)
            hold(came, f"{task} must wait for a payload")
        if task.kind == "down" and task.amount:  # else it says that the payload was lost
            made = any(tasks[before].kind in {"serve", "pack", "stand in"} for before in task.after)
            hold(made, f"{task} must wait for the task that made the cut gradient")
            steps = [n for n in range(number) if tasks[n].client == task.client]
            payload = max(n for n in steps if tasks[n].kind in UP)
            hold(served.count(payload) == 1, f"{tasks[payload]} must be served once")


def _check_sums(result: RoundResult) -> None:
    traffic = result.traffic

    def amount(kinds: Collection[Kind], is_of: Callable[[int], bool]) -> int:
        return sum(t.amount for t in result.tasks if t.kind in kinds and is_of(t.client))

    def total(field: str) -> int:
        return sum(getattr(one, field) for one in traffic.values())

    def is_client(number: int) -> bool:
        return number != SERVER

    hold({*UP, *DOWN, "sync up", "sync down"} == BYTES, "every kind that crosses is known here")
    ways: list[tuple[str, Collection[Kind]]] = [
        ("payload_bytes_up", UP),
        ("payload_bytes_down", DOWN),
        ("head_bytes_up", {"sync up"}),
        ("head_bytes_down", {"sync down"}),
    ]
    for field, kinds in ways:
        found, law = amount(kinds, is_client), f"bytes of {sorted(kinds)} must add up to {field}"
        hold(found == total(field), f"{law}, {total(field)}, got {found}")
    flops = amount(OF_CLIENTS, is_client)
    law = f"operations of clients must add up to {result.client_flops}, got {flops}"
    hold(flops == result.client_flops, law)
    flops = amount(OF_SERVER - {"train"}, lambda client: True)
    flops += amount({"train"}, lambda client: client == SERVER)
    law = f"operations of the server must add up to {result.server_flops}, got {flops}"
    hold(flops == result.server_flops, law)
    for client, one in traffic.items():
        sent = [t for t in result.tasks if t.kind == "up" and t.client == client]
        whole = any(t.kind == "train" and t.client == client for t in result.tasks)
        law = f"client {client} must send a payload a step, {one.steps}, got {len(sent)}"
        hold(whole or len(sent) == one.steps, law)


def check_choice(strategy: Strategy) -> None:
    """Hold the choice of clients to its laws; AssertionError with the one that is broken.

    On 12 clients, of which one holds nothing, half of them per round, in 10 rounds:

    - only clients that hold samples are chosen, and some are;
    - batch sizes and rates are positive, or left to the experiment;
    - the same round is chosen in the same way again.
    """
    samples = {client: 7 * client for client in range(12)}
    labels = {client: [3.0 * client, 4.0 * client] for client in samples}
    population = Population(samples, labels, 0.5, 16, 0)
    for number in range(1, 11):
        chosen = strategy.choose(population, number)
        hold(bool(chosen), f"round {number} must have a client")
        hold(all(samples[k] for k in chosen), "clients that hold nothing must not be chosen")
        for client, asked in chosen.items():
            is_possible = asked.batch_size >= 0 and asked.rate > 0
            hold(is_possible, f"client {client} cannot be asked for {asked}")
        again = strategy.choose(population, number)
        law = f"round {number} must be chosen in the same way again"
        hold(list(again.items()) == list(chosen.items()), law)
