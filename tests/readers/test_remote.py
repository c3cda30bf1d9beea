"""Remote inputs, against servers on loopback that fail in every way they can."""

import copy
import gc
import hashlib
import io
import json
import multiprocessing
import threading
import time
import tracemalloc
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from fault_proxy import FAULTS, FaultProxy, Files, serving
from hypothesis import given, settings
from hypothesis import strategies as st

from mixc.errors import MixcError
from mixc.readers import remote, s3
from mixc.readers.remote import Limits, RemoteFile, find_remote, is_remote, open_remote

pytest.importorskip("requests", reason="needs the extra http")

QUICK = Limits(connect_s=1, read_s=0.3, try_s=2, waits=(0.001,) * 5, piece=1 << 16, least=256)
LOUD = [fault for fault in FAULTS if fault not in ("stall", "no answer")]
DATA = b"".join(hashlib.sha256(b"%d" % i).digest() for i in range(6000))  # 192 kB


@pytest.fixture
def web():
    with serving(Files({"/a.bin": DATA, "/empty": b""})) as server:
        yield server


@pytest.fixture
def proxy(web):
    with serving(FaultProxy(web.url)) as server:
        yield server


def found(server, name="/a.bin", limits=QUICK):
    (file,) = find_remote(server.url + name, limits)
    return file


def read_all(file, limits=QUICK, block=10_000):
    with open_remote(file, limits) as raw:
        return b"".join(iter(lambda: raw.read(block), b""))


def error_of(call, *args):
    with pytest.raises(MixcError) as caught:
        call(*args)
    return caught.value


def fake_google(objects):
    """Google's JSON API over {(bucket, name): bytes}: lists in pages of 2, objects by range."""

    def respond(path, headers):
        parts = urlsplit(path)
        _, _, rest = parts.path.partition("/storage/v1/b/")
        bucket, _, name = rest.partition("/o")
        if name:
            return None
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        names = sorted(n for b, n in objects if b == bucket and n.startswith(query["prefix"]))
        if not any(b == bucket for b, _ in objects):
            return 404, {}, b"{}"
        start = int(query.get("pageToken", 0))
        items = [
            {"name": n, "size": str(len(objects[bucket, n])), "generation": generation(n)}
            for n in names[start : start + 2]
        ]
        more = {"nextPageToken": str(start + 2)} if start + 2 < len(names) else {}
        return 200, {}, json.dumps({"items": items} | more).encode()

    def generation(name):
        return str(1000 + sum(name.encode()))

    class Objects(dict):
        def get(self, path, default=None):
            bucket, _, name = path.partition("/storage/v1/b/")[2].partition("/o/")
            return objects.get((bucket, unquote(name)), default)

    server = Files(Objects())
    server.respond = respond
    names = {body: name for (_, name), body in objects.items()}
    server.headers = lambda body: {"x-goog-generation": generation(names[body]), "ETag": "no"}
    return server


class Moto:
    """An S3 on loopback."""

    def __init__(self, client, url):
        self.client, self.url = client, url

    def put(self, key, body):
        self.client.put_object(Bucket="bucket", Key=key, Body=body)


@pytest.fixture(scope="module")
def moto():
    pytest.importorskip("moto", reason="needs moto[server]")
    boto3 = pytest.importorskip("boto3", reason="needs the extra s3")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="k",
        aws_secret_access_key="s",
    )
    client.create_bucket(Bucket="bucket")
    yield Moto(client, url)
    server.stop()


@pytest.fixture(scope="module")
def s3_proxy(moto):
    s3._s3_client.cache_clear()
    with serving(FaultProxy(moto.url)) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "AKIASECRET")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        server.put, server.client = moto.put, moto.client
        yield server
    s3._s3_client.cache_clear()


@pytest.fixture
def bucket(s3_proxy):
    """An S3 behind a proxy."""
    s3_proxy.plan = iter(())
    return s3_proxy


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


def threads():
    """The threads that fetch ahead."""
    return [thread for thread in threading.enumerate() if "mixc" in thread.name]


def wait_for(check):
    end = time.monotonic() + 5
    while not check() and time.monotonic() < end:
        time.sleep(0.01)
    return check()


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


def test_s3_globs(bucket):
    names = [
        "a.gz",
        "b.txt",
        "d/c.gz",
        "d/e/f.gz",
        "d/e/.hidden.gz",
        "d/.h/x.gz",
        "dd/c.gz",
        "d/x y?+&=ü.gz",
    ]
    for name in names:
        bucket.put(f"globs/{name}", name.encode())
    bucket.client.put_object(Bucket="bucket", Key="globs/d/")

    def glob(pattern):
        files = find_remote(f"s3://bucket/globs/{pattern}", QUICK)
        assert files == sorted(files, key=lambda file: file.url)
        assert all(read_all(file) == file.url[18:].encode() for file in files)
        return [file.url[18:] for file in files]

    assert glob("*.gz") == ["a.gz"]
    assert glob("**/*.gz") == ["a.gz", "d/c.gz", "d/e/f.gz", "d/x y?+&=ü.gz", "dd/c.gz"]
    assert glob("d/**") == ["d/c.gz", "d/e/f.gz", "d/x y?+&=ü.gz"]
    assert glob("?/[a-c].gz") == ["d/c.gz"]
    assert glob("d*/**/c.gz") == ["d/c.gz", "dd/c.gz"]
    assert glob("d/**.gz") == ["d/c.gz", "d/x y?+&=ü.gz"]
    assert glob("d/.h/*") == ["d/.h/x.gz"]
    assert glob("d/c.gz") == ["d/c.gz"]
    assert glob("none/*") == glob("*.zip") == []
    assert find_remote("S3://bucket/globs/a.gz", QUICK)[0].url == "s3://bucket/globs/a.gz"


