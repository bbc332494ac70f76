"""Several runs: side by side, as a grid, at equal budgets; and the report of all of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from simulations.api.one import Callbacks, as_list, stopped, warn_of_data
from simulations.api.plans import of_pareto, of_several, of_sweep, prepare_all
from simulations.api.progress import counting, is_watched, watching
from simulations.api.results import Comparison, Run, Study
from simulations.report import write_comparison
from simulations.report.page import build, form_of, older_marks, write
from simulations.report.timing import table, time_runs
from simulations.report.within import spendings
from simulations.report.within import within as table_within
from simulations.runs.experiment_data import forget
from simulations.runs.lock import alone
from simulations.runs.paths import chosen_folder, expanded
from simulations.runs.quiet import quiet_libraries
from simulations.runs.run import run_each
from simulations.studies import study
from simulations.studies.cells import LOCK, Cell, faults
from simulations.studies.pareto import AXES, FRONT, conclude

Folders = str | Path | Run | Iterable[str | Path | Run]
Rows = Mapping[str, Mapping[str, Any]] | Sequence[Mapping[str, Any]]


def compare(
    runs: Rows | str | Path,
    *,
    out: str | Path | None = None,
    callback: Callbacks = (),
    progress: bool | None = None,
    **keys: Any,
) -> Comparison:
    """Train several models, one after the other on the same workers.

    Parameters
    ----------
    runs : dict, list, str or Path
        Keys in which each run differs, by its name; or a list of them, each with a ``name``; or
        a configuration file with ``[[compare]]`` tables, or the name of a shipped one.
    out, callback, progress
        As for :func:`~simulations.api.run`.
    keys
        Keys of all runs, objects as well.

    Raises
    ------
    ValueError
        A run that cannot work; the message names it.

    Examples
    --------
    >>> both = fs.compare({"none": {}, "adc": {"codec": "adc(ratio=0.1)"}}, rounds=20)
    >>> both.table[["run", "final_accuracy", "ratio"]]
    """
    quiet_libraries()
    plans = of_several(runs, keys)
    folder = chosen_folder(out, next(iter(plans.values())).get("out")).absolute()
    shows = is_watched() if progress is None else progress
    with counting(shows) as told:
        setups = prepare_all(plans, folder, told)
    warn_of_data([*setups.values()])
    with stopped(folder):
        watch = partial(watching, callbacks=as_list(callback), shows=shows)
        write_comparison(run_each(setups, watch), folder)
    objects = {name: setup.experiment.objects() for name, setup in setups.items()}
    return Comparison(folder, {name: Run(folder / name, objects[name]) for name in setups})


def sweep(
    config: str | Path | None = None,
    *,
    grid: Mapping[str, Iterable[Any]] | None = None,
    out: str | Path | None = None,
    jobs: int = 0,
    progress: bool | None = None,
    **keys: Any,
) -> Study:
    """Train a grid of models, several at once, each in a process and a folder of its own.

    The same call with the same `out` goes on with a stopped sweep.

    Parameters
    ----------
    config : str or Path, optional
        A configuration file, or the name of a shipped one.
    grid : dict
        The values of each key that has several, objects as well; seeds vary fastest.
    jobs : int
        Most runs at once; 0 takes one per core, as memory allows.
    out, progress, keys
        As for :func:`~simulations.api.run`.

    Raises
    ------
    ValueError
        A cell that cannot work, before any has begun; the message names it.

    Examples
    --------
    >>> study = fs.sweep(grid={"codec": ["identity", "adc(ratio=0.1)"], "seed": range(3)})
    >>> study.table.groupby("codec")["final_accuracy"].agg(["mean", "std"])
    """
    quiet_libraries()
    several = {key: _listed(values) for key, values in (grid or {}).items()}
    plan = of_sweep(config, several, keys)
    return _study(plan.cells, plan.axes, lambda rows, folder: rows, out, jobs, progress)


def pareto(
    config: str | Path,
    *,
    out: str | Path | None = None,
    jobs: int = 0,
    progress: bool | None = None,
    **keys: Any,
) -> Study:
    """Compare codecs at equal rounds, equal bytes and equal client compute.

    Parameters
    ----------
    config : str or Path
        A configuration file with a ``[pareto]`` table, or the name of a shipped one.
    out, jobs, progress, keys
        As for :func:`sweep`.

    Raises
    ------
    ValueError
        The table is missing, or a cell cannot work.
    """
    quiet_libraries()
    plan, found = of_pareto(config, keys)

    def front(rows: pd.DataFrame, folder: Path) -> pd.DataFrame:
        conclude(found, plan.budgets(), folder)
        return pd.read_csv(folder / FRONT)

    return _study(found, AXES, front, out, jobs, progress)


def report(
    folders: str | Path | Sequence[str | Path],
    output: str | Path = "report.html",
    *,
    baseline: str | None = None,
    system: str | Sequence[str] = (),
) -> Path:
    """Make one page of tables and figures of finished runs; runs differing in seed are grouped.

    Parameters
    ----------
    folders : str, Path or sequence
        Folders of runs, at any depth.
    output : str or Path
        The page; its ending decides: ``.html`` or ``.md``.
    baseline : str, optional
        Whom to compare with: part of a configuration's label.
    system : str or sequence of str, optional
        Systems that every run is timed under; it counts once for each.

    Returns
    -------
    Path
        `output`.

    Raises
    ------
    ValueError
        There are no runs, or `baseline` names none of them, or one cannot be timed.
    """
    several = [folders] if isinstance(folders, str | Path) else folders
    path, runs = expanded(output), [expanded(one) for one in several]
    systems = [system] if isinstance(system, str) else system
    page = build(runs, baseline, older_marks(path), systems=systems)
    write(page, path, form_of(path))
    return path


def time(
    folders: Folders,
    system: str | Sequence[str],
    accuracies: Sequence[float] = (),
) -> pd.DataFrame:
    """Tell what finished runs would have taken on other devices and networks, without training.

    Parameters
    ----------
    folders : str, Path, Run or several
        Runs, or folders of them at any depth.
    system : str or several
        As ``"devices('pi5') | lte()"``: see the guide on time.
    accuracies : sequence of float
        Shares in 0..1 that times are told to, beside shares of the best accuracy.

    Returns
    -------
    DataFrame
        A row for each configuration and system, see :func:`simulations.report.timing.table`.

    Raises
    ------
    ValueError
        No run is complete or recorded its tasks, or a system is wrong.
    """
    return table(time_runs(_paths(folders), _listed(system)), accuracies)


def within(
    folders: Folders, budgets: str | Sequence[str], system: str | Sequence[str] = ()
) -> pd.DataFrame:
    """Tell which accuracy finished runs had when they had used up the same, without training.

    Parameters
    ----------
    folders : str, Path, Run or several
        Runs, or folders of them at any depth.
    budgets : str or several
        As ``"bytes(1e8, of='all')"`` or ``"client_flops(1e12)"``: see the guide on comparing.
    system : str or several
        Under which `seconds` and `joules` are counted.

    Returns
    -------
    DataFrame
        A row for each configuration and budget, see :func:`simulations.report.within.within`.

    Raises
    ------
    ValueError
        No run is complete, or a budget or a system is wrong.
    """
    return table_within(spendings(_paths(folders), _listed(budgets), _listed(system)))


def _paths(folders: Folders) -> list[Path]:
    several = [folders] if isinstance(folders, str | Path | Run) else folders
    return [one.folder if isinstance(one, Run) else expanded(one) for one in several]


def _study(
    found: Sequence[Cell],
    axes: Collection[str],
    finish: Callable[[pd.DataFrame, Path], pd.DataFrame],
    out: str | Path | None,
    jobs: int,
    progress: bool | None,
) -> Study:
    """Run the cells that are not finished, and read what there is."""
    forget()
    folder = chosen_folder(out, found[0].experiment.out).absolute()
    missing = study.missing(found, folder, axes)
    for fault in faults(found, folder):
        warnings.warn(fault, stacklevel=3)
    processes = study.cell_processes(missing, study.combinations(missing), folder, jobs)
    shows = is_watched() if progress is None else progress
    with (
        stopped(folder),
        alone(folder, LOCK),
        tqdm(total=len(found), disable=not shows, unit="run") as bar,
    ):

        def show(state: study.StudyState) -> None:
            bar.update(sum(cell.status == "complete" for cell in state.cells) - bar.n)

        rows = study.run_cells(processes, found, folder, show)
        table = finish(rows, folder)
    if processes.failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in processes.failed.items())
        raise RuntimeError(f"{len(processes.failed)} of {len(found)} runs failed ({reasons})")
    for text in (study.cells_that_lost_clients(rows, folder), study.unlike_cpus(found, folder)):
        if text:
            warnings.warn(text, stacklevel=3)
    runs = {c.name: Run(folder / c.name, c.experiment.objects()) for c in found}
    return Study(folder, table, runs)


def _listed(values: Any) -> list[Any]:
    """Return the values of a key as a list; one alone may be given as it is."""
    is_one = isinstance(values, str) or not isinstance(values, Iterable)
    return [values] if is_one else list(values)
