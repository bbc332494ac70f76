"""Laws that every model keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import count, takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fl_split.checks.laws import check_repr, hold, refuses
from fl_split.models import Model
from fl_split.models.cut import Head, Tail
from fl_split.models.preprocessing import Preprocessing

Place = tuple[int, int]
"""Where a model is cut, and the end of a U-shape; 0 is no end."""


def check_model(spec: Model, image_size: int = 12, channels: int = 3) -> None:
    """Hold a model to its laws at every place to cut it; AssertionError with the one it breaks.

    The model is built for 10 classes, and should be small: it is run at each cut, with each
    end of a U-shape.

    - its repr is its spec, and the same seed builds the same weights;
    - it says what is done to images, with standard deviations above 0;
    - all parts together give the logits and the gradients of the whole, bit for bit;
    - cutting keeps names and values of all weights, and gives each to one half;
    - smashed data have the shape that the head says;
    - a cut behind the last, and an end behind the last, raise ValueError;
    - operations, forward and with backward, are those that torch counts.
    """
    check_repr(spec)
    model, again = (
        spec.build(image_size=image_size, channels=channels, num_classes=10, seed=0).train()
        for _ in range(2)
    )
    _check_preprocessing(spec)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for name, value in again.state_dict().items():
        hold(torch.equal(before[name], value), f"the same seed must build the same {name}")
    choose: Any = getattr(model, "set_attn_implementation", None)
    if choose:
        choose("eager")  # fused attention counts as nothing on a CPU
    places = list(_places(spec, model))
    hold(bool(places), "a model must have a place to be cut at")
    for place in places:
        _check_weights(spec, model, place, before)
        _check_result(spec, model, place)
        _check_flops(*spec.split(model, *place), f"cut {place[0]}, end {place[1]}")


def _check_preprocessing(spec: Model) -> None:
    found = spec.preprocessing()
    law = "preprocessing() must return a fl_split.models.preprocessing.Preprocessing"
    hold(isinstance(found, Preprocessing), f"{law}, got {type(found).__name__}")
    hold(min(found.std) > 0, f"{law} with standard deviations above 0, got {found.std}")


def _places(spec: Model, model: nn.Module) -> Iterator[Place]:
    """Yield cuts and ends as far as the model takes them."""
    most = sum(1 for _ in model.modules()) + 1  # stages are no more than modules

    def is_possible(place: Place) -> bool:
        try:
            spec.split(model, *place)
        except ValueError:
            return False
        return True

    law = f"a cut or an end at {most}, behind the last stage, must raise ValueError"
    for place in ((most, 0), (1, most)):
        refuses(law, partial(spec.split, model, *place))
    for cut in takewhile(lambda cut: is_possible((cut, 0)), count(1)):
        yield cut, 0
        yield from takewhile(is_possible, ((cut, end) for end in count(cut + 1)))


def _images(head: Head, count: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(count, *head.image_shape, generator=draw)


def _parts(head: Head, tail: Tail) -> list[Callable[[Tensor], Tensor]]:
    return [lambda pixels: head(pixels)[0], tail, *([head.end] if head.end else [])]


def _check_weights(
    spec: Model, model: nn.Module, place: Place, before: Mapping[str, Tensor]
) -> None:
    head, tail = spec.split(model, *place)
    after = model.state_dict()
    hold(list(after) == list(before), f"{place}: cutting must keep all names of weights")
    for name, value in after.items():
        hold(torch.equal(before[name], value), f"{place}: cutting must not change {name}")
    held = sorted(id(weight) for half in (head, tail) for weight in half.parameters())
    is_shared = held == sorted(id(weight) for weight in model.parameters())
    hold(is_shared, f"{place}: each weight must be in one half, and be the model's own")


def _check_result(spec: Model, model: nn.Module, place: Place) -> None:
    head, tail = spec.split(model, *place)
    pixels = _images(head, 3)
    found = model(pixels)
    expected: Tensor = found if isinstance(found, Tensor) else found.logits
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    wanted = torch.autograd.grad(expected, list(model.parameters()), upstream)
    model.zero_grad()
    value, crossings = pixels, []
    for part in _parts(head, tail):  # each with a graph of its own
        leaf = value.detach().requires_grad_()
        value = part(leaf)
        crossings.append((leaf, value))
    shape = tuple(crossings[0][1].shape[1:])
    hold(shape == head.smashed_shape, f"{place}: smashed data of shape {shape}")
    hold(torch.equal(value, expected), f"{place}: the parts must give the logits of the whole")
    gradient: Tensor | None = upstream
    for leaf, output in reversed(crossings):
        output.backward(gradient)
        gradient = leaf.grad
    for (name, weight), own in zip(model.named_parameters(), wanted, strict=True):
        is_same = weight.grad is not None and torch.equal(weight.grad, own)
        hold(is_same, f"{place}: the gradient of {name} must be that of the whole")


def _check_flops(head: Head, tail: Tail, place: str) -> None:
    def compare(of: str, forward: int, both: int, run: Callable[[], Tensor]) -> None:
        with FlopCounterMode(display=False) as counter:
            output = run()
            counted = counter.get_total_flops()
            output.sum().backward()
        law = f"{place}: operations of the {of} must be those that torch counts"
        hold(forward == counted, f"{law}: {counted} forward, got {forward}")
        total = counter.get_total_flops()
        hold(both == total, f"{law}: {total} with backward, got {both}")

    def images() -> Tensor:
        return head(_images(head, 5))[0]

    compare("head", head.forward_flops(5), head.flops(5), images)
    for name, part in (("tail", tail), ("end", head.end)):
        if part is not None:
            count = part.num_tokens or 4
            leaf = torch.randn(3, count, part.width, requires_grad=True)
            numbers = part.forward_flops(3, count), part.flops(3, count)
            compare(name, *numbers, partial(part, leaf))
