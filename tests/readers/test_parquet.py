import io
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from readers.builders import as_arrow

from mixc.errors import MixcError
from mixc.readers import arrow, parquet
from mixc.readers.records import BadRecord, ReadOptions, Record, Source


def read(folder, table, *, text="text", fields=(), kind="parquet", **options):
    path = folder / f"a.{kind}"
    source = Source(path, f"a.{kind}")
    if kind == "arrow":
        with pa.ipc.new_file(path, table.schema) as out:
            out.write_table(table)
        return list(arrow.read(source, ReadOptions(text, 1000, fields)))
    pq.write_table(table, path, **options)
    return list(parquet.read(source, ReadOptions(text, 1000, fields)))


def test_null_rows_are_bad_records(tmp_path):
    null = BadRecord("MX021", "no text in the column 'text': it is null", 1, 0)
    found = read(tmp_path, pa.table({"text": pa.array(["a", None, ""])}))
    assert found == [Record(0, "a", 0), null, Record(2, "", 0)]
    error = null.error(Source(tmp_path, "a.parquet"))
    assert str(error.place) == "a.parquet (record 1, byte 0)"


STRINGS = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int8(), pa.string()),
    pa.dictionary(pa.int32(), pa.large_string()),
]


@pytest.mark.parametrize("kind", STRINGS[:2])
def test_rows_are_numbered_through_batches_and_row_groups(tmp_path, kind):
    texts = [f"text {i}" for i in range(3000)]
    table = pa.table({"other": range(3000), "text": pa.array(texts, kind)})
    found = read(tmp_path, table, row_group_size=1700)
    assert [(one.row, one.text) for one in found] == list(enumerate(texts))
    size = pq.read_metadata(tmp_path / "a.parquet").row_group(0).total_byte_size
    assert [one.position for one in found] == [0] * 1700 + [size] * 1300


def test_no_rows(tmp_path):
    assert read(tmp_path, pa.table({"text": pa.array([], pa.string())})) == []


def test_bytes_in_a_column_of_strings(tmp_path):
    bad = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"\xffa")]
    )
    assert read(tmp_path, pa.table({"text": bad})) == [
        BadRecord("MX022", "the text is not valid UTF-8", 0, 0, b"\xff"),
        Record(1, "a", 0),
    ]


@pytest.mark.parametrize(
    ("column", "kind", "message"),
    [
        ("body", pa.string(), "cannot read the file: no column 'text' among: body"),
        ("text", pa.int64(), "cannot read the file: column 'text' holds int64, not strings"),
        ("text", pa.binary(), "cannot read the file: column 'text' holds binary, not strings"),
        (
            "text",
            pa.list_(pa.string()),
            "cannot read the file: column 'text' holds list<element: string>, not strings",
        ),
    ],
)
def test_the_column_must_be_there_and_hold_strings(tmp_path, column, kind, message):
    with pytest.raises(MixcError) as caught:
        read(tmp_path, pa.table({column: pa.array([None], kind)}))
    assert (caught.value.code, caught.value.message) == ("MX026", message)
    assert str(caught.value.place) == "a.parquet (0 bytes read)"


@pytest.mark.parametrize("file", ["parquet", "arrow"])
@pytest.mark.parametrize("kind", STRINGS, ids=str)
def test_every_kind_of_strings(tmp_path, kind, file):
    values = ["a", None, "é" * 20, "a", ""] * 500
    table = pa.table({"text": pa.array(values).cast(kind), "n": range(2500)})
    found = read(tmp_path, table, kind=file, fields=("text", "n"))
    assert [getattr(one, "text", None) for one in found] == values
    assert [one.row for one in found] == list(range(2500))
    good = [one for one in found if isinstance(one, Record)]
    assert [one.fields for one in good] == [(one.text, str(one.row)) for one in good]


@pytest.mark.parametrize("file", ["parquet", "arrow"])
def test_a_column_of_the_exact_name_comes_first(tmp_path, file):
    columns = {"a.b": ["flat"], "a": [{"b": "deep", "c": {"d": "deeper"}}], "text": ["x"]}
    (one,) = read(tmp_path, pa.table(columns), kind=file, text="a.b", fields=("a.c.d", "a.x"))
    assert (one.text, one.fields) == ("flat", ("deeper", None))
    del columns["a.b"]
    (one,) = read(tmp_path, pa.table(columns), kind=file, text="a.b")
    assert one.text == "deep"
    with pytest.raises(MixcError, match=r"no column 'a\.x' among: a, text"):
        read(tmp_path, pa.table(columns), kind=file, text="a.x")


