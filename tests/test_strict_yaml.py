"""The strict loader: plain data by the rules of YAML 1.2, and nothing else."""

import json
import math
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mixc import strict_yaml
from mixc.errors import MixcError, MixcErrors
from mixc.strict_yaml import Mark, load_bytes, load_text, parse_value


def complaints(text: str | bytes) -> list[MixcError]:
    """All that is wrong with a text."""
    with pytest.raises((MixcError, MixcErrors)) as caught:
        load_bytes(text if isinstance(text, bytes) else text.encode(), "r.yaml")
    error = caught.value
    return [error] if isinstance(error, MixcError) else list(error.errors)


def codes_and_places(text: str | bytes) -> list[tuple[str, str]]:
    return [(e.code, str(e.place).removeprefix("r.yaml")) for e in complaints(text)]


# Scalars


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("", None),
        ("~", None),
        ("null", None),
        ("true", True),
        ("false", False),
        ("0", 0),
        ("-7", -7),
        ("+7", 7),
        ("010", 10),
        ("200_000", 200_000),
        ("0x1F", 31),
        ("0o17", 15),
        ("1e-3", 1e-3),
        ("1.0e-3", 1e-3),
        ("1E+3", 1e3),
        (".5", 0.5),
        ("5.", 5.0),
        ("-0.0", 0.0),
    ],
)
def test_scalars_that_are_not_text(written, value):
    found = parse_value(written)
    assert found == value
    assert type(found) is type(value)


TEXTS = "no yes on off y n True FALSE Null NULL 2001-12-14 1:30:00 0b1 1__0 _1 1_ 0x 1.5.2 1_0.5 "
TEXTS += "e3 . -- nan inf NaN 20M 1.5B corpus/*.jsonl a:b http://x/y \u0661\u0662 1\u00a0"


@pytest.mark.parametrize("written", TEXTS.split(" "))
def test_everything_else_is_text(written):
    assert load_text(f"key: {written}", "r").data == {"key": written}


@pytest.mark.parametrize("written", ["1", "true", "null", "", "1e3", ".nan", "<<"])
@pytest.mark.parametrize("quote", ["'", '"'])
def test_quoted_scalars_are_text(written, quote):
    assert parse_value(quote + written + quote) == written


@pytest.mark.parametrize("written", [".nan", ".NaN", ".inf", "-.inf", "+.INF", "1e999", "-1e999"])
def test_numbers_are_finite(written):
    (error,) = complaints(f"a: 1\nb: {written}\n")
    assert (error.code, str(error.place)) == ("MX007", "r.yaml:2:4")
    assert error.message == f"expected a finite number, found {written}"


def test_numbers_have_a_limit():
    assert parse_value("9" * 100) == 10**100 - 1
    assert codes_and_places("a: " + "9" * 101) == [("MX007", ":1:4")]


def test_values_for_the_command_line():
    assert parse_value("[a, 'b c', {d: 1}]") == ["a", "b c", {"d": 1}]
    assert parse_value("{web: 0.5, code: 0.5}") == {"web": 0.5, "code": 0.5}
    with pytest.raises(MixcError):
        parse_value("[a")


# Round trips

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**90), 10**90)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
KEYS = st.text(max_size=30)
PLAIN = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


class Dumper(yaml.SafeDumper):
    """Quotes all text, since what PyYAML leaves bare follows YAML 1.1."""

    def ignore_aliases(self, data):
        return True


Dumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
)


def same(a: object, b: object) -> bool:
    """Equal in value and in type, all the way down."""
    return a == b and repr(a) == repr(b)


@given(PLAIN)
def test_what_pyyaml_dumps_is_loaded_back(data):
    assert same(parse_value(yaml.dump(data, Dumper=Dumper, sort_keys=False)), data)


@given(PLAIN)
def test_json_is_yaml(data):
    assert same(parse_value(json.dumps(data)), data)


@given(PLAIN)
def test_every_value_has_a_mark(data):
    document = load_text(json.dumps(data, indent=1), "r")

    def paths(node, path):
        yield path
        items = list(enumerate(node)) if isinstance(node, list) else []
        items += node.items() if isinstance(node, dict) else []
        for key, value in items:
            yield from paths(value, (*path, key))

    assert set(document.marks) == set(paths(data, ()))


