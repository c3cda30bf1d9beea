"""Whole runs over S3 and a web server that fail on the way: the store is that of local files."""

import gzip
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from fault_proxy import FaultProxy, Files, serving
from helpers import texts, write_recipe

from mixc.errors import MixcError
from mixc.readers import s3
from mixc.recipe import load
from mixc.tokenize.inputs import find
from mixc.tokenize.stage import plan, tokenize
from mixc.verify import verify

FAULTS = ["500", "ok", "cut", "503", "ok", "reset"]


def as_jsonl(corpus):
    return "".join(json.dumps({"text": text}) + "\n" for text in corpus).encode()


def as_parquet(corpus):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": corpus}), sink, row_group_size=9)
    return sink.getvalue().to_pybytes()


FILES = {
    "a.jsonl.gz": gzip.compress(as_jsonl(texts(1, 60))),
    "b.jsonl.zst": zstandard.ZstdCompressor().compress(as_jsonl(texts(2, 60))),
    "c.parquet": as_parquet(texts(3, 60)),
}


@pytest.fixture
def local(tmp_path):
    """What the same files give from the disk."""
    folder = tmp_path / "local"
    (folder / "data").mkdir(parents=True)
    for name, data in FILES.items():
        (folder / "data" / name).write_bytes(data)
    path = write_recipe(folder, {"web": {"paths": ["data/*"]}})
    return documents(tokenize(load(path), workers=1))


def documents(store):
    found = []
    for shard in store.documents("web"):
        bounds = zip(shard.offsets, shard.offsets[1:], strict=False)
        found += [shard.tokens[a:b].tolist() for a, b in bounds]
    return found


@pytest.fixture
def bucket(monkeypatch):
    """S3 behind a proxy; in the environment, so that worker processes find it too."""
    pytest.importorskip("moto.server", reason="needs moto[server]")
    boto3 = pytest.importorskip("boto3", reason="needs mixc[s3]")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", **keys)
    client.create_bucket(Bucket="corpora")
    for name, data in FILES.items():
        client.put_object(Bucket="corpora", Key=f"web/{name}", Body=data)
    with serving(FaultProxy(f"http://{host}:{port}")) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
        s3._s3_client.cache_clear()
        proxy.client = client
        yield proxy
        s3._s3_client.cache_clear()
    server.stop()


@pytest.mark.parametrize("workers", [1, 2])
def test_s3_that_fails_on_the_way(tmp_path, bucket, local, workers):
    path = write_recipe(tmp_path, {"web": {"paths": ["s3://corpora/web/*"]}})
    bucket.plan = iter(FAULTS * 2)
    store = tokenize(load(path), workers=workers)
    assert documents(store) == local
    assert {"500", "cut"} <= set(bucket.done)
    assert verify(store.root).documents == 180
    assert [one["path"] for unit in store.sources["web"] for one in unit.inputs] == [
        f"s3://corpora/web/{name}" for name in FILES
    ]


def test_s3_is_read_again_only_where_it_changed(tmp_path, bucket, monkeypatch):
    monkeypatch.setattr("mixc.tokenize.units._BUNDLE_FILES", 1)
    path = write_recipe(tmp_path, {"web": {"paths": ["s3://corpora/web/*"]}})
    store = tokenize(load(path), workers=1)
    assert plan(load(path)).fresh
    before = {unit.inputs[0]["path"]: unit.key for unit in store.sources["web"]}
    changed = as_parquet(texts(9, 60))
    bucket.client.put_object(Bucket="corpora", Key="web/c.parquet", Body=changed)
    after = tokenize(load(path), workers=1)
    same = {unit.inputs[0]["path"] for unit in after.sources["web"] if unit.key in before.values()}
    assert same == before.keys() - {"s3://corpora/web/c.parquet"}
    assert verify(after.root).documents == 180


def test_a_web_server_that_fails_on_the_way(tmp_path, local):
    pytest.importorskip("requests", reason="needs mixc[http]")
    files = Files({f"/{name}": data for name, data in FILES.items()})
    with serving(files) as origin, serving(FaultProxy(origin.url)) as proxy:
        proxy.plan = iter(FAULTS * 2)
        urls = [f"{proxy.url}/{name}" for name in FILES]
        path = write_recipe(tmp_path, {"web": {"paths": urls}})
        assert documents(tokenize(load(path), workers=1)) == local


def test_what_is_not_there_is_an_error_that_names_it(tmp_path):
    pytest.importorskip("requests", reason="needs mixc[http]")
    with serving(Files({})) as origin:
        url = f"{origin.url}/gone.jsonl"
        path = write_recipe(tmp_path, {"web": {"paths": [url]}})
        with pytest.raises(MixcError) as caught:
            tokenize(load(path), workers=1)
    assert caught.value.code == "MX027"
    assert url in str(caught.value)


def test_a_saved_dataset_is_read_as_one(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs mixc[hub]")
    corpus = texts(4, 50)
    datasets.Dataset.from_dict({"text": corpus, "n": list(range(50))}).save_to_disk(
        str(tmp_path / "saved"), num_shards=2
    )
    path = write_recipe(tmp_path, {"web": {"paths": ["saved"]}})
    store = tokenize(load(path), workers=1)
    plain = write_recipe(tmp_path / "plain", {"web": corpus})
    assert documents(store) == documents(tokenize(load(plain), workers=1))
    shutil.rmtree(tmp_path / "saved")
    with pytest.raises(MixcError) as caught:
        tokenize(load(path), workers=1)
    assert caught.value.code == "MX012"


def test_a_signed_url_is_read_by_its_path_and_its_signature_kept_out(tmp_path, local):
    pytest.importorskip("requests", reason="needs mixc[http]")
    with serving(Files({f"/{name}": data for name, data in FILES.items()})) as origin:
        urls = [f"{origin.url}/{name}?signature=SECRET" for name in FILES]
        path = write_recipe(tmp_path, {"web": {"paths": urls}})
        store = tokenize(load(path), workers=1)
    assert documents(store) == local
    assert "SECRET" not in (store.root / "manifest.json").read_text()


def test_equal_tags_of_other_urls_are_not_equal_files(tmp_path):
    """Servers make tags of size and time: two files may well share one."""
    pytest.importorskip("requests", reason="needs mixc[http]")
    with serving(Files({f"/{name}.jsonl": as_jsonl(["same"]) for name in "ab"})) as origin:
        urls = [f"{origin.url}/{name}.jsonl" for name in "ab"]
        a, b = find(load(write_recipe(tmp_path, {"web": {"paths": urls}})))
    assert a.remote.tag == b.remote.tag
    assert a.digest != b.digest
