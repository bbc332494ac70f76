"""Where tensors are computed: the CPU or a GPU, found by name, checked, and made deterministic."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

CPU = torch.device("cpu")

NAMES = "auto, cpu, cuda, cuda:0, cuda:1, ... or mps"
"""Names of devices."""

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""What cuBLAS must be told to give the same bits twice (NVIDIA's documentation of cuBLAS)."""


def check_name(name: str) -> str:
    """Return the name of a device; raise ValueError if there is none of that form."""
    kind, colon, number = name.partition(":")
    if name in {"auto", "cpu", "cuda", "mps"} or (kind == "cuda" and colon and number.isdecimal()):
        return name
    raise ValueError(f"must be one of {NAMES}, got {name!r}")


def find(name: str) -> torch.device:
    """Return the device of a name, with its number; "auto" is the first GPU of CUDA, else the CPU.

    Raises
    ------
    ValueError
        This machine has no such device; the message says which it has.
    """
    check_name(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind == "cuda":
        return torch.device("cuda", _gpu(name, int(number or 0)))
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"no GPU of Apple ('mps') that torch can use; {_here()}")
    return torch.device(kind)


def workers_for(name: str) -> int:
    """Return how many processes may compute at once, one for each GPU; 0 where no GPU does.

    "cuda", and "auto" with a GPU, may take all of them; a GPU that is named is the only one.
    """
    device = find(name)
    if device.type == "cpu":
        return 0
    return torch.cuda.device_count() if name in {"auto", "cuda"} else 1


def _gpu(name: str, number: int) -> int:
    if not torch.cuda.is_available():
        raise ValueError(f"{name!r} needs a GPU that torch can use, and there is none; {_here()}")
    count = torch.cuda.device_count()
    if number >= count:
        last = f"'cuda:{count - 1}'"
        known = "'cuda:0'" if count == 1 else f"'cuda:0' to {last}"
        raise ValueError(f"no GPU {name!r}; this machine has {known}")
    return number


def _here() -> str:
    """Say what to do instead, and why torch may see no GPU."""
    built = "built for the CPU only" if torch.version.cuda is None else "sees no driver"
    return f"torch {torch.__version__} is {built}; take device='cpu', or install another torch"


def device_of(module: nn.Module) -> torch.device:
    """Return where the parameters of `module` are; the CPU if it has none."""
    return next((parameter.device for parameter in module.parameters()), CPU)


def check_bf16(device: torch.device) -> None:
    """Raise ValueError for a GPU of CUDA that has no bf16: those older than Ampere."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        name, version = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        raise ValueError(
            f"bf16 needs a GPU of compute capability 8.0 or more; {name} has "
            f"{version[0]}.{version[1]}; take fp16 or fp32"
        )


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done all that it was asked for; whoever reads a clock must."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def title(device: torch.device) -> str:
    """Return the kind of a GPU, as "NVIDIA H200 (CUDA 12.8)"; nothing for the CPU."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} (CUDA {torch.version.cuda})"
    return "" if device.type == "cpu" else f"GPU {device.type}"


@contextmanager
def computing(device: torch.device, is_deterministic: bool) -> Iterator[None]:
    """Compute in the block as results ask for it; nothing is left behind. Only CUDA is told.

    Numbers in fp32 are products in fp32: by torch's default cuDNN would round them to TF32. If it
    is asked for, CUDA gives the same bits each time; cuBLAS reads its setting when CUDA starts in
    a process.
    """
    if device.type != "cuda":
        yield
        return
    products: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    flags = products.fp32_precision, cudnn.conv.fp32_precision
    products.fp32_precision = cudnn.conv.fp32_precision = "ieee"  # no TF32
    try:
        with _deterministic() if is_deterministic else nullcontext():
            yield
    finally:
        products.fp32_precision, cudnn.conv.fp32_precision = flags


@contextmanager
def _deterministic() -> Iterator[None]:
    before, warns = torch.are_deterministic_algorithms_enabled(), _warns_only()
    cudnn: Any = torch.backends.cudnn
    benchmark, workspace = cudnn.benchmark, os.environ.get(WORKSPACE)
    os.environ[WORKSPACE] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
        cudnn.benchmark = benchmark
        if workspace is None:
            os.environ.pop(WORKSPACE, None)
        else:
            os.environ[WORKSPACE] = workspace


def _warns_only() -> bool:
    return torch.is_deterministic_algorithms_warn_only_enabled()