@given(st.text())
def test_any_text_loads_or_is_an_error_of_ours(text):
    with suppress(MixcError, MixcErrors):
        load_text(text, "r")


@given(st.lists(st.sampled_from([*"a1:-[]{},'\"\n \t&*!#|>%@?.<~\\U", ": ", "- ", "--- "])))
def test_any_punctuation_loads_or_is_an_error_of_ours(parts):
    with suppress(MixcError, MixcErrors):
        load_text("".join(parts), "r")


# Marks


def test_marks_are_places_of_keys_and_values():
    text = "# comment\nname: pile\ndomains:\n  web:  {paths: [a, b]}\nseed:\nlist:\n  - x\n"
    marks = load_text(text, "r.yaml").marks
    assert marks == {
        (): Mark(2, 1, 2, 1),
        ("name",): Mark(2, 1, 2, 7),
        ("domains",): Mark(3, 1, 4, 3),
        ("domains", "web"): Mark(4, 3, 4, 9),
        ("domains", "web", "paths"): Mark(4, 10, 4, 17),
        ("domains", "web", "paths", 0): Mark(4, 18, 4, 18),
        ("domains", "web", "paths", 1): Mark(4, 21, 4, 21),
        ("seed",): Mark(5, 1, 5, 6),
        ("list",): Mark(6, 1, 7, 3),
        ("list", 0): Mark(7, 5, 7, 5),
    }


@pytest.mark.parametrize("text", ["", "\n", "# comment\n", "---\n", "null\n"])
def test_nothing_is_none(text):
    document = load_text(text, "r")
    assert document.data is None
    assert set(document.marks) == {()}


def test_a_byte_order_mark_is_no_text():
    document = load_bytes(b"\xef\xbb\xbfname: x\n", "r")
    assert document.data == {"name": "x"}
    assert document.marks[("name",)] == Mark(1, 1, 1, 7)


# What is forbidden


def test_a_key_that_stands_twice():
    first, second = complaints("a: 1\nb: {c: 1, d: 2, c: 3}\na: 2\n")
    assert (first.code, str(first.place)) == ("MX003", "r.yaml:2:17")
    assert (second.code, str(second.place)) == ("MX003", "r.yaml:3:1")
    assert second.message == "the key 'a' stands twice; the first is on line 1"


def test_a_key_written_in_two_ways_stands_twice():
    assert codes_and_places("a: 1\n'a': 2\n\"\\x61\": 3") == [("MX003", ":2:1"), ("MX003", ":3:1")]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: &x 1", ":1:4"),
        ("&x a: 1", ":1:1"),
        ("a: &x", ":1:4"),
        ("a: &x [1]", ":1:4"),
        ("a: *x", ":1:4"),
        ("*x : 1", ":1:1"),
        ("a: !!int '1'", ":1:4"),
        ("a: !mine {}", ":1:4"),
        ("a: ! 1", ":1:4"),
        ("!!map {a: 1}", ":1:1"),
        ("<<: {a: 1}", ":1:1"),
        ("a: 1\n---\nb: 1", ":2:1"),
        ("1: a", ":1:1"),
        ("a: {true: 1}", ":1:5"),
        ("~: a", ":1:1"),
        ("?\n: a", ":1:2"),
        ("1.5: a", ":1:1"),
        ("[a]: b", ":1:1"),
        ("? {a: b}\n: c", ":1:3"),
    ],
)
def test_what_recipes_do_not_allow(text, place):
    assert codes_and_places(text) == [("MX004", place)]


def test_aliases_are_found_though_their_anchors_stand():
    assert codes_and_places("a: &x {k: 1}\nb: *x\nc: {<<: *x}") == [
        ("MX004", ":1:4"),
        ("MX004", ":2:4"),
        ("MX004", ":3:5"),
        ("MX004", ":3:9"),
    ]


def test_everything_is_reported_at_once_in_order():
    text = "a: .nan\nb: !x [&y 1, *y]\na: 2\n3: 4\nc: {d: [.inf, {e: 1, e: 2}]}\n<<: {}\n"
    assert codes_and_places(text) == [
        ("MX007", ":1:4"),
        ("MX004", ":2:4"),
        ("MX004", ":2:8"),
        ("MX004", ":2:14"),
        ("MX003", ":3:1"),
        ("MX004", ":4:1"),
        ("MX007", ":5:9"),
        ("MX003", ":5:22"),
        ("MX004", ":6:1"),
    ]


