import gzip

from mixc.readers import codecs, text
from mixc.readers.records import BadRecord, ReadOptions, Record, Source


def read(folder, data, *, max_bytes=1000, name="a.txt"):
    path = folder / name
    path.write_bytes(data)
    return list(text.read(Source(path, name), ReadOptions("text", max_bytes)))


def test_a_file_is_one_document_byte_for_byte(tmp_path):
    whole = " \r\n line\n\n\0 end \n"
    assert read(tmp_path, whole.encode()) == [Record(0, whole, 0)]
    assert read(tmp_path, b"") == [Record(0, "", 0)]
    assert read(tmp_path, b"\xef\xbb\xbfa\xef\xbb\xbf") == [Record(0, "a\ufeff", 0)]


def test_bytes_that_are_no_text_are_named(tmp_path):
    bad = BadRecord("MX022", "the text is not valid UTF-8 at byte 4", 0, 0, b"good\xff")
    assert read(tmp_path, b"good\xff") == [bad]
    assert read(tmp_path, "漢".encode()[:2]) == [
        BadRecord("MX022", "the text is not valid UTF-8 at byte 0", 0, 0, "漢".encode()[:2])
    ]


def test_the_cap(tmp_path, monkeypatch):
    """A bomb is left as soon as it is over the cap."""
    monkeypatch.setattr(codecs, "BLOCK", 64)
    assert read(tmp_path, b"x" * 1000) == [Record(0, "x" * 1000, 0)]
    reason = "the document is over 1000 bytes long"
    over = BadRecord("MX024", reason, 0, 0, b"x" * 200)
    assert read(tmp_path, b"x" * 1001) == [over]

    path = tmp_path / "bomb.txt.gz"
    path.write_bytes(gzip.compress(b"\0" * 50_000_000))
    source = Source(path, path.name)
    assert list(text.read(source, ReadOptions("text", 1000))) == [
        BadRecord("MX024", reason, 0, 0, bytes(200))
    ]
