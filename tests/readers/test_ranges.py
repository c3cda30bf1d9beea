"""A remote object as a file: what is fetched when, and that its bytes are those of the object."""

import gc
import io
import threading
import time
import tracemalloc

import pytest
from fault_proxy import FaultProxy, Files, serving
from hypothesis import given, settings
from hypothesis import strategies as st
from readers.remote_files import DATA, LOUD, QUICK, found, read_all

from mixc.readers.remote import Limits, open_remote

pytest.importorskip("requests", reason="needs the extra http")


def threads():
    """The threads that fetch ahead."""
    return [thread for thread in threading.enumerate() if "mixc" in thread.name]


def wait_for(check):
    end = time.monotonic() + 5
    while not check() and time.monotonic() < end:
        time.sleep(0.01)
    return check()


def test_a_read_elsewhere_costs_one_request(web):
    file = found(web)
    web.requests.clear()
    with open_remote(file, QUICK) as raw:
        raw.seek(-8, io.SEEK_END)
        assert raw.read(8) == DATA[-8:]
        raw.seek(1000)
        assert raw.read(50_000) == DATA[1000:51_000]
    asked = [span for _, span in web.requests]
    assert asked[0] == f"bytes={len(DATA) - 8}-{len(DATA) - 1}"
    assert asked[1] == "bytes=1000-50999"
    assert len(asked) == 2


def test_reading_on_from_elsewhere_fetches_ever_more(web):
    """Columns that lie side by side start no read-ahead; who goes on and on gets it."""
    web.files["/long"] = data = DATA * 4
    limits = Limits(piece=1 << 16, least=1 << 10)
    file = found(web, "/long", limits)
    web.requests.clear()
    with open_remote(file, limits) as raw:
        raw.seek(5000)
        assert raw.read(2000) + raw.read(100) == data[5000:7100]
        assert [span for _, span in web.requests] == ["bytes=5000-6999", "bytes=7000-8999"]
        assert not threads()
        rest = b"".join(iter(lambda: raw.read(100), b""))
        assert rest == data[7100:] and threads()
    assert len(web.requests) < 30


def test_reading_on_fetches_each_byte_once(web):
    file = found(web)
    web.requests.clear()
    assert read_all(file, block=1000) == DATA
    asked = sorted(int(span.removeprefix("bytes=").split("-")[0]) for _, span in web.requests)
    assert asked == [0, 1 << 16, 2 << 16]


def test_read_ahead_is_bounded(web):
    """A reader that waits has the next two pieces fetched, and no more."""
    web.files["/big"] = bytes(1 << 20) * 40
    web.headers = lambda body: {"ETag": "x"}
    limits = Limits(piece=1 << 20, ahead=2)
    file = found(web, "/big", limits)
    web.requests.clear()
    tracemalloc.start()
    with open_remote(file, limits) as raw:
        block = raw.read(1000)
        time.sleep(0.3)
        assert len(web.requests) == 3
        # What the server of this process holds counts too: it sends slices.
        tracemalloc.reset_peak()
        while block:
            block = raw.read(1 << 16)
        peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20


def test_closing_ends_the_threads(web, proxy):
    file = found(proxy)
    raw = open_remote(file, QUICK)
    raw.read(1)
    assert threads()
    raw.close()
    assert wait_for(lambda: not threads())
    with pytest.raises(ValueError, match="closed"):
        raw.read(1)
    # In the middle of a stall, and of a wait between two tries.
    for fault in ("stall", "503"):
        proxy.plan = iter(())
        proxy.done.clear()
        raw = open_remote(file, Limits(read_s=1, waits=(60.0,), piece=10_000))
        raw.read(9_000)
        assert wait_for(lambda: proxy.done == ["ok"] * 3)  # the piece read, and two ahead
        proxy.done.clear()
        proxy.plan = iter([fault] * 99)
        raw.read(2_000)
        assert wait_for(lambda: proxy.done)
        raw.close()
        assert wait_for(lambda: not threads())
    # A reader that is forgotten.
    proxy.plan = iter(())
    raw = open_remote(file, QUICK)
    raw.read(1)
    del raw
    assert wait_for(lambda: gc.collect() >= 0 and not threads())


def test_no_request_before_the_first_read(web):
    file = found(web)
    web.requests.clear()
    raw = open_remote(file, QUICK)
    assert (raw.tell(), raw.seek(5), raw.tell()) == (0, 5, 5)
    assert raw.readable() and raw.seekable() and not raw.writable()
    assert not web.requests and not threads()
    with pytest.raises(ValueError, match="negative"):
        raw.seek(-1)
    raw.close()


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["set", "cur", "end", "on"]), st.integers(0, 450), st.integers(0, 200)
    ),
    max_size=12,
)


@pytest.fixture(scope="module")
def law():
    with serving(Files({})) as origin, serving(FaultProxy(origin.url)) as server:
        server.files = origin.files
        yield server


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(0, 400),
    moves=MOVES,
    faults=st.lists(st.sampled_from(["ok", "ok", "ok", *LOUD]), max_size=25),
    piece=st.integers(16, 200),
    least=st.integers(4, 64),
    ahead=st.integers(1, 3),
)
def test_any_reads_give_the_bytes_of_the_object(law, size, moves, faults, piece, least, ahead):
    data = DATA[:size]
    law.files["/f"] = data
    law.plan = iter(())
    waits = (0.0,) * 30
    limits = Limits(
        connect_s=5, read_s=5, waits=waits, piece=max(piece, 1), ahead=ahead, least=least
    )
    file = found(law, "/f", limits)
    law.plan = iter(faults)
    here = io.BytesIO(data)
    with open_remote(file, limits) as there:
        for how, offset, count in moves:
            if how != "on":
                whence = {"set": io.SEEK_SET, "cur": io.SEEK_CUR, "end": io.SEEK_END}[how]
                offset = -min(offset, size) if how == "end" else offset
                assert there.seek(offset, whence) == here.seek(offset, whence)
            if count % 2:
                assert there.read(count) == here.read(count)
            else:
                mine, theirs = bytearray(count), bytearray(count)
                assert there.readinto(mine) == here.readinto(theirs)
                assert mine == theirs
            assert there.tell() == here.tell()
        there.seek(0)
        assert there.read() == data


def test_readers_of_libraries_work_on_it(web):
    import gzip

    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"text": [f"{i} " * 50 for i in range(2000)], "id": range(2000)})
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=300)
    web.files |= {"/t.parquet": sink.getvalue(), "/z.gz": gzip.compress(DATA)}
    with open_remote(found(web, "/t.parquet"), QUICK) as raw:
        assert pq.ParquetFile(raw).read() == table
    with open_remote(found(web, "/z.gz"), QUICK) as raw:
        assert gzip.GzipFile(fileobj=raw).read() == DATA
