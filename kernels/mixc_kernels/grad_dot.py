"""Each token's influence on a direction: inner products of its loss's gradient with one vector.

<grad l_t, v> is the derivative of l_t along v, so that one pass of forward-mode differentiation
gives it for all tokens, exactly: three matrix products a layer, as a training step, and no
activation is kept. With v the gradient of a validation loss this is TracIn's first-order influence
(G. Pruthi et al., arXiv:2002.08484).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from mixc_kernels.linear_ce_ops import linear_ce
from mixc_kernels.linear_ce_torch import Terms, exact, linear_ce_reference

_TORCHS = ("aten", "prims")  # libraries whose operators have forward derivatives, or say so


def grad_dot(
    model: nn.Module, losses: Callable[[nn.Module], Tensor], direction: Mapping[str, Tensor]
) -> Tensor:
    """<grad l_t, v> for each loss that `losses(model)` returns, in their shape.

    `direction` holds v by names of the model's parameters, in their shapes; those not named
    have no part in the product. Errors: ValueError for a name or a shape that is not the
    model's; TypeError where the model runs a function without a forward derivative.
    """
    parameters = dict(model.named_parameters())
    wrong = [
        n for n, v in direction.items() if n not in parameters or parameters[n].shape != v.shape
    ]
    if wrong:
        raise ValueError(f"the model has no parameters {wrong} of the shapes given")
    # Of attention's kernels only the plain one has a forward derivative.
    with torch.no_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), _Forward():
        moved = {
            f"model.{name}": forward_ad.make_dual(  # type: ignore[no-untyped-call]
                parameters[name].detach(), v.detach()
            )
            for name, v in direction.items()
        }
        found = functional_call(_Losses(model, losses), moved, ())
        along: Tensor | None = forward_ad.unpack_dual(found).tangent  # type: ignore[no-untyped-call]
    return torch.zeros_like(found) if along is None else along


class _Forward(TorchFunctionMode):
    """Gives the losses of `fused_linear_ce` forward derivatives; refuses operators without any.

    An operator of a library would run as it is, and what it makes would be taken for constant.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is linear_ce:
            return _linear_ce(*args)
        if isinstance(func, OpOverload | OpOverloadPacket):
            name = str(func)
            if name.partition(".")[0] not in _TORCHS:
                raise TypeError(f"{name} has no forward derivative: its part would be lost")
        return func(*args, **kwargs or {})


def _linear_ce(
    hidden: Tensor, weight: Tensor, target: Tensor, *settings: Any
) -> tuple[Tensor, ...]:
    """The losses in plain torch, some rows at a time."""
    *terms, budget, _ = settings
    # Logits, their probabilities, and as much again along the direction.
    rows = max(1, budget // (8 * len(weight) * exact(hidden.dtype).itemsize))
    parts = [
        linear_ce_reference(some, weight, wanted, Terms(*terms))
        for some, wanted in zip(torch.split(hidden, rows), torch.split(target, rows), strict=True)
    ]
    loss, lse = (torch.cat(some) for some in zip(*parts, strict=True))
    return loss, lse, torch.ones_like(lse), lse.new_empty(0)


class _Losses(nn.Module):
    """A model under another name, so that its parameters can be replaced for one call."""

    def __init__(self, model: nn.Module, losses: Callable[[nn.Module], Tensor]) -> None:
        super().__init__()
        self.model, self.losses = model, losses

    def forward(self) -> Tensor:
        return self.losses(self.model)


def grad_dot_reference(
    model: nn.Module, losses: Callable[[nn.Module], Tensor], direction: Mapping[str, Tensor]
) -> Tensor:
    """The same by going backwards once a loss: for tests."""
    parameters = dict(model.named_parameters())
    chosen, each = [parameters[name] for name in direction], losses(model)
    dots = []
    for loss in each.flatten():
        grads = torch.autograd.grad(loss, chosen, retain_graph=True, materialize_grads=True)
        products = [(g * v).sum() for g, v in zip(grads, direction.values(), strict=True)]
        dots.append(torch.stack(products).sum())
    return torch.stack(dots).view(each.shape)
