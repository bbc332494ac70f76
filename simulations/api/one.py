"""One run: begin it, or go on with it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from simulations.api.objects import with_specs
from simulations.api.plans import of_one, prepare_all
from simulations.api.progress import Callback, counting, is_watched, watching
from simulations.api.results import Run
from simulations.runs import checkpoint
from simulations.runs.about_data import warnings_of
from simulations.runs.experiment_data import forget
from simulations.runs.news import left_to_nobody
from simulations.runs.observers import Observer
from simulations.runs.paths import chosen_folder, expanded
from simulations.runs.provenance import resumed_elsewhere
from simulations.runs.quiet import quiet_libraries
from simulations.runs.run import run_each
from simulations.runs.setup import Setup, prepare

Callbacks = Callback | Sequence[Callback]


def run(
    config: str | Path | None = None,
    *,
    out: str | Path | None = None,
    callback: Callbacks = (),
    observers: Sequence[Observer] = (),
    progress: bool | None = None,
    **keys: Any,
) -> Run:
    """Train one model over many clients; return its results.

    Parameters
    ----------
    config : str or Path, optional
        A configuration file, or the name of a shipped one; without it all keys have defaults.
    out : str or Path, optional
        Folder for the results; by default ``runs/`` and the time.
    callback : Callable or sequence
        Called after each round with its row (a dict) and all there is to know about it.
    observers : sequence of Observer
        Measure each round; their numbers become columns.
    progress : bool, optional
        Show a bar; by default where somebody looks, at a terminal or a notebook.
    keys
        Keys of the experiment, see ``fl-split list keys``. Where a spec string is expected, an
        object does as well: a codec, a strategy, ``model`` as a module whose children are the
        stages, ``dataset`` as ``(images, labels)``, a data set of Hugging Face or torch, or a
        table, ``partition`` as a list of rows by client.

    Returns
    -------
    Run
        Its tables, its summary, its model.

    Raises
    ------
    ValueError
        A key or a value that cannot work; the message names it.
    NoClientsLeft
        All clients of a round were dropped; results so far are kept.
    KeyboardInterrupt
        The run was stopped; what it has done so far is in its folder.

    Examples
    --------
    >>> run = fs.run(codec="adc(ratio=0.1)", strategy="parallel", clients=100, rounds=20)
    >>> run.rounds[["round", "accuracy", "payload_bytes_up"]]
    """
    quiet_libraries()
    values = of_one(config, keys)
    folder = chosen_folder(out, values.get("out")).absolute()
    shows = is_watched() if progress is None else progress
    with counting(shows) as told:
        (setup,) = prepare_all({"": values}, folder, told).values()
    warn_of_data([setup])
    with stopped(folder):
        watch = partial(watching, callbacks=as_list(callback), shows=shows)
        run_each({folder.name: setup}, watch, observers=observers)
    return Run(folder, setup.experiment.objects())


def resume(
    folder: str | Path,
    *,
    callback: Callbacks = (),
    observers: Sequence[Observer] = (),
    progress: bool | None = None,
    **keys: Any,
) -> Run:
    """Go on with a stopped run from its last checkpoint; the result is that of one never stopped.

    Parameters
    ----------
    folder : str or Path
        Of the run.
    callback, observers, progress
        As for :func:`run`.
    keys
        Objects that stood in the place of spec strings: they must be the same again. Keys that
        change no result, as ``engine``, may differ.

    Raises
    ------
    ValueError
        There is no checkpoint, an object is missing, or it is another one.
    """
    quiet_libraries()
    forget()
    path = expanded(folder).absolute()
    experiment, before = checkpoint.read(path, with_specs(keys))
    shows = is_watched() if progress is None else progress
    with counting(shows) as told:
        setup = prepare(experiment, told)
    if text := resumed_elsewhere(before.cpu, setup.device):
        warnings.warn(text, stacklevel=2)
    with stopped(path):
        watch = partial(watching, callbacks=as_list(callback), shows=shows, done=before.rounds)
        run_each({path.name: setup}, watch, resumed=before, observers=observers)
    return Run(path, experiment.objects())


def warn_of_data(setups: Sequence[Setup]) -> None:
    """Warn, once each, of samples and classes that nobody holds, and of doubtful data."""
    doubts = [text for setup in setups for text in warnings_of(setup)]
    for text in [*left_to_nobody([one.experiment for one in setups]), *dict.fromkeys(doubts)]:
        warnings.warn(text, stacklevel=3)


def as_list(callback: Callbacks) -> Sequence[Callback]:
    """Return callbacks as a list; one alone may be given as it is."""
    return [callback] if callable(callback) else callback


@contextmanager
def stopped(folder: Path) -> Iterator[None]:
    """Say where the results of a stopped run are, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        text = f"stopped; fl_split.load({str(folder)!r}) reads the rounds that are finished"
        raise KeyboardInterrupt(text) from None
    except Exception as error:
        error.add_note(f"finished rounds, if any, are in {folder}")
        raise
