import numpy as np
import pytest
import torch
from gram_models import DOMAINS, VOCAB, Decoder, batch
from mixc_kernels.domain_gram import split_halves
from mixc_kernels.word_embedding_gram import word_embedding_gram


def by_lookups(model, tokens, domain, domains=DOMAINS):
    """[K, V, D] gradients of each domain's mean loss through the lookups alone."""
    rows, looked = [], []
    handle = model.embedding.register_forward_hook(lambda m, i, out: looked.append(out))
    for k in range(domains):
        losses = model(tokens)[domain == k]
        grad = torch.autograd.grad(losses.sum() / max(1, losses.numel()), looked[-1])[0]
        dense = torch.zeros(VOCAB, grad.shape[-1], dtype=grad.dtype)
        rows.append(dense.index_add_(0, tokens[:, :-1].flatten(), grad.flatten(0, 1)))
    handle.remove()
    return torch.stack(rows)


@pytest.mark.parametrize("tied", [False, True])
def test_products_equal_those_of_dense_gradients(tied):
    model, (tokens, domain) = Decoder(tied, "layer", True).double(), batch(9)
    gram = word_embedding_gram(model.embedding.weight, lambda: model(tokens), domain, DOMAINS)
    dense = by_lookups(model, tokens, domain).flatten(1)
    torch.testing.assert_close(
        torch.from_numpy(gram.products), dense @ dense.T, rtol=1e-12, atol=1e-13
    )
    assert all(p.grad is None for p in model.parameters())


def test_autocast_of_the_model_leaves_the_products_alone():
    model, (tokens, domain) = Decoder(False, "rms"), batch(9)

    def losses():
        with torch.autocast("cpu", torch.bfloat16):
            return model(tokens)

    wanted = word_embedding_gram(model.embedding.weight, losses, domain, DOMAINS)
    with torch.autocast("cpu", torch.bfloat16):
        found = word_embedding_gram(model.embedding.weight, losses, domain, DOMAINS)
    assert np.array_equal(found.products, wanted.products)


@pytest.mark.parametrize("tied", [False, True])
def test_domains_without_a_common_word_have_no_product(tied):
    model, (tokens, _) = Decoder(tied), batch(8)
    domain = torch.arange(8) % 2
    tokens = tokens % (VOCAB // 2) + (VOCAB // 2) * domain[:, None]
    gram = word_embedding_gram(model.embedding.weight, lambda: model(tokens), domain, 3)
    assert gram.products[0, 1] == gram.products[1, 0] == 0
    assert np.all(np.diag(gram.products)[:2] > 0)
    assert gram.present.tolist() == [True, True, False]


def test_a_table_that_is_used_by_another_way():
    model, (tokens, domain) = Decoder(), batch(4)
    table = model.embedding.weight
    with pytest.raises(ValueError, match="unknown way"):
        word_embedding_gram(table, lambda: model(tokens) + table.sum(), domain, DOMAINS)


def test_products_of_halves():
    model, (tokens, _) = Decoder(False, "layer", True).double(), batch(8)
    domain = torch.tensor([0, 0, 1, 1, 1, 3, 3, 3])
    dense = by_lookups(model, tokens, torch.from_numpy(split_halves(domain.numpy(), DOMAINS)), 8)
    found = word_embedding_gram(
        model.embedding.weight, lambda: model(tokens), domain, DOMAINS, halves=True
    )
    half = dense.flatten(1).numpy()
    wanted = [half[2 * k] @ half[2 * k + 1] for k in range(DOMAINS)]
    np.testing.assert_allclose(np.diag(found.products), wanted, rtol=1e-12)
    plain = word_embedding_gram(model.embedding.weight, lambda: model(tokens), domain, DOMAINS)
    np.testing.assert_allclose(found.norms, np.sqrt(np.diag(plain.products)), rtol=1e-12)
    np.fill_diagonal(plain.products, wanted)
    np.testing.assert_allclose(found.products, plain.products, rtol=1e-12)
