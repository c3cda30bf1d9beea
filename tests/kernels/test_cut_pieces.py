import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from mixc_kernels.cut_pieces import (
    cut_pieces,
    cut_pieces_reference,
    index_stream,
    index_stream_reference,
)


@st.composite
def streams(draw):
    """(ends, order, begin, end): documents in some order, and pieces of their stream."""
    lengths = np.array(draw(st.lists(st.integers(1, 9), min_size=1, max_size=12)), np.int64)
    order = np.array(draw(st.permutations(range(len(lengths)))), np.int64)
    order = order[: draw(st.integers(1, len(order)))]
    ends = np.cumsum(lengths[order])
    begin = draw(st.lists(st.integers(0, int(ends[-1]) - 1), max_size=8))
    end = [draw(st.integers(first + 1, int(ends[-1]))) for first in begin]
    return ends, order, np.array(begin, np.int64), np.array(end, np.int64)


@settings(deadline=None)
@given(streams(), st.integers(1, 30))
def test_equals_the_reference(stream, step):
    ends, order, *pieces = stream
    index = index_stream(ends, step)
    assert index.tolist() == index_stream_reference(ends, step).tolist()
    got = cut_pieces(ends, order, index, step, *pieces)
    wanted = cut_pieces_reference(*stream)
    assert [column.tolist() for column in got] == [column.tolist() for column in wanted]


def test_a_piece_may_span_documents():
    ends, order = np.array([2, 7, 10]), np.array([1, 0, 2])
    index = index_stream(ends, 4)
    assert index.tolist() == [0, 1, 2]
    got = cut_pieces(ends, order, index, 4, np.array([1, 2]), np.array([8, 7]))
    assert [column.tolist() for column in got] == [
        [0, 0, 0, 1],
        [1, 0, 2, 0],
        [1, 0, 0, 0],
        [1, 5, 1, 5],
    ]


def test_an_empty_stream_has_an_empty_index():
    assert index_stream(np.zeros(0, np.int64), 4).tolist() == []
