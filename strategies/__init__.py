"""Strategies: who trains when, and what is averaged. One file per algorithm, one line here."""

from fl_split.tables import Table
from strategies.ampere import Ampere
from strategies.centralised import Centralised
from strategies.cse_fsl import CSEFSL
from strategies.cyclesl import CycleSL
from strategies.fedavg import FedAvg
from strategies.feddyn import FedDyn
from strategies.fednova import FedNova
from strategies.fedprox import FedProx
from strategies.fsl_sage import FSLSAGE
from strategies.gas import GAS
from strategies.local import Local
from strategies.mergesfl import MergeSFL
from strategies.minibatch import MiniBatch
from strategies.moon import MOON
from strategies.parallel import Parallel
from strategies.s2fl import S2FL
from strategies.scaffold import Scaffold
from strategies.sequential import Sequential
from strategies.server.loop import train
from strategies.server.participants import NoClientsLeft
from strategies.server.strategy import Strategy
from strategies.server.training import Progress, RoundResult, Training, TrainingFailed
from strategies.sflv1 import SFLV1
from strategies.sflv2 import SFLV2
from strategies.sflv3 import SFLV3
from strategies.sglr import SGLR

STRATEGIES: Table[type[Strategy]] = Table(
    Strategy,
    "fl_split.strategies",
    {
        "ampere": Ampere,
        "centralised": Centralised,
        "cse_fsl": CSEFSL,
        "cyclesl": CycleSL,
        "fedavg": FedAvg,
        "feddyn": FedDyn,
        "fednova": FedNova,
        "fedprox": FedProx,
        "fsl_sage": FSLSAGE,
        "gas": GAS,
        "local": Local,
        "mergesfl": MergeSFL,
        "minibatch": MiniBatch,
        "moon": MOON,
        "parallel": Parallel,
        "s2fl": S2FL,
        "scaffold": Scaffold,
        "sequential": Sequential,
        "sflv1": SFLV1,
        "sflv2": SFLV2,
        "sflv3": SFLV3,
        "sglr": SGLR,
    },
)

__all__ = [
    "STRATEGIES",
    "NoClientsLeft",
    "Progress",
    "RoundResult",
    "Strategy",
    "Training",
    "TrainingFailed",
    "train",
]
