"""Records made to hurt: deep, huge, or of two meanings."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mixc.errors import MixcError
from mixc.readers.records import BadRecord, ReadOptions, Record, Source
from mixc.registry import READERS

CAP = 1 << 20


def read(folder, data, name="a.jsonl", **options):
    (folder / name).write_bytes(data)
    reader = READERS[name.rsplit(".", 1)[1]].load()
    options = ReadOptions("text", CAP, **options)
    return list(reader.read(Source(folder / name, name), options))


DEEP = 100_000
HUGE = "9" * 100_000


@pytest.mark.parametrize(
    "value",
    [
        "[" * DEEP + "]" * DEEP,
        '{"a":' * DEEP + "1" + "}" * DEEP,
        "[" * DEEP,
        '{"a":' * DEEP,
        '[{"a":' * DEEP,
    ],
    ids=["lists", "objects", "open lists", "open objects", "both"],
)
@pytest.mark.parametrize("place", ["text", "beside", "a wanted field", "inside a wanted field"])
def test_a_deep_record_is_bad_or_passed_over(tmp_path, value, place):
    names = {"text": "text", "beside": "other", "a wanted field": "f"}
    line = f'{{"{names.get(place, "g")}":{value},"text":"x"}}'
    if place == "text":
        line = f'{{"text":{value}}}'
    fields = ("f", "g.a.a") if "wanted" in place else ()
    good = b'{"text":"good"}\n'
    first, found, last = read(tmp_path, good + line.encode() + b"\n" + good, fields=fields)
    assert (first.text, last.text) == ("good", "good")
    if isinstance(found, Record):
        assert found.text == "x"
        assert place != "text"
    else:
        assert found.code in ("MX020", "MX021")
        assert len(found.excerpt) <= 200
        assert len(found.reason) < 1000


@pytest.mark.parametrize("number", [HUGE, "-" + HUGE, "0." + HUGE, "1e999999999", "-0", "1E+400"])
def test_a_huge_number_is_no_trouble(tmp_path, number):
    line = f'{{"text":"x","n":{number}}}\n'
    assert read(tmp_path, line.encode()) == [Record(0, "x", 0)]
    (found,) = read(tmp_path, line.encode(), fields=("n",))
    assert found.fields == (number,)
    (bad,) = read(tmp_path, f'{{"text":{number}}}\n'.encode())
    assert isinstance(bad, BadRecord)
    assert bad.code in ("MX020", "MX021")
    assert len(bad.reason) < 1000


@pytest.mark.parametrize(
    "number", ["1" * 5 + "e", "0x10", "NaN", "Infinity", "01", "+1", ".5", "1."]
)
def test_what_is_no_number_is_bad_json(tmp_path, number):
    (bad,) = read(tmp_path, f'{{"n":{number},"text":"x"}}\n'.encode())
    assert bad.code == "MX020"


def test_of_a_key_that_stands_twice_the_last_counts_everywhere(tmp_path):
    """As Python's json has it; also one that is spelled in two ways."""
    line = '{"id":"1","text":"a","meta":{"l":"x"},"\\u0074ext":"b","id":"2","meta":{"l":"y"}}'
    (found,) = read(tmp_path, line.encode(), fields=("id", "meta.l"))
    data = json.loads(line)
    assert (found.text, found.fields) == (data["text"], (data["id"], data["meta"]["l"]))
    assert (found.text, found.fields) == ("b", ("2", "y"))


@pytest.mark.parametrize("depth", [10, 60])
def test_a_table_of_deep_columns_beside_the_text(tmp_path, depth):
    kind, value = pa.int8(), 1
    for _ in range(depth):
        kind, value = pa.list_(kind), [value]
    table = pa.table({"deep": pa.array([value], kind), "text": ["x"]})
    pq.write_table(table, tmp_path / "b.parquet")
    data = (tmp_path / "b.parquet").read_bytes()
    if depth < 50:
        (found,) = read(tmp_path, data, name="a.parquet")
        assert found.text == "x"
    else:
        with pytest.raises(MixcError, match="too deeply nested") as caught:
            read(tmp_path, data, name="a.parquet")
        assert caught.value.code == "MX026"
