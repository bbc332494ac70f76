"""A trained run serves its images: policies, their controls, frontiers; tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fl_split.channels import CHANNELS
from fl_split.codecs import parse_codec
from fl_split.exchange.link import Link
from fl_split.specs import parse
from simulations.data.cache import Progress
from simulations.data.statistics import count, per_client
from simulations.inference import pictures
from simulations.inference.bench import Bench
from simulations.inference.both import policy_of
from simulations.inference.carrying import fit_shares
from simulations.inference.control import controlled
from simulations.inference.controller import Controller
from simulations.inference.fitting import Prices, fit
from simulations.inference.kept_patches import kept_patches
from simulations.inference.latency import Latency
from simulations.inference.outcome import Inference
from simulations.inference.policies import AllLocal, Oracle, name_of
from simulations.inference.policy import AllSent, Policy
from simulations.inference.served import Served, serve
from simulations.inference.serving import area, frontier, histogram, mixture
from simulations.inference.settings import Setting, check_once, settings_of
from simulations.inference.trained import Trained, load, with_codec
from simulations.inference.ways import Ways, ways_of
from simulations.runs.experiment_data import named, silent
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
    delay_price: float | None = None,
    carry: bool = False,
    rate: float | None = None,
    rates: Sequence[float] = (),
    codecs: Sequence[str] = (),
    objects: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> Inference:
    """Do what :func:`simulations.api.serving.infer` says, of a folder; write nothing.

    `objects` are parts that stood in the place of specs when the run was trained, by key.
    `progress` is told what is measured and learnt. ValueErrors are those told there.
    """
    wanted, prices = _policies(policies), Prices(price, delay_price)
    controllers = [one for one in wanted if isinstance(one, Controller)]
    others = [one for one in wanted if not isinstance(one, Controller)]
    settings = settings_of(rates, codecs) if controllers or rates or codecs else []
    trained = load(Path(folder), objects, rate)
    _check(trained, wanted, carry)
    found, latency = _system(trained, system)
    prices.check(wanted, latency)
    served, link = road(trained, found, codec, channel)
    bench = _bench(trained, settings, found, codec, channel, progress)
    more = controlled(controllers, bench, latency) if bench else None
    inference = _leaving(served, others, link, latency, prices, carry, progress)
    inference = inference.with_rows(*_plain_split(trained, found, channel, latency))
    inference = inference.with_controlled(more).with_files(pictures.files(served, latency))
    return inference.priced(delay_price, trained.head.image_shape)


def _system(trained: Trained, system: str | None) -> tuple[System | None, Latency | None]:
    """Return the system that was named, or that of the run, and how long things take there."""
    found = parse_system(system) if system is not None else trained.experiment.parts.system
    return found, Latency.of_system(found, trained.experiment) if found else None


def _leaving(
    trained: Trained,
    policies: Sequence[Policy],
    link: Link,
    latency: Latency | None,
    prices: Prices,
    carry: bool,
    progress: Progress,
) -> Inference:
    """Let images leave or be sent, as policies say; fit these first if something has a price."""
    chosen, notes = {name_of(one): one for one in policies}, list[str]()
    held = _of_held_out(trained, link) if policies and (prices or carry) else None
    ways = ways_of(trained, trained.test, np.arange(len(trained.test.labels)), link)
    if held and carry:
        shares = fit_shares(held)
        held, ways, notes = shares.carry(held), shares.carry(ways), [shares.told(ways)]
    if held and prices:
        seed = trained.experiment.seed
        pairs = [fit(one, held, prices, latency, seed, progress) for one in policies]
        chosen = {name_of(one): one for one, _ in pairs}
        notes += [note for _, note in pairs]
    served = {name: serve(ways, one, latency) for name, one in chosen.items()}
    frontiers = {name: frontier(ways, one, latency) for name, one in chosen.items()}
    served |= {name: serve(ways, one, latency) for name, one in _controls(trained).items()}
    return Inference(
        _table(ways, served, frontiers),
        frontiers,
        {name: served[name].images(ways) for name in chosen},
        _clients(trained, chosen, held, link),
        {name: histogram(one, ways) for name, one in served.items() if name in chosen},
        [*notes, *_not_handed_over(trained, ways, chosen), *_notes(trained, link, served)],
        kept_patches(trained),
    )


def _policies(given: str | Policy | Sequence[str | Policy]) -> list[Policy]:
    """Read policies; ValueError if there is none, or two have one name."""
    several = [given] if isinstance(given, str | Policy) else [*given]
    if not several:
        raise ValueError("policies: give at least one, as 'threshold()' or 'all_sent()'")
    found = [one if isinstance(one, Policy) else policy_of(one) for one in several]
    check_once("policies", [name_of(one) for one in found])
    return found


def _bench(
    trained: Trained,
    settings: Sequence[Setting],
    system: System | None,
    codec: str | None,
    channel: str | None,
    progress: Progress,
) -> Bench | None:
    """Return what serves images in each setting; ValueError for one that the run cannot have.

    Without settings there is nothing to serve.
    """
    if not settings:
        return None
    each = []
    for one in settings:
        if one.rate is not None and trained.head.selector is None:
            raise ValueError(
                "rates: the run selects no tokens; train with some, as tokens=dual_gate()"
            )
        head = trained.head if one.rate is None else trained.head.with_rate(one.rate).eval()
        each.append(road(replace(trained, head=head), system, one.codec or codec, channel))
    found, links = zip(*each, strict=True)
    return Bench(settings, found, links, progress)


def _controls(trained: Trained) -> dict[str, Policy]:
    if trained.exits is None:
        return {"all sent": AllSent()}
    return {"all sent": AllSent(), "all local": AllLocal(), "oracle": Oracle()}


def _check(trained: Trained, policies: Sequence[Policy], carry: bool) -> None:
    """Raise ValueError if a policy asks exits of a device that has none, or `carry` nobody."""
    asking = [one for one in policies if one.needs_exits and not isinstance(one, Controller)]
    if carry and not asking:
        raise ValueError(
            "carry: no policy asks the exits whose answers are carried; give one, as threshold()"
        )
    if trained.exits is None:
        has, what = "none", "exits, as exits=plain"
        if trained.exits_behind is not None:
            has, what = "them behind the cut alone", "some of the device, as plain(after='1, 3')"
        for policy in policies:
            if policy.needs_exits:
                raise ValueError(
                    f"{name_of(policy)} asks exits, and the run has {has}; train with {what}, or "
                    "take the policy all_sent"
                )


def road(
    trained: Trained, system: System | None, codec: str | None, channel: str | None
) -> tuple[Trained, Link]:
    """Return the run and its road, with what is to be another; ValueError if it cannot be."""
    parts = trained.experiment.parts
    if codec is not None:
        other = parse_codec(codec)
        trained, parts = with_codec(trained, other), replace(parts, codec=other)
    if channel is not None:
        parts = replace(parts, channel=parse(channel, CHANNELS))
    link = replace(parts, system=system).link()
    check_channels(link, is_ushape=False)
    with named("codec"):
        check_attention(link.codec, trained.head, "this model")
        try_link(link, trained.head, trained.tail, trained.test.num_classes)
    return trained, link


def _plain_split(
    trained: Trained, system: System | None, channel: str | None, latency: Latency | None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the row of a split without anything, or why there is none, as notes.

    All images are sent, with all tokens, by no codec; there are no exits.
    """
    head, name, notes = trained.head, "plain split", list[str]()
    if head.selector is not None:
        head = head.keeping(head.smashed_shape[0] - head.num_read)
        notes = [f"{name} lets all tokens go on, whatever rates the weights have been trained at"]
    try:
        bare = replace(trained, head=head).without_exits
        bare, link = road(bare, system, "identity()", channel)
    except ValueError as error:
        return [], [f"no row of a {name}: {str(error).partition(';')[0]}"]
    ways = ways_of(bare, bare.test, np.arange(len(bare.test.labels)), link)
    return [{"policy": name, **serve(ways, AllSent(), latency).summary()}], notes


