import ctypes
import os
import resource

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mixc_kernels.gather_spans import (
    copy_all,
    fetch_begins,
    gather_spans,
    gather_spans_reference,
    make_pool,
    populate,
    span_addresses,
    take_words,
)


def kernel():
    return tuple(int(part) for part in os.uname().release.split(".")[:2])


@st.composite
def pooled(draw):
    """(pool, source, starts, targets, lengths, size of the buffer)."""
    dtype = draw(st.sampled_from([np.uint16, np.uint32]))
    sizes, room = draw(st.lists(st.integers(0, 40), min_size=1, max_size=4)), 60
    values = [np.arange(100 * i, 100 * i + size, dtype=dtype) for i, size in enumerate(sizes)]
    parts = []
    for _ in range(draw(st.integers(0, 8))):
        source = draw(st.integers(0, len(sizes) - 1))
        length = draw(st.integers(0, sizes[source]))
        start = draw(st.integers(0, sizes[source] - length))
        parts.append((source, start, draw(st.integers(0, room - length)), length))
    columns = np.array(parts, np.int64).reshape(-1, 4).T
    return make_pool(values), *(column.copy() for column in columns), room


@settings(deadline=None)
@given(pooled())
def test_gathering_equals_the_reference(given_spans):
    pool, *columns, room = given_spans
    dtype = pool.values[0].dtype
    got, wanted = np.zeros(room, dtype), np.zeros(room, dtype)
    gather_spans(pool, *columns, got)
    gather_spans_reference(pool, *columns, wanted)
    assert got.tolist() == wanted.tolist()


@settings(deadline=None)
@given(pooled())
def test_addresses_are_where_spans_begin(given_spans):
    pool, source, starts, _, lengths, _ = given_spans
    addresses, width = span_addresses(pool, source, starts, lengths), pool.values[0].itemsize
    got = [
        ctypes.string_at(int(a), int(n) * width) for a, n in zip(addresses, lengths, strict=True)
    ]
    spans = zip(source, starts, lengths, strict=True)
    assert got == [pool.values[s][start : start + n].tobytes() for s, start, n in spans]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 2**64 - 1), min_size=1), min_size=1, max_size=4), st.data())
def test_words_are_those_of_their_arrays(lists, data):
    pool = make_pool([np.array(one, np.uint64) for one in lists])
    source = data.draw(st.lists(st.integers(0, len(lists) - 1)))
    places = [data.draw(st.integers(0, len(lists[one]) - 1)) for one in source]
    got = take_words(pool, np.array(source, np.int64), np.array(places, np.int64))
    assert got.tolist() == [lists[one][place] for one, place in zip(source, places, strict=True)]


@pytest.mark.parametrize(("source", "place"), [(-1, 0), (2, 0), (0, -1), (0, 3), (1, 1)])
def test_words_that_are_not_there(source, place):
    pool = make_pool([np.zeros(3, np.int64), np.zeros(1, np.int64)])
    with pytest.raises(IndexError, match="no such value"):
        take_words(pool, np.array([source]), np.array([place]))
    with pytest.raises(IndexError):
        span_addresses(pool, np.array([source]), np.array([place]), np.array([1]))


def test_words_are_of_eight_bytes():
    with pytest.raises(ValueError, match="8 bytes"):
        take_words(make_pool([np.zeros(3, np.uint16)]), np.zeros(1, int), np.zeros(1, int))


def test_gathers_from_mapped_files_at_odd_addresses(tmp_path):
    np.arange(101, dtype=np.uint8).tofile(tmp_path / "tokens")
    values = np.memmap(tmp_path / "tokens", np.uint16, mode="r", offset=1)
    out = np.zeros(5, np.uint16)
    pool = make_pool([values, np.array([7, 8, 9], np.uint16)])
    columns = [[0, 1, 0], [48, 1, 0], [0, 2, 4], [2, 2, 1]]
    gather_spans(pool, *(np.array(column) for column in columns), out)
    assert out.tolist() == [*values[48:50], 8, 9, values[0]]


