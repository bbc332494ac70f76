"""Engines by spec string; Flower's own runtime, ``flwr run``, needs nothing from here."""

from simulations.engines.inline import Inline
from simulations.engines.ray_engine import Ray

ENGINES = {"inline": Inline, "ray": Ray}
