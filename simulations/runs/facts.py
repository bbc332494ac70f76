"""What a summary tells of a run beside its results."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from simulations.runs.provenance import machine
from simulations.runs.setup import Setup
from simulations.runs.trials import memory_of_a_batch


def facts_of(setup: Setup, cpu: str, about_data: dict[str, Any]) -> dict[str, Any]:
    """Return facts by name; `cpu` names kinds that the run had been on until a resume."""
    return {
        "machine": machine(cpu, setup.device),
        "activation_bytes": _activation_bytes(setup),
        "client_bytes": setup.client_bytes,
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
