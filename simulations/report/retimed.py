"""Reports of finished runs under systems that they did not run on: a run counts once for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from simulations.report.finished import FinishedRun
from simulations.report.timing import check_graphs, spent_under, system_of
from simulations.runs.columns import ENERGY_JOULES, OF_SYSTEM, VIRTUAL_SECONDS
from simulations.runs.parts import spelt_out
from simulations.system.system import System


def under(systems: Sequence[str], runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Return each complete run once for each system, with the columns that it would have had.

    Raises
    ------
    ValueError
        A spec is none of a system, or a run has no task graphs.
    """
    known = {spelt_out("system", spec): system_of(spec) for spec in systems}
    whole = [run for run in runs if not run.flaw]
    for run in whole:
        check_graphs(run)
    return [
        *(_retimed(run, spec, system) for run in whole for spec, system in known.items()),
        *(run for run in runs if run.flaw),
    ]


def _retimed(run: FinishedRun, spec: str, system: System) -> FinishedRun:
    spent = spent_under(run, spec, system)
    columns = {
        VIRTUAL_SECONDS: [one.seconds for one in spent],
        ENERGY_JOULES: [float(one.joules.sum()) for one in spent],
    }
    sums = {name: sum(values) for name, values in columns.items()}
    return replace(
        run,
        settings={**run.settings, "system": spec},
        rounds=run.rounds.assign(**columns),
        summary={**run.summary, **sums, "metrics": _metrics(run.summary)},
    )


def _metrics(summary: Mapping[str, object]) -> list[dict[str, object]]:
    """Return what the summary of a run with a system declares."""
    ours = {metric.name for metric in OF_SYSTEM}
    others = [one for one in summary.get("metrics", ()) if one["name"] not in ours]  # type: ignore
    return [*others, *map(asdict, OF_SYSTEM)]
