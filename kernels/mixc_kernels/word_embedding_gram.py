"""Inner products of domains' gradients with respect to word embeddings, through the input alone.

TracIn-WE (C.-K. Yeh et al., "First is better than last for language data influence",
arXiv:2202.11844): influence by the embedding layer, where only words count that both texts hold.
The gradient through a head that is tied to the embedding reaches every word, and is left out.
Other weights' gradients are not made, so that it costs less than a training step.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from mixc_kernels.domain_gram import DomainGram
from mixc_kernels.domain_pass import DomainPass, Want
from mixc_kernels.grouped_dw import group_rows
from mixc_kernels.watch_uses import Use, WatchUses


def word_embedding_gram(
    embedding: nn.Parameter,
    losses: Callable[[], Tensor],
    domain: Tensor,
    domains: int,
    *,
    halves: bool = False,
) -> DomainGram:
    """<E_i, E_j> of E_k, the gradient of domain k's mean loss by `F.embedding(.., embedding)`.

    `losses` runs the model and gives [B, T], of each token; `domain` int64[B] names the domain of
    each row. Domains without a common word have exactly 0. `halves` as in `DomainGrads`. No .grad
    is changed. Errors: ValueError for an embedding that is used as neither a lookup nor a weight
    of a linear map.
    """
    watch = WatchUses([embedding])
    with watch:
        each = losses()
    groups = group_rows(domain, domains, halves=halves)
    counts = np.array(groups.rows) * each.shape[1]
    found = DomainPass(groups, each.shape[1], watch.uses, Want(halves=halves))

    def see(use: Use, given: Tensor, dy: Tensor) -> None:
        if use.kind == "lookup":
            found.see(use, given, dy)

    tokens = counts.reshape(domains, -1).sum(axis=1)
    scale = torch.from_numpy(1 / np.maximum(tokens, 1))[domain.cpu()].to(each)
    with torch.autocast(each.device.type, enabled=False):  # sums stay float32, or wider
        watch.backward(each, scale[:, None].expand_as(each), see, retain=False)
        found.finish()
    return found.gram(counts)
