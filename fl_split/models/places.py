"""Where a model is cut: after so many of its stages, or after the one of a name."""

from __future__ import annotations

from collections.abc import Sequence

from fl_split.spec_errors import nearest


def num_stages(names: Sequence[str], cut: int | str) -> int:
    """Return how many of the stages `names` are the client's: `cut`, or up to the one so named.

    Raises
    ------
    ValueError
        `cut` leaves no stage on one of the two sides, or names none.
    """
    *possible, last = names
    if isinstance(cut, int) and 1 <= cut <= len(possible):
        return cut
    if cut in possible:
        return names.index(str(cut)) + 1
    hint = f"; after {last!r} nothing is left for the server" if cut == last else _meant(cut, names)
    raise ValueError(
        f"cut must be in 1..{len(possible)} or the name of the client's last stage "
        f"({', '.join(possible)}), got {cut!r}{hint}"
    )


def num_before_end(names: Sequence[str], cut: int, end: int | str) -> int:
    """Return how many of the stages `names` come before the client's again; `end` may name it.

    Raises
    ------
    ValueError
        `end` leaves the server or the client none of the stages after `cut`, or names none.
    """
    possible = range(cut + 1, len(names))
    found = names.index(end) if isinstance(end, str) and end in names else end
    if isinstance(found, int) and found in possible:
        return found
    if not possible:
        raise ValueError(
            f"end needs a stage of the server after the cut, and {names[-1]!r} after it"
        )
    raise ValueError(
        f"end must be in {possible[0]}..{possible[-1]}, stages before the client's again, or the "
        f"name of the first of these ({', '.join(names[i] for i in possible)}), got {end!r}"
        f"{_meant(end, names[cut + 1 :])}"
    )


def _meant(stage: int | str, names: Sequence[str]) -> str:
    near = nearest(stage, names) if isinstance(stage, str) and stage not in names else ""
    return f"; did you mean {near!r}?" if near else ""
