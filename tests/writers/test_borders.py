"""Where files are cut: between rows and between documents, whatever their number."""

import numpy as np
import pytest
from build_helpers import flat, make_mixture, tree_hash
from writers.exports import (
    CORPUS,
    MANIFEST,
    SHARDED,
    SMALL,
    counted,
    every_dtype,
    export,
    spec,
    staged,
)
from writers.formats import (
    LABELS,
    READERS,
    WIDE,
    joined,
    needs_array_record,
    read_labels,
    same,
    tar_samples,
)

from mixc.errors import MixcError
from mixc.registry import WRITERS
from mixc.writers.sequences import Folder


@pytest.mark.parametrize("name", WIDE)
def test_one_row_is_enough(tmp_path, name):
    rows = counted([8])
    folder, files = export(tmp_path / "x", name, rows, row_len=8)
    assert same(READERS[name](folder, "train", MANIFEST), rows)
    assert WRITERS[name].load().read(files, spec(rows=1), 0, 1).tolist() == rows


@pytest.mark.parametrize("name", WIDE)
def test_no_sequence_at_all_is_no_failure(tmp_path, name):
    folder, files = export(tmp_path / "x", name, [], "val")
    assert same(READERS[name](folder, "val", MANIFEST), [])
    assert list(LABELS.get(name, read_labels)(folder, "val", MANIFEST)) == []
    assert all(path.exists() for path in files)


