"""The contract of the key `tokens`: a frozen description that builds a head's selector."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from fl_split.models.beside import Beside
from fl_split.models.selector import Selector, Sizes
from fl_split.specs import STRICT

Rate = Annotated[float, Field(gt=0, le=1)]
"""Share of the patches that go on: ceil(rate P) of P."""

After = Annotated[int, Field(ge=0)]
"""Block of the head after which patches are chosen; 0 is the last one."""


class Selection:
    """Which tokens of an image go on; a frozen dataclass whose ``repr`` is its spec."""

    def selector(self, sizes: Sizes) -> Selector | None:
        """Build what chooses, None if all go on; weights come from torch's global generator.

        Raises
        ------
        ValueError
            The choice would be made behind the cut.
        """
        raise NotImplementedError("a selection builds a selector")

    def beside(self) -> Beside | None:
        """Return a loss of what the selector leaves in a trace, if there is one."""
        return None


@dataclass(frozen=True, config=STRICT)
class AllTokens(Selection):
    """All tokens go on; nothing is chosen."""

    def selector(self, sizes: Sizes) -> None:
        """Return nothing."""
        return None
