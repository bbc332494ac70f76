"""One page from folders of runs: HTML that needs nothing else, or Markdown and its files."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from simulations.report import curves, distributions, experts, overview, split_inference, tables
from simulations.report.figures import Drawing
from simulations.report.labels import ordered, short, span
from simulations.report.live import Live, with_progress
from simulations.report.marks import Mark, Marks, kept_marks
from simulations.report.retimed import under
from simulations.report.runs import Configuration, RunCollection, collect
from simulations.report.scripts import datatables_script, datatables_style, plotly_script
from simulations.report.text_table import shortened_apart
from simulations.runs.files import write_whole
from simulations.runs.provenance import unlike

FIRST = "the first method; choose another with --baseline"
"""Said of a baseline that the user did not choose."""

OURS = "simulated with fl-split; every byte counted"
"""What every page says of itself."""

LONGEST = 72
"""Characters of a label in a table."""

NUMBER = re.compile(r"(?:< )?\+?(-?\d+(?:\.\d+)?)(?= ±|,|$)")
"""What a cell of numbers begins with."""

FORMS = {".html": "html", ".htm": "html", ".md": "md"}
"""Formats by the end of a file's name."""


@dataclass(frozen=True)
class Page:
    """All that a report shows, ready to be laid out."""

    collection: RunCollection
    facts: Mapping[str, str]
    tables: Sequence[tables.ReportTable]
    drawings: Sequence[Drawing]
    marks: Marks
    live: Live | None = None

    @cached_property
    def whole_labels(self) -> dict[str, str]:
        """Longest text of each configuration, by label."""
        return {one.label: one.whole_label for one in self.collection.configurations}

    @cached_property
    def names(self) -> dict[str, str]:
        """Text of each configuration in tables, by label; cut if all texts still differ."""
        labels = list(self.whole_labels)
        return dict(zip(labels, shortened_apart(labels, LONGEST), strict=True))

    @property
    def title(self) -> str:
        """What the page is about, in a few words."""
        count = len(self.collection.configurations)
        names = ", ".join(one.label for one in self.collection.configurations)
        return names if count < 3 else f"{count} configurations"


def build(
    folders: Iterable[Path],
    baseline: str | None = None,
    kept: Mapping[str, Mark] | None = None,
    live: Live | None = None,
    state: tables.ReportTable | None = None,
    systems: Sequence[str] = (),
) -> Page:
    """Read all runs below `folders` and work out what is to be shown.

    Parameters
    ----------
    folders : Iterable[Path]
        Folders of runs, at any depth.
    baseline : str, optional
        Whom to compare with, as `RunCollection.baselines` says.
    kept : Mapping[str, Mark], optional
        How configurations looked on an older page.
    live : Live, optional
        Makes a page of runs that go on; these count as `with_progress` says.
    state : ReportTable, optional
        A table to begin with.
    systems : sequence of str, optional
        Time every run under each of these.

    Raises
    ------
    ValueError
        No complete run, or an unknown baseline.
    """
    counted = partial(under, systems) if systems else with_progress if live else list
    collection = collect(folders, counted)
    marks = Marks.of(collection.configurations, kept)
    against = collection.baselines(baseline)
    remark = FIRST if baseline is None else ""
    shown = _tables(collection, against, remark)
    bases = dict.fromkeys(one.label for one in against.values())
    is_compared = any(table.name == "differences" for table in shown)
    told = f"{'; '.join(bases)}{f' ({remark})' * bool(remark)}" if is_compared else ""
    shown = [*([state] if state else []), *shown]
    return Page(
        collection, _facts(collection, told), shown, _drawings(collection, marks), marks, live
    )


def _tables(
    collection: RunCollection, against: Mapping[str, Configuration], remark: str
) -> list[tables.ReportTable]:
    found = (
        overview.overview_table(collection),
        tables.results_table(collection),
        tables.differences_table(collection, against, remark),
        tables.metrics_table(collection),
        split_inference.table(collection),
        experts.table(collection),
        tables.runs_table(collection),
    )
    return [table for table in found if table]


def _drawings(collection: RunCollection, marks: Marks) -> list[Drawing]:
    first = overview.overview_figure(collection, marks)
    curved = curves.figures(collection, marks)
    served = [*split_inference.figures(collection), *experts.figures(collection)]
    return [*([first] if first else []), *curved, *served, *distributions.figures(collection)]


def html(page: Page) -> str:
    """Lay `page` out as one file that needs no other."""
    return _environment().get_template("page.html.jinja").render(page=page)


def markdown(page: Page, files: str) -> str:
    """Lay `page` out as Markdown that shows figures from the folder `files`."""
    return _environment().get_template("page.md.jinja").render(page=page, files=files)


def form_of(path: Path) -> str:
    """Return the format that a file's name asks for.

    Raises
    ------
    ValueError
        It asks for none that we write.
    """
    if path.suffix.lower() not in FORMS:
        raise ValueError(
            f"output: expected a name that ends in {', '.join(FORMS)}, got {str(path)!r}; "
            "or give --format html or md"
        )
    return FORMS[path.suffix.lower()]


