"""What every reader must do, for every ending that it takes: one suite over the whole rack."""

import gzip
import lzma
import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from readers.builders import (
    CODECS,
    COMPRESSED,
    DISTINCT,
    KINDS,
    PACKED,
    SEVERAL,
    WRITE,
    as_arrow,
    as_jsonl,
    codec_of,
    encode,
    open_reader,
    read,
    source_of,
    texts_of,
)

from mixc.errors import MixcError
from mixc.readers.codecs import BLOCK
from mixc.readers.records import BadRecord, ReadOptions, Source
from mixc.registry import READERS, reader_for

TABLES = ("parquet", "arrow")


def test_every_reader_has_a_way_to_write_its_files_here():
    # The hub has no files: tests/readers/test_hub.py holds its reader to the same.
    assert WRITE.keys() | {"hub"} == READERS.keys()
    assert all(
        reader_for("a" + s) == name for name, entry in READERS.items() for s in entry.suffixes
    )
    assert reader_for("A.JSONL.GZ") == "jsonl"
    assert reader_for("a.xyz") is None


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
@settings(max_examples=25, deadline=None)
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


@pytest.mark.parametrize("codec", PACKED)
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
    with pytest.raises(MixcError) as caught:
        list(open_reader(kind, source_of(folder, kind, data)))
    assert caught.value.place.file == "corpus" + kind[1]
    assert caught.value.help
    return caught.value.code


@pytest.mark.parametrize("kind", COMPRESSED, ids=str)
@pytest.mark.parametrize("members", [1, 2])
def test_a_compressed_file_cut_anywhere_is_an_error(tmp_path, kind, members):
    one = encode(kind, ["some text that is long enough to matter " * 3])
    for length in range(len(one) * members):
        if length != len(one):  # where one member ends, nothing is cut
            assert damage(kind, tmp_path, (one * members)[:length]) == "MX025"


@pytest.mark.parametrize("kind", [("parquet", ".parquet"), ("arrow", ".arrow")], ids=str)
def test_a_table_cut_anywhere_is_an_error(tmp_path, kind):
    data = encode(kind, ["some text"] * 7)
    for length in range(len(data)):
        assert damage(kind, tmp_path, data[:length]) == "MX026"


def test_an_arrow_stream_cut_anywhere_is_an_error(tmp_path):
    data = as_arrow(["some text"] * 7, stream=True)
    for length in range(len(data)):
        assert damage(("arrow", ".arrow"), tmp_path, data[:length]) == "MX026"


@pytest.mark.parametrize("kind", [*COMPRESSED, ("parquet", ".parquet")], ids=str)
def test_a_flipped_bit_never_changes_a_text_in_silence(tmp_path, kind):
    """All codecs end with checksums, and parquet pages may carry one: they are checked."""
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
            # A table's header may be wrong before a checksum says so.
            assert error.code in (["MX025"] if kind[0] in ("jsonl", "text") else ["MX025", "MX026"])
            noticed += 1
    assert noticed > len(data) / 3  # the rest are bits without a meaning, as a name or a time


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
def test_a_flipped_bit_of_an_arrow_file_is_survived(tmp_path, stream, compression):
    """Arrow has no checksums; but no bit may crash the process, or raise anything else."""
    rng = random.Random(0)
    texts = [f"text {i}" for i in range(4)]
    options = {"compression": compression}
    data = as_arrow(texts, stream=stream, options=options, kind=["a", "b", "a", "b"])
    noticed = 0
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << rng.randrange(8)
        try:
            read(tmp_path, ("arrow", ".arrow"), bytes(flipped), fields=("kind", "id"))
        except MixcError as error:
            assert error.code == "MX026"
            noticed += 1
    assert noticed > len(data) / 6


@pytest.mark.parametrize("codec", PACKED)
def test_rubbish_after_the_last_member_is_an_error(tmp_path, codec):
    data = CODECS[codec](as_jsonl(["a"]))
    assert damage(("jsonl", ".jsonl" + codec), tmp_path, data + b"rubbish!") == "MX025"
    plain_tail = data + as_jsonl(["appended without compression"])
    assert damage(("jsonl", ".jsonl" + codec), tmp_path, plain_tail) == "MX025"


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_file_of_another_format_is_an_error(tmp_path, kind):
    data = b"\x93NUMPY is none of the formats"
    if codec_of(kind[1]):
        assert damage(kind, tmp_path, data) == "MX025"
    elif kind[0] in (*TABLES, "csv"):
        assert damage(kind, tmp_path, data) == "MX026"
    else:
        (bad,) = read(tmp_path, kind, data)
        assert isinstance(bad, BadRecord)
        assert bad.code in ("MX020", "MX022")
        assert bad.excerpt == data


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_file_that_is_not_there(tmp_path, kind):
    source = Source(tmp_path / ("gone" + kind[1]), "gone" + kind[1])
    with pytest.raises(MixcError, match="No such file") as caught:
        list(READERS[kind[0]].load().read(source, ReadOptions("text", 1000)))
    assert caught.value.code == "MX027"


@pytest.mark.parametrize("kind", DISTINCT, ids=str)
def test_what_is_no_file_of_the_disk_hangs_nothing(tmp_path, kind):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        source = Source(tmp_path / name, name + kind[1])
        with pytest.raises(MixcError, match="not a regular file") as caught:
            list(open_reader(kind, source))
        assert caught.value.code == "MX027"


@pytest.mark.parametrize("kind", SEVERAL, ids=str)
def test_the_text_may_stand_in_a_field_of_any_name(tmp_path, kind):
    for field in ("body", "der Text", "a.b", "a.b.c", "raw_ünï"):
        data = encode(kind, ["x", "y"], field)
        assert texts_of(read(tmp_path, kind, data, text=field)) == ["x", "y"]
