"""Training by several processes at once, as `torchrun` starts them.

Each process, a rank, makes the same batches and runs the model on its share of their rows. The
losses of all rows are then gathered on every rank, with gradients for its own rows alone; so an
objective sees the whole batch, whatever statistics it takes, and the sum of all ranks' gradients
is the gradient of its scalar. Records, updates and weights are equal on all ranks. What is on
disk is read and written by the first rank alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mixc import progress


@contextmanager
def joined() -> Iterator[None]:
    """While the block runs, the processes that `torchrun` started together are one group."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend)
    if torch.cuda.is_available() and count() > 1:
        torch.cuda.set_device(local_device())
    try:
        with progress.muted(not first()):
            yield
    finally:
        dist.destroy_process_group()


def count() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def first() -> bool:
    """Whether this process is the one that reads, writes and tells."""
    return count() == 1 or dist.get_rank() == 0


def local_device() -> torch.device:
    """The CUDA device of this process: each rank of a machine has its own."""
    return torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if count() > 1 else "cuda")


def share(rows: int) -> slice:
    """The rows of a batch that this rank runs the model on: as even as can be, in order."""
    return slice(*_bounds(rows)[dist.get_rank() :][:2]) if count() > 1 else slice(0, rows)


def gather_rows(mine: Tensor, rows: int) -> Tensor:
    """The losses [rows, T] of a whole batch from those of this rank's share of its rows.

    Gradients flow to the rank's own rows alone.
    """
    if count() == 1 or not rows:
        return mine
    sizes = np.diff(_bounds(rows)).tolist()
    padded = mine.new_zeros(max(sizes), mine.shape[1])
    padded[: len(mine)] = mine.detach()
    found = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(found, padded)
    parts = [part[:size] for part, size in zip(found, sizes, strict=True)]
    parts[dist.get_rank()] = mine
    return torch.cat(parts)


def sum_gradients(model: nn.Module) -> None:
    """Make every parameter's gradient the sum of all ranks'."""
    if count() == 1:
        return
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    flat = torch.cat([one.flatten() for one in gradients])
    dist.all_reduce(flat)
    parts = torch.split(flat, [one.numel() for one in gradients])
    for one, summed in zip(gradients, parts, strict=True):
        one.copy_(summed.view_as(one))


def from_first(make: Callable[[], bytes | None]) -> bytes | None:
    """What the first rank makes, on every rank. Only the first calls `make`."""
    if count() == 1:
        return make()
    data = make() if first() else None
    size = torch.tensor([-1 if data is None else len(data)])
    dist.broadcast(size, src=0)
    if size.item() < 0:
        return None
    body = torch.empty(int(size.item()), dtype=torch.uint8)
    if data:
        body = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    dist.broadcast(body, src=0)
    return body.numpy().tobytes()


def _bounds(rows: int) -> list[int]:
    ranks = count()
    return [rows * rank // ranks for rank in range(ranks + 1)]
