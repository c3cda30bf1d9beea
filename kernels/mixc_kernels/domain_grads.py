"""Inner products of domains' gradients, and a mix of these gradients, from one backward pass.

What DoGE needs at each step (S. Fan et al., arXiv:2310.15393), where its authors go backwards once
a domain. The loss is the sum of the domains' token means; where a parameter is used, the gradient
of domain k is a sum over that domain's tokens, and K such sums cost what the one over all tokens
does (`grouped_dw`). Layer by layer they are made, their products are added up in float64, they
are mixed, and forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from mixc_kernels.domain_gram import DomainGram, clip_factors
from mixc_kernels.domain_pass import DomainPass, Want, add_ranks, wide
from mixc_kernels.grouped_dw import Groups, group_rows
from mixc_kernels.room import Buffers, room
from mixc_kernels.watch_uses import UnknownUseError, WatchUses

Weights = NDArray[np.float64]


class DomainGrads:
    """Records one forward pass, then goes backwards by domain.

        with DomainGrads(model, domain, domains) as grads:
            losses = ...  # [B, T], of each token
        gram = grads.backward(losses, weights)

    `domain` int64[B] names the domain of each row; rows that stand by domain save copies. Layers
    read [B, ..., C], or [B * T, C] in the same order, and use parameters as `watch_uses` knows.
    No token's loss may depend on another row (batch norm and losses of balance are out).

    Products are those of all pairs, or, `toward` float64[K], with sum_i toward[i] g_i: [K], which
    takes less the more domains there are.

    With `halves` a domain's product with itself is that of the gradients of two halves of its rows,
    without bias, where rows are drawn independently; NaN where it has one row, in a sum nothing.
    (That comes of a difference with |g_k|^2, of float32 products: to 1e-6 of these.) Not with a
    `group`.

    `precondition` holds a tensor P for each parameter: products become <g_i, P g_j> (for AdamW
    P is 1 / (sqrt(v) + eps)); norms stay plain. With a process `group`, rows are this rank's:
    gradients are summed over ranks before products are taken, so that all is as on one rank with
    all rows; the model must not be wrapped by DDP, too.

    Memory: `block_bytes` for K gradients of some rows of a parameter (4 MiB, or of a GPU's memory a
    128th), and `keep_bytes` at most for K gradients of all of them where weights come late (1 GiB,
    or an eighth); in `buffers` for the next pass, if they are given; and all logits, where they are
    few (`few_logits`). What came back to one use of a parameter is held until its last (of a tied
    head: the gradient of the logits).
    """

    def __init__(
        self,
        model: nn.Module,
        domain: Tensor,
        domains: int,
        *,
        toward: Weights | None = None,
        halves: bool = False,
        precondition: Mapping[nn.Parameter, Tensor] | None = None,
        group: dist.ProcessGroup | None = None,
        block_bytes: int | None = None,
        keep_bytes: int | None = None,
        buffers: Buffers | None = None,
    ) -> None:
        """Parameters that require no gradient are left alone."""
        self._names = {p: name for name, p in model.named_parameters() if p.requires_grad}
        self._watch = WatchUses(list(self._names))
        if halves and group is not None:
            raise ValueError("halves are of all rows of a domain: ranks know but their own")
        self._domain, self._groups = domain, group_rows(domain, domains, halves=halves)
        device = next(iter(self._names), domain).device
        block = room(device, 4 << 20, 128) if block_bytes is None else block_bytes
        self._want = Want(
            toward=toward,
            halves=halves,
            block_bytes=block,
            precondition=precondition,
            group=group,
            buffers=Buffers() if buffers is None else buffers,
        )
        self._domains = domains
        self._keep_bytes = room(device, 1 << 30, 8) if keep_bytes is None else keep_bytes

    def __enter__(self) -> DomainGrads:
        self._watch.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        self._watch.__exit__(*error)  # type: ignore[no-untyped-call]

    def backward(
        self,
        losses: Tensor,
        weights: Weights | Callable[[DomainGram], Weights],
        *,
        max_norm: float | None = None,
    ) -> DomainGram:
        """The products of g_k, the gradients of each domain's mean loss; sets p.grad.

        `losses` [B, T] are those of the recorded pass. p.grad becomes the sum of weights[k] g_k
        (float64[K]; a domain that is only a target has weight 0), whatever it was, and None for
        a parameter without use. With `max_norm` each g_k is clipped to it first, and products
        are those of the clipped. `weights` may be a function of what is returned.

        The two want all products before the first gradient is mixed: gradients are kept where K
        times all parameters fit `keep_bytes`, else a second backward pass mixes them.

        Errors: ValueError for a parameter that is used in a way that is not understood; p.grad
        is then as it was.
        """
        if losses.ndim != 2 or len(losses) != len(self._domain):
            raise ValueError(f"losses {list(losses.shape)} are not [{len(self._domain)}, T]")
        with torch.autocast(losses.device.type, enabled=False):  # sums stay float32, or wider
            gram, grads = self._backward(losses, weights, max_norm)
        for p in self._names:
            p.grad = grads.get(p)
        return gram

    def _backward(
        self,
        losses: Tensor,
        weights: Weights | Callable[[DomainGram], Weights],
        max_norm: float | None,
    ) -> tuple[DomainGram, dict[nn.Parameter, Tensor]]:
        """What `backward` returns, and the mix of the gradients."""
        counts = self._tokens(losses)
        tokens = counts.reshape(self._domains, -1).sum(axis=1)
        known = weights if isinstance(weights, np.ndarray) and max_norm is None else None
        late = known is None
        keep = late and self._room() <= self._keep_bytes
        want = replace(self._want, weights=known, keep=keep)
        found = self._sweep(losses, 1 / np.maximum(tokens, 1), want, retain=late and not keep)
        gram, grads = found.gram(counts), found.grads
        if late:
            clip = np.ones(len(tokens))
            if max_norm is not None:
                clip, gram = clip_factors(gram.norms, max_norm), gram.clipped(max_norm)
            mix = clip * (weights if isinstance(weights, np.ndarray) else weights(gram))
            grads = found.mix_kept(mix) if keep else self._mixed(losses, mix, tokens)
        return gram, grads

    def _room(self) -> int:
        """Bytes of K gradients of all parameters."""
        return sum(p.numel() * wide(p).itemsize for p in self._names) * self._domains

    def _tokens(self, losses: Tensor) -> NDArray[np.int64]:
        """Tokens of each domain, or of each half, on all ranks."""
        tokens = torch.tensor(self._groups.rows, device=losses.device) * losses.shape[1]
        add_ranks(tokens, self._want.group)
        return np.asarray(tokens.cpu().numpy())

    def _mixed(
        self, losses: Tensor, mix: Weights, tokens: NDArray[np.int64]
    ) -> dict[nn.Parameter, Tensor]:
        """The sum of mix[k] g_k: backwards again, these weights on the tokens, all in one group."""
        want = replace(self._want, products=False, halves=False, weights=np.ones(1))
        return self._sweep(losses, mix / np.maximum(tokens, 1), want, retain=False).grads

    def _sweep(self, losses: Tensor, scale: Weights, want: Want, *, retain: bool) -> DomainPass:
        """Go backwards with scale[k] on the loss of each token of domain k."""
        groups = self._groups if want.products else Groups(None, (len(self._domain),))
        found = DomainPass(groups, losses.shape[1], self._watch.uses, want)
        gradient = torch.from_numpy(scale)[self._domain.cpu()].to(losses)[:, None]
        try:
            self._watch.backward(losses, gradient.expand_as(losses), found.see, retain=retain)
        except UnknownUseError as error:
            name = self._names[error.parameter]
            raise ValueError(f"{name} is used in a way that is not understood") from None
        found.finish()
        return found


def domain_grads_reference(
    model: nn.Module, losses: Tensor, domain: Tensor, domains: int
) -> Tensor:
    """The gradients themselves, [K, P], by going backwards K times: for tests.

    Parameters in the order of `model.parameters()`; zeros for those without use.
    """
    parameters = list(model.parameters())
    rows = []
    for k in range(domains):
        chosen = losses[domain == k]
        loss = chosen.sum() / max(1, chosen.numel())
        grads = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([grad.flatten() for grad in grads]))
    return torch.stack(rows)
