"""What the receiver knows of the channel, as one more feature of every token.

An encoder that is conditioned leaves room for the state with :func:`with_room`: a zero, which is
the state of a perfect channel, as in evaluation, where nothing is sent. The codec takes the room
away before it sends (:func:`without_room`), and puts the true state there on arrival
(:func:`with_state`): the receiver measures it, so that it costs no bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def with_room(values: Tensor, is_conditioned: bool) -> Tensor:
    """Return values (..., W) with a last feature for the state, zero, if there is one."""
    return functional.pad(values, (0, 1)) if is_conditioned else values


def without_room(values: Tensor, is_conditioned: bool) -> Tensor:
    """Return values (..., W) without that feature."""
    return values[..., :-1] if is_conditioned else values


def with_state(values: Tensor, is_conditioned: bool, state: Tensor | None) -> Tensor:
    """Return values (B, N, W) with the state of each sample (B,) or of all (), zero if unknown."""
    if not is_conditioned or state is None:
        return with_room(values, is_conditioned)
    column = state.to(values).reshape(-1, 1, 1).expand(*values.shape[:2], 1)
    return torch.cat([values, column], dim=2)
