"""A bench: one trained run serves images in all settings, and what each costs and gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from fl_split.channels.analog import Analog
from fl_split.exchange.link import Link
from fl_split.models import linear_flops
from fl_split.models.vit import ViTHead
from fl_split.seeds import StepId
from simulations.data.cache import Progress
from simulations.data.samples import Samples
from simulations.inference.features import exits_up_to, features
from simulations.inference.policy import AllSent, Policy
from simulations.inference.served import Served, serve
from simulations.inference.settings import Choices, Integers, Numbers, Setting, Table
from simulations.inference.trained import Trained
from simulations.inference.ways import Ways, ways_of

ID_BYTES = 1
"""That say in which setting an image was sent."""


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
    rule : Policy
        Who leaves before it is sent; by default nobody.
    """

    def __init__(
        self,
        settings: Sequence[Setting],
        trained: Sequence[Trained],
        links: Sequence[Link],
        progress: Progress,
        rule: Policy | None = None,
    ) -> None:
        self.settings, self.trained, self.links, self.progress = settings, trained, links, progress
        self.rule, self._ways = rule or AllSent(), dict[str, list[Ways]]()
        self.names, self._tables = [*map(str, settings)], dict[str, Table]()
        channel = links[0].channel
        self.asks_snr, self.is_analog = channel.asks_snr, isinstance(channel, Analog)
        costs = "bytes_up bytes", "channel_uses channel uses per number"
        self.column, self.unit = costs[self.is_analog].split(" ", 1)

    def under(self, rule: Policy) -> Bench:
        """Return a bench on which images may leave, as a rule says, before they are sent."""
        found = Bench(self.settings, self.trained, self.links, self.progress, rule)
        found._ways = self._ways
        return found

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

    def cost(self, served: Served) -> Numbers:
        """Return what each image (N,) costs, with the setting that is told of those sent."""
        if self.is_analog:
            return np.asarray(served.uses / np.prod(self.trained[0].head.image_shape))
        return served.bytes_up + self.telling * served.is_sent

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
        found, each = np.zeros((3, len(self.settings), len(snrs_db))), list[Ways]()
        for number, (setting, column) in enumerate(np.ndindex(*found.shape[1:])):
            at = np.full(len(rows), snrs_db[column])
            each.append(self.ways(setting, trained.setup.train, rows, owner, at))
            one = serve(self._as_seen(each[-1], each[0]), self.rule)
            is_told = self.telling * one.is_sent.mean()
            found[:, setting, column] = one.right.mean(), self.cost(one).mean(), is_told
            self.progress("table of settings", number + 1, found[0].size)
        return Table(snrs_db, *found)

    @property
    def early(self) -> int:
        """How many exits an image passes before its setting is chosen."""
        return exits_up_to(self.trained[0], self.known_after)

    def _as_seen(self, ways: Ways, first: Ways) -> Ways:
        """Return ways with what exits say in the first setting, where they come before the choice.

        Blocks may be told the rate, which is not chosen there yet.
        """
        if not self.rule.needs_exits:
            return ways
        is_early = np.arange(len(ways.names)) < self.early
        return replace(ways, local=np.where(is_early[:, None, None], first.local, ways.local))

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
        snr_db = self._snrs(first + slot, owner)
        known = self._ways.setdefault(what, [])
        for number in range(len(known), len(self.settings)):
            known.append(self.ways(number, samples, rows, owner, snr_db))
            self.progress(what, number + 1, len(self.settings))
        ways = [self._as_seen(one, known[0]) for one in known]
        served = [serve(one, self.rule) for one in ways]
        return Choices(
            samples.labels[rows],
            np.stack([one.answers for one in served]),
            np.stack([self.cost(one) for one in served]),
            owner,
            slot,
            snr_db,
            self._features(samples, rows, ways[0], snr_db),
            np.stack([self.telling * one.is_sent for one in served]),
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
