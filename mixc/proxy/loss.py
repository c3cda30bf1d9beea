"""Per-token losses, in nats."""

from __future__ import annotations

from mixc_kernels.fused_linear_ce import fused_linear_ce
from torch import Tensor

_LOGITS_BYTES = 256 << 20


def token_losses(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each token, float32[B, T], in nats.

    hidden [B, T, D], head [V, D], targets int64[B, T] in [0, V). Gradients flow to hidden and
    head. At most 256 MiB of logits are held at once, or one column or row of them.
    """
    rows, wanted = hidden.flatten(0, 1), targets.flatten()
    out = fused_linear_ce(rows, head, wanted, budget_bytes=_LOGITS_BYTES)
    return out.loss.view(targets.shape)
