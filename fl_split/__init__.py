"""Federated split learning, simulated: what must cross the cut, and what it costs.

    import fl_split as fs

    run = fs.run(codec="adc(ratio=0.1)", strategy="parallel", clients=100, rounds=20)
    run.rounds, run.summary, run.model

Importing costs nothing; what is behind it is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fl_split import clash

if TYPE_CHECKING:
    from simulations.api import (
        Comparison,
        Data,
        Run,
        Study,
        compare,
        data,
        infer,
        load,
        pareto,
        report,
        resume,
        run,
        sweep,
        time,
        within,
    )

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "Data",
    "Run",
    "Study",
    "compare",
    "data",
    "infer",
    "load",
    "pareto",
    "report",
    "resume",
    "run",
    "sweep",
    "time",
    "within",
]


def __getattr__(name: str) -> Any:
    """Open the API when something of it is asked for."""
    if name not in __all__:
        raise AttributeError(f"fl_split has no {name!r}; it has {', '.join(__all__)}")
    clash.check()
    return getattr(import_module("simulations.api"), name)


def __dir__() -> list[str]:
    """Show what can be asked for."""
    return [*globals(), *__all__]
