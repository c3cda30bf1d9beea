import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mixc_kernels.copy_spans import copy_spans, copy_spans_reference


@st.composite
def spans(draw):
    """(values, starts, targets, lengths, size of the buffer); spans may touch or overlap."""
    size, room = draw(st.integers(0, 40)), draw(st.integers(0, 60))
    dtype = draw(st.sampled_from([np.uint16, np.uint32]))
    values = np.arange(1, size + 1, dtype=dtype)
    parts = []
    for _ in range(draw(st.integers(0, 8))):
        length = draw(st.integers(0, min(size, room)))
        start = draw(st.integers(0, size - length))
        parts.append((start, draw(st.integers(0, room - length)), length))
    columns = np.array(parts, np.int64).reshape(-1, 3).T
    return values, *(column.copy() for column in columns), room


@settings(deadline=None)
@given(spans())
def test_equals_the_reference(given_spans):
    values, starts, targets, lengths, room = given_spans
    got, wanted = np.zeros(room, values.dtype), np.zeros(room, values.dtype)
    copy_spans(values, starts, targets, lengths, got)
    copy_spans_reference(values, starts, targets, lengths, wanted)
    assert got.tolist() == wanted.tolist()


def test_copies_from_a_mapped_file(tmp_path):
    np.arange(100, dtype=np.uint16).tofile(tmp_path / "tokens")
    values = np.memmap(tmp_path / "tokens", np.uint16, mode="r")
    out = np.zeros(5, np.uint16)
    copy_spans(values, np.array([97, 10]), np.array([0, 3]), np.array([3, 2]), out)
    assert out.tolist() == [97, 98, 99, 10, 11]


@pytest.mark.parametrize(
    ("start", "target", "length", "message"),
    [
        (-1, 0, 2, "shard"),
        (9, 0, 2, "shard"),
        (11, 0, 0, "shard"),
        (0, -1, 2, "buffer"),
        (0, 4, 2, "buffer"),
        (0, 0, 6, "buffer"),
    ],
)
def test_a_span_out_of_range_is_refused_and_copies_nothing(start, target, length, message):
    values, out = np.arange(1, 11, dtype=np.uint16), np.zeros(5, np.uint16)
    with pytest.raises(IndexError, match=message):
        copy_spans(values, np.array([start]), np.array([target]), np.array([length]), out)
    assert not out.any()
