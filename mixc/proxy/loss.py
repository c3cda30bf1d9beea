"""Per-token losses, in nats."""

from __future__ import annotations

import torch
from mixc_kernels.fused_linear_ce import fused_linear_ce
from mixc_kernels.linear_ce_score import linear_ce_score
from mixc_kernels.room import room
from torch import Tensor

_LOGITS_BYTES = 256 << 20  # on a CPU


def token_losses(hidden: Tensor, head: Tensor, targets: Tensor, n_vocab: int) -> Tensor:
    """Cross-entropy of each token, float32[B, T], in nats.

    hidden [B, T, D], head [V, D], targets int64[B, T] in [0, n_vocab); the rows of the head from
    `n_vocab` on are padding, and no ids. Gradients flow to hidden and head. At most 256 MiB of
    logits are held at once, on a GPU a 16th of its memory, or one column or row of them. Under
    autocast hidden states are rounded to its type, in which a GPU then multiplies; sums, losses
    and the head's gradient are float32 still.
    """
    rows, wanted = _rows(hidden), targets.flatten()
    budget = room(rows.device, _LOGITS_BYTES, 16)
    out = fused_linear_ce(rows, head, wanted, n_vocab=n_vocab, budget_bytes=budget)
    return out.loss.view(targets.shape)


def scored_losses(hidden: Tensor, head: Tensor, targets: Tensor, n_vocab: int) -> Tensor:
    """The same without gradients: of a model that is not trained. On a GPU no logits are held."""
    return linear_ce_score(_rows(hidden), head, targets.flatten(), n_vocab=n_vocab).view_as(targets)


def _rows(hidden: Tensor) -> Tensor:
    """hidden [B, T, D] as rows, in autocast's type, which does not know the operators."""
    rows, device = hidden.flatten(0, 1), hidden.device.type
    return rows.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else rows
