import gzip
import itertools
import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixc.readers import codecs, jsonl
from mixc.readers.records import BadRecord, ReadOptions, Record, Source


def read(folder, data, *, text="text", max_bytes=1000, name="a.jsonl", **options):
    path = folder / name
    path.write_bytes(data)
    return list(jsonl.read(Source(path, name), ReadOptions(text, max_bytes, **options)))


def good(row, text, offset):
    return Record(row, text, offset)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"\n\n", []),
        (b'{"text":"a"}', [good(0, "a", 0)]),  # no newline at the end
        (b'{"text":"a"}\n{"text":"b"}\n', [good(0, "a", 0), good(1, "b", 13)]),
        (b'{"text":"a"}\r\n{"text":"b"}\r\n', [good(0, "a", 0), good(1, "b", 14)]),
        (b'{"text":"a"}\n\n \t\r\n{"text":"b"}', [good(0, "a", 0), good(3, "b", 18)]),
        (b'\xef\xbb\xbf{"text":"a"}\n', [good(0, "a", 0)]),
        (b'\xef\xbb\xbf\n{"text":"a"}\n', [good(1, "a", 4)]),
        ('{"text":"a\u2028b\x85"}\n'.encode(), [good(0, "a\u2028b\x85", 0)]),  # no ends of lines
        (b'{"text":"\\u0000\\ud83d\\ude42"}\n', [good(0, "\0🙂", 0)]),
        (b'{"text":"a","text":"b"}', [good(0, "b", 0)]),  # as Python's json
        (b'{"meta":{"text":1},"text":"a","n":1e999}', [good(0, "a", 0)]),
        (b'  {"text" : ""}  ', [good(0, "", 0)]),  # emptiness is for the stage to judge
    ],
)
def test_lines(tmp_path, data, expected):
    assert read(tmp_path, data) == expected


@pytest.mark.parametrize(
    ("line", "code", "reason"),
    [
        (b"{", "MX020", "the line is not valid JSON: Input data was truncated"),
        (b"nul", "MX020", "the line is not valid JSON: Input data was truncated"),
        (b'{"text":"a"}}', "MX020", "trailing characters (byte 13)"),
        (b'{"text":"a\0b"}', "MX020", "invalid character (byte 10)"),
        (b"{'text':'a'}", "MX020", "object keys must be strings (byte 1)"),
        (b'\xef\xbb\xbf{"text":"a"}', "MX020", "invalid character (byte 0)"),  # a mark further on
        (b'{"x":' + b"[" * 50_000, "MX020", "maximum recursion depth"),
        (b'{"emoji":"\\ud83d\\ude42","text":"a"', "MX020", "Input data was truncated"),
        (b'{"x":1}', "MX021", "Object missing required field `text`"),
        (b'{"Text":"a"}', "MX021", "Object missing required field `text`"),
        (b'{"text":null}', "MX021", "no text in the field 'text': Expected `str`, got `null`"),
        (b'{"text":["a"]}', "MX021", "Expected `str`, got `array`"),
        (b'["a"]', "MX021", "Expected `object`, got `array`"),
        (b'"a"', "MX021", "Expected `object`, got `str`"),
        (b'{"text":"\xff"}', "MX022", "the text is not valid UTF-8"),
        (b'{"text":"\xed\xa0\x80"}', "MX022", "the text is not valid UTF-8"),
        (b'{"text":"\xc0\x80"}', "MX022", "the text is not valid UTF-8"),
        (b'{"text":"\\ud800"}', "MX022", "a lone surrogate has no UTF-8 form"),
        (b'{"text":"\\uDC00 and"}', "MX022", "a lone surrogate has no UTF-8 form"),
        (b'{"text":"\\ud800\\ud83d\\ude42"}', "MX022", "a lone surrogate has no UTF-8 form"),
    ],
)
def test_bad_lines_are_named_and_cost_no_other(tmp_path, line, code, reason):
    before, _, after = read(tmp_path, b'{"text":"before"}\n' + line + b'\n{"text":"after"}\n')
    assert before == good(0, "before", 0)
    assert after == good(2, "after", 18 + len(line) + 1)

    (bad,) = read(tmp_path, line.removeprefix(b"\xef\xbb\xbf") if code != "MX020" else b"\n" + line)
    assert (bad.code, bad.row) == (code, int(code == "MX020"))
    assert bad.excerpt == line.removeprefix(b"\xef\xbb\xbf" if not bad.row else b"")[:200]
    assert reason in bad.reason
    error = bad.error(Source(tmp_path, "web/a.jsonl"))
    assert str(error.place) == f"web/a.jsonl (record {bad.row}, byte {bad.position})"
    assert "on_bad_record: skip" in error.help


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_line_over_the_cap_is_passed_over_without_holding_it(tmp_path, monkeypatch, name):
    """A line of 200 caps between two good ones, compressed and not."""
    monkeypatch.setattr(codecs, "BLOCK", 1 << 14)
    longest = 6 * 1000 + 65536
    data = b'{"text":"a"}\n{"text":"' + b"x" * (200 * longest) + b'"}\n{"text":"b"}\n'
    raw = gzip.compress(data) if name.endswith(".gz") else data
    tracemalloc.start()
    try:
        found = read_after_write(tmp_path, raw, name)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    bad = BadRecord("MX024", f"a line is over {longest} bytes long", 1, 13, data[13:213])
    assert found == [good(0, "a", 0), bad, good(2, "b", len(data) - 13)]
    assert peak < 8 * longest


