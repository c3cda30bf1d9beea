"""Laws of every reader: of positions, of further fields, of invalid text, of where files are."""

import io
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from readers.builders import (
    DISTINCT,
    PACKED,
    SEVERAL,
    as_jsonl,
    check_end,
    codec_of,
    encode,
    open_reader,
    pack,
    plain,
    read,
    source_of,
    texts_of,
)

from mixc.errors import MixcError
from mixc.readers import codecs
from mixc.readers.records import BadRecord, Record, Source

SEVERAL = [kind for kind in DISTINCT if kind in SEVERAL]
UNPACKED = [kind for kind in DISTINCT if not codec_of(kind[1])]


@pytest.mark.parametrize("kind", UNPACKED, ids=str)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_what_is_skipped_changes_nothing_behind_it(tmp_path_factory, kind, data):
    """None stands for a bad record. `skip_to` is raised at the start, and on the way."""
    folder = tmp_path_factory.mktemp("skip", numbered=True)
    if kind[0] == "text":
        texts = data.draw(st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=1))
    else:
        some = st.none() | st.text(st.characters(codec="utf-8"), max_size=30)
        texts = data.draw(st.lists(some, max_size=12))
    raw = encode(kind, texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codecs, "BLOCK", data.draw(st.integers(1, 60)))
        whole = read(folder, kind, raw)
        top = max([one.position for one in whole], default=0) + 2
        source = source_of(folder, kind, raw)
        source.skip_to = data.draw(st.integers(0, top))
        raises = data.draw(st.dictionaries(st.integers(0, 12), st.integers(0, top)))
        found = []
        for number, one in enumerate(open_reader(kind, source)):
            found.append(one)
            source.skip_to = max(source.skip_to, raises.get(number, 0))
    check_end(kind, source, raw)
    assert [one for one in found if one.position >= source.skip_to] == [
        one for one in whole if one.position >= source.skip_to
    ]


@pytest.mark.parametrize("kind", SEVERAL, ids=str)
def test_what_lies_before_is_passed_over(tmp_path, kind, monkeypatch):
    """A reader that yields all of it would make skipping useless."""
    monkeypatch.setattr(codecs, "BLOCK", 64)
    raw = encode(kind, [f"text {i}" for i in range(300)])
    last = read(tmp_path, kind, raw)[-1]
    source = source_of(tmp_path, kind, raw)
    source.skip_to = last.position
    found = list(open_reader(kind, source))
    assert found[-1] == last
    assert len(found) < 10
    check_end(kind, source, raw)


FIELDS = {
    "lang": ["en", "de", "", None],
    "meta.url": ["http://a", "ü\n", None, "x,\"y'"],
    "meta.deep.score": [1, -2, 10**15, None],
    "good": [True, False, None, True],
}
AS_TEXT = {
    **FIELDS,
    "meta.deep.score": ["1", "-2", "1000000000000000", None],
    "good": ["true", "false", None, "true"],
}


@pytest.mark.parametrize("kind", SEVERAL, ids=str)
@pytest.mark.parametrize("text", ["text", "meta.body"])
def test_further_fields_come_as_text(tmp_path, kind, text):
    texts = ["a", "b", "c", "d"]
    names = ("good", "nothing", "meta.url", "meta.deep.score", text, "lang", "lang.of", "meta.no.x")
    columns = {**AS_TEXT, text: texts}
    want = list(zip(*(columns.get(name, [None] * 4) for name in names), strict=True))
    if kind[0] == "csv":  # it has no null
        nulls = [name in columns for name in names]
        want = [
            tuple(
                "null" if value is None and null else value
                for null, value in zip(nulls, row, strict=True)
            )
            for row in want
        ]
    data = encode(kind, texts, text, **FIELDS)
    found = read(tmp_path, kind, data, text=text, fields=names)
    assert texts_of(found) == texts
    assert [one.fields for one in found] == want
    reverse = read(tmp_path, kind, data, text=text, fields=names[::-1])
    assert [one.fields[::-1] for one in reverse] == want


@pytest.mark.parametrize("kind", [kind for kind in SEVERAL if kind[0] != "csv"], ids=str)
@pytest.mark.parametrize("value", [["x"], {"x": "y"}])
def test_a_field_that_is_no_single_value_is_a_bad_record(tmp_path, kind, value):
    raw = encode(kind, ["a", "b"], field="text", tags=[None, value])
    good, bad = read(tmp_path, kind, raw, fields=("tags",))
    assert good.fields == (None,)
    assert (bad.code, bad.row) == ("MX021", 1)
    assert bad.reason == "the field 'tags' holds a list or an object, no text"
    assert texts_of(read(tmp_path, kind, raw)) == ["a", "b"]


INVALID = b"\xff\xc0\x80\xed\xa0\x80!"
TABLE_OPTIONS = {
    "parquet": {"options": {"compression": "none", "write_page_checksum": False}},
}


