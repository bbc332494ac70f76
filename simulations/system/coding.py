"""What coding costs: operations of codecs, from a table of measured constants."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from fl_split.specs import stages
from simulations.system.graph import Graph
from simulations.system.part import Numbers

TABLE = Path(__file__).with_name("codec_costs.toml")


@dataclass(frozen=True)
class Coding:
    """Operations for each number: of the first codec for what goes in, of others for what it left.

    Attributes
    ----------
    first, others : tuple of float
        On the side that packs, and on the side that unpacks.
    unknown : tuple of str
        Codecs that the table does not have; they count nothing.
    """

    first: tuple[float, float] = (0.0, 0.0)
    others: tuple[float, float] = (0.0, 0.0)
    unknown: tuple[str, ...] = ()


FREE = Coding()


@lru_cache(maxsize=64)
def coding(spec: str) -> Coding:
    """Return what a codec or a chain of codecs costs."""
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    names = [stage.partition("(")[0] for stage in stages(spec)]
    costs = [table.get(name, {"client": 0.0, "server": 0.0}) for name in names]
    sides = [(float(cost["client"]), float(cost["server"])) for cost in costs]
    return Coding(
        sides[0],
        (sum(client for client, _ in sides[1:]), sum(server for _, server in sides[1:])),
        tuple(name for name in names if name not in table),
    )


def operations(graph: Graph, codec: Coding, downlink: Coding) -> Numbers:
    """Return the operations of each task that codes, (n,); 0 of all others.

    A payload is encoded and decoded by the numbers of the smashed data for the first codec, and
    by the numbers that it left for others; a cut gradient is packed and unpacked by its own.
    """
    found = np.zeros(len(graph.kinds))
    decoding = np.flatnonzero(graph.are("decode"))
    sending = graph.after[graph.bounds[decoding]]  # the one task that a decoding waits for
    encoding = graph.after[graph.bounds[sending]]  # which waits for its client's last one
    encoded = np.flatnonzero(graph.are("encode"))
    found[encoded] = codec.first[0] * graph.amounts[encoded]
    found[encoding] += codec.others[0] * graph.amounts[decoding]
    found[decoding] = (
        codec.first[1] * graph.amounts[encoding] + codec.others[1] * graph.amounts[decoding]
    )
    for kind, side in (("pack", 0), ("unpack", 1)):
        mine = graph.are(kind)  # type: ignore[arg-type]
        each = downlink.first[side] + downlink.others[side]
        found[mine] = each * graph.amounts[mine]
    return found
