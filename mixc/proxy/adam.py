"""The metric in which AdamW descends."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixc.proxy.checkpoint import State


def adam_scale(state: State) -> dict[nn.Parameter, Tensor]:
    """AdamW's scale of each weight's gradient by the steps so far: m / (sqrt(v) + m), in (0, 1].

    m is the mean of sqrt(v) over all weights. It stands where AdamW has its epsilon, since a weight
    that has had no gradient yet, whose scale would be without bound, has it in the step itself from
    that step's own. Before the first step all is 1.
    """
    moments = {weight: state.optimiser.state.get(weight) for weight in state.model.parameters()}
    roots = {weight: found["exp_avg_sq"].sqrt() for weight, found in moments.items() if found}
    if not roots:
        return {weight: torch.ones_like(weight) for weight in moments}
    total = sum(root.double().sum().item() for root in roots.values())
    mean = max(total / sum(root.numel() for root in roots.values()), 1e-30)
    return {weight: mean / (root + mean) for weight, root in roots.items()}
