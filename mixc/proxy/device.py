"""The device that a model runs on, and algorithms that repeat to the bit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mixc.errors import MixcError


def pick_device(name: str) -> torch.device:
    """`auto` is cuda where there is one, else cpu. Errors: MX007 for cuda where there is none."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise MixcError(
            "MX007",
            "solve.proxy.device is cuda, but no CUDA device is here",
            help="set solve.proxy.device to auto or cpu",
        )
    return torch.device(("cuda" if available else "cpu") if name == "auto" else name)


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """While the block runs, only algorithms that repeat to the bit; then torch's earlier settings.

    What the model does on a CPU repeats as it is, and the setting there takes seconds to import.
    CUBLAS_WORKSPACE_CONFIG stays set: cuBLAS reads it once, at its first use in the process.
    """
    if device.type == "cpu":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
