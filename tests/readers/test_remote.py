"""Remote inputs, against servers on loopback that fail in every way they can."""

import copy
import io
import multiprocessing

import pytest
from fault_proxy import FAULTS
from readers.remote_files import DATA, QUICK, error_of, found, read_all

from mixc.readers import remote, s3
from mixc.readers.remote import Limits, find_remote, is_remote, open_remote

pytest.importorskip("requests", reason="needs the extra http")


def test_which_paths_are_remote():
    assert all(map(is_remote, ("s3://b/k", "gs://b/k", "http://h/f", "HTTPS://h/f")))
    assert not any(map(is_remote, ("a/b.jsonl", "hf://o/n", "ftp://h/f", "s3:/b", "file:///a", "")))


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hidden@host/f",
        "s3://user:hidden@bucket/key",
        "ftp://user:hidden@host/f",
        "https://host/*.gz",
        "https://host/a[1].gz",
        "https://host",
        "https://host/",
        "s3://bucket",
        "s3://bucket/",
        "s3://bucket/folder/",
        "s3:///key",
        "s3://*/key",
        "gs://b?cket/key",
        "ftp://host/f",
    ],
)
def test_urls_that_cannot_be_used(url):
    error = error_of(find_remote, url)
    assert error.code == "MX007" and error.help
    assert "hidden" not in str(error)


def test_a_file_of_a_web_server(web):
    file = found(web)
    assert (file.url, file.size) == (f"{web.url}/a.bin", len(DATA))
    assert read_all(file) == DATA
    assert found(web) == file
    web.files["/a.bin"] = DATA[::-1]
    assert found(web).tag != file.tag
    assert read_all(found(web, "/empty")) == b""


def test_versions_without_an_etag(web):
    web.headers = lambda body: {"Last-Modified": "Thu, 01 Jan 1970 00:00:00 GMT"}
    file = found(web)
    assert file.tag == f"{len(DATA)} bytes of Thu, 01 Jan 1970 00:00:00 GMT"
    assert read_all(file) == DATA
    web.headers = lambda body: {}
    error = error_of(found, web)
    assert error.code == "MX027" and "which version" in error.message and error.help


def test_a_server_without_ranges(web):
    """A small file is read whole; for a large one every piece would cost all before it."""
    web.ranges = False
    web.files["/small"] = DATA[:1000]
    file = found(web, "/small")
    with open_remote(file, QUICK) as raw:
        raw.seek(300)
        assert raw.read(100) == DATA[300:400]
    assert read_all(file, block=7) == DATA[:1000]
    error = error_of(found, web)
    assert error.code == "MX027" and "no ranges" in error.message and error.help


@pytest.mark.parametrize("fault", FAULTS)
def test_one_fault_of_each_kind_is_survived(web, proxy, fault):
    if fault != "no range":  # the first answer tells what kind of server it is
        proxy.plan = iter([fault])
    file = found(proxy)
    assert file.size == len(DATA)
    proxy.done.clear()
    proxy.plan = iter(["ok", fault, fault, "ok", fault])
    assert read_all(file) == DATA
    assert proxy.done.count(fault) == 3


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_is_an_error(web, proxy, fault):
    file = found(proxy)
    limits = Limits(read_s=0.2, waits=(0.001, 0.001), piece=10_000, progress=10**9)
    with open_remote(file, limits) as raw:
        assert raw.read(10_000) == DATA[:10_000]
        proxy.plan = iter([fault] * 999)
        error = error_of(lambda: [raw.read(10_000) for _ in range(99)])
        # The bytes before the fault were read; at the fault, reading ends again and again.
        assert 0 < raw.tell() < len(DATA)
        assert error_of(raw.read, 1).code == "MX027"
    assert error.code == "MX027" and error.exit_code == 1
    assert error.place.file == file.url and error.place.detail.startswith("at byte ")
    assert "(3 tries)" in error.message and error.help


def test_progress_renews_patience(web, proxy):
    """A connection that is cut every 8 kB still brings a file, given that it brings something."""
    file = found(proxy)
    limits = Limits(waits=(0.001,), progress=4, piece=1 << 16)
    proxy.plan = iter(["cut", "cut hard"] * 10)
    assert read_all(file, limits) == DATA


def test_refusals_are_not_tried_again(web, proxy):
    for status, reason in (("403", "denied"), ("401", "denied"), ("404", "not there"), ("400", "")):
        proxy.done.clear()
        proxy.plan = iter([status] * 9)
        error = error_of(found, proxy)
        assert error.code == "MX027" and reason in error.message
        assert f"status {status}" in error.message
        assert len(proxy.done) == 1


def test_nobody_there():
    limits = Limits(connect_s=0.2, waits=(0.001,))
    error = error_of(find_remote, "http://127.0.0.1:9/data?signature=hidden", limits)
    assert error.code == "MX027" and error.place.file == "http://127.0.0.1:9/data"
    assert "hidden" not in str(error)


def test_a_file_that_is_replaced_while_it_is_read(web):
    file = found(web)
    with open_remote(file, QUICK) as raw:
        assert raw.read(100) == DATA[:100]
        web.files["/a.bin"] = DATA[::-1]
        error = error_of(lambda: [raw.read(10_000) for _ in range(99)])
        assert error.code == "MX029" and error.exit_code == 4 and file.url in str(error)
        raw.seek(-500, io.SEEK_END)
        assert error_of(raw.read, 500).code == "MX029"


@pytest.mark.parametrize("rest", [DATA[:100_000], DATA[:10], b"", DATA + b"more"])
@pytest.mark.parametrize("header", ["ETag", "Last-Modified"])
def test_a_file_that_shrinks_or_grows(web, rest, header):
    """Even where the server keeps saying that it is the same version."""
    web.headers = lambda body: {header: "same"}
    file = found(web)
    web.files["/a.bin"] = rest
    assert error_of(read_all, file).code == "MX029"


def test_a_file_that_goes_away(web):
    file = found(web)
    del web.files["/a.bin"]
    error = error_of(read_all, file)
    assert error.code == "MX027" and "not there" in error.message and "at byte 0" in str(error)


def _read_elsewhere(file, results):
    results.put(read_all(file))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_file_is_plain_data_for_other_processes(web, method):
    file = found(web)
    read_all(file)
    assert copy.copy(file) == file
    context = multiprocessing.get_context(method)
    results = context.Queue()
    process = context.Process(target=_read_elsewhere, args=(file, results))
    process.start()
    assert results.get(timeout=60) == DATA
    process.join()


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [
        ("s3://b/k", "boto3", "s3"),
        ("https://h/f", "requests", "http"),
        ("gs://b/k", "requests", "gs"),
    ],
)
def test_a_package_that_is_missing(monkeypatch, url, module, extra):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    s3._s3_client.cache_clear()
    error = error_of(find_remote, url)
    assert error.code == "MX037" and module in error.message
    assert error.help == f"pip install 'mixc[{extra}]'"


def test_the_usual_limits_are_bounded():
    """A server that stalls is given up within minutes; what is held stays far below 300 MB."""
    limits = remote.LIMITS
    tries = len(limits.waits) + 1
    assert tries * (limits.connect_s + limits.read_s) + sum(limits.waits) < 300
    assert limits.piece * (1 + limits.ahead) <= 64 << 20
