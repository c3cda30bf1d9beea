import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from mixc.proxy.model import Model, rotate, rotation
from mixc.proxy.presets import Shape
from mixc.rng import Stream

SHAPE = Shape(layers=2, width=32, heads=2, hidden=96)
VOCAB = 64


def tokens_of(batch, length, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(VOCAB, size=(batch, length)))


@pytest.fixture(scope="module")
def model():
    # Larger weights than a fresh model's, so that attention is far from uniform.
    model = Model(SHAPE, VOCAB, seed=0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8 if weight.ndim > 1 else 1.2)
    return model


def plain_attention(x, block, heads):
    """Attention by its definition: complex rotations, explicit mask and softmax."""
    batch, length, width = x.shape
    size = width // heads
    q, k, v = (x @ w.T for w in block.qkv.split(width))
    q, k, v = (y.view(batch, length, heads, size).transpose(1, 2) for y in (q, k, v))
    speed = 10_000.0 ** (-2 * torch.arange(size // 2, dtype=torch.float64) / size)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * speed
    turn = torch.polar(torch.ones_like(angle), angle)
    q, k = (torch.complex(*y.double().chunk(2, dim=-1)) * turn for y in (q, k))
    scores = (q @ k.conj().transpose(-1, -2)).real / math.sqrt(size)
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(later, -math.inf).softmax(-1) @ v.double()
    joined = mixed.transpose(1, 2).reshape(batch, length, width)
    return joined @ block.attention_out.double().T


def plain_norm(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def plain_forward(model, tokens):
    x = model.embedding[tokens]
    for block in model.blocks:
        x = x + plain_attention(plain_norm(x, block.attention_norm), block, SHAPE.heads).float()
        y = plain_norm(x, block.mlp_norm)
        gate, up = (y @ w.T for w in block.gate_up.split(SHAPE.hidden))
        x = x + (gate * torch.sigmoid(gate) * up) @ block.mlp_out.T
    return plain_norm(x, model.norm)


def test_forward_equals_the_plain_definition(model):
    tokens = tokens_of(3, 17)
    with torch.no_grad():
        hidden = model(tokens)
        torch.testing.assert_close(hidden, plain_forward(model, tokens), rtol=1e-4, atol=1e-4)
    assert hidden.shape == (3, 17, SHAPE.width)
    assert hidden.dtype == torch.float32


def test_a_later_token_does_not_change_earlier_outputs(model):
    tokens = tokens_of(2, 20)
    other = tokens.clone()
    other[:, 12] = (other[:, 12] + 1) % VOCAB
    with torch.no_grad():
        before, after = model(tokens), model(other)
    torch.testing.assert_close(before[:, :12], after[:, :12], rtol=0, atol=1e-6)
    assert (before[:, 12:] - after[:, 12:]).abs().amax(dim=-1).min() > 1e-3


def test_rotated_products_depend_on_the_distance_alone():
    draws = torch.from_numpy(Stream(0, "test").normals(2 * 16)).float().view(2, 1, 16)
    q, k = draws.expand(2, 40, 16)
    turn = rotation(40, 16, torch.device("cpu"))
    products = rotate(q, turn) @ rotate(k, turn).T
    for distance in (0, 1, 7):
        line = products.diagonal(-distance)
        torch.testing.assert_close(line, line[:1].expand_as(line), rtol=1e-4, atol=1e-4)
    assert products.diagonal(-1)[0] != pytest.approx(float(products.diagonal(-7)[0]), abs=1e-3)


def test_initial_weights_are_the_seeds_and_nothing_elses():
    torch.manual_seed(1)
    first = Model(SHAPE, VOCAB, seed=5).state_dict()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = Model(SHAPE, VOCAB, seed=5).state_dict()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head"], Model(SHAPE, VOCAB, seed=6).head)


def test_initial_weights_are_pinned():
    head = Model(SHAPE, VOCAB, seed=0).head.detach().numpy()
    expected = (Stream(0, "init", domain="head").normals(head.size) * 0.02).astype(np.float32)
    assert np.array_equal(head.ravel(), expected)


def test_padding_changes_no_weight_that_counts():
    model, names = Model(SHAPE, 70, seed=0), ("embedding", "head")
    for name in names:
        weight = getattr(model, name).detach()
        assert weight.shape == (128, SHAPE.width)
        assert not weight[70:].any()
        normals = Stream(0, "init", domain=name).normals(70 * SHAPE.width) * 0.02
        assert np.array_equal(weight[:70].numpy().ravel(), normals.astype(np.float32))


def test_initial_scales_follow_the_width():
    weights = dict(Model(Shape(2, 384, 4, 384), 512, seed=0).named_parameters())
    for name, std in (("embedding", 0.02), ("blocks.0.qkv", 0.01), ("head", 0.005)):
        assert weights[name].std().item() == pytest.approx(std, rel=0.03)
    assert weights["blocks.0.mlp_out"].std().item() == pytest.approx(0.005, rel=0.03)


def test_initial_scales():
    model = Model(Shape(8, 64, 2, 160), 512, seed=0)
    weights = dict(model.named_parameters())
    assert weights["embedding"].std().item() == pytest.approx(0.02, rel=0.03)
    assert weights["blocks.0.qkv"].std().item() == pytest.approx(0.02, rel=0.03)
    for name in ("blocks.3.attention_out", "blocks.3.mlp_out"):
        assert weights[name].std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert torch.equal(weights["norm"], torch.ones(64))
    logits = F.linear(model(tokens_of(1, 8)), model.head)
    assert logits.std().item() < 0.3  # so the first loss is about log V
