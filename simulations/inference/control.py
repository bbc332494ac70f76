"""Controllers serve the test images of a run, each beside its controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd

from simulations.inference.bench import ID_BYTES, Bench
from simulations.inference.controller import Chooser, Controller
from simulations.inference.latency import Latency
from simulations.inference.policies import name_of
from simulations.inference.policy import AllSent, Decisions, Policy
from simulations.inference.served import Served, serve
from simulations.inference.serving import area
from simulations.inference.settings import Integers, Numbers
from simulations.inference.ways import Ways

MEANS = {
    "accuracy": "right",
    "sent": "is_sent",
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
    benches = [bench.under(controller) for controller in controllers]
    choosers = [one.fit(own) for one, own in zip(controllers, benches, strict=True)]
    constants = [serve(one, AllSent(), latency) for one in bench.test[1]]
    pairs = zip(bench.names, constants, strict=True)
    each = [{"policy": name, **one.summary()} for name, one in pairs]
    of_settings = pd.DataFrame(each)
    below = area(of_settings, of_settings[bench.column].max(), bench.column)
    found = Controlled([{**row, "area": below} for row in each], of_settings, {}, {}, [])
    for controller, own, chooser in zip(controllers, benches, choosers, strict=True):
        _add(found, controller, own, chooser, latency)
    return found


def _add(
    found: Controlled,
    controller: Controller,
    bench: Bench,
    chooser: Chooser,
    latency: Latency | None,
) -> None:
    """Add what a controller makes of the test images, and its controls."""
    (choices, ways), name = bench.test, name_of(controller)
    settings = chooser.choose(choices)
    flops = np.broadcast_to(chooser.flops, len(ways)).tolist()
    asked = [_Asked(controller, bench.early, count) for count in flops]
    told = [replace(one, sent_bytes=one.sent_bytes + ID_BYTES) for one in ways]
    pairs = zip(told, asked, strict=True)
    served = picked([serve(*pair, latency) for pair in pairs], settings)
    constants = [serve(one, controller, latency) for one in ways]
    chances = chooser.controls(choices, settings)
    controls = {key: means(constants, weights) for key, weights in chances.items()}
    mixed = controls.get("random mixture", {}).get("accuracy", np.nan)
    found.rows.append({"policy": name, **served.summary(), "mixture": mixed})
    found.rows.extend({"policy": f"{key} of {name}", **row} for key, row in controls.items())
    images = served.images(ways[0])
    images["left"] = images["left"].mask(served.is_sent, np.array(bench.names, object)[settings])
    found.images[name] = images.assign(slot=choices.slot, snr_db=choices.snr_db)
    counts = images["left"].value_counts()
    places = [*ways[0].names, *bench.names]
    found.histograms[name] = {one: int(counts[one]) for one in places if one in counts}
    found.notes.extend(f"{name}: {note}" for note in chooser.notes)
    found.notes.extend(
        f"{key} of {name}: {bench.names[weights[:, 0].argmax()]}"
        for key, weights in chances.items()
        if (weights.max(axis=1) == weights.min(axis=1)).all() and weights.max() == 1
    )


class _Asked(Policy):
    """A controller's rule, with operations on the choice of a setting.

    Nothing is chosen for an image that leaves at one of the first `early` exits.
    """

    def __init__(self, controller: Controller, early: int, flops: int) -> None:
        self.controller, self.early, self.flops = controller, early, flops
        self.needs_exits = controller.needs_exits  # type: ignore[misc]

    def decide(self, ways: Ways) -> Decisions:
        """Decide as the controller does."""
        found = self.controller.decide(ways)
        is_asked = found.is_sent | (found.place >= self.early)
        return found._replace(flops=found.flops + is_asked * self.flops)


def picked(each: Sequence[Served], settings: Integers) -> Served:
    """Return of each image what its setting made of it."""
    images = np.arange(len(settings))

    def of(parts: Sequence[Any]) -> Any:
        return None if parts[0] is None else np.stack(parts)[settings, images]

    decisions = zip(*(one.decisions[:3] for one in each), strict=True)
    parts = {
        one.name: of([getattr(served, one.name) for served in each])
        for one in fields(Served)
        if one.name != "decisions"
    }
    return replace(each[0], decisions=Decisions(*map(of, decisions)), **parts)


def means(each: Sequence[Served], weights: Numbers) -> dict[str, float]:
    """Return the row of a random mixture: settings come with the chances `weights` (S, N)."""
    parts = {key: np.stack([getattr(one, of) for one in each]) for key, of in MEANS.items()}
    found = {key: float((weights * part).sum(axis=0).mean()) for key, part in parts.items()}
    return {**found, "channel_uses": found["channel_uses"] or np.nan}
