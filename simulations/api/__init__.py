"""The Python API, behind :mod:`fl_split`: runs, comparisons and studies in a few lines.

import fl_split as fs
run = fs.run(codec="adc(ratio=0.1)", clients=100, rounds=20)
run.rounds, run.summary, run.model
"""

from simulations.api.looking import Data, data
from simulations.api.one import resume, run
from simulations.api.results import Comparison, NoResultsError, Run, Study, load
from simulations.api.serving import infer
from simulations.api.several import compare, pareto, report, sweep, time, within

__all__ = [
    "Comparison",
    "Data",
    "NoResultsError",
    "Run",
    "Study",
    "compare",
    "data",
    "infer",
    "load",
    "pareto",
    "report",
    "resume",
    "run",
    "sweep",
    "time",
    "within",
]