@pytest.mark.parametrize(
    ("source", "start", "target", "length", "message"),
    [
        (-1, 0, 0, 2, "no such"),
        (2, 0, 0, 2, "no such"),
        (1, -1, 0, 2, "shard"),
        (1, 9, 0, 2, "shard"),
        (1, 11, 0, 0, "shard"),
        (1, 0, 0, -1, "shard"),
        (1, 1, 0, 2**63 - 1, "shard"),
        (1, 2**63 - 1, 0, 2, "shard"),
        (1, 0, -1, 2, "buffer"),
        (1, 0, 4, 2, "buffer"),
        (1, 0, 2**63 - 1, 2, "buffer"),
        (1, 0, 0, 6, "buffer"),
    ],
)
def test_a_gathered_span_out_of_range_is_refused(source, start, target, length, message):
    values, out = np.arange(1, 11, dtype=np.uint16), np.zeros(5, np.uint16)
    columns = (np.array([value]) for value in (source, start, target, length))
    with pytest.raises(IndexError, match=message):
        gather_spans(make_pool([values[:3], values]), *columns, out)
    assert not out.any()


def test_a_pool_is_of_one_type_and_contiguous():
    with pytest.raises(ValueError, match="of one type"):
        make_pool([np.zeros(3, np.uint16), np.zeros(3, np.uint32)])
    with pytest.raises(ValueError, match="contiguous"):
        make_pool([np.zeros(6, np.uint16)[::2]])
    nothing = np.zeros(0, np.int64)
    for out in (np.zeros(5, np.uint32), np.zeros(10, np.uint16)[::2]):
        with pytest.raises(ValueError, match="buffer"):
            gather_spans(make_pool([np.zeros(3, np.uint16)]), *[nothing] * 4, out)


def test_pages_are_there_once_they_are_asked_for(tmp_path):
    """And what is not there harms nobody."""
    path = tmp_path / "pages"
    path.write_bytes(bytes(range(256)) * 16 * 64)
    mapped = np.memmap(path, np.uint8, mode="r")
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    populate(np.array([mapped.ctypes.data + 5, 0], np.uint64), np.array([len(mapped) - 5, 4096]))
    asked = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    assert int(mapped[::4096].sum()) == 0
    if kernel() >= (5, 14):
        assert resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - asked < 8
    assert asked >= before


def test_pages_of_a_file_that_was_cut_are_told(tmp_path):
    path = tmp_path / "pages"
    path.write_bytes(bytes(1 << 20))
    mapped = np.memmap(path, np.uint8, mode="r")
    begins = mapped.ctypes.data + np.array([0, 4096, 8192, 100], np.uint64)
    assert populate(begins, np.array([4096, 1, 1 << 18, 4])) is None
    os.truncate(path, 4096)
    told = populate(begins, np.array([4096, 1, 1 << 18, 4]))
    assert told == (1 if kernel() >= (5, 14) else None)
    assert mapped[0] == 0


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 700)), max_size=60))
def test_all_is_copied_end_to_end(spans):
    held = np.random.default_rng(0).integers(0, 255, 1000, np.uint8)
    sizes = np.array([size for _, size in spans], np.int64)
    addresses = np.array([held.ctypes.data + start for start, _ in spans], np.uint64)
    out = np.zeros(int(sizes.sum()), np.uint8)
    copy_all(addresses, sizes, out)
    assert out.tobytes() == b"".join(held[start : start + size].tobytes() for start, size in spans)
    for wrong in ((addresses, sizes, len(out) + 1), (np.append(addresses, 0), sizes, len(out))):
        with pytest.raises(ValueError, match="do not fill"):
            copy_all(wrong[0], wrong[1], np.zeros(wrong[2], np.uint8))


def test_what_is_asked_for_ahead_may_stand_anywhere():
    """Nothing is read, so that nothing can go wrong: nor where there is no memory at all."""
    values = np.arange(1000, dtype=np.uint16)
    addresses = [values.ctypes.data, values.ctypes.data + 1999, 0, 1, 1 << 47, (1 << 64) - 1]
    fetch_begins(np.array([[a, size] for a in addresses for size in (0, 1, 1 << 20)], np.uint64))
    fetch_begins(np.zeros((0, 2), np.uint64))
    assert values.tolist() == list(range(1000))
