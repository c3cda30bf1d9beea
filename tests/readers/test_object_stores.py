"""S3 and Google's store, on loopback: lists, versions, credentials and faults."""

import hashlib
import json
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from fault_proxy import FAULTS, FaultProxy, Files, serving
from readers.remote_files import DATA, LOUD, QUICK, error_of, read_all

from mixc.readers import s3
from mixc.readers.remote import Limits, RemoteFile, find_remote, open_remote

pytest.importorskip("requests", reason="needs the extra http")


# ---- S3 ----


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


# ---- Google Cloud Storage ----


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
