"""What tools/fuzz.py found, each as the smallest input that showed it."""

import numpy as np
import pyarrow as pa
import pytest

from mixc.errors import MixcError
from mixc.store.hashes import seal
from mixc.store.shard import Documents, open_shard, write_shard
from mixc.store.store import open_store

FILE = {"path": "a.arrow", "bytes": 1, "xxh3": "0"}
TOKENIZER = {
    "sha256": "0",
    "vocab_size": 300,
    "eot": "</s>",
    "eot_id": 0,
    "special_tokens": "text",
    "source": "",
    "key": "0",
}
MANIFEST = {
    "schema": "mixc.store/2",
    "key": "0",
    "options_key": "0",
    "store_hash": "0",
    "dtype": "uint16",
    "tokenizer": TOKENIZER,
    "files": [],
    "sources": {},
    "domains": {},
}


def opened(folder, manifest):
    folder.joinpath("manifest.json").write_bytes(seal(manifest))
    return open_store(folder)


def test_the_plain_manifest_is_opened(tmp_path):
    assert opened(tmp_path, MANIFEST).vocab_size == 300


# Whole by their seals, but no store's: these were tracebacks, then or when they were used.
@pytest.mark.parametrize(
    "wrong",
    [
        {"store_hash": 1},
        {"tokenizer": "no"},
        {"tokenizer": TOKENIZER | {"vocab_size": "many"}},
        {"tokenizer": {"vocab_size": 300}},
        {"tokenizer": TOKENIZER | {"vocab_size": 2**64}},
        {"files": [{**FILE, "bytes": -1}]},
        {"files": [{**FILE, "bytes": 0.5}]},
        {"files": [{**FILE, "path": None}]},
        {"files": [{**FILE, "path": "a\0b"}]},
        {"files": [{**FILE, "path": "\ud800"}]},
        {"sources": [["web", []]]},
        {"domains": {"\ud800": {}}},
    ],
    ids=str,
)
def test_manifests_of_other_kinds_of_values(tmp_path, wrong):
    with pytest.raises(MixcError) as caught:
        opened(tmp_path, MANIFEST | wrong)
    assert caught.value.code == "MX040"
    str(caught.value).encode()


@pytest.mark.parametrize("key", ["store_hash", "tokenizer", "files", "sources", "domains"])
def test_manifests_that_lack_a_key(tmp_path, key):
    with pytest.raises(MixcError) as caught:
        opened(tmp_path, {name: value for name, value in MANIFEST.items() if name != key})
    assert caught.value.code == "MX040"
    assert key in caught.value.message


def test_a_schema_that_cannot_be_printed(tmp_path):
    with pytest.raises(MixcError) as caught:
        opened(tmp_path, MANIFEST | {"schema": "\ud800"})
    assert caught.value.code == "MX044"
    str(caught.value).encode()


@pytest.fixture
def shard(tmp_path):
    """A shard of 3 documents with the ids a, bb and ccc: its path, its record, its bytes."""
    documents = Documents(
        tokens=np.arange(3, dtype=np.uint16),
        offsets=np.arange(4),
        doc_id=np.arange(3, dtype=np.uint64),
        source=np.zeros(3, np.uint32),
        row=np.arange(3, dtype=np.uint64),
        n_bytes=np.ones(3, np.uint32),
        id=pa.array(["a", "bb", "ccc"], pa.large_string()),
    )
    record = write_shard(tmp_path, documents)
    path = tmp_path / record.file.path
    return path, record, path.read_bytes()


def offsets(*numbers):
    return np.array(numbers, np.int64).tobytes()


@pytest.mark.parametrize("second", [-1, 4, 2**62])
def test_own_ids_that_do_not_follow_each_other(shard, second):
    """pyarrow read outside the file: SystemError, MemoryError, or what it found there."""
    path, record, raw = shard
    assert raw.count(offsets(0, 1, 3, 6)) == 1
    assert [open_shard(path, record).own_id(n) for n in range(3)] == ["a", "bb", "ccc"]
    path.write_bytes(raw.replace(offsets(0, 1, 3, 6), offsets(0, second, 3, 6)))
    with pytest.raises(MixcError) as caught:
        open_shard(path, record)
    assert caught.value.code == "MX040"


def test_an_own_id_that_is_no_text(shard):
    path, record, raw = shard
    path.write_bytes(raw.replace(b"abbccc", b"a\xffbccc"))
    assert open_shard(path, record).own_id(1) == "\ufffdb"
