"""Settings: what one trained run can be served with, and what each costs and gives.

A setting is a share of the patches and a codec. A controller chooses one for each image. Images
come in slots, one of each client in each; a slot is a round of the system, so that a cell with
fading has another signal-to-noise ratio (SNR) in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from fl_split.channels.analog import Analog
from fl_split.codecs import CODECS
from fl_split.exchange.link import Link
from fl_split.models import linear_flops
from fl_split.models.vit import ViTHead
from fl_split.seeds import StepId
from fl_split.specs import canonical, shortened, stages
from simulations.data.cache import Progress
from simulations.data.samples import Samples
from simulations.inference.features import features
from simulations.inference.served import answers_from_cut
from simulations.inference.trained import Trained
from simulations.inference.ways import Ways, ways_of

Numbers = NDArray[np.float64]
Integers = NDArray[np.int64]

ID_BYTES = 1
"""That say in which setting an image was sent."""


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
    cost, `telling` says which setting it is; constants need not tell it.
    """

    snrs_db: Numbers
    accuracy: Numbers
    cost: Numbers
    telling: float = 0.0

    def state(self, snr_db: Numbers) -> Integers:
        """Return the columns of the nearest SNRs, of the shape of `snr_db`."""
        return np.asarray(np.abs(snr_db[..., None] - self.snrs_db).argmin(axis=-1))


