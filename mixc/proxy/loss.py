"""Per-token losses, in nats."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own custom)
from torch import Tensor

_LOGITS_BYTES = 256 << 20


def token_losses(hidden: Tensor, head: Tensor, targets: Tensor, n_vocab: int) -> Tensor:
    """Cross-entropy of each token, float32[B, T], in nats.

    hidden [B, T, D], head [V, D], targets int64[B, T] in [0, n_vocab); the rows of the head from
    `n_vocab` on are padding, and no ids. Gradients flow to hidden and head. Where none are
    recorded (`torch.no_grad`), at most 256 MiB of logits are held at once.
    """
    rows, wanted = hidden.flatten(0, 1), targets.flatten()
    count = len(rows) if torch.is_grad_enabled() else _LOGITS_BYTES // (4 * len(head))
    count = max(1, count)
    parts = [
        F.cross_entropy(F.linear(some, head)[:, :n_vocab].float(), labels, reduction="none")
        for some, labels in zip(torch.split(rows, count), torch.split(wanted, count), strict=True)
    ]
    return torch.cat(parts).view(targets.shape)
