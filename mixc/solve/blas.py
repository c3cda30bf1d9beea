"""One thread for many small systems of equations.

numpy and scipy each bring a BLAS with threads of its own. Where calls of the two alternate, threads
of the one spin while those of the other work: on two cores, a fit took seven times as long.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_thread() -> Iterator[None]:
    """While the block runs, numpy's and scipy's BLAS have one thread each."""
    import scipy.linalg  # noqa: F401 (limits are those of libraries that are loaded)
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield
