"""Cross-entropy of a linear layer in plain torch, block by block of the vocabulary.

With z = hidden weight^T, capped to c tanh(z / c) where there is a soft cap (arXiv:2408.00118), the
loss of a token with target y among V ids is

    lse - (1 - s) z_y - s mean(z) + a lse^2,  lse = log sum exp z,

s the label smoothing (arXiv:1512.00567), a the z-loss (arXiv:2204.02311). The first pass over the
vocabulary finds lse and the losses, the second the gradients, whose weights of tokens may be known
only between the two. The idea of never holding [N, V]: E. Wijmans et al., "Cut your losses in
large-vocabulary language models", arXiv:2411.09009.

For each token its largest logit and sum exp(z - largest) are kept, not lse: their errors do not
grow with an offset that all logits share, and no target's logit is taken from a difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mixc_kernels.room import room

_LEAST_COLUMNS = 256  # fewer make slow products of matrices


@dataclass(frozen=True)
class Terms:
    """What a loss is made of: ids below `n_vocab`, no loss at `ignore_index`; 0 leaves a term out.

    In the order in which operators take them.
    """

    n_vocab: int
    ignore_index: int = -100
    softcap: float = 0.0
    z_loss: float = 0.0
    label_smoothing: float = 0.0


class Targets(NamedTuple):
    """Of each token, [N]: whether it has a loss, whether its id is out of range, a safe column."""

    kept: Tensor
    bad: Tensor
    column: Tensor


class Sums(NamedTuple):
    """What is known of each token after some columns, [N] each, updated in place.

    Largest logit, sum exp(z - largest), the target's logit, sum(largest - z).
    """

    top: Tensor
    total: Tensor
    wanted: Tensor
    spread: Tensor


def tile_bytes(device: torch.device) -> int:
    """Logits at a time: what stays in a core's cache; on a GPU, products that fill it."""
    return room(device, 4 << 20, 512)


def exact(dtype: torch.dtype) -> torch.dtype:
    """The type that losses and sums have: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def read_targets(target: Tensor, terms: Terms) -> Targets:
    """Errors: IndexError for an id out of range, on the CPU; elsewhere `bad` says it, unasked."""
    kept = target != terms.ignore_index
    bad = kept & ((target < 0) | (target >= terms.n_vocab))
    if target.device.type == "cpu":
        _refuse(target[bad], terms)
    return Targets(kept, bad, target.clamp(0, terms.n_vocab - 1))


def _refuse(bad: Tensor, terms: Terms) -> None:
    if len(bad):
        raise IndexError(f"target {int(bad[0])} is not in [0, {terms.n_vocab})")


def scale_of(grad: Tensor, targets: Targets) -> Tensor:
    """What each token's gradient is multiplied by, [N]: 0 where ignored, NaN for bad ids."""
    return torch.where(targets.kept, grad, 0.0).masked_fill_(targets.bad, torch.nan)


def begin_sums(hidden: Tensor) -> Sums:
    """Before any column."""
    zeros = torch.zeros(len(hidden), dtype=exact(hidden.dtype), device=hidden.device)
    return Sums(torch.full_like(zeros, -torch.inf), zeros, zeros.clone(), zeros.clone())


def absorb_(z: Tensor, first: int, sums: Sums, targets: Targets, terms: Terms) -> None:
    """Add the columns from `first` on, z [N, columns], whose logits are lost."""
    if terms.softcap:
        z.div_(terms.softcap).tanh_().mul_(terms.softcap)
    at, inside = _place(targets.column, first, z.shape[1])
    sums.wanted.copy_(torch.where(inside, z.gather(1, at)[:, 0], sums.wanted))
    top = torch.maximum(sums.top, z.amax(1))
    z.sub_(top[:, None])
    if terms.label_smoothing:
        if first:  # there is no largest logit before
            sums.spread.add_((top - sums.top).mul_(first))
        sums.spread.sub_(z.sum(1))
    sums.total.mul_((sums.top - top).exp_()).add_(z.exp_().sum(1))
    sums.top.copy_(top)


def losses_of(sums: Sums, targets: Targets, terms: Terms) -> Tensor:
    """The loss of each token, [N], after all columns."""
    smoothing, log_total = terms.label_smoothing, sums.total.log()
    loss = log_total + (1 - smoothing) * (sums.top - sums.wanted)
    if smoothing:
        loss += sums.spread * (smoothing / terms.n_vocab)
    if terms.z_loss:
        loss += terms.z_loss * (sums.top + log_total).square()
    return loss.masked_fill_(~targets.kept, 0.0).masked_fill_(targets.bad, torch.nan)


