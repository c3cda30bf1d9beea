"""What is done again when inputs, recipe or store change, and what is kept."""

import os

import pytest
from helpers import documents_of, identity, texts, tokenizer_json, tree, write_jsonl, write_recipe

from mixc.errors import MixcError
from mixc.recipe import load
from mixc.store.store import open_store
from mixc.tokenize import units
from mixc.tokenize.stage import plan, tokenize
from mixc.verify import verify


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
