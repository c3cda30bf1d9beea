"""Corpora to a store: what it holds, what is done again, and what makes no difference."""

import gzip
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from helpers import (
    EOT,
    identity,
    texts,
    tokenizer_json,
    word_tokenizer_json,
    write_jsonl,
    write_recipe,
)
from tokenizers import Tokenizer

from mixc.errors import MixcError
from mixc.recipe import Domain, load
from mixc.store.store import open_store
from mixc.tokenize import encoder, staged, unit, units
from mixc.tokenize.inputs import Input
from mixc.tokenize.rules import rules_of
from mixc.tokenize.stage import plan, tokenize
from mixc.verify import verify


def tree(root):
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def documents_of(store, domain):
    """(tokens, doc_id, input file, record, bytes) of each document, in order."""
    found = []
    for piece in store.domains[domain].units:
        for shard in piece.shards:
            opened = store.open(shard)
            for i in range(len(opened)):
                tokens = opened.tokens[opened.offsets[i] : opened.offsets[i + 1]].tolist()
                path = piece.inputs[opened.source[i]]["path"]
                numbers = (int(opened.doc_id[i]), path, int(opened.row[i]), int(opened.n_bytes[i]))
                found.append((tokens, *numbers))
    return found


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


# What is done again


@pytest.fixture
def alone(monkeypatch):
    """Every file is a unit of work of its own, however small."""
    monkeypatch.setattr(units, "_BUNDLE_BYTES", 0)


def kept(store):
    """Input file -> its shards' identities: a shard that is kept is linked, not written."""
    return {
        piece.inputs[0]["path"]: [identity(store.root / s.file.path) for s in piece.shards]
        for domain in store.domains.values()
        for piece in domain.units
    }


def redone(before, store):
    """The files of a store that were tokenized since `before`."""
    return sorted(path for path, files in kept(store).items() if before.get(path) != files)


@pytest.fixture
def three(tmp_path, alone):
    """A recipe over data/{a,b,c}.jsonl, and its store."""
    for number, name in enumerate("abc"):
        write_jsonl(tmp_path / f"data/{name}.jsonl", texts(number, 10))
    path = write_recipe(tmp_path, {"web": {"paths": ["data/*.jsonl"]}})
    return path, tokenize(load(path), workers=1)


def test_nothing_to_do(three):
    path, store = three
    before = tree(store.root), kept(store)
    assert plan(load(path)).fresh
    again = tokenize(load(path), workers=1)
    assert (tree(again.root), kept(again)) == before
    # What does not touch the store does not make it stale.
    for change in ("mixture.rows=9", "mixture.weights=uniform", "name=other"):
        assert plan(load(path, [change])).fresh
    for change in ("holdout.fraction=0.2", "domains.web.on_bad_record=skip"):
        assert not plan(load(path, [change])).fresh


def test_a_new_file_costs_its_own_work_alone(three):
    path, store = three
    before = kept(store)
    write_jsonl(path.parent / "data/aa.jsonl", texts(9, 10))
    assert redone(before, tokenize(load(path), workers=1)) == ["data/aa.jsonl"]
    assert verify(store.root).documents == 40


def test_the_shards_of_a_file_that_is_gone_go_too(three):
    path, store = three
    before = kept(store)
    gone = store.domains["web"].units[1].shards[0].file.path
    (path.parent / "data/b.jsonl").unlink()
    after = tokenize(load(path), workers=1)
    assert redone(before, after) == []
    assert not (after.root / gone).exists()
    assert verify(after.root).documents == 20
    assert len(list((after.root / "web").iterdir())) == 2
    assert not (path.parent / "out/.mixc/store/staging").exists()


def test_an_edit_of_equal_size_and_time_is_noticed(three):
    path, store = three
    before, file = kept(store), path.parent / "data/b.jsonl"
    times, raw = file.stat(), file.read_bytes()
    file.write_bytes(raw.replace(b"1.3 ", b"1.x "))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    assert redone(before, tokenize(load(path), workers=1)) == ["data/b.jsonl"]


