"""The small model: a Llama-style decoder in plain torch.

RMSNorm before each sublayer (arXiv:1910.07467), rotary positions (arXiv:2104.09864), causal
attention, SwiGLU (arXiv:2002.05202); no biases, no dropout, embedding and head untied.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own custom)
from torch import Tensor, nn

from mixc.proxy.presets import Shape, padded_vocab, width_factor
from mixc.rng import Stream

_EPS = 1e-5
_ROPE_BASE = 10_000.0
_INIT_STD = 0.02


class Model(nn.Module):
    """Tokens to hidden states: `model(tokens: int64[B, T]) -> float32[B, T, width]`.

    `head` is the output weight; logits are left to `mixc.proxy.loss`, which need not hold them
    all at once. It and `embedding` have `vocab` rows and then padding, [padded_vocab, width]. A
    `seed` gives the same weights on any device and any version of torch, whose generators are
    not used.
    """

    def __init__(self, shape: Shape, vocab: int, seed: int) -> None:
        """Weights on the CPU, float32, as `seed` gives them."""
        super().__init__()
        self.shape, self.vocab = shape, vocab
        rows = padded_vocab(vocab)
        self.embedding = _empty(rows, shape.width)
        self.blocks = nn.ModuleList(_Block(shape) for _ in range(shape.layers))
        self.norm = _empty(shape.width)
        self.head = _empty(rows, shape.width)
        _initialise(self, seed)

    def forward(self, tokens: Tensor) -> Tensor:
        """Hidden states float32[B, T, width], normalised, of tokens int64[B, T]."""
        turn = rotation(tokens.shape[1], self.shape.head_dim, tokens.device)
        x = F.embedding(tokens, self.embedding)
        for block in self.blocks:
            x = block(x, turn)
        return _rms_norm(x, self.norm)


class _Block(nn.Module):
    """One layer: attention, then SwiGLU, each added to the stream it reads."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.attention_norm = _empty(shape.width)
        self.qkv = _empty(3 * shape.width, shape.width)
        self.attention_out = _empty(shape.width, shape.width)
        self.mlp_norm = _empty(shape.width)
        self.gate_up = _empty(2 * shape.hidden, shape.width)
        self.mlp_out = _empty(shape.width, shape.hidden)

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        x = x + self._attend(_rms_norm(x, self.attention_norm), turn)
        gate, up = F.linear(_rms_norm(x, self.mlp_norm), self.gate_up).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, self.mlp_out)

    def _attend(self, x: Tensor, turn: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = F.linear(x, self.qkv).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, T, head_dim]
        mixed = F.scaled_dot_product_attention(rotate(q, turn), rotate(k, turn), v, is_causal=True)
        return F.linear(mixed.transpose(1, 2).reshape(batch, length, width), self.attention_out)


def rotation(length: int, head_dim: int, device: torch.device) -> Tensor:
    """Cosines and sines of the rotary angles, float32[2, length, head_dim / 2].

    Position t turns pair i by t * 10000^(-2i / head_dim); computed in float64.
    """
    pair = torch.arange(head_dim // 2, dtype=torch.float64, device=device)
    position = torch.arange(length, dtype=torch.float64, device=device)
    angle = torch.outer(position, _ROPE_BASE ** (-2.0 * pair / head_dim))
    return torch.stack([angle.cos(), angle.sin()]).float()


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turn x [..., T, head_dim] by `rotation`; dimension i is paired with i + head_dim / 2."""
    cos, sin = turn
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, _EPS)


def _empty(*size: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*size))


@torch.no_grad()
def _initialise(model: Model, seed: int) -> None:
    """Norms 1, padding 0, matrices normal.

    Standard deviations follow the width as the maximal update parametrisation wants them for Adam
    (arXiv:2203.03466, table 8), from 0.02 at width 96: the embedding's is the same at any width,
    those of matrices inside fall as 1 / sqrt(width), the head's as 1 / width. Matrices that write
    to the residual stream are smaller by 1 / sqrt(2 layers) (GPT-2).
    """
    factor = width_factor(model.shape)
    scales = {"embedding": 1.0, "head": 1 / factor}
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            weight.fill_(1.0)
            continue
        std = _INIT_STD * scales.get(name, 1 / math.sqrt(factor))
        if name.endswith("_out"):
            std /= math.sqrt(2 * model.shape.layers)
        used = weight[: model.vocab] if name in scales else weight
        normals = Stream(seed, "init", domain=name).normals(used.numel()) * std
        weight.zero_()
        used.copy_(torch.from_numpy(normals).view(used.shape))