def _table(
    ways: Ways, served: Mapping[str, Served], frontiers: Mapping[str, pd.DataFrame]
) -> pd.DataFrame:
    """Return one row per policy and control."""
    whole = served["all sent"].summary()[ways.scarce]
    rows = []
    for name, one in served.items():
        found = one.summary()
        mixed = mixture(ways, found[ways.scarce])
        areas = area(frontiers[name], whole, ways.scarce) if name in frontiers else np.nan
        rows.append({"policy": name, **found, "mixture": mixed, "area": areas})
    return pd.DataFrame(rows)


def _of_held_out(trained: Trained, link: Link) -> Ways:
    rows, owner = trained.held_out
    return ways_of(trained, trained.setup.train, rows, link, owner)


def _clients(
    trained: Trained, policies: Mapping[str, Policy], held: Ways | None, link: Link
) -> pd.DataFrame:
    """Return what held-out rows of each client do: what skewed labels make of exits."""
    shards = trained.setup.shards
    if not shards or not trained.exits or not policies:
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


def _not_handed_over(trained: Trained, ways: Ways, policies: Mapping[str, Policy]) -> list[str]:
    """Say which policies would send from exits before the cut, and why they cannot."""
    names = [name for name, one in policies.items() if one.hands_over]
    if not names or len(ways.names) == 1 or ways.can_send[:-1].any():
        return []
    why = "a trained codec fits nothing else"
    if trained.head.selector is not None:
        why = "the server does not know how tokens are selected"
    return [f"{', '.join(names)}: images are sent from the cut alone; {why}"]


def _notes(trained: Trained, link: Link, served: Mapping[str, Served]) -> list[str]:
    """Say what readers of the table must know."""
    notes = ["frontiers show all thresholds on test images; none of them was chosen"]
    if not link.codec.keeps_samples:
        notes.append(f"{link.codec!r} merges samples, and an image comes alone: nothing is merged")
    summary = read_summary(trained.folder / SUMMARY) or {}
    if summary.get("cuts"):
        notes.append("clients were cut at several places; all are served as cut at the deepest")
    if summary.get("status") != "complete":
        done, rounds = summary.get("rounds"), trained.experiment.rounds
        notes.append(f"the run was stopped after round {done} of {rounds}")
    lost = {name: int(one.is_lost.sum()) for name, one in served.items() if one.is_lost.any()}
    notes += [f"{name}: the channel lost {count} payloads" for name, count in lost.items()]
    return notes
