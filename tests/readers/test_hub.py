"""The hub's data sets, by `datasets` itself, from a hub on loopback."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_hub import Hub, commit_of
from fault_proxy import FAULTS, FaultProxy, serving

from mixc.errors import MixcError
from mixc.readers import hub
from mixc.readers.records import ReadOptions, Source

needs_datasets = pytest.mark.skipif(
    not hasattr(Source, "skip_to"), reason="needs readers with positions"
)


def parquet(rows, **options):
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
    sink = io.BytesIO()
    pq.write_table(table, sink, **({"row_group_size": 100} | options))
    return sink.getvalue()


def jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def rows(shard, count=250):
    return [
        {
            "text": f"{shard}.{i} é" if i % 7 else "",
            "id": i,
            "meta": {"ok": i % 2 == 0, "u": f"x{i}"},
        }
        for i in range(count)
    ]


INVALID = pa.table(
    {"text": pa.array([b"good", b"b\xffad", None, b"end"]).cast(pa.binary()).view(pa.string())}
)
CARD = b"""---
configs:
- config_name: first
  data_files: [{split: train, path: a/*.jsonl}, {split: test, path: b/*.jsonl}]
- config_name: second
  data_files: [{split: train, path: b/*.jsonl}]
---
"""
SETS = {
    "org/tables": [{f"data/train-{i:05d}-of-00003.parquet": parquet(rows(i)) for i in range(3)}],
    "org/lines": [{"a/1.jsonl": jsonl(rows(1)), "b/2.jsonl": jsonl(rows(2, 9)), "README.md": CARD}],
    "org/bad": [{"train.parquet": parquet(INVALID)}],
    "org/torn": [{"train.jsonl": b'{"text": "good"}\n{"text": "cut'}],
    "org/numbers": [{"train.parquet": parquet([{"n": 1, "tags": ["a"], "text": "t"}])}],
    "org/script": [{"script.py": b"open('ran', 'w')", "train.jsonl": jsonl(rows(1, 2))}],
    "org/tar": [{"train.tar": b"\0" * 10240}],
    "org/none": [{"README.md": b"# nothing"}],
}

CHILD = """
import json, sys, time
real = time.sleep
time.sleep = lambda seconds: real(min(seconds, 0.01))
import datasets
from pathlib import Path
from mixc.errors import MixcError
from mixc.readers import hub
from mixc.readers.records import BadRecord, ReadOptions, Source
datasets.config.STREAMING_READ_RETRY_INTERVAL = 0.01
datasets.config.STREAMING_READ_MAX_RETRIES = 4

def answer(what, path, options, skip_to):
    if what == "resolve":
        return [dict(vars(s), name=s.name, locator=s.locator, tag=s.tag) for s in hub.resolve(path)]
    source = Source(Path(path), "shown", skip_to=skip_to)
    options = ReadOptions(**{"text": "text", "max_bytes": 10**6} | options)
    found = []
    for record in hub.read(source, options):
        if isinstance(record, BadRecord):
            found.append([record.row, record.position, record.code, record.excerpt.hex()])
        else:
            found.append([record.row, record.position, record.text, record.fields, record.replaced])
    return found

for line in sys.stdin:
    try:
        print(json.dumps(answer(*json.loads(line))), flush=True)
    except MixcError as error:
        print(json.dumps({"error": error.as_dict()}), flush=True)
"""


class Reader:
    """A process that reads from the hub behind a proxy."""

    def __init__(self, process, server, proxy):
        self.process, self.hub, self.proxy = process, server, proxy

    def ask(self, what, path, skip_to=0, **options):
        self.process.stdin.write(json.dumps([what, path, options, skip_to]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def resolve(self, url):
        shards = self.ask("resolve", url)
        assert isinstance(shards, list), shards
        return shards

    def read(self, shard, **options):
        return self.ask("read", shard["locator"], **options)

    def error(self, url):
        return self.ask("resolve", url)["error"]


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    pytest.importorskip("datasets", reason="needs the extra hub")
    folder = tmp_path_factory.mktemp("hub")
    env = {"HF_HOME": str(folder), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    with serving(Hub(dict(SETS))) as server, serving(FaultProxy(server.url)) as proxy:
        env |= {"HF_ENDPOINT": proxy.url, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            env=os.environ | env,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / "stderr").open("w"),
            text=True,
        )
        yield Reader(child, server, proxy)
        child.stdin.close()
        child.wait(20)
        child.stdout.close()


@pytest.fixture
def reader(process):
    process.proxy.plan = iter(())
    process.proxy.only_ranges = True
    process.proxy.done.clear()
    process.hub.requests.clear()
    return process


def expected(shard, count=250):
    return [[row["id"], 0, row["text"], [], False] for row in rows(shard, count)]


def test_urls():
    shard = hub.parse("hf://org/name?config=a%20b&split=s&revision=refs/pr/1")
    assert (shard.repo, shard.config, shard.split, shard.revision) == (
        "org/name",
        "a b",
        "s",
        "refs/pr/1",
    )
    plain = hub.parse("hf://squad")
    assert (plain.repo, plain.config, plain.split, plain.revision) == ("squad", "", "train", "")


def test_a_locator_survives_being_a_path():
    made = hub.HubShard("org/n.a-me", "a&b=c#/ü", "train", "main", "0" * 40, 7, 12)
    back = hub.parse(str(Path(made.locator)))
    assert (back.repo, back.config, back.split) == (made.repo, made.config, made.split)
    assert (back.commit, back.index, back.count) == (made.commit, 7, 12)
    assert back.tag == made.tag and made.commit not in made.name


@pytest.mark.parametrize(
    "url",
    [
        "hf://",
        "hf://a/b/c",
        "hf://datasets/a/b",
        "hf://../b",
        "hf:///b",
        "hf://a/..",
        "hf://a b/c",
        "hf://a/b?splt=train",
        "hf://a/b?split=",
        "hf://a/b?split",
        "hf://a/b?split=a&split=b",
        "hf://a/b?trust_remote_code=True",
        "hf://a/b#1-of-x",
    ],
)
def test_urls_that_cannot_be_used(url):
    with pytest.raises(MixcError) as caught:
        hub.resolve(url)
    assert caught.value.code == "MX007" and caught.value.help


def test_a_package_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MixcError) as caught:
        hub.resolve("hf://org/name")
    assert caught.value.code == "MX037" and caught.value.help == "pip install 'mixc[hub]'"
    with pytest.raises(MixcError) as caught:
        list(hub.read(Source(Path("hf:/org/name"), "x"), ReadOptions("text", 9)))
    assert caught.value.code == "MX037"


@needs_datasets
def test_shards_and_their_rows(reader):
    shards = reader.resolve("hf://org/tables")
    commit = commit_of(SETS["org/tables"][0])
    assert [shard["index"] for shard in shards] == [0, 1, 2]
    assert {shard["commit"] for shard in shards} == {commit}
    assert shards[1]["name"] == "hf://org/tables?split=train#00001-of-00003"
    assert shards[1]["tag"] == f"{commit}/1-of-3"
    for shard in shards:
        assert reader.read(shard) == expected(shard["index"])


@needs_datasets
def test_skipping_changes_nothing_else(reader):
    shard = reader.resolve("hf://org/tables")[2]
    whole = reader.read(shard)
    for skip_to in (0, 1, 700, whole[-1][1], whole[-1][1] + 1, 10**9):
        found = reader.read(shard, skip_to=skip_to)
        assert [r for r in found if r[1] >= skip_to] == [r for r in whole if r[1] >= skip_to]
    assert reader.read(shard, skip_to=10**9) == []


@needs_datasets
def test_configurations_splits_and_fields(reader):
    (shard,) = reader.resolve("hf://org/lines?config=first&split=test")
    found = reader.read(shard, fields=["id", "meta.ok", "meta.u", "meta.none", "none"])
    assert [record[2] for record in found] == [row["text"] for row in rows(2, 9)]
    assert [record[3] for record in found[:2]] == [
        ["0", "true", "x0", None, None],
        ["1", "false", "x1", None, None],
    ]
    (other,) = reader.resolve("hf://org/lines?config=second")
    assert reader.read(other) == expected(2, 9)
    (nested,) = reader.resolve("hf://org/lines?config=first")
    assert [record[2] for record in reader.read(nested, text="meta.u")][:2] == ["x0", "x1"]
    for url, word in [
        ("hf://org/lines", "config"),
        ("hf://org/lines?config=third", "third"),
        ("hf://org/lines?config=first&split=dev", "dev"),
    ]:
        error = reader.error(url)
        assert error["code"] == "MX027" and word in error["message"].lower() and error["help"]


@needs_datasets
def test_a_new_commit_is_seen_and_the_old_one_stays(reader):
    old = reader.resolve("hf://org/tables")[0]
    commits = SETS["org/tables"]
    changed = commits[0] | {"data/train-00000-of-00003.parquet": parquet(rows(9))}
    reader.hub.repos["org/tables"] = [*commits, changed]
    try:
        new = reader.resolve("hf://org/tables")[0]
        assert new["name"] == old["name"] and new["tag"] != old["tag"]
        assert reader.read(new) == expected(9)
        assert reader.read(old) == expected(0)
        pinned = reader.resolve(f"hf://org/tables?revision={old['commit']}")[0]
        assert pinned["tag"] == old["tag"]
    finally:
        reader.hub.repos["org/tables"] = commits


@needs_datasets
def test_bad_records(reader):
    (shard,) = reader.resolve("hf://org/bad")
    assert reader.read(shard) == [
        [0, 0, "good", [], False],
        [1, 0, "MX022", b"b\xffad".hex()],
        [2, 0, "MX021", ""],
        [3, 0, "end", [], False],
    ]
    found = reader.read(shard, replace_invalid=True)
    assert found[1] == [1, 0, "b\ufffdad", [], True]
    (numbers,) = reader.resolve("hf://org/numbers")
    assert reader.read(numbers, fields=["tags"])[0][2] == "MX021"
    assert reader.read(numbers, text="n")["error"]["code"] == "MX026"
    error = reader.read(numbers, text="body")["error"]
    assert error["code"] == "MX026" and "n, tags, text" in error["message"]
    (torn,) = reader.resolve("hf://org/torn")
    assert reader.read(torn)["error"]["code"] == "MX027"


@needs_datasets
def test_what_cannot_be_opened(reader):
    for name in ("missing", "none", "tar"):
        error = reader.error(f"hf://org/{name}")
        assert error["code"] == "MX027" and f"org/{name}" in error["place"] and error["help"]
    assert reader.error("hf://org/tables?revision=none")["code"] == "MX027"


@needs_datasets
def test_no_code_of_a_data_set_runs(reader):
    assert reader.error("hf://org/script")["code"] == "MX027"
    folder = Path(os.readlink(f"/proc/{reader.process.pid}/cwd"))
    assert not list(folder.rglob("ran"))


@needs_datasets
@pytest.mark.parametrize("url", ["hf://org/lines?config=second", "hf://org/tables"])
@pytest.mark.parametrize("fault", FAULTS)
def test_faults(reader, url, fault):
    """No fault is taken for the end of a file, also after the library made a new client."""
    shard = reader.resolve(url)[-1]
    want = reader.read(shard)
    assert len(want) >= 9
    reader.proxy.plan = iter(["reset", fault])
    assert reader.read(shard) == want
    assert fault in reader.proxy.done
