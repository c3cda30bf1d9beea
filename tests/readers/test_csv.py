import bz2
import csv as python_csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixc.errors import MixcError
from mixc.readers import codecs, csv
from mixc.readers.records import BadRecord, ReadOptions, Record, Source


def read(folder, data, *, max_bytes=1000, name="a.csv", fields=()):
    path = folder / name
    path.write_bytes(data)
    return list(csv.read(Source(path, name), ReadOptions("text", max_bytes, fields)))


def good(row, text, position):
    return Record(row, text, position)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"\n\r\n", []),
        (b"text\n", []),
        (b"text", []),
        (b"text\na", [good(0, "a", 5)]),
        (b"text\r\na\r\nb\r\n", [good(0, "a", 6), good(1, "b", 9)]),
        (b"\xef\xbb\xbftext\na\n", [good(0, "a", 8)]),
        (b'\xef\xbb\xbf"text",x\na,\n', [good(0, "a", 12)]),
        (b"\ntext\n\na\n\n\nb\n", [good(0, "a", 7), good(1, "b", 11)]),  # blank lines are no rows
        (b'text\n""\n', [good(0, "", 5)]),  # emptiness is for the stage to judge
        (b'x,text\n,"a\r\n\n""b"",c"\n,d\n', [good(0, 'a\r\n\n"b",c', 7), good(1, "d", 22)]),
        (b'text\na "quoted" word\n5" disk\nb\n', None),
        (b"text\n'a\n", [good(0, "'a", 5)]),
        (b"text\n a \n", [good(0, " a ", 5)]),
        (b"text\nNA\nnull\n1.0\n", [good(0, "NA", 5), good(1, "null", 8), good(2, "1.0", 13)]),
    ],
)
def test_rows(tmp_path, data, expected):
    if expected is None:  # quotes inside of a field that is not quoted are text
        expected = [good(0, 'a "quoted" word', 5), good(1, '5" disk', 21), good(2, "b", 29)]
    assert read(tmp_path, data) == expected


@pytest.mark.parametrize(
    ("line", "code", "reason"),
    [
        (b"x", "MX034", "the row has 1 fields, the header 2"),
        (b"x,y,z", "MX034", "the row has 3 fields, the header 2"),
        (b'"x"y,z', "MX034", "the row is not valid CSV: ',' expected after '\"'"),
        (b"x\ry,z", "MX034", "the row is not valid CSV: new-line character seen"),
        (b"1,x\xffy", "MX022", "the text is not valid UTF-8"),
        (b'1,"' + b"x" * 70_000 + b'"', "MX024", "a row is over 67536 bytes long"),
        (b'1,"' + b"x\n" * 40_000 + b'"', "MX024", "a row is over 67536 bytes long"),
        (b'1,"' + b'"",\n' * 40_000 + b'"', "MX024", "a row is over 67536 bytes long"),
    ],
)
def test_bad_rows_are_named_and_cost_no_other(tmp_path, line, code, reason, monkeypatch):
    for block in (1 << 20, 1000, 7):
        monkeypatch.setattr(codecs, "BLOCK", block)
        data = b"n,text\n0,before\n" + line + b"\n2,after\n"
        before, bad, after = read(tmp_path, data)
        assert before == good(0, "before", 7)
        assert after == good(2, "after", 16 + len(line) + 1)
        assert (bad.code, bad.row, bad.position) == (code, 1, 16)
        assert reason in bad.reason
        assert bad.excerpt == line[:200]


def test_a_quote_that_nothing_closes(tmp_path):
    found = read(tmp_path, b'text\na\n"b\nc\n')
    reason = "the row is not valid CSV: unexpected end of data"
    assert found == [good(0, "a", 5), BadRecord("MX034", reason, 1, 7, b'"b\nc')]
    _, bad = read(tmp_path, b'text\na\n"b\n' + b"c\n" * 50_000)
    assert (bad.code, bad.row, bad.position) == ("MX024", 1, 7)


def test_columns_that_nobody_wants_may_hold_what_they_like(tmp_path):
    assert read(tmp_path, b"x,text\n\xff,a\n") == [good(0, "a", 7)]
    assert read(tmp_path, b"x,x,text\n1,2,a\n") == [good(0, "a", 9)]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"body,x", "no column 'text' among: body, x"),
        (b"text,text", "2 columns are named 'text'"),
        (b"text,lang,lang", "2 columns are named 'lang'"),
        (b"Text,\xff", "no column 'text' among: Text, ?"),
        (b'"text"x', "its first row names no columns: the row is not valid CSV"),
        (b"x" * 70_000, "its first row names no columns: a row is over 67536 bytes long"),
    ],
)
def test_the_header_must_name_the_columns_once(tmp_path, header, message):
    with pytest.raises(MixcError) as caught:
        read(tmp_path, header + b"\n1,2,3\n", fields=("lang",))
    assert caught.value.code == "MX026"
    assert message in caught.value.message


def test_tabs_part_the_fields_of_a_tsv(tmp_path):
    data = b'n,\ttext\n"x\ty"\ta,b\n'
    assert read(tmp_path, data, name="a.tsv") == [good(0, "a,b", 8)]
    assert read(tmp_path, bz2.compress(data), name="A.TSV.BZ2") == [good(0, "a,b", 8)]


CELLS = st.text(st.characters(codec="utf-8"), max_size=9)


@given(
    rows=st.lists(
        st.lists(st.text(st.characters(codec="utf-8"), max_size=9), min_size=2, max_size=2)
    ),
    end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([python_csv.QUOTE_ALL, python_csv.QUOTE_MINIMAL]),
    block=st.integers(1, 30),
)
@settings(deadline=None)
def test_what_python_writes_is_read_with_its_places(tmp_path_factory, rows, end, quoting, block):
    rows = [[cell.replace("\r", "_") for cell in row] for row in rows]
    sink = io.StringIO()
    out = python_csv.writer(sink, lineterminator=end, quoting=quoting)
    out.writerow(["id", "text"])
    places = []
    for row in rows:
        places.append(len(sink.getvalue().encode()))
        out.writerow(row)
    data = sink.getvalue().encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codecs, "BLOCK", block)
        found = read(tmp_path_factory.mktemp("csv"), data, fields=("id",))
    want = [
        Record(number, text, place, (name,))
        for number, ((name, text), place) in enumerate(zip(rows, places, strict=True))
    ]
    assert found == want


@given(data=st.binary(max_size=60) | st.text('",\n\rxé', max_size=40).map(str.encode))
@settings(deadline=None, max_examples=300)
def test_any_bytes_give_records_or_an_error(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("any")
    found = read(folder, b"text,x\n" + data, max_bytes=10)
    assert [one.row for one in found] == list(range(len(found)))
    assert all(type(one) in (Record, BadRecord) for one in found)
    try:
        read(folder, data)
    except MixcError as error:
        assert error.code == "MX026"


class LineByLine(csv._Feed):
    def begin(self):
        super().begin()
        self._guesses = False


@given(
    data=st.text('"""\n\n,\rxé', max_size=60).map(str.encode),
    block=st.integers(1, 40),
    spare=st.integers(10, 40),
)
@settings(deadline=None, max_examples=500)
def test_lines_at_once_give_the_same_rows(tmp_path_factory, data, block, spare):
    folder = tmp_path_factory.mktemp("csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codecs, "BLOCK", block)
        patch.setattr(csv, "_SPARE", spare)
        fast = read(folder, b"x,text\n" + data, max_bytes=0)
        patch.setattr(csv, "_Feed", LineByLine)
        assert fast == read(folder, b"x,text\n" + data, max_bytes=0)
