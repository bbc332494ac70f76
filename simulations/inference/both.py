"""Both decisions: a rule says whether an image leaves, a controller how the others are sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl_split.specs import parse, stages
from simulations.inference.bench import Bench
from simulations.inference.controller import Chooser, Controller
from simulations.inference.policies import POLICIES, Rule, name_of
from simulations.inference.policy import Decisions, Policy
from simulations.inference.ways import Ways


@dataclass(frozen=True)
class Both(Controller):
    """Let images leave where a rule is sure, and send the others as a controller says.

    The controller is fitted to what the rule makes of held-out images: an image that leaves costs
    nothing in any setting. An exit behind the choice of a setting is asked in that setting.
    """

    needs_exits: ClassVar[bool] = True

    rule: Rule
    controller: Controller

    def __repr__(self) -> str:
        return f"{name_of(self.rule)} | {name_of(self.controller)}"

    def decide(self, ways: Ways) -> Decisions:
        """Ask the rule."""
        return self.rule.decide(ways)

    def fit(self, bench: Bench) -> Chooser:
        """Fit the controller; `bench` has this policy as its rule."""
        return self.controller.fit(bench)


def policy_of(spec: str) -> Policy:
    """Read a policy, or a rule and a controller with `|` between.

    Raises
    ------
    ValueError
        Other parts, or a rule that sends images from exits before the cut.
    """
    parts = [parse(word, POLICIES) for word in stages(spec)]
    if len(parts) == 1:
        return parts[0]
    match parts:
        case [Rule() as rule, Controller() as controller] if not rule.hands_over:
            return Both(rule, controller)
    raise ValueError(
        f"policies: expected a rule that sends from the cut and a controller, as "
        f"threshold(tau=0.8) | gate(), got {spec!r}"
    )
