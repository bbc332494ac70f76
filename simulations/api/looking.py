"""What data are, and what was decided about them: before training, and of a finished run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from fl_split.specs import shortened
from simulations.api.objects import with_specs
from simulations.api.progress import counting, is_watched
from simulations.data import showing
from simulations.data.descriptions import DATASETS
from simulations.data.showing import View
from simulations.runs.about_data import FILE
from simulations.runs.experiment import Experiment
from simulations.runs.experiment_data import forget, view
from simulations.runs.files import DamagedError
from simulations.runs.quiet import quiet_libraries
from simulations.runs.settings import keys_of_data

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 30
"""Classes that are shown; :attr:`Data.classes` has all."""

DECISIONS = ["what", "decision", "key", "is_warning"]
CLASSES = ["class", "training_images", "test_images"]


@dataclass(frozen=True, repr=False, eq=False)
class Data:
    """What data are, and what was decided about them; shown as text, in a notebook as tables.

    Attributes
    ----------
    dataset : str
        What was asked for.
    decisions : pandas.DataFrame
        Columns what, decision, key (which decides otherwise) and is_warning (the data may be
        other than you think).
    classes : pandas.DataFrame
        Columns class, training_images and test_images.
    """

    dataset: str
    decisions: pd.DataFrame
    classes: pd.DataFrame
    _view: View | None = field(default=None)

    @classmethod
    def of_run(cls, folder: Path) -> Data:
        """Read what a run has stored; DamagedError if that cannot be read."""
        path = folder / FILE
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            train, test = (found.get(f"{half}_images_of", {}) for half in ("training", "test"))
            classes = ((name, train[name], test[name]) for name in train)
            name = shortened(found["dataset"], DATASETS)
            return cls(name, _decisions(found["decisions"]), _classes(classes))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedError(
                f"{path} cannot be read ({error!r}); fl_split.data(...) looks at the data anew"
            ) from None

    def plot(self) -> Figure:
        """Draw ten training images as they are trained on, with their classes.

        Raises
        ------
        ValueError
            It is of a run, which keeps no images.
        """
        if self._view is None:
            raise ValueError("a run keeps no images; fl_split.data(...).plot() draws them")
        return showing.figure(self._view)

    def __repr__(self) -> str:
        """Show all in lines: what was decided, then classes with counts."""
        width = max(map(len, self.decisions["what"]), default=0)
        rows = zip(self.decisions["what"], self.decisions["decision"], strict=True)
        lines = [self.dataset, *(f"{what:{width}}  {text}" for what, text in rows)]
        rest = len(self.classes) - SHOWN
        more = [f"and {rest:,} more"] if rest > 0 else []
        return "\n".join([*lines, self.classes.head(SHOWN).to_string(index=False), *more])

    def _repr_html_(self) -> str:
        """Show two tables in a notebook."""
        with pd.option_context("display.max_colwidth", None):
            decisions = self.decisions[DECISIONS[:3]].to_html(index=False)
            classes = self.classes.to_html(index=False, max_rows=SHOWN)
        return f"<p>{escape(self.dataset)}</p>{decisions}{classes}"


def data(dataset: Any = "digits()", *, progress: bool | None = None, **keys: Any) -> Data:
    """Look at data before training on them: splits, classes with counts, what is decided.

    Nothing is trained. Each image is decoded, so that none stops a run later.

    Parameters
    ----------
    dataset : object
        As the key `dataset` of :func:`~simulations.api.run`; or a configuration file.
    progress : bool, optional
        Show a bar; by default where somebody looks, at a terminal or a notebook.
    keys
        Other keys of an experiment, as ``image_size``; with ``model`` images are as it takes them.

    Raises
    ------
    ValueError
        The data cannot be used; the message says why.

    Examples
    --------
    >>> fs.data("local(path='photos')", image_size=64)
    """
    quiet_libraries()
    forget()
    experiment = Experiment.from_dict(with_specs({**keys_of_data(dataset), **keys}))
    with counting(is_watched() if progress is None else progress) as told:
        seen = view(experiment, told, decodes=True)
    decisions = _decisions(vars(one) for one in seen.decisions)
    classes = _classes(showing.classes(seen.looked.source))
    return Data(shortened(experiment.dataset, DATASETS), decisions, classes, seen)


def _decisions(found: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return what was decided as a table, a row for each decision."""
    rows = [(one["about"], one["text"], one["key"], one["is_warning"]) for one in found]
    return pd.DataFrame(rows, columns=DECISIONS)


def _classes(rows: Iterable[tuple[str, int, int]]) -> pd.DataFrame:
    return pd.DataFrame([*rows], columns=CLASSES)
