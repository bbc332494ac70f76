"""Predefined sparsity (Capogrosso et al., FDL 2024, arXiv 2407.11763): which weights a layer has.

It is drawn from a public seed before training, and stays. So nobody has to be told where in a
matrix the weights stand: values alone are sent, see :mod:`fl_split.models.sparse_linear`.

    density k / gcd(outputs, inputs)  ->  every output has d_in inputs, every input d_out outputs
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fl_split.seeds import generator
from fl_split.specs import STRICT
from fl_split.tables import Table

Density = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0)]
Layers = Literal["mlp", "all"]


@runtime_checkable
class Sparsity(Protocol):
    """Which weights the linear layers in a head's blocks have, for all clients alike."""

    @property
    def layers(self) -> str:
        """Of a block "mlp", the layers of its MLP, or "all" that are linear; "" for none."""
        ...

    def mask(self, outputs: int, inputs: int, number: int) -> Tensor:
        """Return where layer `number` of the head has weights: bool (outputs, inputs).

        Raises
        ------
        ValueError
            It would have none.
        """
        ...


@dataclass(frozen=True, config=STRICT)
class NoSparsity:
    """All layers are dense."""

    layers: ClassVar[str] = ""

    def mask(self, outputs: int, inputs: int, number: int) -> Tensor:
        """Return that all weights are there."""
        del number
        return torch.ones(outputs, inputs, dtype=torch.bool, device="cpu")


@dataclass(frozen=True, config=STRICT)
class Predefined:
    """Every output has as many inputs as any other, every input as many outputs.

    Capogrosso et al., FDL 2024, arXiv 2407.11763, on the client's blocks of a Transformer.

    Parameters
    ----------
    density : float
        Share of the weights that are there; the nearest is taken that whole numbers of inputs
        and outputs can meet.
    layers : str
        "mlp", the linear layers of each MLP, or "all" linear layers of the client's blocks.
    seed : int
        What the places are drawn from. It is public, and not that of the run.
    """

    density: Density = 0.25
    layers: Layers = "mlp"
    seed: Seed = 0

    def mask(self, outputs: int, inputs: int, number: int) -> Tensor:
        """Draw the inputs of one output after the other, uniformly from those that have room.

        An input that needs all outputs which are left must be taken.
        """
        per_output, per_input = degrees(outputs, inputs, self.density)
        draw = generator(self.seed, "sparsity", number)
        room = torch.full((inputs,), per_input, device="cpu")
        mask = torch.zeros(outputs, inputs, dtype=torch.bool, device="cpu")
        for output in range(outputs):
            wish = torch.rand(inputs, generator=draw, device="cpu")
            wish[room == 0] = -1.0
            wish[room == outputs - output] = 2.0
            taken = wish.topk(per_output).indices
            mask[output, taken] = True
            room[taken] -= 1
        return mask


@dataclass(frozen=True, config=STRICT)
class Random:
    """As many weights as `predefined` has, anywhere in the matrix: its control.

    Parameters
    ----------
    density, layers, seed
        As of `predefined`.
    """

    density: Density = 0.25
    layers: Layers = "mlp"
    seed: Seed = 0

    def mask(self, outputs: int, inputs: int, number: int) -> Tensor:
        """Draw places uniformly, without replacement."""
        per_output, _ = degrees(outputs, inputs, self.density)
        draw = generator(self.seed, "sparsity", number)
        places = torch.randperm(outputs * inputs, generator=draw, device="cpu")
        mask = torch.zeros(outputs * inputs, dtype=torch.bool, device="cpu")
        mask[places[: outputs * per_output]] = True
        return mask.view(outputs, inputs)


def degrees(outputs: int, inputs: int, density: float) -> tuple[int, int]:
    """Return inputs per output and outputs per input whose density is nearest to `density`.

    Possible are multiples of 1 / gcd(outputs, inputs); of two as near it is the larger.

    Raises
    ------
    ValueError
        The nearest is 0.
    """
    parts = math.gcd(outputs, inputs)
    taken = math.floor(density * parts + 0.5)
    if not taken:
        raise ValueError(
            f"density={density:g} leaves {inputs} x {outputs} weights (inputs x outputs) none; "
            f"set density to 1/{parts} = {1 / parts:.3g} or more"
        )
    return taken * inputs // parts, taken * outputs // parts


SPARSITIES: Table[type[Sparsity]] = Table(
    Sparsity,
    "fl_split.sparsities",
    {"none": NoSparsity, "predefined": Predefined, "random": Random},
)