def test_globs_match_as_those_of_local_paths(bucket, tmp_path):
    import glob as local

    names = ["a", "x/a", "x/y/a", "x/y/z/ab", ".x/a", "x/.y/a", "x/y/.a", "b[1]"]
    for name in names:
        bucket.put(f"same/{name}", b"1")
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    patterns = ["**", "*", "**/a", "*/a", "x/**/a", "**/y/**", "**/*", "x/*/*", "**/**/a", "*/**"]
    for pattern in [*patterns, "b[[]1]", "?", ".*/a", "**/.a", "x**", "x/**/**/ab", "[!b]/a"]:
        mine = {file.url[17:] for file in find_remote(f"s3://bucket/same/{pattern}", QUICK)}
        theirs = local.glob(pattern, root_dir=tmp_path, recursive=True)
        assert mine == {name for name in theirs if (tmp_path / name).is_file()}, pattern


def test_a_list_of_many_pages(bucket, monkeypatch):
    for i in range(7):
        bucket.put(f"many/{i}", b"x")
    bucket_page = s3.S3._call

    def small(self, name, url, **options):
        more = {"MaxKeys": 2} if name == "list_objects_v2" else {}
        return bucket_page(self, name, url, **options, **more)

    monkeypatch.setattr(s3.S3, "_call", small)
    bucket.plan = iter(["503", "cut", "ok", "reset", "ok", "500", "hang up"])
    files = find_remote("s3://bucket/many/*", QUICK)
    assert [file.url[-1] for file in files] == list("0123456")


@pytest.mark.parametrize("fault", FAULTS)
def test_s3_faults(bucket, fault):
    bucket.put("data.bin", DATA)
    (file,) = find_remote("s3://bucket/data.bin", QUICK)
    assert file.tag == hashlib.md5(DATA).hexdigest()
    assert find_remote("s3://bucket/dat*", QUICK) == [file]
    bucket.plan = iter(["ok", fault, fault, "ok", fault])
    assert read_all(file) == DATA
    bucket.plan = iter(["ok", *[fault] * 999])
    error = error_of(read_all, file, Limits(read_s=0.2, waits=(0.001,), piece=1 << 16))
    assert error.code == "MX027" and "s3://bucket/data.bin (at byte" in str(error)
    assert "AKIA" not in str(error) and "hidden" not in str(error)


def test_s3_changes_and_refusals(bucket):
    bucket.put("changing", DATA)
    bucket.put("empty", b"")
    (file,) = find_remote("s3://bucket/changing", QUICK)
    (empty,) = find_remote("s3://bucket/empty", QUICK)
    assert empty.size == 0 and read_all(empty) == b""
    for other in (DATA[::-1], DATA[:5000], b"", DATA * 2):
        with open_remote(file, Limits(piece=10_000)) as raw:
            assert raw.read(10) == DATA[:10]
            bucket.put("changing", other)
            error = error_of(lambda raw=raw: [raw.read(10_000) for _ in range(99)])
        assert error.code == "MX029" and error.exit_code == 4
        bucket.put("changing", DATA)
    for url in ("s3://bucket/none", "s3://nobody/none", "s3://nobody/*"):
        error = error_of(find_remote, url, QUICK)
        assert error.code == "MX027" and "not there" in error.message and url[:11] in str(error)
    bucket.plan = iter(["403"])
    assert "denied" in error_of(find_remote, "s3://bucket/*", QUICK).message


def test_s3_without_credentials(bucket, monkeypatch, tmp_path):
    bucket.put("public", DATA)
    s3._s3_client.cache_clear()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    bucket.client.put_object_acl(Bucket="bucket", Key="public", ACL="public-read")
    assert read_all(find_remote("s3://bucket/public", QUICK)[0]) == DATA
    s3._s3_client.cache_clear()


def test_google(monkeypatch):
    objects = {("b", f"d/{i} ü.bin"): DATA[i * 1000 : (i + 1) * 1000] for i in range(5)}
    with serving(fake_google(objects)) as origin, serving(FaultProxy(origin.url)) as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"127.0.0.1:{server.server_port}")
        server.plan = iter(["503", "cut", "ok", "hang up", "short"])
        files = find_remote("gs://b/d/*.bin", QUICK)
        assert [file.url for file in files] == [f"gs://b/d/{i} ü.bin" for i in range(5)]
        assert find_remote("gs://b/d/3 ü.bin", QUICK) == [files[3]]
        assert find_remote("gs://b/e/*", QUICK) == []
        server.plan = iter([*LOUD, *LOUD])
        patient = Limits(waits=(0.001,) * 30, least=10)
        assert [read_all(file, patient) for file in files] == list(objects.values())
        assert error_of(find_remote, "gs://none/*", QUICK).code == "MX027"
        assert "not there" in error_of(find_remote, "gs://b/none", QUICK).message
        other = RemoteFile(files[0].url, files[0].size, "999")
        assert error_of(read_all, other).code == "MX029"


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
