"""Split inference from Python: a trained run serves its test images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fl_split.spec_errors import unknown
from simulations.api.objects import with_specs
from simulations.inference.inference import infer as inferred
from simulations.inference.outcome import Inference, check_new, write
from simulations.inference.policy import Policy
from simulations.runs.parts import SPEC_TABLES
from simulations.runs.paths import expanded
from simulations.runs.quiet import quiet_libraries

OPTIONS = (
    *("policies", "system", "codec", "channel", "price", "delay_price", "carry", "rate"),
    *("rates", "codecs", "out"),
)


def infer(
    folder: str | Path,
    policies: str | Policy | Sequence[str | Policy] = "threshold()",
    *,
    system: str | None = None,
    codec: str | None = None,
    channel: str | None = None,
    price: float | None = None,
    delay_price: float | None = None,
    carry: bool = False,
    rate: float | None = None,
    rates: Sequence[float] = (),
    codecs: Sequence[str] = (),
    out: str | Path | None = None,
    **objects: Any,
) -> Inference:
    """Let the finished run in `folder` answer its test images, one by one.

    Parameters
    ----------
    folder : str or Path
        Of the run.
    policies : str, Policy or a sequence of these
        When an image leaves the device.
    system : str, optional
        Devices, network and server, for seconds and joules; by default those of the run.
    codec, channel : str, optional
        Instead of the run's own.
    price : float, optional
        Fit each policy's threshold on rows that the clients held out: to the most accuracy less
        `price` times bytes, as a share of those of sending all.
    delay_price : float, optional
        Fit to the return instead: accuracy less `delay_price` times seconds; needs a system.
    carry : bool
        Images that are sent take the answer of the last exit along, and the server mixes it into
        its own, by shares that are fitted to held-out rows.
    rate : float, optional
        Share of the patches that go on, where the run selects tokens; by default its own.
    rates, codecs : sequence, optional
        Shares of the patches and codecs: all pairs are settings, each serves all images. The
        controllers (`lyapunov`, `gate`) choose among them.
    out : str or Path, optional
        A folder for tables and figures; by default nothing is written.
    objects
        Objects that stood in the place of spec strings, by key.

    Returns
    -------
    Inference
        Its `table` has a row per policy and control.

    Raises
    ------
    ValueError
        No finished run, a model without exits, or nothing held out where something is fitted; a
        `price` with controllers alone; a policy, rate or codec that is given twice.
    """
    quiet_libraries()
    if wrong := next((key for key in objects if key not in SPEC_TABLES), None):
        raise ValueError(unknown("argument", wrong, [*OPTIONS, *SPEC_TABLES]))
    if out is not None:
        check_new(expanded(out))
    found = inferred(
        expanded(folder),
        policies,
        system=system,
        codec=codec,
        channel=channel,
        price=price,
        delay_price=delay_price,
        carry=carry,
        rate=rate,
        rates=rates,
        codecs=codecs,
        objects=with_specs(objects),
    )
    if out is not None:
        write(found, expanded(out))
    return found
