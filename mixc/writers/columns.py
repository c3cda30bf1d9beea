"""Token sequences as Arrow columns, without a copy: for the formats that Arrow writes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from mixc.writers.sequences import Sequences, StreamSpec, refuse

_INT32_MAX = (1 << 31) - 1


def check(writer: str, spec: StreamSpec) -> None:
    """Raise MX062 if an id may not fit in int32, as trainers take what does not fit in uint16."""
    refuse(writer, "ids", spec.vocab_size - 1, _INT32_MAX)


def token_type(sequences: Sequences) -> pa.DataType:
    """A list of uint16 or int32; of a fixed size if all sequences are rows."""
    value = pa.uint16() if sequences.dtype == np.uint16 else pa.int32()
    return pa.list_(value) if sequences.row_len is None else pa.list_(value, sequences.row_len)


def runs(sequences: Sequences, most: int) -> list[tuple[int, int]]:
    """Runs of sequences [first, stop) of at most `most` bytes, each for a piece of a file.

    A sequence of more bytes is a run of its own. Without any sequence there is one empty run, as
    readers fail on a folder without a file.
    """
    return list(sequences.pieces(most // sequences.dtype.itemsize)) or [(0, 0)]


def token_columns(sequences: Sequences, most: int) -> Iterator[tuple[int, int, pa.Array]]:
    """The runs, and the tokens of each."""
    kind, tokens, begin = token_type(sequences), sequences.tokens(), 0
    for first, stop in runs(sequences, most):
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(sequences.lengths[first:stop])])
        count = int(ends[-1])
        buffer = pa.py_buffer(tokens[begin : begin + count])
        values = pa.Array.from_buffers(kind.value_type, count, [None, buffer])
        if sequences.row_len is None:
            yield first, stop, pa.ListArray.from_arrays(pa.array(ends).cast(pa.int32()), values)
        else:
            yield first, stop, pa.FixedSizeListArray.from_arrays(values, sequences.row_len)
        begin += count
