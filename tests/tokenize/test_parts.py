"""Large files: read in parts by several workers, with the same store in the end."""

import json
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from helpers import documents_of, texts, tree, write_recipe
from hypothesis import given, settings
from hypothesis import strategies as st

from mixc.errors import MixcError
from mixc.readers import codecs
from mixc.recipe import load
from mixc.tokenize import stage, units
from mixc.tokenize import unit as unit_module
from mixc.tokenize.inputs import find, hashed
from mixc.tokenize.reading import Reading
from mixc.tokenize.rules import rules_of
from mixc.tokenize.stage import tokenize
from mixc.verify import verify


@pytest.fixture
def tiny_parts(monkeypatch):
    """Every file is large, and its parts are tiny."""
    monkeypatch.setattr(units, "_LARGE_BYTES", 0)
    monkeypatch.setattr(units, "PART_BYTES", 500)


def as_jsonl(corpus):
    return "".join(json.dumps({"text": text}) + "\n" for text in corpus).encode()


def write(folder, corpus):
    """The same texts in four formats."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = as_jsonl(corpus)
    (folder / "plain.jsonl").write_bytes(raw)
    (folder / "packed.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(raw))
    pq.write_table(pa.table({"text": corpus}), folder / "rows.parquet", row_group_size=7)
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as sink:
        table = pa.table({"text": corpus})
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=5)
    return folder


def found(store, domain):
    """(input file, row, tokens) of each document."""
    return [(path, row, tokens) for tokens, _, path, row, _ in documents_of(store, domain)]


def test_parts_hold_what_the_whole_holds(tmp_path, monkeypatch):
    corpus = texts(1, 80)
    write(tmp_path / "data", corpus)
    path = write_recipe(tmp_path, {"web": {"paths": ["data/*"]}})
    whole = found(tokenize(load(path), workers=1), "web")
    monkeypatch.setattr(units, "_LARGE_BYTES", 0)
    monkeypatch.setattr(units, "PART_BYTES", 500)
    store = tokenize(load(path, ["workdir=in-parts"]), workers=1)
    assert found(store, "web") == whole
    assert len(whole) == 4 * 80
    assert len(store.sources["web"]) > 20
    assert verify(store.root).documents == 4 * 80


def test_several_workers_share_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "_LARGE_BYTES", 0)
    monkeypatch.setattr(units, "PART_BYTES", 20_000)
    trees = []
    for workers in (1, 2, 5):
        write(tmp_path / str(workers), texts(2, 1000))
        options = {"paths": ["packed.jsonl.zst"]}
        recipe = load(write_recipe(tmp_path / str(workers), {"a": options}))
        store = tokenize(recipe, workers=workers)
        assert len(store.sources["a"]) > 4
        rows = np.concatenate([one.row for one in store.documents("a")])
        assert rows.tolist() == list(range(1000))
        trees.append(tree(store.root))
    assert trees[0] == trees[1] == trees[2]


@given(
    data=st.data(),
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=30),
    size=st.integers(1, 400),
)
@settings(max_examples=60, deadline=None)
def test_each_record_is_in_one_part(tmp_path_factory, data, lengths, size):
    """However the file is cut, and whichever parts a worker gets."""
    folder = tmp_path_factory.mktemp("parts")
    corpus = ["x" * n for n in lengths]
    (folder / "a.jsonl").write_bytes(as_jsonl(corpus))
    recipe = load(write_recipe(folder, {"a": {"paths": ["a.jsonl"]}}))
    (item,) = hashed(find(recipe))
    options = rules_of(recipe.domains["a"]).read
    readers, rows, start, ended = [], [], 0, False
    while not ended:
        if not readers or data.draw(st.booleans()):
            readers.append(Reading(item, options))
        worker = data.draw(st.sampled_from(readers))
        if worker.serves(item, options, start):
            rows += [record.row for record in worker.part(start, start + size)]
            start, ended = start + size, worker.ended
    worker.check_unchanged(at_end=True)
    assert rows == list(range(len(corpus)))


def test_a_large_file_without_documents_is_an_error(tmp_path, tiny_parts):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": ""}\n' * 200)
    options = {"paths": ["a.jsonl"], "on_bad_record": "skip"}
    path = write_recipe(tmp_path, {"web": options})
    with pytest.raises(MixcError) as caught:
        tokenize(load(path), workers=1)
    assert caught.value.code == "MX028"
    assert "MX023" in str(caught.value)


def test_a_changed_large_file_is_noticed(tmp_path, tiny_parts, monkeypatch):
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(texts(1, 50)))
    path = write_recipe(tmp_path, {"web": {"paths": ["a.jsonl"]}})
    real = stage.hashed

    def then_changed(inputs):
        done = real(inputs)
        with (tmp_path / "a.jsonl").open("ab") as file:
            file.write(as_jsonl(["more"]))
        return done

    monkeypatch.setattr(stage, "hashed", then_changed)
    with pytest.raises(MixcError) as caught:
        tokenize(load(path), workers=1)
    assert (caught.value.code, caught.value.exit_code) == ("MX029", 4)


def test_the_sizes_of_what_is_read_and_encoded_at_once_change_no_byte(tmp_path, monkeypatch):
    """Blocks of a few bytes of a file, batches of a few documents."""
    write(tmp_path / "data", texts(4, 60))
    path = write_recipe(tmp_path, {"web": {"paths": ["data/*"]}})
    expected = tree(tokenize(load(path), workers=1).root)
    for number, (block, batch) in enumerate([(64, 1), (1 << 20, 1), (200, 300), (64, 1 << 20)]):
        monkeypatch.setattr(codecs, "BLOCK", block)
        monkeypatch.setattr(unit_module, "BATCH_BYTES", batch)
        assert tree(tokenize(load(path, [f"workdir=w{number}"]), workers=1).root) == expected


def test_a_part_of_a_changed_file_is_never_taken_for_the_file(tmp_path, tiny_parts, monkeypatch):
    """Changed while its first part is read, and restored afterwards: nothing of it may be kept."""
    path = write_recipe(tmp_path, {"web": {"paths": ["a.jsonl"]}})
    right, wrong = as_jsonl(texts(1, 50)), as_jsonl(texts(2, 50))
    (tmp_path / "a.jsonl").write_bytes(right)
    real = stage.hashed

    def then_changed(inputs):
        done = real(inputs)
        (tmp_path / "a.jsonl").write_bytes(wrong)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(stage, "hashed", then_changed)
        with pytest.raises(MixcError) as caught:
            tokenize(load(path), workers=1)
    assert caught.value.code == "MX029"
    assert not list((tmp_path / "out/.mixc/store/staging").rglob("unit.json"))
    (tmp_path / "a.jsonl").write_bytes(right)
    store = tokenize(load(path), workers=1)
    other = write_recipe(tmp_path / "other", {"web": texts(1, 50)})
    tokens = [tokens for _, _, tokens in found(store, "web")]
    assert tokens == [one for _, _, one in found(tokenize(load(other), workers=1), "web")]


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_adds_up_to_the_files(tmp_path, tiny_parts, monkeypatch, workers):
    write(tmp_path / "data", texts(1, 400))
    seen = []

    class Bar:
        def advance(self, amount, note=""):
            seen.append(amount)

    @contextmanager
    def task(label, total, unit):
        seen.clear()
        yield Bar()
        if label == "tokenize":
            assert 0.7 * total <= sum(seen) <= 1.3 * total

    monkeypatch.setattr("mixc.progress.task", task)
    tokenize(load(write_recipe(tmp_path, {"web": {"paths": ["data/*"]}})), workers=workers)
    assert seen
