"""How many rows of each domain a small run may see, so that it repeats them as the target will.

A short run sees a small domain once where the target repeats it many times, and so finds it
better than it will be. A run of T' tokens that stands for one of T tokens keeps n T' / T tokens
of a domain of n: at any weight w it then makes w T' / (n T' / T) = w T / n passes over them, as
many as the target makes over the domain (Zhou et al., arXiv:2606.07597).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]


def matched_rows(tokens: Index, *, seq_len: int, run_rows: int, target_tokens: int) -> Index:
    """Rows of each domain that a run of `run_rows` rows of `seq_len` may see, int64[K].

    `tokens` is int64[K], what each domain has for training. A domain keeps one row at least, and
    no more than one epoch holds: a run that is longer than its target sees all.
    """
    whole = [max(1, count // seq_len) for count in tokens.tolist()]
    # In whole numbers, half up: products pass 2^53 for large stores.
    kept = [(2 * n * run_rows + target_tokens) // (2 * target_tokens) for n in tokens.tolist()]
    return np.clip(np.array(kept, np.int64), 1, np.array(whole, np.int64))
