"""A small decoder with every kind of parameter, for tests of gradients by domain.

Run with a rank, the number of ranks and a file that none has made yet, it prints what that rank
of a gloo group finds of its part of the batch.
"""

import json
import sys

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from mixc_kernels.domain_grads import DomainGrads
from mixc_kernels.fused_linear_ce import fused_linear_ce
from torch import nn

VOCAB, WIDTH, LENGTH, DOMAINS = 23, 6, 5, 4
WEIGHTS = np.array([0.1, 0.6, 0.0, 0.3])


class Decoder(nn.Module):
    """Two layers of modules of torch.nn; tokens see those before them; per-token losses."""

    def __init__(self, tied=False, norm="rms", bias=False, fused=None):
        super().__init__()
        self.fused = fused  # options of `fused_linear_ce`, that gives the losses then
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        make_norm = nn.LayerNorm if norm == "layer" else nn.RMSNorm
        options = {"bias": bias} if norm == "layer" else {}
        self.norms = nn.ModuleList(make_norm(WIDTH, **options) for _ in range(3))
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH, bias=bias) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=bias) for _ in range(2))
        self.head = nn.Linear(WIDTH, VOCAB, bias=bias)
        if tied:
            self.head.weight = self.embedding.weight
        normals = torch.from_numpy(np.random.default_rng(0).normal(size=10_000))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(normals[: parameter.numel()].view(parameter.shape))
                normals = normals[parameter.numel() :]

    def forward(self, tokens):
        x = self.embedding(tokens[:, :-1])
        for norm, qkv, out in zip(self.norms, self.qkv, self.out, strict=False):
            q, k, v = qkv(norm(x)).chunk(3, dim=-1)
            x = x + out(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        x = self.norms[2](x)
        if self.fused is not None:
            given = x.flatten(0, 1), self.head.weight, tokens[:, 1:].flatten()
            return fused_linear_ce(*given, **self.fused).loss.view(len(tokens), -1)
        logits = self.head(x)
        return F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")


def batch(rows, seed=1, domains=DOMAINS):
    """Tokens int64[rows, LENGTH + 1] and the domain of each row."""
    rng = np.random.default_rng(seed)
    tokens = torch.from_numpy(rng.integers(VOCAB, size=(rows, LENGTH + 1)))
    return tokens, torch.from_numpy(rng.integers(domains, size=rows))


def gradient(model):
    """All of p.grad in one float64 vector, zeros for None."""
    return torch.cat(
        [torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in model.parameters()]
    ).double()


def found(model, tokens, domain, group=None):
    """The products, counts and gradients with weights known, and late with clipping, in lists."""
    out = {}
    for name, weights, options in (
        ("known", WEIGHTS, {}),
        ("kept", lambda gram: WEIGHTS, {}),
        ("twice", lambda gram: WEIGHTS, {"keep_bytes": 0}),
    ):
        with DomainGrads(model, domain, DOMAINS, group=group, block_bytes=1000, **options) as grads:
            losses = model(tokens)
        gram = grads.backward(losses, weights, max_norm=None if name == "known" else 0.5)
        out[name] = [gram.products.tolist(), gram.tokens.tolist(), gradient(model).tolist()]
    return out


if __name__ == "__main__":
    rank, ranks, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=ranks)
    tokens, domain = batch(8)
    mine = slice(0, 3) if rank == 0 else slice(3, 8)
    for tied in (False, True):
        model = Decoder(tied, "layer", True)
        print(json.dumps(found(model, tokens[mine], domain[mine], dist.group.WORLD)))
    dist.destroy_process_group()
