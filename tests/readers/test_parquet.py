import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mixc.errors import MixcError
from mixc.readers import parquet
from mixc.readers.records import BadRecord, ReadOptions, Record, Source


def read(folder, table, *, text="text", **options):
    path = folder / "a.parquet"
    pq.write_table(table, path, **options)
    source = Source(path, "a.parquet")
    return list(parquet.read(source, ReadOptions(text, 1000)))


def test_null_rows_are_bad_records(tmp_path):
    null = BadRecord("MX021", "no text in the column 'text': it is null", 1)
    found = read(tmp_path, pa.table({"text": pa.array(["a", None, ""])}))
    assert found == [Record(0, "a"), null, Record(2, "")]
    error = null.error(Source(tmp_path, "a.parquet"))
    assert str(error.place) == "a.parquet (record 1)"


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_rows_are_numbered_through_batches_and_row_groups(tmp_path, kind):
    texts = [f"text {i}" for i in range(3000)]
    table = pa.table({"other": range(3000), "text": pa.array(texts, kind)})
    found = read(tmp_path, table, row_group_size=1700)
    assert found == [Record(i, text) for i, text in enumerate(texts)]


def test_no_rows(tmp_path):
    assert read(tmp_path, pa.table({"text": pa.array([], pa.string())})) == []


def test_bytes_in_a_column_of_strings(tmp_path):
    bad = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"\xffa")]
    )
    assert read(tmp_path, pa.table({"text": bad})) == [
        BadRecord("MX022", "the text is not valid UTF-8", 0),
        Record(1, "a"),
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
    assert str(caught.value.place) == "a.parquet (after byte 0)"
