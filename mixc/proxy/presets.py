"""Sizes of the small model, its learning rates and its cost. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

_PEAK_RATE, _PEAK_RATE_WIDTH = 3e-3, 96
_COMPACT = 8192


@dataclass(frozen=True)
class Shape:
    """The dimensions of a decoder: `layers` blocks of `width`, `heads` heads, SwiGLU `hidden`."""

    layers: int
    width: int
    heads: int
    hidden: int

    def __post_init__(self) -> None:
        """Refuse dimensions that do not divide."""
        assert self.width % self.heads == 0, "heads must divide width"
        assert self.head_dim % 2 == 0, "rotary embeddings turn pairs of dimensions"

    @property
    def head_dim(self) -> int:
        """Dimensions of one attention head."""
        return self.width // self.heads


def _llama(layers: int, width: int, head_dim: int) -> Shape:
    """`hidden` is 8/3 of the width, rounded up to a multiple of 32: 12 d^2 weights a layer."""
    return Shape(layers, width, width // head_dim, -(-8 * width // (3 * 32)) * 32)


# Weights outside the embeddings, about 12 * layers * width^2: 0.45M, 2.7M, 10M, 31M, 85M, 302M.
PRESETS: dict[str, Shape] = {
    "nano": _llama(4, 96, 32),
    "micro": _llama(6, 192, 32),
    "mini": _llama(8, 320, 32),
    "small": _llama(10, 512, 64),
    "base": _llama(12, 768, 64),
    "large": _llama(24, 1024, 64),
}


def default_learning_rate(shape: Shape) -> float:
    """The peak learning rate for AdamW: 3e-3 up to width 96, then falling as 1 / width."""
    return _PEAK_RATE * min(1.0, _PEAK_RATE_WIDTH / shape.width)


def compact_vocab(shape: Shape, vocab: int) -> int:
    """Ids that a model tells apart: 8192 of more, if its output else cost more than all blocks."""
    return min(vocab, _COMPACT) if vocab * shape.width > _block_weights(shape) else vocab


def parameters(shape: Shape, vocab: int) -> int:
    """Every weight of the model: blocks, norms, the embedding and the (untied) head."""
    norms = (2 * shape.layers + 1) * shape.width
    return _block_weights(shape) + norms + 2 * vocab * shape.width


def flops_per_token(shape: Shape, vocab: int, seq_len: int) -> float:
    """Floating-point operations of a forward pass, a token; training costs three times that.

    Matrix products alone, a multiply-add as two: weights, attention (scores and values over
    all `seq_len` positions, the causal half not taken off) and head, as in PaLM
    (arXiv:2204.02311, appendix B).
    """
    attention = 2 * shape.layers * seq_len * shape.width
    return 2.0 * (_block_weights(shape) + attention + vocab * shape.width)


def _block_weights(shape: Shape) -> int:
    """Weights of the blocks' matrices: q, k, v and output; gate, up and down."""
    return shape.layers * shape.width * (4 * shape.width + 3 * shape.hidden)
