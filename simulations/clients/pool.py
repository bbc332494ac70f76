"""Shells of clients, lent for as long as a client is in training."""

from __future__ import annotations

from simulations.clients.client import Client
from simulations.clients.worker import Worker
from strategies.server.assignment import USUAL


class ClientPool:
    """Shells of clients: their modules take long to make, so they are lent and taken back."""

    def __init__(self, worker: Worker) -> None:
        worker.settle()
        self.worker = worker
        self._idle: dict[int, list[Client]] = {}

    def lend(self, partition: int) -> Client:
        """Return a client that has done nothing yet; its weights are whatever was left in it."""
        worker = self.worker.of(partition)
        idle = self._idle.setdefault(id(worker), [])
        client = idle.pop() if idle else Client(worker)
        client.partition = partition
        return client

    def take_back(self, client: Client) -> None:
        """Take back a client whose round is over, or whose state has been saved.

        It keeps its modules, but no optimiser, whose moments would take memory.
        """
        client.release()
        client.place, client.keeps_head, client.assignment = None, False, USUAL
        client.memory = {}
        vars(client).pop("descent", None)
        self._idle[id(client.worker)].append(client)
