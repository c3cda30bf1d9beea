import numpy as np
import pytest
import torch
from mixc_kernels.long_products import long_products, long_products_reference, long_squares


def rows(count, columns, seed=0, dtype=np.float32):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, columns)).astype(dtype))


@pytest.mark.parametrize("columns", [0, 1, 8191, 8192, 8193, 30_000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_equal_the_reference(columns, dtype):
    a, b = rows(3, columns, 0, dtype), rows(5, columns, 1, dtype)
    got = long_products(a, b)
    assert got.dtype == torch.float64 and got.shape == (3, 5)
    near = 1e-3 if dtype == np.float32 else 1e-10
    torch.testing.assert_close(got, long_products_reference(a, b), rtol=0, atol=near)
    squares = long_products_reference(a, a).diagonal()
    torch.testing.assert_close(long_squares(a), squares, rtol=1e-6, atol=near)


@pytest.mark.parametrize("count", [2, 4, 7])
def test_long_rows_keep_what_one_product_loses(count):
    a = rows(count, 1 << 20)
    exact = long_products_reference(a, a)
    errors = [
        float((found.double() - exact).norm() / exact.norm())
        for found in (long_products(a, a), a @ a.T)
    ]
    assert errors[0] < 3e-7
    assert errors[0] < errors[1] / 10
