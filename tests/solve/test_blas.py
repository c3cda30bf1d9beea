import numpy as np
import pytest
import scipy.linalg  # noqa: F401
from threadpoolctl import threadpool_info

from mixc.solve.blas import one_thread


def threads():
    return [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]


def test_every_blas_has_one_thread_and_then_what_it_had():
    np.ones((2, 2)) @ np.ones((2, 2))
    before = threads()
    assert before
    with pytest.raises(RuntimeError, match="boom"), one_thread():
        assert set(threads()) == {1}
        raise RuntimeError("boom")
    assert threads() == before
