"""What a summary tells of a run beside its results."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from simulations.data.ragged import Ragged
from simulations.runs.provenance import machine
from simulations.runs.setup import Setup
from simulations.runs.trials import memory_of_a_batch, remembered_bytes


def facts_of(setup: Setup, cpu: str, about_data: dict[str, Any]) -> dict[str, Any]:
    """Return facts by name; `cpu` names kinds that the run had been on until a resume."""
    return {
        "machine": machine(cpu, setup.device),
        "activation_bytes": _activation_bytes(setup),
        "client_bytes": setup.client_bytes,
        "codec_memory_bytes": _remembered(setup),
        "majority_accuracy": setup.majority_accuracy,
        "model_input": setup.model_input,
        "model_notes": setup.model_notes,
        "unheld": asdict(setup.unheld),
        "data": about_data,
    }


def _activation_bytes(setup: Setup) -> dict[str, int]:
    """Measure it; 0 where a GPU has too little memory for it, which training will tell."""
    halves = setup.exchange, setup.head, setup.tail, setup.parts.codec
    try:
        return memory_of_a_batch(*halves, setup.experiment.batch_size, setup.train.num_classes)
    except torch.OutOfMemoryError:
        return {"head": 0, "whole": 0}


def _remembered(setup: Setup) -> dict[str, int]:
    """Return what a codec makes the largest client remember, and the server of all clients."""
    codec, head = setup.parts.codec, setup.head
    sizes = Ragged.of(setup.train.partitions).sizes
    held = {"client": int(sizes.max()), "server": int(sizes.sum())}
    if not setup.parts.strategy.sends_smashed_data:
        return dict.fromkeys(held, 0)
    return {side: remembered_bytes(codec, head, samples) for side, samples in held.items()}