def test_a_touched_or_renamed_file_costs_nothing(three):
    path, store = three
    before = kept(store)
    os.utime(path.parent / "data/a.jsonl", (0, 0))
    assert plan(load(path)).fresh
    (path.parent / "data/c.jsonl").rename(path.parent / "data/d.jsonl")
    after = tokenize(load(path), workers=1)
    assert kept(after)["data/d.jsonl"] == before["data/c.jsonl"]
    assert redone(before, after) == ["data/d.jsonl"]  # under its new name, the old shards
    assert documents_of(after, "web")[-1][2] == "data/d.jsonl"


def test_another_holdout_is_chosen_and_nothing_encoded(three):
    path, store = three
    before = kept(store)
    assert redone(before, tokenize(load(path, ["holdout.fraction=0.3"]), workers=1)) == []


def test_another_tokenizer_redoes_all(three):
    path, store = three
    before = kept(store)
    (path.parent / "tokenizer.json").write_bytes(tokenizer_json(300))
    assert len(redone(before, tokenize(load(path), workers=1))) == 3
    assert open_store(store.root).vocab_size == 300


def test_equal_files_are_each_counted(tmp_path, alone):
    for name in "abc":
        write_jsonl(tmp_path / f"data/{name}.jsonl", texts(1, 10))
    path = write_recipe(tmp_path, {"web": {"paths": ["data/*.jsonl"]}, "same": texts(1, 10)})
    store = tokenize(load(path), workers=1)
    assert store.domains["web"].documents == 30
    assert len(store.domains["web"].shards) == 3
    assert verify(store.root).documents == 40
    assert [path for _, _, path, _, _ in documents_of(store, "web")[::10]] == [
        "data/a.jsonl",
        "data/b.jsonl",
        "data/c.jsonl",
    ]


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.unlink()
    path.write_bytes(raw)


@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_a_damaged_shard_is_not_reused(three, how):
    path, store = three
    expected = tree(store.root)
    before, shard = kept(store), store.root / store.domains["web"].units[1].shards[0].file.path
    if how == "flipped":
        flip(shard)
    elif how == "cut":
        os.truncate(shard, 100)
    else:
        shard.unlink()
    changes = (
        ["holdout.fraction=0.3"] if how == "flipped" else []
    )  # sizes are always looked at, bytes on reuse
    after = tokenize(load(path, changes), workers=1)
    assert redone(before, after) == ["data/b.jsonl"]
    assert verify(after.root).documents == 30
    if not changes:
        assert tree(after.root) == expected


@pytest.mark.parametrize("how", ["flipped", "gone"])
@pytest.mark.parametrize("name", ["tokenizer.json", "holdout.arrow"])
def test_no_other_damaged_file_is_reused(three, name, how):
    path, store = three
    expected = tree(store.root)
    file = store.root / name
    flip(file) if how == "flipped" else file.unlink()
    tokenize(load(path, ["holdout.fraction=0.3"]), workers=1)
    assert verify(store.root).documents == 30
    after = tokenize(load(path), workers=1)
    assert tree(after.root) == expected


def test_finished_work_is_kept_when_a_run_fails(three):
    path, store = three
    write_jsonl(path.parent / "data/x.jsonl", texts(7, 10))
    (path.parent / "data/y.jsonl").write_bytes(b"{")
    with pytest.raises(MixcError, match="not valid JSON"):
        tokenize(load(path), workers=1)
    staging = path.parent / "out/.mixc/store/staging"
    staged = {identity(file) for file in staging.rglob("*.arrow")}
    write_jsonl(path.parent / "data/y.jsonl", texts(8, 10))
    after = kept(tokenize(load(path), workers=1))
    assert {name for name, files in after.items() if set(files) <= staged} == {
        f"data/{name}.jsonl" for name in "abcx"
    }
    assert verify(store.root).documents == 50


def test_staged_work_that_is_damaged_is_done_again(three):
    path, store = three
    write_jsonl(path.parent / "data/x.jsonl", texts(7, 10))
    (path.parent / "data/y.jsonl").write_bytes(b"{")
    with pytest.raises(MixcError):
        tokenize(load(path), workers=1)
    for file in (path.parent / "out/.mixc/store/staging").rglob("*.arrow"):
        flip(file)
    (path.parent / "data/y.jsonl").unlink()
    tokenize(load(path), workers=1)
    assert verify(store.root).documents == 40


