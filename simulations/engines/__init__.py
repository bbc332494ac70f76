"""Engines by spec string; Flower's own runtime, ``flwr run``, needs nothing from here."""

from fl_split.tables import Table
from simulations.engines.inline import Inline
from simulations.engines.local_grid import Engine
from simulations.engines.ray_engine import Ray

ENGINES: Table[type[Engine]] = Table(Engine, "fl_split.engines", {"inline": Inline, "ray": Ray})