@pytest.mark.parametrize("most", [1, 8, 20, 24, 56, 1000])
@pytest.mark.parametrize("name", list(SHARDED))
def test_files_are_cut_between_rows(tmp_path, monkeypatch, name, most):
    module, rows = WRITERS[name].load(), counted([8] * 7)
    monkeypatch.setattr(module, SHARDED[name], most)
    folder, files = export(tmp_path / "x", name, rows)
    shards = [path for path in files if path.suffix == ".bin"]
    held = [(path.stat().st_size - module._HEADER_BYTES) / 32 for path in shards]
    assert len(held) == min(7, -(-56 // most))
    assert all(map(float.is_integer, held))
    assert max(held) - min(held) <= 1  # llm.c refuses a set with a shard smaller than a batch
    assert READERS[name](folder, "train", MANIFEST) == joined(rows)
    for first in range(8):
        for count in range(8 - first):
            found = module.read(files, spec(rows=7), first, count)
            assert found.shape == (count, 8)
            assert found.tolist() == rows[first : first + count]


@pytest.mark.parametrize("name", list(SHARDED))
def test_files_are_cut_between_documents(tmp_path, monkeypatch, name):
    documents = counted([3, 4, 50, 1, 9, 1, 10])
    monkeypatch.setattr(WRITERS[name].load(), SHARDED[name], 10)
    folder, files = export(tmp_path / "x", name, documents, "val")
    header = WRITERS[name].load()._HEADER_BYTES
    sizes = [(p.stat().st_size - header) // 4 for p in files if p.suffix == ".bin"]
    assert sizes == [57, 1, 10, 10]
    assert READERS[name](folder, "val", MANIFEST) == joined(documents)


@pytest.mark.parametrize("lines", [1, 3])
def test_sidecars_are_written_in_pieces(tmp_path, monkeypatch, lines):
    monkeypatch.setattr(WRITERS["olmo"].load(), "_LINES", lines)
    monkeypatch.setattr(WRITERS["datatrove"].load(), "_CHUNK", lines)
    documents = counted([3, 1, 4, 1, 5, 9, 2])
    for name in ("olmo", "datatrove"):
        folder, _ = export(tmp_path / name, name, documents)
        assert READERS[name](folder, "train", MANIFEST) == documents


def test_tars_are_cut_between_sequences(tmp_path, monkeypatch):
    module = WRITERS["webdataset"].load()
    monkeypatch.setattr(module, "_SHARD_TOKENS", 20)
    monkeypatch.setattr(module, "_PIECE_TOKENS", 10)
    rows, documents = counted([8] * 7), counted([3, 4, 50, 1, 9, 1, 10, 256, 128, 127, 129])
    folder, files = export(tmp_path / "rows", "webdataset", rows)
    assert tar_samples(folder, "train", MANIFEST) == [(i % 2, row) for i, row in enumerate(rows)]
    assert [path.name for path in files[:3]] == [f"train-{i:06d}.tar" for i in range(3)]
    for first in range(8):
        for count in range(8 - first):
            found = module.read(files, spec(rows=7), first, count)
            assert found.tolist() == rows[first : first + count]
    folder, _ = export(tmp_path / "documents", "webdataset", documents, "val")
    expected = [(i % 2, one) for i, one in enumerate(documents)]
    assert tar_samples(folder, "val", MANIFEST) == expected


@needs_array_record
def test_records_are_cut_between_rows(tmp_path, monkeypatch):
    module = WRITERS["arrayrecord"].load()
    monkeypatch.setattr(module, "_SHARD_TOKENS", 20)
    rows = counted([8] * 7)
    folder, files = export(tmp_path / "x", "arrayrecord", rows)
    assert [path.name for path in files[:3]] == [f"train-{i:06d}.array_record" for i in range(3)]
    assert READERS["arrayrecord"](folder, "train", MANIFEST) == rows
    for first in range(8):
        for count in range(8 - first):
            found = module.read(files, spec(rows=7), first, count)
            assert found.tolist() == rows[first : first + count]
    again, _ = export(tmp_path / "again", "arrayrecord", rows)
    assert tree_hash(again) == tree_hash(folder)
    files[0].write_bytes(files[0].read_bytes()[:-1000])
    with pytest.raises(MixcError) as raised:
        module.read(files, spec(rows=7), 0, 7)
    assert raised.value.code == "MX040"


# ---- formats that hold rows of columns ----


@every_dtype
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("count", [1, 2, 29, 30])
def test_rows_cut_into_files(small, tmp_path, name, dtype, count):
    sequences, rows = staged(tmp_path / "staged", dtype, [16] * count, row_len=16)
    module, domains = WRITERS[name].load(), [chr(ord("a") + i) for i in range(3)]
    manifest = {"dtype": dtype, "seq_len": 16, "domains": domains}
    files = module.write(sequences, Folder(tmp_path / "out"), "train")
    assert (len(files) > 4) == (count > 2)
    assert READERS[name](tmp_path / "out", "train", manifest) == rows
    labels = LABELS[name](tmp_path / "out", "train", manifest)
    assert labels == sequences.labels.tolist()
    paths = [tmp_path / "out" / file for file in files]
    holds = spec(dtype=np.dtype(dtype), seq_len=16, rows=count)
    for first in range(count):
        for stop in range(first, count + 1):
            found = module.read(paths, holds, first, stop - first)
            assert found.dtype == dtype
            assert found.tolist() == rows[first:stop]
    module.write(sequences, Folder(tmp_path / "again"), "train")
    assert tree_hash(tmp_path / "again") == tree_hash(tmp_path / "out")


@every_dtype
@pytest.mark.parametrize("name", SMALL)
def test_documents_cut_into_files(small, tmp_path, name, dtype):
    lengths = [1, 300, 7, 255, 256, 65_535, 65_536, 3, 3, 3, 3, 3]
    sequences, documents = staged(tmp_path / "staged", dtype, lengths)
    manifest = {"dtype": dtype, "domains": ["a", "b", "c"]}
    WRITERS[name].load().write(sequences, Folder(tmp_path / "out"), "val")
    assert READERS[name](tmp_path / "out", "val", manifest) == documents
    assert LABELS[name](tmp_path / "out", "val", manifest) == sequences.labels.tolist()


@pytest.mark.parametrize("name", SMALL)
def test_one_row_and_no_holdout(tmp_path, name):
    mixture = {"rows": 1, "seq_len": 16, "formats": ["megatron", name]}
    _, built = make_mixture(tmp_path, CORPUS, mixture=mixture, holdout={"fraction": 0})
    assert built.read(0, 1, of=name).tolist() == flat(built).tolist()
    assert not (built.root / name / "val").exists()