@pytest.mark.parametrize(
    ("text", "place", "remedy"),
    [
        ("a:\n\tb: 1", ":2:1", "tabs"),
        ("a: [1, 2\nb: 3", ":2:2", "close the list"),
        ("a: {b: 1\n", ":2:1", "close the mapping"),
        ("a: 'x\n", ":2:1", "close the quotes"),
        ("a: b: c", ":1:5", "in quotes"),
        ("a: [*.jsonl]", ":1:6", '"*.jsonl"'),
        ("a: @x", ":1:4", "in quotes"),
        ("a: 1\n b: 2", ":2:3", "indent"),
        (" a: 1\nb: 2", ":2:1", "indentation"),
        ("a: 1\nb\nc: 2", ":3:1", "key: value"),
        ('a: "\\q"', ":1:6", "\\\\"),
        ('a: "\\UFFFFFFFF"', ":1:7", None),
        ("a: !x!y 1", ":1:4", "check"),
        ("a: \x07", ":1:4", "remove"),
        ("a: 1\nb: x\ufffe", ":2:5", "remove"),
    ],
)
def test_syntax_errors(text, place, remedy):
    (error,) = complaints(text)
    assert (error.code, str(error.place)) == ("MX002", "r.yaml" + place)
    assert remedy is None or remedy in str(error.help)


def test_a_syntax_error_names_the_line_where_it_began():
    (error,) = complaints("a: [1,\n  2\nb: 3\n")
    assert error.message.endswith("(it begins on line 1)")


def test_half_a_surrogate_pair_is_not_text():
    assert parse_value('"\\ud83d\\ude00"') == "\U0001f600"
    assert codes_and_places('a: "\\ud83d"') == [("MX007", ":1:4")]


# Files


def test_files(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("name: café\n", encoding="utf-8")
    document = strict_yaml.load(path)
    assert document.data == {"name": "café"}
    assert document.file == str(path)


def test_files_that_cannot_be_read(tmp_path):
    for path in (tmp_path, tmp_path / "none.yaml", tmp_path / ("x" * 300)):
        with pytest.raises(MixcError) as caught:
            strict_yaml.load(path)
        assert caught.value.code == "MX001"
        assert str(caught.value.place) == str(path)


def test_bytes_that_are_not_utf_8():
    assert codes_and_places(b"a: 1\nb: \xff\n") == [("MX001", ":2")]
    assert codes_and_places("a: 1\n".encode("utf-16")) == [("MX001", ":1")]


def test_errors_show_the_path_as_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(MixcError) as caught:
        strict_yaml.load(Path("r.yaml"))
    assert str(caught.value.place) == "r.yaml:1:5"


# Hostile YAML


def test_no_object_is_constructed(tmp_path):
    spoor = tmp_path / "spoor"
    text = f"a: !!python/object/apply:os.system ['touch {spoor}']\n"
    assert codes_and_places(text) == [("MX004", ":1:4")]
    assert not spoor.exists()


def test_a_bomb_of_aliases_is_small():
    lines = ["a0: &a0 [lol]"]
    lines += [f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]" for i in range(40)]
    assert {error.code for error in complaints("\n".join(lines))} == {"MX004"}


def test_a_file_is_at_most_1_mib(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes(b"#" * strict_yaml.MAX_BYTES)
    assert strict_yaml.load(path).data is None
    path.write_bytes(b"#" * (2 << 20))
    with pytest.raises(MixcError) as caught:
        strict_yaml.load(path)
    assert caught.value.code == "MX004"


@pytest.mark.parametrize("text", ["[", "{a: ", "- ", "? ", "[{", "a: [", "- - "])
def test_depth_is_bounded(text):
    (error,) = complaints(text * 10_000)
    assert error.message == "nested more than 64 levels deep"


def test_64_levels_are_allowed():
    assert parse_value("[" * 64 + "x" + "]" * 64)
    assert codes_and_places("[" * 65 + "]" * 65) == [("MX004", ":1:65")]


def test_a_float_keeps_its_sign():
    assert math.copysign(1, parse_value("-0.0")) == -1
