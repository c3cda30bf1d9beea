"""Losses of a model that is not trained: on rows, and on a stream of held-out tokens."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from mixc.proxy.device import deterministic
from mixc.proxy.loss import scored_losses
from mixc.proxy.model import Model

_BATCH_TOKENS = 16_384


@torch.no_grad()
def row_losses(model: Model, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """Loss in nats of each token but the first of each row int64[B, L], float32[B, L - 1].

    Computed where the model is, in autocast's type if that is on.
    """
    device = model.head.device
    with deterministic(device):
        there = torch.from_numpy(tokens).to(device)
        losses = scored_losses(model(there[:, :-1]), model.head, there[:, 1:], model.vocab)
    return np.asarray(losses.cpu().numpy())


def stream_losses(
    model: Model, stream: NDArray[np.integer], seq_len: int, device: torch.device | str
) -> NDArray[np.float32]:
    """Loss in nats of each token of `stream` (1-D) but the first, float32[tokens - 1].

    Windows of seq_len + 1 tokens overlap by one, so that every token is predicted exactly once,
    from the tokens before it in its window; the last window may be shorter. The model is moved to
    `device`, and computes in float32 there, also in the midst of a training in another type. A
    stream of fewer than two tokens has no losses.
    """
    there = torch.device(device)
    model.to(there)
    parts = [np.zeros(0, np.float32)]
    with torch.autocast(there.type, enabled=False):
        for tokens in _windows(stream.astype(np.int64), seq_len):
            parts.append(row_losses(model, tokens).ravel())
    return np.concatenate(parts)


def _windows(stream: NDArray[np.int64], seq_len: int) -> Iterator[NDArray[np.int64]]:
    """Batches int64[B, up to seq_len + 1] of windows: the full ones, then the short one."""
    full = max(0, len(stream) - 1) // seq_len
    if full:
        windows = np.lib.stride_tricks.sliding_window_view(stream, seq_len + 1)[::seq_len]
        step = max(1, _BATCH_TOKENS // seq_len)
        for first in range(0, full, step):
            yield windows[first : first + step].copy()
    rest = stream[full * seq_len :]
    if len(rest) > 1:
        yield rest[None].copy()
