"""The device that a model runs on, its number format, and algorithms that repeat to the bit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mixc.errors import MixcError
from mixc.proxy import ranks

_CPU_BF16 = ("amx_bf16", "avx512_bf16")
# Compiling takes about a minute, so it has to be earned back.
_COMPILED_STEPS = 1000
_THREAD_NUMBERS = 1 << 16


def pick_device(name: str) -> torch.device:
    """`auto` is cuda where there is one, else cpu. Errors: MX007 for cuda where there is none."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise MixcError(
            "MX007",
            "solve.proxy.device is cuda, but no CUDA device is here",
            help="set solve.proxy.device to auto or cpu",
        )
    if name == "cpu" or not available:
        return torch.device("cpu")
    return ranks.local_device()


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA devices that have it, else float32.

    Errors: MX007 for bf16 on a device that would only imitate it: CPUs without AMX or AVX-512
    instructions for it take some ten times as long as in float32.
    """
    if name == "fp32" or (name == "auto" and device.type == "cpu"):
        return torch.float32
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
        if name == "auto":
            return torch.float32
    elif any(flag in _cpu_flags() for flag in _CPU_BF16):
        return torch.bfloat16
    raise MixcError(
        "MX007",
        f"solve.proxy.precision is bf16, but this {device.type} device cannot compute in it: "
        + ("it is too old" if device.type == "cuda" else f"it has none of {', '.join(_CPU_BF16)}"),
        help="set solve.proxy.precision to auto or fp32",
    )


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def computing_in(precision: torch.dtype, device: torch.device) -> torch.autocast:
    """While the block runs, matrix products are in `precision`. Weights and sums stay float32."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


def shall_compile(asked: bool | str, device: torch.device, steps: int) -> bool:
    """`auto` compiles where it pays: on CUDA devices, for runs that are long."""
    return (device.type == "cuda" and steps >= _COMPILED_STEPS) if asked == "auto" else bool(asked)


@contextmanager
def few_threads(numbers: int) -> Iterator[None]:
    """While the block runs, at most a thread for each 65,536 of a layer's `numbers`.

    Of many small products on a CPU, threads that share each lose more by waiting than they gain.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, min(threads, numbers // _THREAD_NUMBERS)))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """While the block runs, only algorithms that repeat to the bit; then torch's earlier settings.

    What the model does on a CPU repeats as it is, and the setting there takes seconds to import.
    Memory that is about to be written, as all logits are, is not filled before.
    CUBLAS_WORKSPACE_CONFIG stays set: cuBLAS reads it once, at its first use in the process.
    """
    if device.type == "cpu":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    memory: Any = torch.utils.deterministic
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        memory.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
