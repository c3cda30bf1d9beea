"""What each use of a parameter read, and the gradient of what it wrote, as autograd comes by.

While it is entered, `WatchUses` lets `F.linear`, `F.embedding`, `F.rms_norm`, `F.layer_norm` and
the losses of `fused_linear_ce` run on detached parameters, and hangs a tap on what they return.
No gradient of a parameter is then computed by autograd; one that does arrive shows a use that was
not seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own custom)
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mixc_kernels.few_logits import FewLogits
from mixc_kernels.grouped_head import Softmax
from mixc_kernels.linear_ce_ops import linear_ce
from mixc_kernels.linear_ce_torch import Terms

Kind = Literal["product", "lookup", "gain", "sum", "head"]


@dataclass(frozen=True)
class Use:
    """One use of a parameter: y = x W^T, rows of it, x times it, it added, or losses of x W^T.

    `read` makes x from the tensor that the layer was given: a norm's gain reads it normalised.
    Of losses, what returned is [N], and `softmax` says more; of few logits it is their gradient, as
    of a product.
    """

    parameter: nn.Parameter
    kind: Kind
    read: Callable[[Tensor], Tensor] = lambda given: given
    softmax: Softmax | None = None


# (use, the tensor that the layer was given, the gradient of what it returned)
Seen = Callable[[Use, Tensor, Tensor], None]
# the last two of these
Report = Callable[[Tensor, Tensor], None]


class WatchUses(TorchFunctionMode):
    """Sees the uses of `parameters` in the block that it is entered for.

    `uses` counts them. Going backwards calls `seen` with each, in the order of autograd.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.parameters = tuple(parameters)
        self.uses: Counter[nn.Parameter] = Counter()
        self.seen: Seen | None = None
        # What every tap hangs on, so that autograd comes by where nothing else leads further.
        self.anchor = torch.zeros((), requires_grad=True)
        self._watched = frozenset(parameters)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Watch a known function; any other runs as it is."""
        known = _KNOWN.get(func)
        return known(self, *args, **kwargs or {}) if known else func(*args, **kwargs or {})

    def hidden(self, parameter: Any) -> Any:
        """A watched parameter detached; anything else as it is."""
        return parameter.detach() if parameter in self._watched else parameter

    def tap(self, written: Tensor, given: Tensor, *uses: Use) -> Tensor:
        """`written`, through which autograd reports those of `uses` that are watched."""
        report = self.reporter(*uses)
        if report is None:
            return written
        return _Tap.apply(written, given.detach(), self.anchor, report)  # type: ignore[no-any-return,no-untyped-call]

    def reporter(self, *uses: Use) -> Report | None:
        """What is to be called with a layer's input and the gradient of its output, if anything."""
        watched = [use for use in uses if use.parameter in self._watched]
        if not watched or not torch.is_grad_enabled():
            return None
        self.uses.update(use.parameter for use in watched)

        def report(read: Tensor, gradient: Tensor) -> None:
            if self.seen is None:
                raise RuntimeError("a recorded pass goes backwards by what recorded it alone")
            for use in watched:
                self.seen(use, read, gradient)

        return report

    def backward(self, losses: Tensor, gradient: Tensor, seen: Seen, *, retain: bool) -> None:
        """Go backwards from `losses`, telling `seen`; no tensor's .grad is changed.

        Errors: ValueError for a parameter that the losses depend on by a use that was not seen.
        """
        self.seen, wanted = seen, [self.anchor, *self.parameters]
        try:
            found = torch.autograd.grad(
                losses, wanted, gradient, retain_graph=retain, allow_unused=True
            )
        finally:
            self.seen = None  # the graph holds this, and would hold all that `seen` found
        for number, stray in enumerate(found[1:]):
            if stray is not None:
                raise UnknownUseError(self.parameters[number])


class UnknownUseError(ValueError):
    """The losses depend on a parameter by a use that `WatchUses` does not know."""

    def __init__(self, parameter: nn.Parameter) -> None:
        super().__init__(f"a parameter {list(parameter.shape)} is used in an unknown way")
        self.parameter = parameter


class _Tap(torch.autograd.Function):
    """The identity; on the way back it reports what was read, unchanged since, and dy."""

    @staticmethod
    def forward(ctx: Any, written: Tensor, given: Tensor, anchor: Tensor, report: Any) -> Tensor:  # noqa: ARG004
        ctx.save_for_backward(given)
        ctx.report = report
        return written.view_as(written)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        ctx.report(*ctx.saved_tensors, gradient)
        return gradient, None, None, None


def _linear(watch: WatchUses, input: Tensor, weight: Any, bias: Any = None) -> Tensor:  # noqa: A002
    written = F.linear(input, watch.hidden(weight), watch.hidden(bias))
    return watch.tap(written, input, Use(weight, "product"), Use(bias, "sum"))


def _embedding(
    watch: WatchUses,
    input: Tensor,  # noqa: A002
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    options = (padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    if options != (None, None, 2.0, False, False):
        # Its gradient is not the sum of what came back: let it be an unknown use.
        return F.embedding(input, weight, *options)
    written = F.embedding(input, watch.hidden(weight))
    return watch.tap(written, input, Use(weight, "lookup"))


def _rms_norm(
    watch: WatchUses,
    input: Tensor,  # noqa: A002
    normalized_shape: list[int],
    weight: Any = None,
    eps: float | None = None,
) -> Tensor:
    written = F.rms_norm(input, normalized_shape, watch.hidden(weight), eps)
    gain = Use(weight, "gain", lambda x: F.rms_norm(x, normalized_shape, None, eps))
    return watch.tap(written, input, gain)


def _layer_norm(
    watch: WatchUses,
    input: Tensor,  # noqa: A002
    normalized_shape: list[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Tensor:
    written = F.layer_norm(input, normalized_shape, watch.hidden(weight), watch.hidden(bias), eps)
    gain = Use(weight, "gain", lambda x: F.layer_norm(x, normalized_shape, None, None, eps))
    return watch.tap(written, input, gain, Use(bias, "sum"))


def _linear_ce(
    watch: WatchUses,
    hidden: Tensor,
    weight: Any,
    target: Tensor,
    *settings: Any,
) -> tuple[Tensor, ...]:
    *terms, budget, _ = settings
    plain, about = watch.hidden(weight), Terms(*terms)
    if FewLogits.fits(hidden, plain, about, budget):
        report = watch.reporter(Use(weight, "product"))
        if report is not None:
            few = FewLogits.apply(hidden, plain, target, watch.anchor, about, report)  # type: ignore[no-untyped-call]
            return *few, few[0].new_empty(0)
    loss, top, total, logits = linear_ce(hidden, plain, target, *settings)
    use = Use(weight, "head", softmax=Softmax(target, top, total, about))
    return watch.tap(loss, hidden, use), top, total, logits


_KNOWN: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    linear_ce: _linear_ce,
    F.embedding: _embedding,
    F.rms_norm: _rms_norm,
    F.layer_norm: _layer_norm,
}