def read_after_write(folder, raw, name):
    (folder / name).write_bytes(raw)
    tracemalloc.reset_peak()
    return list(jsonl.read(Source(folder / name, name), ReadOptions("text", 1000)))


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_the_cap_counts_the_line_to_the_byte(tmp_path, end):
    longest = 6 * 1000 + 65536
    line = b'{"text":"' + b"x" * (longest - 11) + b'"}'
    assert isinstance(read(tmp_path, line + end)[0], Record)
    (bad,) = read(tmp_path, b" " + line + end)
    assert bad.code == "MX024"
    # A text of the greatest length fits its line however JSON spells it.
    (spelled,) = read(tmp_path, b'{"text":"' + b"\\u0041" * 1000 + b'"}')
    assert spelled.text == "A" * 1000


@given(
    texts=st.lists(st.text(max_size=20)),
    blank=st.lists(st.sampled_from(["", " ", "\r", "\t "])),
    block=st.integers(1, 40),
    ascii_only=st.booleans(),
)
@settings(deadline=None)
def test_any_block_size_gives_the_same_records(tmp_path_factory, texts, blank, block, ascii_only):
    """Lines span the borders of blocks in every way."""
    texts = [t.encode("utf-8", "replace").decode() for t in texts]
    lines = [json.dumps({"text": t}, ensure_ascii=ascii_only) for t in texts]
    pairs = itertools.zip_longest(blank[: len(lines)], lines, fillvalue="")
    data = "\n".join(part for pair in pairs for part in pair).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codecs, "BLOCK", block)
        found = read(tmp_path_factory.mktemp("blocks"), data)
    assert [one.text for one in found] == texts
    assert all(data[one.position :].lstrip().startswith(b'{"text": ') for one in found)
    assert all(data[: one.position].count(b"\n") == one.row for one in found)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'"\\ud800"', "\ufffd"),
        (b'"\\uDC00\\ud83d\\ude42\\ud83d"', "\ufffd🙂\ufffd"),
        (b'"\\ud83d\\ud83d\\ude42"', "\ufffd🙂"),
        (b'"\\\\ud800 \\ud800"', "\\ud800 \ufffd"),  # the first is a backslash, and no escape
        (b'"\\\\\\ud800"', "\\\ufffd"),
        (b'"\xff\\ud800\xed\xa0\x80"', "\ufffd\ufffd\ufffd\ufffd\ufffd"),
    ],
)
def test_lone_surrogates_are_replaced_on_demand(tmp_path, line, text):
    data = b'{"text":"a"}\n{"text":' + line + b"}\n{}"
    first, second, third = read(tmp_path, data, replace_invalid=True)
    assert first == good(0, "a", 0)
    assert second == Record(1, text, 13, replaced=True)
    assert third.code == "MX021"
    assert read(tmp_path, data)[1].code == "MX022"


def test_what_is_not_json_is_not_mended(tmp_path):
    (bad,) = read(tmp_path, b'{"text":"\xff"', replace_invalid=True)
    assert (bad.code, bad.excerpt) == ("MX020", b'{"text":"\xff"')


@pytest.mark.parametrize(
    ("value", "text"),
    [(b"1e999", "1e999"), (b"-0.50", "-0.50"), (b" 12345678901234567890 ", "12345678901234567890")],
)
def test_numbers_of_fields_are_as_they_are_written(tmp_path, value, text):
    (one,) = read(tmp_path, b'{"n":' + value + b',"text":"a"}', fields=("n",))
    assert one.fields == (text,)


def test_names_that_lead_into_each_other(tmp_path):
    data = b'{"a":{"b":"inner","c":{"d":1}}}\n{"a":"outer"}\n{"a":null}\n{}'
    found = read(tmp_path, data, text="a.b", fields=("a.b", "a.b.c", "a.c.d", "a.c.d.e", "x"))
    assert found[0].fields == ("inner", None, "1", None, None)
    assert [one.code for one in found[1:]] == ["MX021"] * 3
    found = read(tmp_path, data, text="a", fields=("a.b",))
    assert [getattr(one, "fields", None) for one in found] == [None, (None,), None, None]
    found = read(tmp_path, data, text="a.b", fields=("a",))
    assert [one.code for one in found] == ["MX021"] * 4


@given(data=st.binary(max_size=80) | st.text('{}[]",:\n\\ud8text1', max_size=60).map(str.encode))
@settings(deadline=None, max_examples=300)
def test_any_bytes_give_records(tmp_path_factory, data):
    for replace in (False, True):
        found = read(
            tmp_path_factory.mktemp("any"), data, replace_invalid=replace, fields=("x", "text.y")
        )
        assert all(type(one) in (Record, BadRecord) for one in found)