def differentiate_(
    z: Tensor, first: int, sums: Sums, scale: Tensor, targets: Targets, terms: Terms
) -> None:
    """Logits z [N, columns] from `first` on become the gradient by them, times `scale` [N]."""
    slope = None
    if terms.softcap:
        z.div_(terms.softcap).tanh_()
        slope = 1 - z * z
        z.mul_(terms.softcap)
    z.sub_(sums.top[:, None]).exp_()
    from_exponentials_(z, first, sums, scale, targets, terms)
    if slope is not None:
        z.mul_(slope)


def from_exponentials_(
    z: Tensor, first: int, sums: Sums, scale: Tensor, targets: Targets, terms: Terms
) -> None:
    """The same of exp(z - largest), but for the slope of a soft cap."""
    smoothing, factor = terms.label_smoothing, scale / sums.total
    if terms.z_loss:
        factor *= 1 + 2 * terms.z_loss * (sums.top + sums.total.log())
    z.mul_(factor[:, None])
    if smoothing:
        z.sub_(scale[:, None] * (smoothing / terms.n_vocab))
    at, inside = _place(targets.column, first, z.shape[1])
    z.scatter_add_(1, at, torch.where(inside, (smoothing - 1) * scale, 0.0)[:, None])


def vocab_losses(
    hidden: Tensor, weight: Tensor, target: Tensor, terms: Terms, budget: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(losses, largest logits, sums of exponentials), [N] each, of hidden [N, D], weight [V, D].

    Logits held at once take at most `budget` bytes, or one column.
    """
    targets, sums = read_targets(target, terms), begin_sums(hidden)
    for first, _, z in _tiles(hidden.to(exact(hidden.dtype)), weight, terms, budget):
        absorb_(z, first, sums, targets, terms)
    return losses_of(sums, targets, terms), sums.top, sums.total


def vocab_gradients(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    top: Tensor,
    total: Tensor,
    terms: Terms,
    budget: int,
    *,
    by_hidden: bool = True,
    by_weight: bool = True,
) -> tuple[Tensor, Tensor]:
    """Gradients of sum(grad * loss) by hidden and weight, in their types; grad [N].

    Each block of the weight's gradient is summed and written once, in no sum over blocks. One
    that is not asked for is an empty tensor.
    """
    targets = read_targets(target, terms)
    scale = scale_of(grad, targets)
    sums = Sums(top, total, top, top)
    x = hidden.to(exact(hidden.dtype))
    dx = torch.zeros(x.shape if by_hidden else 0, dtype=x.dtype, device=x.device)
    dw = torch.empty(weight.shape if by_weight else 0, dtype=weight.dtype, device=x.device)
    dw[terms.n_vocab :] = 0
    for first, block, z in _tiles(x, weight, terms, budget):
        differentiate_(z, first, sums, scale, targets, terms)
        if by_hidden:
            dx.addmm_(z, block)
        if by_weight:
            part = dw[first : first + len(block)]
            # Written to what is float32, or autocast would make it less.
            wide = part if part.dtype == x.dtype else x.new_empty(part.shape)
            torch.mm(z.T, x, out=wide)
            part.copy_(wide)
    return dx.to(hidden.dtype), dw


def linear_ce_reference(
    hidden: Tensor, weight: Tensor, target: Tensor, terms: Terms
) -> tuple[Tensor, Tensor]:
    """The same, (losses [N], lse [N]), from all logits at once and by autograd."""
    targets, dtype = read_targets(target, terms), exact(hidden.dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        z = hidden.to(dtype) @ weight[: terms.n_vocab].to(dtype).T
    if terms.softcap:
        z = terms.softcap * torch.tanh(z / terms.softcap)
    lse, log_p = torch.logsumexp(z, 1), torch.log_softmax(z, 1)
    loss = (terms.label_smoothing - 1) * log_p.gather(1, targets.column[:, None])[:, 0]
    loss = loss - terms.label_smoothing * log_p.mean(1) + terms.z_loss * lse.square()
    loss = loss.masked_fill(~targets.kept, 0.0).masked_fill(targets.bad, torch.nan)
    return loss, lse.detach()


def _tiles(
    x: Tensor, weight: Tensor, terms: Terms, budget: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(first column, its block of the weight, logits [N, columns]); all share one buffer."""
    column = max(1, len(x)) * x.element_size()
    columns = max(_LEAST_COLUMNS, tile_bytes(x.device) // column)
    columns = max(1, min(columns, budget // column, terms.n_vocab))
    buffer = x.new_empty(len(x) * columns)
    for first in range(0, terms.n_vocab, columns):
        block = weight[first : min(first + columns, terms.n_vocab)].to(x.dtype)
        z = buffer[: len(x) * len(block)].view(len(x), len(block))
        yield first, block, torch.mm(x, block.T, out=z)


def _place(column: Tensor, first: int, columns: int) -> tuple[Tensor, Tensor]:
    """Where in a block targets stand, [N, 1], some column where they do not, and whether, [N]."""
    at = column - first
    return at.clamp(0, columns - 1)[:, None], (at >= 0) & (at < columns)
