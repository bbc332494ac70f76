"""Where a result comes from: versions of software and kind of CPU."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch

from fl_split import __version__
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


def kinds(*texts: str) -> list[str]:
    """Return every kind of CPU once; a text names one, several with commas, or none."""
    return list(dict.fromkeys(kind for text in texts for kind in text.split(", ") if kind))


def resumed_elsewhere(before: str) -> str:
    """Say what a resume on this CPU means for a run that was on kinds `before`, if they differ."""
    if len(kinds(before, cpu())) < 2:
        return ""
    return (
        f"so far on a CPU of kind {before}, from here on {cpu()}: the result will not be, to the "
        "last bit, that of a run never stopped"
    )


def unlike(summaries: Iterable[Mapping[str, Any]]) -> str:
    """Name the kinds of CPU of some runs if there are several; runs may not know theirs."""
    found = kinds(*(summary.get("machine", {}).get("cpu", "") for summary in summaries))
    text = f"{', '.join(found)}: on unlike CPUs the same seed gives results that differ"
    return text if len(found) > 1 else ""


def machine(before: str = "") -> dict[str, Any]:
    """What the run ran on; `before` names kinds of CPU that it had been on until a resume."""
    return {
        "cpu": ", ".join(kinds(before, cpu())),
        "platform": platform.platform(),
        "cores": available_cores(),
        "torch_threads": torch.get_num_threads(),
    }
