"""Where a result comes from: versions of software, and kind of CPU or GPU."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch

from fl_split import __version__
from fl_split.accelerators import CPU, title
from strategies.server.threads import available_cores


def versions() -> dict[str, str]:
    """Versions of what affects a result."""
    names = ("flwr", "flwr-datasets", "numpy", "ray", "torch", "transformers")
    return {
        "fl-split": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        **{name: version(name) for name in ("peft",) if find_spec(name)},
    }


def cpu() -> str:
    """Kind of this CPU: architecture and the vector instructions torch takes, "x86_64 AVX2".

    Sums of floating-point numbers differ in their last bits between kinds.
    """
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def kind_of(device: torch.device) -> str:
    """Kind of what computes: that of the CPU, or of a GPU, "NVIDIA H200 (CUDA 12.8)"."""
    return title(device) or cpu()


def kinds(*texts: str) -> list[str]:
    """Return every kind once; a text names one, several with commas, or none."""
    return list(dict.fromkeys(kind for text in texts for kind in text.split(", ") if kind))


def resumed_elsewhere(before: str, device: torch.device = CPU) -> str:
    """Say what a resume on `device` means for a run that was on kinds `before`, if they differ."""
    now = kind_of(device)
    if len(kinds(before, now)) < 2:
        return ""
    return (
        f"so far on a CPU or GPU of kind {before}, from here on {now}: the result will not be, to "
        "the last bit, that of a run never stopped"
    )


def unlike(summaries: Iterable[Mapping[str, Any]]) -> str:
    """Name the kinds of CPU of some runs if there are several; runs may not know theirs."""
    found = kinds(*(summary.get("machine", {}).get("cpu", "") for summary in summaries))
    text = f"{', '.join(found)}: on unlike CPUs or GPUs the same seed gives results that differ"
    return text if len(found) > 1 else ""


def machine(before: str = "", device: torch.device = CPU) -> dict[str, Any]:
    """What the run ran on; `before` names kinds that it had been on until a resume.

    "cpu" is the kind of what computed, be it a GPU.
    """
    return {
        "cpu": ", ".join(kinds(before, kind_of(device))),
        "device": str(device),
        "platform": platform.platform(),
        "cores": available_cores(),
        "torch_threads": torch.get_num_threads(),
    }
