"""What a summary tells of a run beside its results."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fl_split.models.cut import Head
from simulations.data.ragged import Ragged
from simulations.runs import cuts
from simulations.runs.provenance import machine
from simulations.runs.setup import Setup
from simulations.runs.trials import memory_of_a_batch


def facts_of(setup: Setup, cpu: str, about_data: dict[str, Any]) -> dict[str, Any]:
    """Return facts by name; `cpu` names kinds that the run had been on until a resume.

    Memory is that of the deepest cut; `cuts` has it for each, where there are several.
    """
    return {
        "machine": machine(cpu, setup.device),
        "activation_bytes": _activation_bytes(setup, setup.head, setup.tail),
        "client_bytes": setup.client_bytes,
        "codec_memory_bytes": _remembered(setup),
        "cuts": _cuts(setup),
        "majority_accuracy": setup.majority_accuracy,
        "model_input": setup.model_input,
        "model_notes": setup.model_notes,
        "unheld": asdict(setup.unheld),
        "data": about_data,
    }


def _cuts(setup: Setup) -> list[dict[str, int]]:
    """Return stages, clients and memory of each cut; nothing where all clients are cut alike."""
    if not setup.shallower:
        return []
    e, tail, places = setup.experiment, setup.tail, setup.shallower
    needed = cuts.client_bytes_of(e, setup.head, tail, places, _sizes(setup))
    found = []
    for stages, clients in cuts.by_cut(places, e.clients, setup.head).items():
        head, place = setup.head_of(clients[0]), places.get(clients[0])
        behind = nn.Sequential(place.middle, tail) if place else tail
        found.append(
            {
                "stages": stages,
                "clients": len(clients),
                "activation_bytes": _activation_bytes(setup, head, behind)["head"],
                "client_bytes": int(needed[clients].max()),
            }
        )
    return found


def _activation_bytes(setup: Setup, head: Head, behind: nn.Module) -> dict[str, int]:
    """Measure it; 0 where a GPU has too little memory for it, which training will tell."""
    parts = setup.exchange, head, behind, setup.parts.codec
    try:
        return memory_of_a_batch(*parts, setup.experiment.batch_size, setup.train.num_classes)
    except torch.OutOfMemoryError:
        return {"head": 0, "whole": 0}


def _remembered(setup: Setup) -> dict[str, int]:
    """Return what a codec makes the largest client remember, and the server of all clients."""
    places = setup.head, setup.shallower, _sizes(setup)
    each = cuts.remembered_of(setup.experiment, *places)
    return {"client": int(each.max()), "server": int(each.sum())}


def _sizes(setup: Setup) -> NDArray[np.int64]:
    return Ragged.of(setup.train.partitions).sizes
