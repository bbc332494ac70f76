"""Controllers serve the test images of a run, each beside its controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd

from simulations.inference.controller import Controller
from simulations.inference.latency import Latency
from simulations.inference.policies import AllSent, name_of
from simulations.inference.served import Served, serve
from simulations.inference.serving import area
from simulations.inference.settings import ID_BYTES, Bench, Integers, Numbers
from simulations.inference.ways import Ways

MEANS = {
    "accuracy": "right",
    "bytes_up": "bytes_up",
    "bytes_down": "bytes_down",
    "channel_uses": "uses",
    "device_flops": "device_flops",
    "server_flops": "server_flops",
    "seconds": "seconds",
    "joules": "joules",
}
"""Keys of a row, and what of each image they are means of."""


@dataclass(frozen=True)
class Controlled:
    """What controllers made of the test images.

    Attributes
    ----------
    rows : list of dict
        One per setting, with the area below all of them; one per controller, and per control of it.
    settings : DataFrame
        One row per setting, if it served all test images.
    images : dict
        By controller, one row per image.
    histograms : dict
        By controller, how many images were sent in which setting.
    """

    rows: list[dict[str, Any]]
    settings: pd.DataFrame
    images: dict[str, pd.DataFrame]
    histograms: dict[str, dict[str, int]]
    notes: list[str]


def controlled(
    controllers: Sequence[Controller], bench: Bench, latency: Latency | None
) -> Controlled:
    """Serve the test images in each setting, and by controllers fitted to held-out images.

    Controls are told no setting, so they do not send the byte that says which it is.
    """
    choosers = [controller.fit(bench) for controller in controllers]
    choices, ways = bench.test
    constants = [serve(one, AllSent(), latency) for one in ways]
    pairs = zip(bench.names, constants, strict=True)
    each = [{"policy": name, **one.summary()} for name, one in pairs]
    of_settings = pd.DataFrame(each)
    below = area(of_settings, of_settings[bench.column].max(), bench.column)
    found = Controlled([{**row, "area": below} for row in each], of_settings, {}, {}, [])
    for chooser in choosers:
        name, settings = name_of(chooser.policy), chooser.choose(choices)
        flops = np.broadcast_to(chooser.flops, len(ways)).tolist()
        told = [_told(*one, latency) for one in zip(ways, flops, strict=True)]
        served = picked(told, settings)
        chances = chooser.controls(choices, settings)
        controls = {key: means(constants, weights) for key, weights in chances.items()}
        mixed = controls.get("random mixture", {}).get("accuracy", np.nan)
        found.rows.append({"policy": name, **served.summary(), "mixture": mixed})
        found.rows.extend({"policy": f"{key} of {name}", **row} for key, row in controls.items())
        left = np.array(bench.names, dtype=object)[settings]
        extra = {"slot": choices.slot, "snr_db": choices.snr_db}
        found.images[name] = served.images(ways[0]).assign(left=left, **extra)
        counts = np.bincount(settings, minlength=len(bench.names)).tolist()
        named = zip(bench.names, counts, strict=True)
        found.histograms[name] = {one: count for one, count in named if count}
        found.notes.extend(f"{name}: {note}" for note in chooser.notes)
        found.notes.extend(
            f"{key} of {name}: {bench.names[weights[:, 0].argmax()]}"
            for key, weights in chances.items()
            if (weights.max(axis=1) == weights.min(axis=1)).all() and weights.max() == 1
        )
    return found


def _told(ways: Ways, flops: int, latency: Latency | None) -> Served:
    """Serve all in one setting, which is told, and was chosen by so many operations."""
    told = replace(
        ways, sent_bytes=ways.sent_bytes + ID_BYTES, trunk_flops=ways.trunk_flops + flops
    )
    return serve(told, AllSent(), latency)


def picked(each: Sequence[Served], settings: Integers) -> Served:
    """Return of each image what its setting made of it."""
    images = np.arange(len(settings))
    parts: dict[str, Any] = {
        one.name: np.stack([getattr(served, one.name) for served in each])[settings, images]
        for one in fields(Served)
        if one.name != "decisions"
    }
    return replace(each[0], **parts)


def means(each: Sequence[Served], weights: Numbers) -> dict[str, float]:
    """Return the row of a random mixture: settings come with the chances `weights` (S, N)."""
    parts = {key: np.stack([getattr(one, of) for one in each]) for key, of in MEANS.items()}
    found = {key: float((weights * part).sum(axis=0).mean()) for key, part in parts.items()}
    return {"sent": 1.0, **found, "channel_uses": found["channel_uses"] or np.nan}
