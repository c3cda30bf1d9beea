"""Corpora to a store: what it holds, and what makes no difference."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from helpers import (
    EOT,
    documents_of,
    texts,
    tokenizer_json,
    tree,
    word_tokenizer_json,
    write_jsonl,
    write_recipe,
)
from tokenizers import Tokenizer

from mixc.errors import MixcError
from mixc.recipe import Domain, load
from mixc.tokenize import encoder, staged, unit, units
from mixc.tokenize.inputs import Input
from mixc.tokenize.rules import rules_of
from mixc.tokenize.stage import tokenize
from mixc.verify import verify


@pytest.fixture
def mixed(tmp_path):
    """One domain over three readers, with texts that try to be special."""
    data = tmp_path / "data"
    write_jsonl(data / "a.jsonl", [f"one {EOT} two", "漢字\u2028\0🙂", EOT])
    raw = "".join(json.dumps({"text": t}) + "\n\n" for t in ["spaced", "out"]).encode()
    (data / "b.jsonl.gz").write_bytes(gzip.compress(raw))
    pq.write_table(pa.table({"id": [1, 2], "text": ["row 0", "row 1"]}), data / "c.parquet")
    (data / "d.txt").write_text("a whole file\nof text\n")
    return write_recipe(tmp_path, {"web": {"paths": ["data/*"]}})


def test_what_the_store_holds(mixed):
    store = tokenize(load(mixed), workers=1)
    tokenizer = Tokenizer.from_str(tokenizer_json().decode())
    tokenizer.encode_special_tokens = True
    expected = [
        (f"one {EOT} two", "data/a.jsonl", 0),
        ("漢字\u2028\0🙂", "data/a.jsonl", 1),
        (EOT, "data/a.jsonl", 2),
        ("spaced", "data/b.jsonl.gz", 0),
        ("out", "data/b.jsonl.gz", 2),
        ("row 0", "data/c.parquet", 0),
        ("row 1", "data/c.parquet", 1),
        ("a whole file\nof text\n", "data/d.txt", 0),
    ]
    found = documents_of(store, "web")
    assert found == [
        (
            [*tokenizer.encode(text, add_special_tokens=False).ids, store.eot_id],
            xxhash.xxh3_64_intdigest(text.encode()),
            path,
            row,
            len(text.encode()),
        )
        for text, path, row in expected
    ]
    domain = store.domains["web"]
    assert (domain.documents, domain.tokens) == (8, sum(len(one[0]) for one in found))
    assert domain.text_bytes == sum(one[4] for one in found)
    assert store.manifest["dtype"] == "uint16"
    assert (store.root / "tokenizer.json").read_bytes() == tokenizer_json()
    report = verify(store.root)
    assert (report.kind, report.documents) == ("store", 8)


@pytest.mark.parametrize(("size", "dtype"), [(65536, "uint16"), (65537, "uint32")])
def test_the_type_of_tokens_follows_the_vocabulary(tmp_path, size, dtype):
    words = [f"w{i}" for i in range(size - 1)]
    (tmp_path / "tokenizer.json").write_bytes(word_tokenizer_json(words))
    path = write_recipe(tmp_path, {"web": [f"w{size - 2} w0", "w255 w256"]})
    store = tokenize(load(path), workers=1)
    assert store.manifest["dtype"] == dtype
    assert store.dtype == np.dtype(dtype)
    assert [one[0] for one in documents_of(store, "web")] == [
        [size - 2, 0, size - 1],
        [255, 256, size - 1],
    ]
    # The manifest says where in the file the raw tokens are.
    (shard,) = store.domains["web"].shards
    file = store.root / shard.file.path
    raw = np.fromfile(file, dtype, count=shard.tokens, offset=shard.values_offset)
    assert raw.tolist() == [size - 2, 0, size - 1, 255, 256, size - 1]


def test_bad_records_are_left_out_and_counted(tmp_path):
    lines = [
        b'{"text":"first"}',
        b"{",
        b'{"body":"x"}',
        b'{"text":3}',
        b"",
        b'{"text":"\xff"}',
        b'{"text":"\\ud800"}',
        b'{"text":""}',
        b'{"text":"' + b"x" * 101 + b'"}',
        b'{"text":"last"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    write_jsonl(tmp_path / "b.jsonl", ["good"])
    options = {"on_bad_record": "skip", "max_document_bytes": 100}
    path = write_recipe(tmp_path, {"web": {"paths": ["*.jsonl"], **options}})
    store = tokenize(load(path), workers=1)
    (piece,) = store.sources["web"]
    a, b = piece.inputs
    assert a["skipped"] == {"MX020": 1, "MX021": 2, "MX022": 2, "MX023": 1, "MX024": 1}
    assert (a["documents"], b["documents"], b["skipped"]) == (2, 1, {})
    rows = [(path, row) for _, _, path, row, _ in documents_of(store, "web")]
    assert rows == [("a.jsonl", 0), ("a.jsonl", 9), ("b.jsonl", 0)]
    with pytest.raises(MixcError, match="not valid JSON"):
        tokenize(load(path, ["domains.web.on_bad_record=error"]), workers=1)


@pytest.mark.parametrize("model", ["WordLevel", "Unigram"])
def test_no_document_may_spell_an_end_of_text(tmp_path, model):
    """A model of whole words holds the token's own string among them."""
    words = ["?", "a", "b"]
    (tmp_path / "tokenizer.json").write_bytes(word_tokenizer_json(words, model=model))
    path = write_recipe(tmp_path, {"a": ["a b a", f"a {EOT} b", "b", "b b"]})
    with pytest.raises(MixcError, match="spells the end-of-text") as caught:
        tokenize(load(path), workers=1)
    assert caught.value.code == "MX032"
    assert "record 1, byte 18" in str(caught.value.place)
    store = tokenize(load(path, ["domains.a.on_bad_record=skip"]), workers=1)
    assert store.sources["a"][0].inputs[0]["skipped"] == {"MX032": 1}
    assert store.domains["a"].documents == 3
    tokens = np.concatenate([documents.tokens for documents in store.documents("a")])
    assert tokens.tolist().count(store.eot_id) == 3


