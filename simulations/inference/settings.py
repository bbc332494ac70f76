"""Settings: what one trained run can be served with, and what each costs and gives.

A setting is a share of the patches and a codec. A controller chooses one for each image. Images
come in slots, one of each client in each; a slot is a round of the system, so that a cell with
fading has another signal-to-noise ratio (SNR) in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from fl_split.codecs import CODECS
from fl_split.specs import canonical, shortened, stages

Numbers = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Setting:
    """A share of the patches and a codec; None is the run's own."""

    rate: float | None = None
    codec: str | None = None

    def __str__(self) -> str:
        codec = "" if self.codec is None else shortened(self.codec, CODECS)
        rate = "" if self.rate is None else f"rate {self.rate:g}"
        return " at ".join(one for one in (codec, rate) if one)


def check_once(key: str, names: Sequence[str]) -> None:
    """Raise ValueError if a name comes twice."""
    if twice := [one for number, one in enumerate(names) if one in names[:number]]:
        raise ValueError(f"{key}: {twice[0]} is given twice; leave one out")


def settings_of(rates: Sequence[float], codecs: Sequence[str]) -> list[Setting]:
    """Return all pairs, each once; one of two lists may be empty.

    Raises
    ------
    ValueError
        A rate that is no share, one that comes twice, or fewer than two settings.
    """
    if wrong := [rate for rate in rates if not 0 < rate <= 1]:
        raise ValueError(f"rates must be in (0, 1], got {wrong[0]:g}")
    check_once("rates", [f"{rate:g}" for rate in rates])
    spelt = [[canonical(stage, CODECS) for stage in stages(codec)] for codec in codecs]
    check_once("codecs", [" | ".join(one) for one in spelt])
    some_rates: list[float | None] = [*rates] or [None]
    some_codecs: list[str | None] = [*codecs] or [None]
    found = [Setting(*pair) for pair in product(some_rates, some_codecs)]
    if len(found) < 2:
        raise ValueError(
            "a controller or a sweep needs two settings or more; give rates or codecs, as "
            "--rates '0.1, 0.5' or --codecs 'uniform(bits=2); uniform(bits=8)'"
        )
    return found


@dataclass(frozen=True)
class Table:
    """Means over held-out images: accuracy and cost (S, K) of S settings at K SNRs in dB, (K,).

    Without a channel that asks for an SNR there is one column, and its SNR is not a number. Of a
    cost, `telling`, a number or (S, K), says which setting it is; constants need not tell it.
    """

    snrs_db: Numbers
    accuracy: Numbers
    cost: Numbers
    telling: Numbers | float = 0.0

    def state(self, snr_db: Numbers) -> Integers:
        """Return the columns of the nearest SNRs, of the shape of `snr_db`."""
        return np.asarray(np.abs(snr_db[..., None] - self.snrs_db).argmin(axis=-1))


@dataclass(frozen=True)
class Choices:
    """What N images cost and give in each of S settings.

    Attributes
    ----------
    labels : array
        (N,) classes.
    answers : array
        (S, N, C) probabilities of who answers; not numbers where nobody does.
    cost : array
        (S, N) what a controller keeps in bounds: bytes, with that which tells the setting; or,
        where numbers are sent as they are, uses of the channel per number of the image.
    owner, slot : array
        (N,) the client of each image, and its slot, from 0.
    snr_db : array
        (N,) that the image meets; not a number where the channel asks for none.
    features : array
        (N, F) what the device knows before it chooses.
    telling : float or array
        Part of `cost` that tells the setting, a number or (S, N).
    """

    labels: Integers
    answers: Numbers
    cost: Numbers
    owner: Integers
    slot: Integers
    snr_db: Numbers
    features: Numbers
    telling: Numbers | float = 0.0

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether (S, N) an answer is the class; no answer is wrong."""
        return right(self.answers, self.labels)


def right(answers: Numbers, labels: Integers) -> NDArray[np.bool_]:
    """Tell where probabilities (..., N, C) are the largest for the class; no answer is wrong."""
    known = ~np.isnan(answers).any(axis=-1)
    return np.asarray(known & (np.nan_to_num(answers).argmax(axis=-1) == labels))
