"""Flower ClientApp of ``flwr run``: builds what a process needs from the run config.

Under the simulation, a client's samples are its part of the experiment's data. A real node whose
node config has a ``dataset-path`` has images of its own there, and opens no other data.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from flwr.app import ConfigRecord, Context, Message, UserConfigValue

from simulations.clients.client_app import SplitApp
from simulations.clients.pool import ClientPool
from simulations.clients.terms import Terms
from simulations.data.images import DataError
from simulations.data.node_folders import FolderImages
from simulations.runs import nodes
from simulations.runs.experiment import Experiment
from simulations.runs.setup import prepare
from strategies.server import flower_messages

TERMS, DATA = "terms", "data"
"""Record of ``context.state`` with what a node was told, and its one entry."""


class FlowerApp(SplitApp):
    """The app of a client under Flower's own runtimes.

    What a real node is told, when it is asked what it holds, stays in its state.
    """

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message; a client's state is kept beside what its node was told."""
        told = context.state.get(TERMS)
        if (terms := _terms_in(message)) is not None:
            context.state.clear()  # of a run before
            told = terms
        if told is None:
            return super().__call__(message, context)
        context.state[TERMS] = told
        try:
            return super().__call__(message, context)
        except DataError as error:
            place = context.node_config.get("partition-id")
            raise DataError(f"partition-id={place}: {error}") from None
        finally:
            context.state[TERMS] = told

    def _describe(self, message: Message, context: Context) -> Message:
        """Say what this node holds, once all its images are known to be some."""
        images = self._pool(context).worker.data.pixels
        if isinstance(images, FolderImages):
            images.check()
        return super()._describe(message, context)


def _terms_in(message: Message) -> ConfigRecord | None:
    """Return what a node is told with the question what it holds, if this is that question."""
    if not message.metadata.message_type.startswith(flower_messages.QUERY):
        return None
    record = flower_messages.read(message)
    return None if record.payload is None else ConfigRecord({DATA: bytes(record.payload)})


def _pool(context: Context) -> ClientPool:
    told = context.state.config_records.get(TERMS)
    data = told[DATA] if told else b""
    assert isinstance(data, bytes), "written by the app above"
    folder, client = str(context.node_config.get(nodes.FOLDER, "")), -1
    if data or folder:  # else all clients of a simulation share one
        client = int(context.node_config.get("partition-id", -1))
    return _build(tuple(sorted(context.run_config.items())), data, client, folder)


@lru_cache(maxsize=1)
def _build(
    run_config: tuple[tuple[str, UserConfigValue], ...], told: bytes, client: int, folder: str
) -> ClientPool:
    torch.set_num_threads(1)  # as everywhere: results must not depend on idle cores
    experiment = Experiment.from_dict(dict(run_config))
    if nodes.are_asked(experiment):
        if not told:
            raise RuntimeError("this node was not told of the run; was it restarted meanwhile?")
        return ClientPool(nodes.node_worker(experiment, Terms.from_bytes(told), client, folder))
    if folder:
        raise DataError(
            f"a node with images of its own ({nodes.FOLDER}={folder!r}), but the experiment has "
            f"dataset={experiment.dataset!r}; it needs dataset=\"nodes(test='...')\""
        )
    return ClientPool(prepare(experiment).worker(stack=1))


app = FlowerApp(_pool)
