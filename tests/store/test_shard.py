import json
import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixc.errors import MixcError
from mixc.rows.stream import DomainStream
from mixc.store import commit
from mixc.store.hashes import hash_file
from mixc.store.shard import Documents, ShardRecord, open_shard, token_dtype, write_shard


def make(lengths, dtype=np.uint16):
    n = len(lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Documents(
        tokens=(np.arange(offsets[-1]) * 7 % np.iinfo(dtype).max).astype(dtype),
        offsets=offsets,
        doc_id=np.arange(n, dtype=np.uint64) * np.uint64(2**63 + 1),
        source=np.arange(n, dtype=np.uint32) % 3,
        row=np.arange(n, dtype=np.uint64) + 2**40,
        n_bytes=np.full(n, 2**32 - 1, np.uint32),
    )


FIELDS = ("tokens", "offsets", "doc_id", "source", "row", "n_bytes")


@settings(max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    dtype=st.sampled_from([np.uint16, np.uint32]),
)
def test_documents_come_back(tmp_path_factory, lengths, dtype):
    folder = tmp_path_factory.mktemp("shard")
    documents = make(lengths, dtype)
    record = write_shard(folder, documents)
    path = folder / record.file.path
    found = open_shard(path, record)
    for name in FIELDS:
        assert getattr(found, name).dtype == getattr(documents, name).dtype
        assert np.array_equal(getattr(found, name), getattr(documents, name))
    assert (record.documents, record.tokens) == (len(lengths), sum(lengths))
    assert record.text_bytes == len(lengths) * (2**32 - 1)  # sums do not wrap
    assert record.file.xxh3 == hash_file(path)
    assert record.file.path == record.file.xxh3[:16] + ".arrow"
    # Kernels map the raw tokens, without Arrow.
    raw = np.fromfile(path, dtype, count=record.tokens, offset=record.values_offset)
    assert np.array_equal(raw, documents.tokens)
    assert record.values_offset % 8 == 0


def test_equal_documents_make_equal_bytes(tmp_path):
    one, two = (write_shard(tmp_path / name, make([3, 1, 4])) for name in ("a", "b"))
    assert one == two
    raw = [(tmp_path / name / one.file.path).read_bytes() for name in ("a", "b")]
    assert raw[0] == raw[1]
    assert write_shard(tmp_path / "c", make([3, 1, 4], np.uint32)).file.xxh3 != one.file.xxh3


def test_any_reader_of_arrow_can_read_it(tmp_path):
    record = write_shard(tmp_path, make([2, 1]))
    with pa.ipc.open_file(tmp_path / record.file.path) as file:
        assert file.num_record_batches == 1
        table = file.read_all()
    assert str(table.schema).splitlines() == [
        "tokens: large_list<item: uint16> not null",
        "  child 0, item: uint16",
        "doc_id: uint64 not null",
        "source: uint32 not null",
        "row: uint64 not null",
        "n_bytes: uint32 not null",
    ]
    assert table["tokens"].to_pylist() == [[0, 7], [14]]


@pytest.mark.parametrize(
    ("vocab_size", "name"),
    [(1, "uint16"), (65535, "uint16"), (65536, "uint16"), (65537, "uint32"), (2**31, "uint32")],
)
def test_the_type_of_tokens(vocab_size, name):
    assert token_dtype(vocab_size) == np.dtype(name)


def test_select_copies_documents():
    documents = make([3, 1, 4, 1, 5])
    some = documents.select(np.array([4, 1]))
    assert some.lengths.tolist() == [5, 1]
    assert some.tokens.tolist() == [*documents.tokens[9:14], documents.tokens[3]]
    assert some.doc_id.tolist() == documents.doc_id[[4, 1]].tolist()
    none = documents.select(np.zeros(0, np.int64))
    assert (len(none), none.offsets.tolist(), none.tokens.dtype) == (0, [0], np.uint16)


@pytest.fixture
def written(tmp_path):
    record = write_shard(tmp_path, make([3, 4, 3]))
    return tmp_path / record.file.path, record


def damage(path, record):
    with pytest.raises(MixcError) as caught:
        open_shard(path, record)
    assert caught.value.code == "MX040"
    assert caught.value.place.file == str(path)
    return caught.value.message


def test_a_shard_of_any_other_length_is_damaged(written):
    path, record = written
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert damage(path, record) == "the shard's size is not what its manifest says"
        # Neither would it be read if the manifest had been mended to fit.
        size = replace(record, file=replace(record.file, bytes=length))
        assert damage(path, size).startswith("the shard is damaged: ")
    path.write_bytes(whole + b"\0")
    assert damage(path, record) == "the shard's size is not what its manifest says"
    path.unlink()
    assert damage(path, record) == "a shard of the manifest is missing"


def test_no_flipped_bit_can_make_more_of_a_shard_than_wrong_numbers(written):
    """Opening does not hash. It maps a damaged shard within its bounds, or says so.

    A header that points outside the file used to end the process by SIGSEGV.
    """
    path, record = written
    whole = path.read_bytes()
    other = path.with_name("other.arrow")
    opened = refused = 0
    for position in range(len(whole)):
        for bit in range(position % 2, 8, 2):
            changed = bytearray(whole)
            changed[position] ^= 1 << bit
            other.unlink(missing_ok=True)  # whoever has mapped the old one keeps it
            other.write_bytes(changed)
            try:
                found = open_shard(other, record)
            except MixcError as error:
                assert error.code == "MX040"
                refused += 1
                continue
            opened += 1
            assert len(found.tokens) >= 10
            assert [len(getattr(found, name)) for name in FIELDS[1:]] == [4, 3, 3, 3, 3]
            for name in FIELDS:
                getattr(found, name).sum()  # every byte can be read
    assert min(opened, refused) > 1000


@pytest.mark.parametrize("change", [{"documents": 2}, {"tokens": 9}, {"tokens": 11}])
def test_counts_are_compared_with_the_record(written, change):
    path, record = written
    assert damage(path, replace(record, **change)) == "the shard's counts are not its manifest's"


def test_offsets_that_only_seem_to_rise_are_refused(tmp_path):
    """Their differences wrap around to lengths of at least one that add up."""
    documents = make([2, 2, 2, 2])
    offsets = np.array([0, 2**63 - 1, -(2**63), -1, 8])
    assert np.diff(offsets).min() >= 1
    record = write_shard(tmp_path, replace(documents, offsets=offsets))
    assert damage(tmp_path / record.file.path, record) == "a document's offsets do not rise"


@pytest.mark.parametrize(
    "columns",
    [
        {"other": pa.array([1])},
        {"tokens": pa.array([1]), "doc_id": pa.array([1])},
        {},
    ],
)
def test_an_arrow_file_of_other_columns_is_no_shard(written, columns):
    path, record = written
    table = pa.table(columns)
    with commit.create(path) as file, commit.arrow_file(file, table.schema) as writer:
        writer.write_table(table)
    same_size = replace(record, file=replace(record.file, bytes=path.stat().st_size))
    assert damage(path, same_size).startswith("the shard is damaged: ")


# Counts that 32 bits do not hold

LENGTHS = [3, (1 << 31) + 11, 5, 1 << 20]
TOTAL = sum(LENGTHS)
SHARDS = 3


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A shard of more than 2^31 tokens, all 0 but for the last of each document: a sparse file."""
    folder = tmp_path_factory.mktemp("large")
    small = make([1] * len(LENGTHS))
    documents = replace(
        small, tokens=small.tokens[:0], offsets=np.cumsum([0, *LENGTHS], dtype=np.int64)
    )

    class Hole(commit.Spool):
        def pieces(self):
            raise AssertionError("the tokens are left out")

    def leave_out(self, data):
        if getattr(data, "address", None) != self._address:
            return self._file.write(data)
        os.lseek(self._file._descriptor, self._spool.size, os.SEEK_CUR)
        self._file.size += self._spool.size
        return self._spool.size

    spool = Hole(folder)
    spool.size = 2 * TOTAL
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commit._Spliced, "write", leave_out)
        record = write_shard(folder, documents, spool)
    spool.close()
    path = folder / record.file.path
    if path.stat().st_blocks * 512 > 1 << 24:
        path.unlink()
        pytest.skip("the filesystem has no sparse files")
    with path.open("r+b") as file:
        for number, end in enumerate(documents.offsets[1:].tolist()):
            file.seek(record.values_offset + 2 * (end - 1))
            file.write(np.uint16(number + 1).tobytes())
    yield path, record
    path.unlink()


def test_a_shard_of_more_tokens_than_2_to_the_31(large):
    path, record = large
    assert record.file.bytes == path.stat().st_size > 1 << 32
    assert record.tokens == TOTAL
    assert ShardRecord.from_dict(json.loads(json.dumps(record.as_dict()))) == record
    found = open_shard(path, record)
    assert found.lengths.tolist() == LENGTHS
    assert len(found.tokens) == TOTAL
    assert found.tokens[found.offsets[1:] - 1].tolist() == [1, 2, 3, 4]
    assert found.select(np.array([2, 0])).tokens.tolist() == [0, 0, 0, 0, 3, 0, 0, 1]


def test_a_domain_of_more_tokens_than_2_to_the_32(large):
    """The rows behind 2^32 tokens of an epoch are right."""
    shards = [open_shard(*large)] * SHARDS
    store = SimpleNamespace(
        root=large[0].parent,
        dtype=np.dtype(np.uint16),
        eot_id=0,
        documents=lambda domain: shards,
        all_held_ids=np.zeros(0, np.uint64),
    )
    stream = DomainStream(store, "web", seq_len=1 << 10, seed=0)
    assert stream.epoch_tokens == SHARDS * TOTAL > 1 << 32
    last = SHARDS * TOTAL // 1024
    sizes = np.array(LENGTHS * SHARDS)
    rows = np.arange(last - 1100, last)
    spans = stream.spans(rows)
    assert spans.length.sum() == len(rows) * 1024
    tokens = stream.tokens(rows).reshape(-1)
    ends = np.flatnonzero(tokens)
    # A document's last token is its number and one: it stands where its last span ends.
    closing = spans.start + spans.length == sizes[spans.document]
    assert closing.any()
    assert (np.cumsum(spans.length)[closing] - 1).tolist() == ends.tolist()
    assert (spans.document[closing] % len(LENGTHS) + 1).tolist() == tokens[ends].tolist()