@dataclass(frozen=True)
class Choices:
    """What N images cost and give in each of S settings, sent from the cut.

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
    """

    labels: Integers
    answers: Numbers
    cost: Numbers
    owner: Integers
    slot: Integers
    snr_db: Numbers
    features: Numbers

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether (S, N) an answer is the class; no answer is wrong."""
        return right(self.answers, self.labels)


def right(answers: Numbers, labels: Integers) -> NDArray[np.bool_]:
    """Tell where probabilities (..., N, C) are the largest for the class; no answer is wrong."""
    known = ~np.isnan(answers).any(axis=-1)
    return np.asarray(known & (np.nan_to_num(answers).argmax(axis=-1) == labels))


class Bench:
    """Serves images in all settings of a trained run.

    Parameters
    ----------
    settings : sequence of Setting
    trained : sequence of Trained
        The run with the head of each setting.
    links : sequence of Link
        The road of each setting.
    progress : Progress
        Is told what has been measured.
    """

    def __init__(
        self,
        settings: Sequence[Setting],
        trained: Sequence[Trained],
        links: Sequence[Link],
        progress: Progress,
    ) -> None:
        self.settings, self.trained, self.links, self.progress = settings, trained, links, progress
        self.names, self._tables = [*map(str, settings)], dict[str, Table]()
        channel = links[0].channel
        self.asks_snr, self.is_analog = channel.asks_snr, isinstance(channel, Analog)
        costs = "bytes_up bytes", "channel_uses channel uses per number"
        self.column, self.unit = costs[self.is_analog].split(" ", 1)

    @property
    def clients(self) -> int:
        """How many clients there are."""
        return self.trained[0].experiment.clients

    @property
    def seed(self) -> int:
        """Of the run."""
        return self.trained[0].experiment.seed

    @property
    def telling(self) -> float:
        """Part of a cost that tells the setting: a byte, or no use of the channel."""
        return 0.0 if self.is_analog else float(ID_BYTES)

    def ways(
        self, number: int, samples: Samples, rows: Integers, owner: Integers, snr_db: Numbers
    ) -> Ways:
        """Return all ways of images in the `number`-th setting, each at its SNR (N,)."""
        link = self.links[number]
        at = dict(zip(rows.tolist(), snr_db.tolist(), strict=True))
        noise = (lambda way, step: at[step.step]) if self.asks_snr else link.snr_db
        roads = link.codec, link.downlink, link.channel, link.down_channel
        road = Link(*roads, noise, link.device)
        return ways_of(self.trained[number], samples, rows, road, owner)

    def cost(self, ways: Ways) -> Numbers:
        """Return what each image (N,) costs if it is sent from the cut, and its setting told."""
        if self.is_analog:
            return np.asarray(ways.sent_uses[-1] / np.prod(self.trained[0].head.image_shape))
        return ways.sent_bytes[-1] + self.telling

    @cached_property
    def test(self) -> tuple[Choices, list[Ways]]:
        """Test images: image n is of client n mod the number of clients, in slot n over it."""
        samples = self.trained[0].test
        rows = np.arange(len(samples.labels))
        slot, owner = np.divmod(rows, self.clients)
        return self._served("test images", samples, rows, owner, slot, 1)

    @cached_property
    def held_out(self) -> Choices:
        """Held-out images, in slots that come after those of the test images."""
        trained = self.trained[0]
        rows, owner = trained.held_out
        slot = np.concatenate([np.arange(np.sum(owner == one)) for one in np.unique(owner)])
        words = "held-out images", trained.setup.train, rows, owner, slot, self._first_held_out
        return self._served(*words)[0]

    @property
    def _first_held_out(self) -> int:
        """The round of the system that is the first slot of held-out images."""
        return 2 + (len(self.trained[0].test.labels) - 1) // self.clients

    def snrs_db(self, slots: int) -> Numbers:
        """Return the SNR in dB of each client in so many slots, (T, C); not numbers without."""
        rounds = self._first_held_out + np.arange(slots)
        clients = np.tile(np.arange(self.clients), slots)
        found = self._snrs(np.repeat(rounds, self.clients), clients)
        return found.reshape(slots, self.clients)

    def table(self, snrs_db: Numbers) -> Table:
        """Measure all settings on held-out images, at each of some SNRs (K,), once."""
        key = repr(snrs_db)
        if key not in self._tables:
            self._tables[key] = self._measured(snrs_db)
        return self._tables[key]

    def _measured(self, snrs_db: Numbers) -> Table:
        trained = self.trained[0]
        rows, owner = trained.held_out
        found = np.zeros((2, len(self.settings), len(snrs_db)))
        for number, (setting, column) in enumerate(np.ndindex(*found.shape[1:])):
            at = np.full(len(rows), snrs_db[column])
            ways = self.ways(setting, trained.setup.train, rows, owner, at)
            is_right = right(answers_from_cut(ways), ways.labels)
            found[:, setting, column] = is_right.mean(), self.cost(ways).mean()
            self.progress("table of settings", number + 1, found[0].size)
        return Table(snrs_db, found[0], found[1], self.telling)

    def _snrs(self, rounds: Integers, clients: Integers) -> Numbers:
        ask = self.links[0].snr_db
        if not self.asks_snr or ask is None:
            return np.full(len(rounds), np.nan)
        steps = zip(rounds.tolist(), clients.tolist(), strict=True)
        return np.array([ask("up", StepId(self.seed, *pair, 0)) for pair in steps])

    def _served(
        self, what: str, samples: Samples, rows: Integers, owner: Integers, slot: Integers,
        first: int,
    ) -> tuple[Choices, list[Ways]]:  # fmt: skip
        snr_db, ways = self._snrs(first + slot, owner), list[Ways]()
        for number in range(len(self.settings)):
            ways.append(self.ways(number, samples, rows, owner, snr_db))
            self.progress(what, number + 1, len(self.settings))
        return Choices(
            samples.labels[rows],
            np.stack([answers_from_cut(one) for one in ways]),
            np.stack([self.cost(one) for one in ways]),
            owner,
            slot,
            snr_db,
            self._features(samples, rows, ways[0], snr_db),
        ), ways

    @property
    def known_after(self) -> int:
        """The block whose tokens are looked at: the last one before patches are chosen."""
        head = self.trained[0].head
        is_one = len({one.rate for one in self.settings}) == 1
        return head.num_stages if is_one or head.selector is None else head.selector.after

    @property
    def again_flops(self) -> Integers:
        """Operations (S,) of blocks that an image runs through once more, by its setting.

        A selector with tokens of its own tells blocks the rate. Images are looked at with that of
        the first setting; one that is sent at another rate begins again, up to that block.
        """
        head, last = self.trained[0].head, self.known_after
        if not isinstance(head, ViTHead) or head.selector is None or not head.selector.num_extra:
            return np.zeros(len(self.settings), np.int64)
        (course, *_), width = head.courses, head.smashed_shape[1]
        blocks = zip(head.blocks[:last], course.in_blocks, strict=False)
        again = sum(linear_flops.blocks_forward([block], count, width) for block, count in blocks)
        return np.array([again * (one.rate != self.settings[0].rate) for one in self.settings])

    def _features(self, samples: Samples, rows: Integers, ways: Ways, snr_db: Numbers) -> Numbers:
        found = features(self.trained[0], samples, rows, ways, self.known_after)
        return np.column_stack([found, snr_db]) if self.asks_snr else found
