"""How many bytes a buffer may take, by the device it is on."""

from __future__ import annotations

import torch


def room(device: torch.device, on_cpu: int, share: int) -> int:
    """`on_cpu` bytes on a CPU; on a GPU its memory over `share`.

    Of all its memory, not of what is free: a sum's order, and with it the bits, follow from a
    buffer's size, and are to be the same in every run.
    """
    if device.type != "cuda":
        return on_cpu
    return int(torch.cuda.get_device_properties(device).total_memory) // share
