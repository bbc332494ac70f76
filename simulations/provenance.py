"""Where a result comes from: what it was computed with, and on what."""

from __future__ import annotations

import platform
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch

from fl_split import __version__
from strategies.crew import available_cores


def versions() -> dict[str, str]:
    """Versions of what affects a result."""
    names = ("flwr", "flwr-datasets", "numpy", "ray", "torch", "transformers")
    return {
        "fl-split": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        **{name: version(name) for name in ("peft",) if find_spec(name)},
    }


def machine() -> dict[str, Any]:
    """What the run ran on."""
    return {
        "platform": platform.platform(),
        "cores": available_cores(),
        "torch_threads": torch.get_num_threads(),
    }
