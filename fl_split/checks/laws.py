"""How a law is held: AssertionError with a sentence that names the law that was broken."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from fl_split.codecs import Chain
from fl_split.specs import parse, stages

R = TypeVar("R")


def hold(holds: bool, law: str) -> None:
    """Raise AssertionError with the law, if it does not hold."""
    if not holds:
        raise AssertionError(law)


def must(law: str, work: Callable[[], R]) -> R:
    """Return what `work` returns; whatever it raises breaks the law."""
    try:
        return work()
    except Exception as error:
        raise AssertionError(f"{law}: {type(error).__name__}: {error}") from error


def refuses(law: str, work: Callable[[], Any]) -> None:
    """Raise AssertionError unless `work` raises ValueError."""
    try:
        work()
    except ValueError:
        return
    except Exception as error:
        raise AssertionError(f"{law}, got {type(error).__name__}: {error}") from error
    raise AssertionError(f"{law}, got no error")


def check_repr(part: Any) -> None:
    """Raise AssertionError unless the repr of `part` is a spec that builds an equal part."""
    built = part.stages if isinstance(part, Chain) else [part]
    for one in built:
        spec, kind = repr(one), type(one)
        law = f"the repr {spec} of a part must be a spec that builds an equal one"
        hold(must(law, partial(parse, spec, {kind.__name__: kind})) == one, law)
    if isinstance(part, Chain):
        law = "the repr of a chain must be those of its stages"
        hold(stages(repr(part)) == [repr(one) for one in built], law)
