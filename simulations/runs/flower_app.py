"""Flower ClientApp of ``flwr run``: builds what a process needs from the run config."""

from __future__ import annotations

from functools import lru_cache

import torch
from flwr.app import Context, UserConfigValue

from simulations.clients.client_app import SplitApp
from simulations.clients.pool import ClientPool
from simulations.runs.experiment import Experiment
from simulations.runs.setup import prepare


def _pool(context: Context) -> ClientPool:
    return _build(tuple(sorted(context.run_config.items())))


@lru_cache(maxsize=1)
def _build(run_config: tuple[tuple[str, UserConfigValue], ...]) -> ClientPool:
    torch.set_num_threads(1)  # as everywhere: results must not depend on idle cores
    return ClientPool(prepare(Experiment.from_dict(dict(run_config))).worker(stack=1))


app = SplitApp(_pool)
