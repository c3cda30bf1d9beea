"""How many bytes a buffer may take, by the device it is on, and buffers that are used again."""

from __future__ import annotations

import math
from collections.abc import Hashable

import torch
from torch import Tensor


def room(device: torch.device, on_cpu: int, share: int) -> int:
    """`on_cpu` bytes on a CPU; on a GPU its memory over `share`.

    Of all its memory, not of what is free: a sum's order, and with it the bits, follow from a
    buffer's size, and are to be the same in every run.
    """
    if device.type != "cuda":
        return on_cpu
    return int(torch.cuda.get_device_properties(device).total_memory) // share


class Buffers:
    """Memory that a step after the other uses: what the system gives anew it first has to clear."""

    def __init__(self) -> None:
        self._held: dict[Hashable, Tensor] = {}

    def take(self, use: Hashable, size: tuple[int, ...], like: Tensor) -> Tensor:
        """A tensor of this size for a use, with whatever is there, of `like`'s type and device."""
        key, numel = (use, like.dtype, like.device), math.prod(size)
        if key not in self._held or self._held[key].numel() < numel:
            self._held[key] = like.new_empty(numel)
        return self._held[key][:numel].view(size)