def write(page: Page, path: Path, form: str) -> None:
    """Write `page` to `path` as html or md; Markdown's files go to a folder beside it.

    The folder of `path` is made if it is not there.

    Raises
    ------
    ValueError
        `path` cannot be written to, or is a file of something else.
    """
    try:
        if path.exists() and OURS not in path.read_text(encoding="utf-8", errors="replace"):
            raise ValueError(f"output: {str(path)!r} is no report; give another name or remove it")
        path.parent.mkdir(parents=True, exist_ok=True)
        if form == "html":
            return write_whole(path, html(page).encode())
        folder = path.with_name(f"{path.stem}_files")
        folder.mkdir(exist_ok=True)
        for name, text in attachments(page).items():
            write_whole(folder / name, text.encode())
        write_whole(path, markdown(page, folder.name).encode())
    except OSError as error:
        raise ValueError(f"output: cannot write {str(path)!r}: {error.strerror or error}") from None


def older_marks(path: Path) -> dict[str, Mark]:
    """Return how configurations look on the page at `path`, if there is one."""
    is_there = os.path.isfile(path)
    text = path.read_text(encoding="utf-8", errors="replace") if is_there else ""
    return kept_marks(text) if OURS in text else {}


def attachments(page: Page) -> dict[str, str]:
    """Everything that can be downloaded, by file name."""
    files = {f"{table.name}.csv": numbers(table.data) for table in page.tables}
    files |= {f"{table.name}.tex": table.latex() for table in page.tables}
    files |= {f"{drawing.name}.csv": numbers(drawing.data) for drawing in page.drawings}
    return files | {f"{drawing.name}.svg": drawing.file for drawing in page.drawings}


def numbers(data: pd.DataFrame) -> str:
    """Return a table as CSV that reads back to the same numbers."""
    return data.to_csv(index=False, lineterminator="\n")


def sort_value(cell: str) -> str:
    """Return the number that a cell of a table begins with, less than any other for none."""
    found = NUMBER.match(cell.replace(",", "") if cell[:1] in "+-0123456789" else cell)
    return found[1] if found else "-1e99" if cell == "-" else ""


def _facts(collection: RunCollection, baseline: str) -> dict[str, str]:
    """What was run, by heading."""
    runs = collection.runs
    seeds = sorted({run.seed for run in runs})
    differing = {
        key: "; ".join(
            dict.fromkeys(
                one.differing[key].removeprefix(f"{key}=") for one in collection.configurations
            )
        )
        for key in collection.keys
    }
    done = [str(count) for count in sorted({len(run.rounds) for run in runs})]
    few = [one.label for one in collection.configurations if len(one.runs) == 1]
    facts = {
        "runs": f"{len(runs)} runs of {len(collection.configurations)} configurations",
        "seeds": ", ".join(map(str, seeds)),
        "one seed only, so no interval": "; ".join(few),
        "baseline": baseline,
        "rounds done": f"{span(done)}: final accuracies are not of equal rounds"
        if len(done) > 1
        else "",
        "always the commonest class": _spread([r.summary.get("majority_accuracy") for r in runs]),
        **{f"{key} (differs)": text for key, text in differing.items()},
        **{key: short(key, collection.common[key]) for key in ordered(collection.common)},
        "so far only": "; ".join(
            f"{run.name} (round {len(run.rounds)} of {run.settings.get('rounds')})"
            for run in runs
            if run.is_going_on
        ),
        "left out": "; ".join(f"{run.name} ({run.flaw})" for run in collection.left_out),
        "versions": _merged([run.summary.get("versions", {}) for run in runs]),
        "machine": _merged([run.summary.get("machine", {}) for run in runs]),
        "unlike CPUs": unlike(run.summary for run in runs),
        "engine": "; ".join(sorted({short("engine", run.settings.get("engine")) for run in runs})),
    }
    return {name: text for name, text in facts.items() if text not in {"", "None"}}


def _spread(shares: Sequence[float | None]) -> str:
    """Return the least and the largest known value, in %."""
    known = [f"{100 * share:.1f}" for share in sorted({s for s in shares if s is not None})]
    return f"{span(known)} % right" if known else ""


def _merged(dictionaries: Sequence[Mapping[str, Any]]) -> str:
    """Name every value of every key once."""
    found: dict[str, dict[str, None]] = {}
    for one in dictionaries:
        for key, value in one.items():
            text = value if isinstance(value, str) else json.dumps(value)
            found.setdefault(key, {})[text] = None
    return ", ".join(f"{key.replace('_', ' ')} {' / '.join(vs)}" for key, vs in found.items())


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("simulations.report", "templates"),
        autoescape=lambda name: bool(name and ".html" in name),
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    for script in (plotly_script, datatables_script, datatables_style):
        environment.globals[script.__name__] = script
    environment.filters["sort_value"] = sort_value
    environment.filters["data_uri"] = _data_uri
    environment.filters["numbers"] = numbers
    environment.filters["labelled"] = _labelled
    return environment


def _data_uri(text: str, kind: str) -> str:
    return f"data:{kind};charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}"


def _labelled(drawing: Drawing) -> Markup:
    """Return the SVG for a page, with its description for screen readers."""
    start = Markup('<svg role="img" aria-label="{}" style="max-width: {:.0f}px"')
    return start.format(drawing.alt, 130 * drawing.width) + Markup(drawing.inline[len("<svg") :])
