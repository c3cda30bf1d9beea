"""Cross-entropy of a linear head, losses alone: to score with a model that is not trained.

The vocabulary is taken in spans, and of each only the largest logit and the sum of exponentials
below it are kept (the online softmax of M. Milakov and N. Gimelshein, arXiv:1805.02867), so that
the logits, [N, V], never exist. On the CPU that is the forward pass of `fused_linear_ce`, on the
GPU one fused kernel (`linear_ce_score_triton`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own custom)
from torch import Tensor

from mixc_kernels.linear_ce_torch import Terms, vocab_losses

# On a GPU; a constant: were it to depend on N, a token's loss would depend on its neighbours.
_SPAN = 4096


@torch.no_grad()
def linear_ce_score(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    n_vocab: int | None = None,
    softcap: float | None = None,
    ignore_index: int = -100,
    budget_bytes: int = 64 << 20,
) -> Tensor:
    """-log softmax(logits)[target] of each token, float32[N], in nats; without gradients.

    logits = hidden weight^T in float32, whatever the inputs' type; with a softcap c they are
    c tanh(logits / c). hidden [N, D] is float32, float16 or bfloat16; weight [V, D] is of its type,
    in which a GPU multiplies, or float32. target is int[N]. Of a padded head only the first
    `n_vocab` rows count. The loss of `ignore_index` is 0. Another target outside [0, n_vocab)
    raises IndexError on the CPU, and has a loss of NaN on the GPU, where to look would be to wait.
    On the CPU at most `budget_bytes` of logits are held at once, or one column.
    """
    n_vocab = len(weight) if n_vocab is None else n_vocab
    _check(hidden, weight, target, n_vocab, softcap)
    if hidden.is_cuda:
        from mixc_kernels.linear_ce_score_triton import score

        used = weight[:n_vocab].to(hidden.dtype)
        return score(hidden, used, target, softcap, ignore_index, _SPAN)
    terms = Terms(n_vocab, ignore_index, softcap or 0.0)
    return vocab_losses(hidden, weight, target.long(), terms, budget_bytes)[0]


def _check(
    hidden: Tensor, weight: Tensor, target: Tensor, n_vocab: int, softcap: float | None
) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError("hidden must be [N, D] and weight [V, D]")
    if target.shape != hidden.shape[:1] or target.is_floating_point():
        raise ValueError("target must be int[N]")
    allowed = (torch.float32, torch.float16, torch.bfloat16)
    if hidden.dtype not in allowed or weight.dtype not in (hidden.dtype, torch.float32):
        raise ValueError("hidden must be float32, float16 or bfloat16, weight so too or float32")
    if not 1 <= n_vocab <= len(weight):
        raise ValueError(f"n_vocab must be 1 to {len(weight)}, not {n_vocab}")
    if softcap is not None and softcap <= 0:
        raise ValueError("softcap must be above 0")


def linear_ce_score_reference(
    hidden: Tensor, weight: Tensor, target: Tensor, softcap: float | None, ignore_index: int
) -> Tensor:
    """The same, float64[N], from all logits at once: for tests and benchmarks."""
    logits = hidden.double() @ weight.double().T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    wanted = target.long()
    return F.cross_entropy(logits, wanted, ignore_index=ignore_index, reduction="none")
