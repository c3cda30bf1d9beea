"""How fast each kind of weight learns, by the width of the model.

The maximal update parametrisation for Adam (Yang et al., arXiv:2203.03466, table 8): learning
rates of matrices inside the model and of the head fall as 1 / width, those of the embedding and
of norms stay. A rate that suits a narrow model then suits a wide one. The initial weights that
go with it are `mixc.proxy.model`'s.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from mixc.proxy.model import Model
from mixc.proxy.presets import width_factor


def parameter_groups(model: Model, weight_decay: float) -> list[dict[str, Any]]:
    """The model's weights as groups for AdamW, each with a `rate_factor` of the learning rate.

    Only matrices decay. Where the rate falls with the width, decay rises, since AdamW multiplies
    the two and weights should fade as fast at any width (Wang and Aitchison, arXiv:2405.13698).
    """
    factor = width_factor(model.shape)
    inner: list[nn.Parameter] = []
    embedding: list[nn.Parameter] = []
    norms: list[nn.Parameter] = []
    for name, weight in model.named_parameters():
        kind = norms if weight.ndim == 1 else embedding if name == "embedding" else inner
        kind.append(weight)
    return [
        {"params": inner, "weight_decay": weight_decay * factor, "rate_factor": 1 / factor},
        {"params": embedding, "weight_decay": weight_decay, "rate_factor": 1.0},
        {"params": norms, "weight_decay": 0.0, "rate_factor": 1.0},
    ]
