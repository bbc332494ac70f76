"""A trained run serves its images: policies, their controls, frontiers; tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fl_split.channels import CHANNELS
from fl_split.codecs import Codec, parse_codec
from fl_split.exchange.link import Link
from fl_split.specs import parse
from simulations.data.statistics import count, per_client
from simulations.inference import pictures
from simulations.inference.latency import Latency
from simulations.inference.outcome import Inference
from simulations.inference.policies import POLICIES, AllLocal, AllSent, Oracle, Policy, name_of
from simulations.inference.serving import Served, area, fitted, frontier, histogram, mixture, serve
from simulations.inference.trained import Trained, load, with_codec
from simulations.inference.ways import Ways, ways_of
from simulations.runs.experiment_data import named
from simulations.runs.files import read_summary
from simulations.runs.results import SUMMARY
from simulations.runs.trials import check_attention, check_channels, try_link
from simulations.system.system import System, parse_system


def infer(
    folder: str | Path,
    policies: str | Policy | Sequence[str | Policy] = "threshold()",
    *,
    system: str | None = None,
    codec: str | None = None,
    channel: str | None = None,
    price: float | None = None,
    rate: float | None = None,
    objects: Mapping[str, Any] | None = None,
) -> Inference:
    """Do what :func:`simulations.api.serving.infer` says, of a folder; write nothing.

    `objects` are parts that stood in the place of specs when the run was trained, by key.

    Raises
    ------
    ValueError
        As told there.
    """
    wanted = _policies(policies, price)
    trained = load(Path(folder), objects, rate)
    _check(trained, wanted)
    found = parse_system(system) if system is not None else trained.experiment.parts.system
    latency = Latency.of_system(found, trained.experiment) if found else None
    other = None if codec is None else parse_codec(codec)
    trained = trained if other is None else with_codec(trained, other)
    link = road(trained, found, other, channel)
    ways = ways_of(trained, trained.test, np.arange(len(trained.test.labels)), link)
    held, chosen, notes = None, {name_of(one): one for one in wanted}, list[str]()
    if price is not None:
        held = _of_held_out(trained, link)
        pairs = [(one, fitted(one, held, price)) for one in wanted]
        chosen = {name_of(one): one for _, one in pairs}
        notes = [_fit(*pair, price) for pair in pairs]
    served = {name: serve(ways, one, latency) for name, one in chosen.items()}
    frontiers = {name: frontier(ways, one, latency) for name, one in chosen.items()}
    served |= {name: serve(ways, one, latency) for name, one in _controls(trained).items()}
    return Inference(
        _table(trained, ways, served, frontiers, latency),
        frontiers,
        {name: served[name].images(ways.names) for name in chosen},
        _clients(trained, chosen, held, link),
        {name: histogram(one, ways) for name, one in served.items() if name in chosen},
        [*notes, *_notes(trained, link, served)],
    )


def _policies(given: str | Policy | Sequence[str | Policy], price: float | None) -> list[Policy]:
    """Read policies; ValueError if there is none, or for a price that is none."""
    several = [given] if isinstance(given, str | Policy) else [*given]
    if not several:
        raise ValueError("policies: give at least one, as 'threshold()' or 'all_sent()'")
    if price is not None and not 0 <= price < np.inf:
        raise ValueError(f"price must be 0 or more, got {price:g}")
    return [one if isinstance(one, Policy) else parse(one, POLICIES) for one in several]


def _fit(before: Policy, after: Policy, price: float) -> str:
    """Say what has become of a policy."""
    if len(before.sweep()) < 2:
        return f"{name_of(before)}: nothing of it can be fitted"
    return f"{name_of(after)} was fitted to held-out rows, price {price:g}"


def _controls(trained: Trained) -> dict[str, Policy]:
    if trained.exits is None:
        return {"all sent": AllSent()}
    return {"all sent": AllSent(), "all local": AllLocal(), "oracle": Oracle()}


def _check(trained: Trained, policies: Sequence[Policy]) -> None:
    """Raise ValueError if a policy asks exits of a run that has none."""
    if trained.exits is None:
        for policy in policies:
            if policy.needs_exits:
                raise ValueError(
                    f"{name_of(policy)} asks exits, and the run has none; train with exits, as "
                    "exits=plain, or take the policy all_sent"
                )


def road(trained: Trained, system: System | None, codec: Codec | None, channel: str | None) -> Link:
    """Return the road of the run, with what is to be another; ValueError if it cannot be."""
    parts, head = trained.experiment.parts, trained.head
    if codec is not None:
        parts = replace(parts, codec=codec)
    if channel is not None:
        parts = replace(parts, channel=parse(channel, CHANNELS))
    link = replace(parts, system=system).link()
    check_channels(link, is_ushape=False)
    with named("codec"):
        check_attention(link.codec, head, "this model")
        try_link(link, head, trained.tail, trained.test.num_classes)
    return link


def _table(
    trained: Trained,
    ways: Ways,
    served: Mapping[str, Served],
    frontiers: Mapping[str, pd.DataFrame],
    latency: Latency | None,
) -> pd.DataFrame:
    """Return one row per policy and control, and one per format and quality of files."""
    whole = served["all sent"].summary()["bytes_up"]
    rows = []
    for name, one in served.items():
        found = one.summary()
        mixed = mixture(ways, found["bytes_up"])
        areas = area(frontiers[name], whole) if name in frontiers else np.nan
        rows.append({"policy": name, **found, "mixture": mixed, "area": areas})
    of_files = pictures.files(trained, ways, latency)
    return pd.concat([pd.DataFrame(rows), of_files], ignore_index=True)


def _of_held_out(trained: Trained, link: Link) -> Ways:
    rows, owner = trained.held_out
    return ways_of(trained, trained.setup.train, rows, link, owner)


def _clients(
    trained: Trained, policies: Mapping[str, Policy], held: Ways | None, link: Link
) -> pd.DataFrame:
    """Return what held-out rows of each client do: what skewed labels make of exits."""
    shards = trained.setup.shards
    if not shards or not trained.exits:
        return pd.DataFrame()
    held = held or _of_held_out(trained, link)
    entropy = per_client(count(trained.setup.train))["entropy"]
    found = []
    for name, policy in policies.items():
        one = serve(held, policy)
        frame = pd.DataFrame(
            {"client": held.owner, "left": ~one.decisions.is_sent, "accuracy": one.right}
        )
        means = frame.groupby("client").mean().astype(float).reset_index()
        means["rows"] = frame.groupby("client").size().to_numpy()
        means["entropy"] = means["client"].map(entropy)
        found.append(means.assign(policy=name))
    return pd.concat(found, ignore_index=True)


def _notes(trained: Trained, link: Link, served: Mapping[str, Served]) -> list[str]:
    """Say what readers of the table must know."""
    notes = ["frontiers show all thresholds on test images; none of them was chosen"]
    if not link.codec.keeps_samples:
        notes.append(f"{link.codec!r} merges samples, and an image comes alone: nothing is merged")
    summary = read_summary(trained.folder / SUMMARY) or {}
    if summary.get("status") != "complete":
        done, rounds = summary.get("rounds"), trained.experiment.rounds
        notes.append(f"the run was stopped after round {done} of {rounds}")
    lost = {name: int(one.is_lost.sum()) for name, one in served.items() if one.is_lost.any()}
    notes += [f"{name}: the channel lost {count} payloads" for name, count in lost.items()]
    return notes
