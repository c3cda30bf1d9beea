"""Per-token losses, in nats."""

from __future__ import annotations

import torch
from mixc_kernels.fused_linear_ce import fused_linear_ce
from torch import Tensor

_LOGITS_BYTES = 256 << 20


def token_losses(hidden: Tensor, head: Tensor, targets: Tensor, n_vocab: int) -> Tensor:
    """Cross-entropy of each token, float32[B, T], in nats.

    hidden [B, T, D], head [V, D], targets int64[B, T] in [0, n_vocab); the rows of the head from
    `n_vocab` on are padding, and no ids. Gradients flow to hidden and head. At most 256 MiB of
    logits are held at once, or one column or row of them. Under autocast hidden states are
    rounded to its type, in which a GPU then multiplies; sums, losses and the head's gradient are
    float32 still.
    """
    rows, wanted = hidden.flatten(0, 1), targets.flatten()
    if torch.is_autocast_enabled(rows.device.type):  # which does not know the operator
        rows = rows.to(torch.get_autocast_dtype(rows.device.type))
    out = fused_linear_ce(rows, head, wanted, n_vocab=n_vocab, budget_bytes=_LOGITS_BYTES)
    return out.loss.view(targets.shape)