@pytest.mark.parametrize("file", ["parquet", "arrow"])
def test_a_struct_that_is_null_has_no_fields(tmp_path, file):
    kind = pa.struct([("b", pa.string()), ("c", pa.int64())])
    table = pa.table({"a": pa.array([{"b": "x", "c": 1}, None, {"b": None, "c": 2}], kind)})
    good, *bad = read(tmp_path, table, kind=file, text="a.b", fields=("a.c",))
    assert good == Record(0, "x", 0, ("1",))
    assert [(one.code, one.row) for one in bad] == [("MX021", 1), ("MX021", 2)]


@pytest.mark.parametrize("file", ["parquet", "arrow"])
def test_values_of_all_kinds_as_text(tmp_path, file):
    days = ["1970-01-01", "1970-01-02", None, "1970-01-03"]
    some = {
        "float": (pa.array([1.0, None, 0.1, 1e20]), ["1.0", None, "0.1", "1e+20"]),
        "single": (pa.array([0.1, 2, None, 3], pa.float32()), ["0.1", "2.0", None, "3.0"]),
        "bool": (pa.array([True, False, None, True]), ["true", "false", None, "true"]),
        "int": (pa.array([2**63, 0, None, 1], pa.uint64()), [str(2**63), "0", None, "1"]),
        "bytes": (pa.array([b"a", "é".encode(), None, b""]), ["a", "é", None, ""]),
        "date": (pa.array([0, 1, None, 2], pa.date32()), days),
        "null": (pa.nulls(4), [None] * 4),
    }
    columns = {"text": ["a", "b", "c", "d"], **{name: one for name, (one, _) in some.items()}}
    found = read(tmp_path, pa.table(columns), kind=file, fields=tuple(some))
    want = zip(*(texts for _, texts in some.values()), strict=True)
    assert [one.fields for one in found] == list(want)


@pytest.mark.parametrize("file", ["arrow"])  # parquet's own writer takes no such table
def test_a_name_that_stands_twice(tmp_path, file):
    table = pa.table([["a"], ["b"], ["c"]], names=["text", "x", "x"])
    assert read(tmp_path, table, kind=file) == [Record(0, "a", 0)]
    with pytest.raises(MixcError, match="2 columns are named 'x'"):
        read(tmp_path, table, kind=file, fields=("x",))


def test_long_rows_come_in_small_batches(tmp_path):
    texts = [f"{i} " + "x" * 100_000 for i in range(700)]
    found = read(tmp_path, pa.table({"text": texts}), compression="zstd", use_dictionary=False)
    assert [one.text for one in found] == texts


def test_feather_1_is_named(tmp_path):
    path = tmp_path / "a.feather"
    path.write_bytes(b"FEA1" + bytes(60) + b"FEA1")
    with pytest.raises(MixcError, match="Feather version 1") as caught:
        list(arrow.read(Source(path, path.name), ReadOptions("text", 1000)))
    assert caught.value.code == "MX026"


def test_feather_2_is_an_arrow_file(tmp_path):
    from pyarrow import feather

    feather.write_feather(pa.table({"text": ["a", "b"]}), tmp_path / "a.feather")
    source = Source(tmp_path / "a.feather", "a.feather")
    found = list(arrow.read(source, ReadOptions("text", 1000)))
    assert found == [Record(0, "a", 0), Record(1, "b", 0)]


def test_what_follows_a_stream_is_an_error(tmp_path):
    data = as_arrow(["a"], stream=True)
    path = tmp_path / "a.arrow"
    for more in (b"\0", data, b"rubbish"):
        path.write_bytes(data + more)
        with pytest.raises(MixcError, match="more bytes follow"):
            list(arrow.read(Source(path, path.name), ReadOptions("text", 1000)))


def test_no_row_group_is_held_whole(tmp_path):
    texts = [os.urandom(50_000).hex() for _ in range(300)]
    path = tmp_path / "a.parquet"
    pages = {"use_dictionary": False, "write_batch_size": 10}  # of 1 MiB
    pq.write_table(pa.table({"text": texts}), path, compression="none", **pages)
    sizes = []

    class Watched(io.FileIO):
        def readinto(self, into):
            sizes.append(len(into))
            return super().readinto(into)

    source = Source(path, path.name, opener=lambda: Watched(path))
    found = list(parquet.read(source, ReadOptions("text", 1 << 20)))
    assert [one.text for one in found] == texts
    assert max(sizes) < 8 << 20