@pytest.mark.parametrize("kind", DISTINCT, ids=str)
@pytest.mark.parametrize("field", ["text", "other"])
def test_invalid_text_is_a_bad_record_or_is_replaced(tmp_path, kind, field):
    """In the text, and in a further field. What nobody wants may hold what it likes."""
    texts = ["é before", "a INVALID z", "after"] if kind[0] != "text" else ["a INVALID z"]
    bad_row = len(texts) // 2
    names = (field,) if field != "text" else ()
    columns = {"text": ["x"] * len(texts), field: texts}
    extra = {field: columns[field]} if field != "text" else {}
    if kind[0] == "text" and extra:
        pytest.skip("a file of plain text has no further fields")
    raw = plain(kind, columns["text"], **extra, **TABLE_OPTIONS.get(kind[0], {}))
    raw = pack(kind, raw.replace(b"INVALID", INVALID))

    found = read(tmp_path, kind, raw, fields=names)
    bad = found.pop(bad_row)
    assert (bad.code, bad.row) == ("MX022", bad_row)
    assert 0 < len(bad.excerpt) <= 200
    assert [type(one) for one in found] == [Record] * (len(texts) - 1)
    assert not any(one.replaced for one in found)

    mended = read(tmp_path, kind, raw, fields=names, replace_invalid=True)
    assert [one.replaced for one in mended] == [row == bad_row for row in range(len(texts))]
    want = [text.encode().replace(b"INVALID", INVALID).decode(errors="replace") for text in texts]
    assert [one.fields[0] if names else one.text for one in mended] == want
    if names:
        assert texts_of(read(tmp_path, kind, raw)) == ["x"] * 3


class Dribble(io.RawIOBase):
    """A raw file that gives fewer bytes than it is asked for."""

    def __init__(self, data):
        self._file = io.BytesIO(data)

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, *where):
        return self._file.seek(*where)

    def tell(self):
        return self._file.tell()

    def readinto(self, into):
        return self._file.readinto(memoryview(into)[:7])


@pytest.mark.parametrize("kind", DISTINCT, ids=str)
@pytest.mark.parametrize("make", [io.BytesIO, Dribble])
def test_a_file_may_come_from_elsewhere(tmp_path, kind, make):
    texts = ["one", "two", "three", "four"] if kind[0] != "text" else ["one"]
    data = encode(kind, texts)
    source = Source(tmp_path / "nowhere", "corpus" + kind[1], opener=lambda: make(data))
    assert texts_of(list(open_reader(kind, source))) == texts
    check_end(kind, source, data)


@pytest.mark.parametrize("kind", DISTINCT, ids=str)
def test_a_disk_that_fails_is_named(tmp_path, kind):
    class Failing(Dribble):
        def readinto(self, into):
            if self.tell() > 20:
                raise OSError(5, "Input/output error")
            return super().readinto(into)

    data = encode(kind, ["one " * 50])
    source = Source(tmp_path / "nowhere", "corpus" + kind[1], opener=lambda: Failing(data))
    with pytest.raises(MixcError, match="Input/output error") as caught:
        list(open_reader(kind, source))
    assert caught.value.code == "MX027"


BOMB = """
import resource, sys
from pathlib import Path
from mixc.errors import MixcError
from mixc.readers.records import ReadOptions, Source
from mixc.registry import READERS
reader = READERS[sys.argv[2]].load()
import pyarrow
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
source = Source(Path(sys.argv[1]), sys.argv[1])
try:
    for one in reader.read(source, ReadOptions("text", 1 << 20)):
        print(one.code)
except MixcError as error:
    print(error.code, error.message)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("codec", [".zst", ".gz"])
def test_a_bomb_is_left_in_bounded_memory(tmp_path, codec):
    """A GiB of zeros, in 64 frames or members: 1 in 30,000 as zst, 1 in 1,028 as gz."""
    data = pack(("jsonl", codec), bytes(1 << 24)) * 64
    for kind in (("jsonl", ".jsonl"), ("csv", ".csv")):
        path = tmp_path / ("bomb" + kind[1] + codec)
        path.write_bytes(data)
        command = [sys.executable, "-c", BOMB, path, kind[0]]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        *_, said, kib = done.stdout.splitlines()
        assert said == "MX033 cannot read the file: it expands to more than 1000 times its size"
        assert int(kib) < 64 << 10


@pytest.mark.parametrize("codec", ["", *PACKED])
def test_the_cap_on_a_file_counts_what_comes_out(tmp_path, codec):
    kind = ("jsonl", ".jsonl" + codec)
    content = as_jsonl(["a" * 50] * 20)
    data = pack(kind, content)
    assert len(read(tmp_path, kind, data, max_file_bytes=len(content))) == 20
    with pytest.raises(MixcError, match=f"more than {len(content) - 1} bytes") as caught:
        read(tmp_path, kind, data, max_file_bytes=len(content) - 1)
    assert caught.value.code == "MX033"


def test_what_compresses_well_is_no_bomb_while_it_is_small(tmp_path):
    texts = ["a" * 1_000_000] * 60
    kind = ("jsonl", ".jsonl.zst")
    data = encode(kind, texts)
    assert len(data) * 1000 < 60_000_000
    assert texts_of(read(tmp_path, kind, data)) == texts


def test_a_stream_that_needs_much_memory_is_refused(tmp_path, monkeypatch):
    import zstandard

    monkeypatch.setattr(codecs, "_XZ_MEMORY", 1 << 20)
    with pytest.raises(MixcError, match="Memory usage limit"):
        read(tmp_path, ("jsonl", ".jsonl.xz"), encode(("jsonl", ".jsonl.xz"), ["a"]))
    wide = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
    packer = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    data = packer.compress(as_jsonl(["a" * 100])) + packer.flush()
    with pytest.raises(MixcError, match="too much memory"):
        read(tmp_path, ("jsonl", ".jsonl.zst"), data)


def test_a_bad_record_shows_its_first_bytes(tmp_path):
    for kind in SEVERAL:
        _, bad = read(tmp_path, kind, encode(kind, ["a", None], lang=["en", "é" * 300]))
        assert isinstance(bad, BadRecord)
        assert len(bad.excerpt) == (0 if kind[0] in ("parquet", "arrow") else 200)
    (bad,) = read(tmp_path, ("jsonl", ".jsonl"), json.dumps({"body": 1}).encode())
    assert bad.excerpt == b'{"body": 1}'
