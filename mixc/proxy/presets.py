"""Sizes of the small model, how it scales with width, and its cost. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

LEARNING_RATE = 3e-3  # peak, of a model of width 96, whatever the depth
_BASE_WIDTH = 96
_VOCAB_STEP = 64
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


def _llama(width: int) -> Shape:
    """The one rule of all sizes: the width is about six times the square of the depth.

    Heads have 32 dimensions, from width 512 on 64. `hidden` is 8/3 of the width, rounded up to a
    multiple of 32: 12 width^2 weights a layer.
    """
    head_dim = 32 if width < 512 else 64
    hidden = -(-8 * width // (3 * 32)) * 32
    return Shape(round((width / 6) ** 0.5), width, width // head_dim, hidden)


# 4 to 13 layers. Weights outside the embeddings: 0.45M, 2.7M, 8.7M, 28M, 78M, 164M.
PRESETS: dict[str, Shape] = {
    "nano": _llama(96),
    "micro": _llama(192),
    "mini": _llama(320),
    "small": _llama(512),
    "base": _llama(768),
    "large": _llama(1024),
}


def width_factor(shape: Shape) -> float:
    """How many times wider a model is than the one whose learning rate is given; at least 1.

    Up to width 96 nothing is scaled.
    """
    return max(1.0, shape.width / _BASE_WIDTH)


def padded_vocab(vocab: int) -> int:
    """Rows of the embedding and of the head: a multiple of 64, which matrix products like."""
    return -(-vocab // _VOCAB_STEP) * _VOCAB_STEP


def compact_vocab(shape: Shape, vocab: int) -> int:
    """Ids that a model tells apart: 8192 of more, if its output else cost more than all blocks."""
    return min(vocab, _COMPACT) if vocab * shape.width > _block_weights(shape) else vocab


def parameters(shape: Shape, vocab: int) -> int:
    """Every weight of the model: blocks, norms, the embedding and the (untied) head, padded."""
    norms = (2 * shape.layers + 1) * shape.width
    return _block_weights(shape) + norms + 2 * padded_vocab(vocab) * shape.width


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
