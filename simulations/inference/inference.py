"""A trained run serves its images: policies, their controls, frontiers; tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fl_split.channels import CHANNELS
from fl_split.codecs import parse_codec
from fl_split.exchange.link import Link
from fl_split.specs import parse
from simulations.data.statistics import count, per_client
from simulations.inference import pictures
from simulations.inference.figure import draw
from simulations.inference.latency import Latency
from simulations.inference.policies import POLICIES, AllLocal, AllSent, Oracle, Policy, name_of
from simulations.inference.serving import Served, area, fitted, frontier, histogram, mixture, serve
from simulations.inference.trained import Trained, load
from simulations.inference.ways import Ways, ways_of
from simulations.runs.files import make_folder, write_whole, writing
from simulations.system.system import parse_system


@dataclass(frozen=True)
class Inference:
    """What a run gave and cost when it served its test images.

    Attributes
    ----------
    table : pandas.DataFrame
        One row per policy and control: accuracy; means over images of bytes, operations, seconds
        and joules; `mixture`, the accuracy of a random mixture at equal bytes.
    frontiers : dict
        By policy, one row for each threshold of its sweep.
    images : dict
        By policy, one row per image.
    clients : pandas.DataFrame
        By policy and client, of held-out rows: label entropy, share that leaves, accuracy.
    histograms : dict
        By policy, how many images left where.
    """

    table: pd.DataFrame
    frontiers: dict[str, pd.DataFrame]
    images: dict[str, pd.DataFrame] = field(repr=False)
    clients: pd.DataFrame = field(repr=False)
    histograms: dict[str, dict[str, int]]
    notes: list[str]

    @property
    def places(self) -> pd.DataFrame:
        """One row per policy and place: images that left there, and their share."""
        whole = {name: sum(counts.values()) for name, counts in self.histograms.items()}
        rows = [
            {"policy": name, "place": place, "images": count, "share": count / whole[name]}
            for name, counts in self.histograms.items()
            for place, count in counts.items()
        ]
        return pd.DataFrame(rows)

    def lines(self) -> tuple[list[str], list[list[str]], list[str]]:
        """Return titles and cells of a table for people, and columns that it can do without."""
        known = {key: title for key, title in TITLES.items() if self.table[key].notna().any()}
        rows = [
            [row["policy"], *(_cell(key, row[key]) for key in known)]
            for row in self.table.to_dict("records")
        ]
        return ["policy", *known.values()], rows, ["server MFLOP", "calibration", "J", "area %"]


TITLES = {
    "accuracy": "accuracy %",
    "mixture": "mixture %",
    "sent": "sent %",
    "bytes_up": "bytes",
    "device_flops": "device MFLOP",
    "server_flops": "server MFLOP",
    "seconds": "s",
    "joules": "J",
    "calibration_error": "calibration",
    "area": "area %",
}


def _cell(key: str, value: Any) -> str:
    if pd.isna(value):
        return "-"
    if TITLES[key].endswith("%"):
        return f"{100 * value:.1f}"
    return f"{1e-6 * value:.2f}" if "flops" in key else f"{value:,.3g}"


def infer(
    folder: str | Path,
    policies: Sequence[str | Policy] = ("threshold()",),
    *,
    system: str | None = None,
    codec: str | None = None,
    channel: str | None = None,
    price: float | None = None,
    rate: float | None = None,
    objects: Mapping[str, Any] | None = None,
) -> Inference:
    """Let the finished run in `folder` answer its test images, one by one.

    Parameters
    ----------
    folder : str or Path
        Of the run.
    policies : sequence of str or Policy
        When an image leaves the device.
    system : str, optional
        Devices, network and server, for seconds and joules; by default those of the run.
    codec, channel : str, optional
        Instead of the run's own.
    price : float, optional
        Fit each policy's threshold on rows that the clients held out: to the most accuracy less
        `price` times bytes, as a share of those of sending all.
    rate : float, optional
        Share of the patches that go on, where the run selects tokens; by default its own.
    objects : Mapping, optional
        Parts that stood in the place of specs when the run was trained, by key.

    Raises
    ------
    ValueError
        No finished run, a model without exits, or nothing held out where something is fitted.
    """
    trained = load(Path(folder), objects, rate)
    wanted = [one if isinstance(one, Policy) else parse(one, POLICIES) for one in policies]
    chosen = {name_of(one): one for one in wanted}
    _check(trained, chosen)
    link = _link(trained, codec, channel)
    ways = ways_of(trained, trained.test, np.arange(len(trained.test.labels)), link)
    held = None
    if price is not None:
        held = ways_of(trained, trained.setup.train, trained.held_out, link)
        chosen = {name_of(one): one for one in (fitted(one, held, price) for one in wanted)}
    latency = _latency(trained, system)
    served = {name: serve(ways, one, latency) for name, one in chosen.items()}
    frontiers = {name: frontier(ways, one, latency) for name, one in chosen.items()}
    controls: dict[str, Policy] = {"all sent": AllSent()}
    if trained.exits:
        controls |= {"all local": AllLocal(), "oracle": Oracle()}
    served |= {name: serve(ways, one, latency) for name, one in controls.items()}
    return Inference(
        _table(trained, ways, served, frontiers),
        frontiers,
        {name: served[name].images(ways.names) for name in chosen},
        _clients(trained, chosen, held, link),
        {name: histogram(one, ways) for name, one in served.items() if name in chosen},
        _notes(ways, served, price),
    )


def _check(trained: Trained, policies: Mapping[str, Policy]) -> None:
    """Raise ValueError if a policy asks exits of a run that has none."""
    if trained.exits is None:
        for name, policy in policies.items():
            if policy.needs_exits:
                raise ValueError(
                    f"{name} asks exits, and the run has none; train with exits, as "
                    "exits=plain, or take the policy all_sent"
                )


def _link(trained: Trained, codec: str | None, channel: str | None) -> Link:
    """Return the road of the run, with what is to be another."""
    link, parts = trained.experiment.parts.link(), trained.experiment.parts
    if codec is not None:
        width = trained.head.smashed_shape[1]
        other = parse_codec(codec)
        if any(one.modules(width) is not None for one in (other, parts.codec)):
            raise ValueError(f"codec: {codec} or that of the run is trained; leave codec out")
        link = Link(other, link.downlink, link.channel, link.down_channel, link.snr_db)
    if channel is not None:
        over = parse(channel, CHANNELS)
        over.check(link.codec)
        if over.asks_snr and link.snr_db is None:
            raise ValueError(f"channel: {channel} asks for the noise in a cell; train with one")
        link = Link(link.codec, link.downlink, over, link.down_channel, link.snr_db)
    return link


def _latency(trained: Trained, system: str | None) -> Latency | None:
    experiment = trained.experiment
    found = parse_system(system) if system is not None else experiment.parts.system
    return Latency.of_system(found, experiment) if found else None


def _table(
    trained: Trained,
    ways: Ways,
    served: Mapping[str, Served],
    frontiers: Mapping[str, pd.DataFrame],
) -> pd.DataFrame:
    """Return one row per policy and control, and one per format and quality of files."""
    whole = served["all sent"].summary()["bytes_up"]
    rows = []
    for name, one in served.items():
        found = one.summary()
        mixed = mixture(ways, found["bytes_up"]) if trained.exits else np.nan
        areas = area(frontiers[name], whole) if name in frontiers else np.nan
        rows.append({"policy": name, **found, "mixture": mixed, "area": areas})
    of_files = pictures.files(trained, np.arange(len(trained.test.labels)))
    return pd.concat([pd.DataFrame(rows), of_files], ignore_index=True)


def _clients(
    trained: Trained, policies: Mapping[str, Policy], held: Ways | None, link: Link
) -> pd.DataFrame:
    """Return what held-out rows of each client do: what skewed labels make of exits."""
    shards = trained.setup.shards
    if not shards or not trained.exits:
        return pd.DataFrame()
    held = held or ways_of(trained, trained.setup.train, trained.held_out, link)
    owners = np.repeat(sorted(shards), [len(shards[client]) for client in sorted(shards)])
    entropy = per_client(count(trained.setup.train))["entropy"]
    found = []
    for name, policy in policies.items():
        one = serve(held, policy)
        frame = pd.DataFrame(
            {"client": owners, "left": ~one.decisions.is_sent, "accuracy": one.right}
        )
        means = frame.groupby("client").mean().astype(float).reset_index()
        means["rows"] = frame.groupby("client").size().to_numpy()
        means["entropy"] = means["client"].map(entropy)
        found.append(means.assign(policy=name))
    return pd.concat(found, ignore_index=True)


def _notes(ways: Ways, served: Mapping[str, Served], price: float | None) -> list[str]:
    """Say what readers of the table must know."""
    notes = []
    if price is not None:
        notes.append(f"thresholds were fitted to held-out rows, price {price:g}")
    elif len(ways.names):
        notes.append("frontiers show all thresholds on test images; none of them was chosen")
    lost = {name: int(one.is_lost.sum()) for name, one in served.items() if one.is_lost.any()}
    notes += [f"{name}: the channel lost {count} payloads" for name, count in lost.items()]
    return notes


def write(found: Inference, folder: Path) -> list[Path]:
    """Write tables and figures into `folder`; return the files."""
    make_folder(folder)
    sweeps = [frame.assign(sweep=name) for name, frame in found.frontiers.items()]
    tables = {
        "infer.csv": found.table,
        "frontier.csv": pd.concat(sweeps, ignore_index=True),
        "places.csv": found.places,
    }
    if len(found.clients):
        tables["infer_clients.csv"] = found.clients
    for name, frame in tables.items():
        write_whole(folder / name, frame.to_csv(index=False).encode())
    images = pd.concat([frame.assign(policy=name) for name, frame in found.images.items()])
    write_whole(folder / "images.parquet", images.to_parquet(index=False))
    with writing(folder / "infer.svg"):
        draw(found.table, found.frontiers, found.histograms).savefig(folder / "infer.svg")
    return [folder / name for name in (*tables, "images.parquet", "infer.svg")]
