"""How long an answer takes, and what it costs the device: one image, alone on its road."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulations.runs.experiment import Experiment
from simulations.system.clock import Conditions
from simulations.system.devices import Fleet
from simulations.system.system import System, Timed

Numbers = NDArray[np.float64]
Amounts = NDArray[np.int64] | Numbers
"""What was counted, or is expected."""


@dataclass(frozen=True)
class Latency:
    """Devices, roads and a server of all clients."""

    fleet: Fleet
    now: Conditions

    @classmethod
    def of_system(cls, system: System, experiment: Experiment) -> Latency:
        """Take the devices and roads of an experiment's clients, as in its first round.

        Raises
        ------
        ValueError
            Roads whose rate changes with time.
        """
        settings = experiment.model_dump()
        fleet, now = system.in_round(Timed.of(settings), 1, 0.0)
        if now.roads.traced_up:
            raise ValueError("inference is timed on roads of one rate; leave traces out")
        return cls(fleet, now)

    def of(
        self,
        device_flops: Amounts,
        server_flops: Amounts,
        bytes_up: Amounts,
        bytes_down: Amounts,
        is_sent: NDArray[np.bool_],
        owner: NDArray[np.int64],
    ) -> tuple[Numbers, Numbers]:
        """Return seconds and joules of each image, (N,); `owner` is whose device takes it.

        Nobody else is at the server or on the road. What is lost is waited for: once the latency
        of both ways. The device waits while bits travel and the server computes.
        """
        roads = self.now.roads
        compute = device_flops / self.now.flops[owner]
        send, receive = 8 * bytes_up / roads.up[owner], 8 * bytes_down / roads.down[owner]
        wait = is_sent * 2 * roads.latency[owner] + server_flops / self.now.server_flops
        times = {"compute": compute, "send": send, "receive": receive, "idle": wait}
        joules = sum(self.fleet.of(f"{key}_watts")[owner] * took for key, took in times.items())
        return np.asarray(sum(times.values())), np.asarray(joules)
