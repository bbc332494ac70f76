"""Tensors that pretend to lie on another device, with their numbers at hand.

A torch without CUDA can make fake tensors of it, but these have no numbers: a codec that asks
how many marks there are cannot run on them. Here the numbers are on the CPU and computed there,
while every tensor says that it lies on DEVICE. An operation on tensors of both devices fails, as
it would on a GPU; numbers on the CPU without dimensions may meet all others, as there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("meta")
"""Any device but the CPU that autograd knows how to walk."""


class Apart(RuntimeError):
    """Tensors of two devices in one operation."""


class Pretending(Tensor):
    """A tensor that says it lies on DEVICE; `numbers` lie on the CPU."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> Pretending:
        if numbers.is_conj():  # which the wrapper would not know
            numbers = torch.complex(numbers.real, -numbers.conj().imag)
        made = Tensor._make_wrapper_subclass(
            cls,
            numbers.shape,
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=DEVICE,
        )
        made.numbers = numbers.detach()
        return made

    def __repr__(self) -> str:
        return f"Pretending({self.numbers})"

    @property
    def data(self) -> Pretending:
        return Pretending(self.numbers)

    @data.setter
    def data(self, other: Pretending) -> None:
        self.numbers = home(other)

    def tolist(self) -> Any:
        return self.numbers.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def pretence() -> Iterator[None]:
    """Give, in the block, a pretending tensor to whoever asks for one on DEVICE."""
    with _OfPython(), _OfTensors():
        yield


class _OfPython(TorchFunctionMode):
    """Tensors made of Python's numbers, which torch makes in one go."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_asked = kwargs.get("device") is not None and torch.device(kwargs["device"]) == DEVICE
        if func in {torch.tensor, torch.as_tensor} and is_asked:
            if isinstance(args[0], Pretending):
                return args[0].to(kwargs.get("dtype") or args[0].dtype)
            return Pretending(func(*args, **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)


class _OfTensors(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    found = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    pretending = [one for one in found if isinstance(one, Pretending)]
    moves = func is torch.ops.aten._to_copy.default or func is torch.ops.aten.copy_.default
    apart = [tuple(one.shape) for one in found if not isinstance(one, Pretending) and one.dim()]
    if pretending and apart and not moves:
        raise Apart(f"{func} of tensors on {DEVICE} and, of shapes {apart}, on the CPU")
    wanted = kwargs.pop("device", None)
    if wanted is not None:
        kwargs["device"] = torch.device("cpu")
    is_there = bool(pretending) if wanted is None else torch.device(wanted) == DEVICE
    if func is torch.ops.aten.copy_.default:
        is_there = isinstance(args[0], Pretending)
    if func is torch.ops.aten._local_scalar_dense.default:
        return func(args[0].numbers if pretending else args[0])
    args, kwargs = tree_map_only(Pretending, lambda one: one.numbers, (args, kwargs))
    results = func(*args, **kwargs)
    if not is_there:
        return results
    known = {id(one.numbers): one for one in pretending}  # what works in place returns itself
    return tree_map_only(
        Tensor, lambda one: known[id(one)] if id(one) in known else Pretending(one), results
    )


def away(tensor: Tensor) -> Pretending:
    """Put a tensor on DEVICE."""
    return Pretending(tensor.detach().clone())


def home(tensor: Tensor) -> Tensor:
    """Return the numbers of a tensor that must lie on DEVICE."""
    assert isinstance(tensor, Pretending), f"on the CPU: {tensor}"
    return tensor.numbers
