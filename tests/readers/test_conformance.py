"""What every reader must do, for every ending that it takes: one suite over the whole rack."""

import gzip
import json
import lzma
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from mixc.errors import MixcError
from mixc.readers.codecs import BLOCK
from mixc.readers.records import BadRecord, ReadOptions, Record, Source
from mixc.registry import READERS, reader_for

CODECS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    ".xz": lzma.compress,
}


def as_jsonl(texts, field="text"):
    return b"".join(json.dumps({field: t}, ensure_ascii=False).encode() + b"\n" for t in texts)


def as_parquet(texts, field="text"):
    sink = pa.BufferOutputStream()
    table = pa.table({"id": range(len(texts)), field: pa.array(texts, pa.string())})
    pq.write_table(table, sink, row_group_size=3, write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def as_text(texts, field="text"):
    (text,) = texts
    return text.encode()


WRITE = {"jsonl": as_jsonl, "parquet": as_parquet, "text": as_text}
# Every file name of the rack, and plain text under the endings that `format: text` allows.
KINDS = [(name, suffix) for name, entry in READERS.items() for suffix in entry.suffixes]
KINDS += [("text", ".txt" + codec) for codec in CODECS if codec]
COMPRESSED = [kind for kind in KINDS if kind[1].endswith((".gz", ".zst", ".xz"))]


def codec_of(suffix):
    return next((codec for codec in (".gz", ".zst", ".xz") if suffix.endswith(codec)), "")


def encode(kind, texts):
    """A file's bytes: the texts in the reader's format, packed by its name's ending."""
    return CODECS[codec_of(kind[1])](WRITE[kind[0]](texts))


def read(folder, kind, data, *, text="text", max_bytes=1 << 30):
    """What the reader gives for a file of these bytes. The source is closed and complete."""
    path = folder / ("corpus" + kind[1])
    path.write_bytes(data)
    source = Source(path, "corpus" + kind[1])
    records = list(READERS[kind[0]].load().read(source, ReadOptions(text, max_bytes)))
    assert source.consumed == len(data)
    return records


def texts_of(records):
    assert [type(one) for one in records] == [Record] * len(records)
    assert [one.row for one in records] == list(range(len(records)))
    return [one.text for one in records]


def test_every_reader_has_a_way_to_write_its_files_here():
    assert WRITE.keys() == READERS.keys()
    assert all(
        reader_for("a" + s) == name for name, entry in READERS.items() for s in entry.suffixes
    )
    assert reader_for("A.JSONL.GZ") == "jsonl"
    assert reader_for("a.csv") is None


TRICKY = [
    "plain",
    "ünïcödé 漢字 🙂",
    "line\nbreak\r\nand carriage\rreturn",
    "separators \u2028 and \u2029 and \x85 and \x0b\x0c\x1c",
    "zero \0 byte",
    "\ufeffa mark inside \ufeff of byte order",
    " space around\t",
    '"quotes" \\ back\\u0041slash',
    "\U0010ffff\ue000\ufffd",
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_texts_come_out_as_they_went_in(tmp_path, kind):
    several = kind[0] != "text"
    if several:
        assert texts_of(read(tmp_path, kind, encode(kind, TRICKY))) == TRICKY
    else:
        for text in TRICKY:
            want = [text.removeprefix("\ufeff")]  # at a file's start it is no text
            assert texts_of(read(tmp_path, kind, encode(kind, [text]))) == want


@pytest.mark.parametrize("kind", KINDS, ids=str)
@given(data=st.data())
@settings(max_examples=25)
def test_any_texts_round_trip(tmp_path_factory, kind, data):
    several = kind[0] != "text"
    size = {"min_size": 0, "max_size": 8} if several else {"min_size": 1, "max_size": 1}
    texts = data.draw(st.lists(st.text(st.characters(codec="utf-8"), max_size=40), **size))
    if not several:
        texts = [texts[0].lstrip("\ufeff")]
    folder = tmp_path_factory.mktemp("any", numbered=True)
    assert texts_of(read(folder, kind, encode(kind, texts))) == texts


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_document_of_several_blocks(tmp_path, kind):
    """Multi-byte characters straddle every border of blocks."""
    long = "aé漢🙂" * (3 * BLOCK // 10)
    texts = ["first", long, "last"] if kind[0] != "text" else [long]
    assert texts_of(read(tmp_path, kind, encode(kind, texts))) == texts


@pytest.mark.parametrize("codec", [".gz", ".zst", ".xz"])
def test_members_and_frames_end_to_end_are_one_file(tmp_path, codec):
    whole = as_jsonl(["one", "two", "three", "four"])
    pack = CODECS[codec]
    for cut in (0, 1, len(whole) // 3, len(whole) // 2, len(whole)):
        data = pack(whole[:cut]) + pack(b"") + pack(whole[cut:])
        found = texts_of(read(tmp_path, ("jsonl", ".jsonl" + codec), data))
        assert found == ["one", "two", "three", "four"]


def test_what_may_stand_between_members(tmp_path):
    a, b = as_jsonl(["a"]), as_jsonl(["b"])
    padded = lzma.compress(a) + b"\0" * 8 + lzma.compress(b) + b"\0" * 4
    assert texts_of(read(tmp_path, ("jsonl", ".jsonl.xz"), padded)) == ["a", "b"]
    padded = gzip.compress(a) + b"\0" * 512 + gzip.compress(b) + b"\0" * 512  # as tapes do
    assert texts_of(read(tmp_path, ("jsonl", ".jsonl.gz"), padded)) == ["a", "b"]
    skippable = b"\x50\x2a\x4d\x18\x04\0\0\0note"  # as pzstd writes
    data = skippable + CODECS[".zst"](a) + skippable + CODECS[".zst"](b)
    assert texts_of(read(tmp_path, ("jsonl", ".jsonl.zst"), data)) == ["a", "b"]


def damage(kind, folder, data):
    """The error of a file that must not be read to its end."""
    path = folder / ("corpus" + kind[1])
    path.write_bytes(data)
    source = Source(path, "corpus" + kind[1])
    with pytest.raises(MixcError) as caught:
        list(READERS[kind[0]].load().read(source, ReadOptions("text", 1 << 30)))
    assert caught.value.place.file == "corpus" + kind[1]
    assert caught.value.help
    return caught.value.code


@pytest.mark.parametrize("kind", COMPRESSED, ids=str)
@pytest.mark.parametrize("members", [1, 2])
def test_a_compressed_file_cut_anywhere_is_an_error(tmp_path, kind, members):
    one = encode(kind, ["some text that is long enough to matter " * 3])
    for length in range(1, len(one) * members):
        if length != len(one):  # where one member ends, nothing is cut
            assert damage(kind, tmp_path, (one * members)[:length]) == "MX025"


def test_a_parquet_file_cut_anywhere_is_an_error(tmp_path):
    data = encode(("parquet", ".parquet"), ["some text"] * 7)
    for length in range(len(data)):
        assert damage(("parquet", ".parquet"), tmp_path, data[:length]) == "MX026"


@pytest.mark.parametrize("kind", [*COMPRESSED, ("parquet", ".parquet")], ids=str)
def test_a_flipped_bit_never_changes_a_text_in_silence(tmp_path, kind):
    """gz, zst and xz end with checksums, and parquet pages may carry one: they are checked."""
    rng = random.Random(0)
    several = kind[0] != "text"
    texts = [f"text {i} " * 4 for i in range(7)] if several else ["a single text " * 9]
    data = encode(kind, texts)
    noticed = 0
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << rng.randrange(8)
        try:
            assert texts_of(read(tmp_path, kind, bytes(flipped))) == texts
        except MixcError as error:
            assert error.code == ("MX026" if kind[0] == "parquet" else "MX025")
            noticed += 1
    assert noticed > len(data) / 3  # the rest are bits without a meaning, as a name or a time


@pytest.mark.parametrize("codec", [".gz", ".zst", ".xz"])
def test_rubbish_after_the_last_member_is_an_error(tmp_path, codec):
    data = CODECS[codec](as_jsonl(["a"]))
    assert damage(("jsonl", ".jsonl" + codec), tmp_path, data + b"rubbish!") == "MX025"
    plain_tail = data + as_jsonl(["appended without compression"])
    assert damage(("jsonl", ".jsonl" + codec), tmp_path, plain_tail) == "MX025"


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_file_of_another_format_is_an_error(tmp_path, kind):
    if codec_of(kind[1]) or kind[0] == "parquet":
        code = damage(kind, tmp_path, b"\x93NUMPY neither compressed nor parquet")
        assert code == ("MX026" if kind[0] == "parquet" else "MX025")
    else:
        (bad,) = read(tmp_path, kind, b"\x93NUMPY not UTF-8, not JSON")
        assert isinstance(bad, BadRecord)
        assert bad.code in ("MX020", "MX022")


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_file_that_is_not_there(tmp_path, kind):
    source = Source(tmp_path / ("gone" + kind[1]), "gone" + kind[1])
    with pytest.raises(MixcError, match="No such file") as caught:
        list(READERS[kind[0]].load().read(source, ReadOptions("text", 1000)))
    assert caught.value.code == ("MX026" if kind[0] == "parquet" else "MX027")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind[0] != "text"], ids=str)
def test_the_text_may_stand_in_a_field_of_any_name(tmp_path, kind):
    for field in ("body", "der Text", "a.b", "raw_ünï"):
        data = CODECS[codec_of(kind[1])](WRITE[kind[0]](["x", "y"], field))
        assert texts_of(read(tmp_path, kind, data, text=field)) == ["x", "y"]
