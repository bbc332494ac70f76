"""Trained weights that are not the model's own: of codec, selector of tokens, exits, experts.

Exits that clients keep for themselves are not among them: see `private_exits`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from fl_split.experts import mixtures
from fl_split.models.cut import Head, Tail


def cut_weights(head: Head, tail: Tail) -> dict[str, Tensor]:
    """Return copies of them, named after whose they are, as `encoder` or `experts3`."""
    return {
        f"{owner}.{name}": weight.detach().to("cpu", copy=True)
        for owner, module in _owners(head, tail).items()
        for name, weight in module.state_dict().items()
    }


def load_cut_weights(head: Head, tail: Tail, weights: Mapping[str, Tensor]) -> None:
    """Load what :func:`cut_weights` returned into halves that have the same parts.

    Raises
    ------
    ValueError
        They have others, as where a file is of another version.
    """
    for owner, module in _owners(head, tail).items():
        prefix = f"{owner}."
        own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            raise ValueError(f"weights of the {owner} do not fit: {error}") from None


def _owners(head: Head, tail: Tail) -> dict[str, nn.Module]:
    shared = nn.ModuleList(part for part in head.parts_beside if not part.is_private)
    found = {"encoder": head.encoder, "decoder": tail.decoder, "beside": shared}
    found |= {"beside_tail": tail.beside}
    found |= {f"experts{number}": mixture for number, mixture in mixtures(head, tail).items()}
    return {**found, "selector": head.selector} if head.selector is not None else found
