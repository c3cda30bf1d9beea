"""Files of every kind that readers take, and a reading of them that checks what it can."""

import bz2
import csv
import gzip
import io
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
import zstandard

from mixc.readers.records import ReadOptions, Record, Source
from mixc.registry import READERS

CODECS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}
PACKED = [codec for codec in CODECS if codec]


def nested(name, value):
    """A value at a dotted name."""
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def merged(into, more):
    for key, value in more.items():
        if isinstance(value, dict) and key in into:
            merged(into[key], value)
        else:
            into[key] = value
    return into


def rows_of(texts, field, extra):
    for number, text in enumerate(texts):
        row = nested(field, text)
        for name, values in extra.items():
            merged(row, nested(name, values[number]))
        yield row


def as_jsonl(texts, field="text", **extra):
    """Dots of names lead into objects. None makes a null."""
    rows = rows_of(texts, field, extra)
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def as_csv(texts, field="text", delimiter=",", **extra):
    """Dots of names mean nothing. None makes a row of too many fields."""
    sink = io.StringIO()
    out = csv.writer(sink, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    out.writerow(["id", field, *extra])
    for number, text in enumerate(texts):
        cells = [cell_of(values[number]) for values in extra.values()]
        out.writerow([number, "x" if text is None else text, *cells, *["x"] * (text is None)])
    return sink.getvalue().encode()


def cell_of(value):
    return value if isinstance(value, str) else json.dumps(value)


def table_of(texts, field, extra):
    """Dots of names lead into structs. None makes a null."""
    rows = list(rows_of(texts, field, extra))
    kinds = {}
    for name, values in {field: texts, **extra}.items():
        merged(kinds, nested(name, pa.array(values).type if name != field else pa.string()))

    def kind(of):
        return pa.struct([(k, kind(v)) for k, v in of.items()]) if isinstance(of, dict) else of

    schema = pa.schema([("id", pa.int64()), *((name, kind(of)) for name, of in kinds.items())])
    return pa.Table.from_pylist([{"id": i, **row} for i, row in enumerate(rows)], schema)


def as_parquet(texts, field="text", *, options=None, **extra):
    sink = io.BytesIO()
    options = options or {"write_page_checksum": True}
    pq.write_table(table_of(texts, field, extra), sink, row_group_size=3, **options)
    return sink.getvalue()


def as_arrow(texts, field="text", *, stream=False, options=None, **extra):
    sink = io.BytesIO()
    table = table_of(texts, field, extra)
    options = pa.ipc.IpcWriteOptions(**options or {})
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(sink, table.schema, options=options) as out:
        out.write_table(table, max_chunksize=3)
    return sink.getvalue()


def as_text(texts, field="text", **extra):
    (text,) = texts
    return text.encode()


WRITE = {
    "jsonl": as_jsonl,
    "csv": as_csv,
    "parquet": as_parquet,
    "arrow": as_arrow,
    "text": as_text,
}
# Every file name of the rack, and plain text under the endings that `format: text` allows.
KINDS = [(name, suffix) for name, entry in READERS.items() for suffix in entry.suffixes]
KINDS += [("text", ".txt" + codec) for codec in PACKED]
SEVERAL = [kind for kind in KINDS if kind[0] != "text"]


def codec_of(suffix):
    return next((codec for codec in PACKED if suffix.endswith(codec)), "")


# One file name for each reader and codec.
DISTINCT = list({(kind[0], codec_of(kind[1])): kind for kind in reversed(KINDS)}.values())
COMPRESSED = [kind for kind in DISTINCT if codec_of(kind[1])]


def plain(kind, texts, field="text", **extra):
    """A file's bytes before they are compressed: the texts in the reader's format."""
    if kind[0] == "csv" and ".tsv" in kind[1]:
        extra["delimiter"] = "\t"
    return WRITE[kind[0]](texts, field, **extra)


def encode(kind, texts, field="text", **extra):
    """A file's bytes: the texts in the reader's format, packed by its name's ending."""
    return pack(kind, plain(kind, texts, field, **extra))


def pack(kind, data):
    return CODECS[codec_of(kind[1])](data)


def source_of(folder, kind, data):
    path = folder / ("corpus" + kind[1])
    path.write_bytes(data)
    return Source(path, "corpus" + kind[1])


def open_reader(kind, source, *, text="text", max_bytes=1 << 30, **options):
    return READERS[kind[0]].load().read(source, ReadOptions(text, max_bytes, **options))


def read(folder, kind, data, **options):
    """What the reader gives for a file of these bytes. The source is complete."""
    source = source_of(folder, kind, data)
    records = list(open_reader(kind, source, **options))
    check_end(kind, source, data)
    return records


def check_end(kind, source, data):
    assert source.consumed == len(data)
    assert source.digest == ("" if kind[0] == "parquet" else xxhash.xxh3_128_hexdigest(data))


def texts_of(records):
    assert [type(one) for one in records] == [Record] * len(records)
    assert [one.row for one in records] == list(range(len(records)))
    positions = [one.position for one in records]
    assert positions == sorted(positions)
    return [one.text for one in records]