def test_shards_are_cut_by_the_inputs_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(staged, "SHARD_BYTES", 400)
    monkeypatch.setattr(unit, "BATCH_BYTES", 100)
    corpus = texts(1, 120)
    store = tokenize(load(write_recipe(tmp_path, {"web": corpus})), workers=1)
    shards = store.domains["web"].shards
    assert len(shards) > 5
    assert all(shard.tokens * 2 >= 400 for shard in shards[:-1])
    assert [row for _, _, _, row, _ in documents_of(store, "web")] == list(range(120))
    assert verify(store.root).documents == 120


# What makes no difference


def test_the_number_of_workers_makes_no_difference(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "_BUNDLE_BYTES", 0)  # every file a unit of its own
    trees = []
    # Of long runs a single worker, too, is a process by itself.
    for workers, long in ((1, 1 << 30), (1, 0), (2, 0), (5, 0)):
        monkeypatch.setattr("mixc.tokenize.stage._LONG_BYTES", long)
        folder = tmp_path / f"{workers}.{long}"
        for number in range(6):
            write_jsonl(folder / f"web/{number}.jsonl", texts(number, 15))
        domains = {"web": {"paths": ["web/*"]}, "code": texts(8, 40), "same": texts(8, 40)}
        store = tokenize(load(write_recipe(folder, domains)), workers=workers)
        trees.append(tree(store.root))
    assert trees[0] == trees[1] == trees[2] == trees[3]
    assert len(trees[0]) == 3 + 8


def test_the_order_of_domains_and_paths_makes_no_difference(tmp_path):
    corpora = {"web": texts(1, 20), "code": texts(2, 20)}
    one = tokenize(load(write_recipe(tmp_path / "1", corpora)), workers=1)
    turned = write_recipe(tmp_path / "2", dict(reversed(corpora.items())))
    assert tree(tokenize(load(turned), workers=1).root) == tree(one.root)


def test_units_of_many_small_files_hardly_move(tmp_path):
    """A file more, or one that grew, redoes its own unit, not all that sort behind it."""

    def keys(sizes):
        inputs = [
            Input("web", tmp_path / name, name, "jsonl", size, f"{name}{size}")
            for name, size in sorted(sizes.items())
        ]
        file = encoder.describe(
            tokenizer_json(), eot=None, special_tokens="text", source="", key=""
        )
        chains = units.plan_units(
            inputs,
            rules_of(Domain(paths=("a",))),
            allow_empty=False,
            tokenizer=file,
            trust=encoder.Trust("tokenizers", "1", 1.0),
            prepare=lambda task: None,
        )
        tasks = [chain.task(0) for chain in chains]
        assert [item for task in tasks for item in task.inputs] == inputs
        return {task.key for task in tasks}

    sizes = {f"part-{i:05}.jsonl": 1 << 20 for i in range(2000)}
    before = keys(sizes)
    assert 250 < len(before) < 1000
    assert len(keys(sizes | {"a.jsonl": 1 << 20}) - before) <= 3
    assert len(keys(sizes | {"part-01000.jsonl": 9 << 20}) - before) <= 3