# What makes no difference


def test_the_number_of_workers_makes_no_difference(tmp_path, alone, monkeypatch):
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


# Where the tokenizer comes from


def mixc(*words, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "mixc", *map(str, words)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


def test_training_depends_on_nothing_but_the_corpora(tmp_path):
    """Two processes, other numbers of threads, other seeds of Python's own hashes."""
    trees = []
    for threads in ("1", "4"):
        path = write_recipe(
            tmp_path / threads,
            {"web": texts(1, 200), "code": texts(2, 100)},
            tokenizer={"train": {"vocab_size": 400}},
        )
        environment = {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        code, _, err = mixc("tokenize", path, "--workers", threads, **environment)
        assert code == 0, err
        trees.append(tree(path.parent / "out" / "store"))
    assert trees[0] == trees[1]
    store = open_store(tmp_path / "1/out/store")
    assert (store.vocab_size, store.eot_id) == (400, 0)
    assert store.manifest["tokenizer"]["eot"] == EOT


def test_a_trained_tokenizer_can_spell_every_byte(tmp_path):
    recipe = {"train": {"vocab_size": 257, "sample_bytes": 100}}
    path = write_recipe(tmp_path, {"web": ["\x00\x7f漢字🙂 à", "b"]}, tokenizer=recipe)
    store = tokenize(load(path), workers=1)
    assert store.vocab_size == 257
    tokenizer = Tokenizer.from_str((store.root / "tokenizer.json").read_text())
    tokens = documents_of(store, "web")[0][0]
    assert len(tokens) == len("\x00\x7f漢字🙂 à".encode()) + 1
    assert tokenizer.decode(tokens[:-1]) == "\x00\x7f漢字🙂 à"


def test_a_trained_tokenizer_is_trained_again_when_the_corpora_change(tmp_path):
    recipe = {"train": {"vocab_size": 300}}
    path = write_recipe(tmp_path, {"web": texts(1, 50)}, tokenizer=recipe)
    first = tokenize(load(path), workers=1).manifest["tokenizer"]
    same = tokenize(load(path, ["holdout.fraction=0.3"]), workers=1).manifest["tokenizer"]
    assert same == first
    write_jsonl(tmp_path / "corpus/web.jsonl", ["zebra crossing"] * 50)
    other = tokenize(load(path), workers=1).manifest["tokenizer"]
    assert other["sha256"] != first["sha256"]


def test_a_tokenizer_of_the_hub(tmp_path):
    """From the cache of Hugging Face, as a run without a network finds it."""
    repository = tmp_path / "hf/hub/models--org--name"
    (repository / "refs").mkdir(parents=True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs/main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / "tokenizer.json").write_bytes(tokenizer_json())
    offline = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}

    path = write_recipe(tmp_path, {"web": texts(1, 20)}, tokenizer={"hub": "org/name"})
    code, _, err = mixc("tokenize", path, **offline)
    assert code == 0, err
    store = open_store(tmp_path / "out/store")
    assert store.manifest["tokenizer"]["source"] == "hub:org/name"
    assert (store.root / "tokenizer.json").read_bytes() == tokenizer_json()

    before = tree(store.root)
    code, out, err = mixc("tokenize", path, "-s", "tokenizer.hub=org/gone", "--json", **offline)
    assert code == 1
    assert json.loads(out)["errors"] == [
        {
            "code": "MX030",
            "message": "cannot get the tokenizer from the hub: LocalEntryNotFoundError",
            "place": "hub:org/gone",
            "help": "check the name and the network, or give tokenizer.path a local tokenizer.json",
        }
    ]
    assert tree(store.root) == before


def test_the_end_of_text_may_be_named(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(word_tokenizer_json(["?", "a", "STOP"]))
    recipe = {"path": "tokenizer.json", "eot": "STOP"}
    path = write_recipe(tmp_path, {"web": ["a a", "a"]}, tokenizer=recipe)
    store = tokenize(load(path), workers=1)
    assert [one[0] for one in documents_of(store, "web")] == [[1, 1, 2], [1, 2]]
    assert store.manifest["tokenizer"]["eot"] == "STOP"
    assert store.eot_id == 2


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
