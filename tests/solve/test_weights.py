import json

import pytest

from mixc.errors import MixcError, Place
from mixc.solve.weights import SCHEMA, check_simplex, finite_or_none, open_weights, read_weights
from mixc.store.hashes import seal

PLACE = Place("recipe.yaml", 3, 5)


def read(tmp_path, text):
    path = tmp_path / "w.json"
    path.write_text(text)
    return read_weights(path, PLACE)


def error_of(tmp_path, text):
    with pytest.raises(MixcError) as raised:
        read(tmp_path, text)
    return raised.value


def test_plain_weights(tmp_path):
    assert read(tmp_path, '{"web": 0.75, "code": 0.25, "rest": 0}') == {
        "web": 0.75,
        "code": 0.25,
        "rest": 0.0,
    }
    assert read(tmp_path, '{"only": 1}') == {"only": 1.0}
    thirds = dict.fromkeys("abc", 0.3333333)
    assert read(tmp_path, json.dumps(thirds)) == thirds


def test_a_domain_may_have_any_name(tmp_path):
    assert read(tmp_path, '{"schema": 0.5, "domains": 0.5}') == {"schema": 0.5, "domains": 0.5}


def solved(**domains):
    entries = {name: {"weight": w, "low": w, "high": w} for name, w in domains.items()}
    return seal({"schema": SCHEMA, "domains": entries}).decode()


def test_solved_weights(tmp_path):
    assert read(tmp_path, solved(web=0.75, code=0.25)) == {"web": 0.75, "code": 0.25}


def test_solved_weights_that_were_changed_are_damaged(tmp_path):
    text = solved(web=0.75, code=0.25)
    assert error_of(tmp_path, text.replace("0.75", "0.65")).code == "MX040"
    assert error_of(tmp_path, '{"schema": "mixc.weights/1"}').code == "MX040"


def test_a_manifest_of_something_else(tmp_path):
    text = seal({"schema": "mixc.store/1", "domains": {}}).decode()
    assert error_of(tmp_path, text).code == "MX044"


@pytest.mark.parametrize(
    "text",
    [
        '{"a": NaN, "b": 1}',
        '{"a": Infinity}',
        '{"a": 1e999}',
        f'{{"a": 1{"0" * 400}}}',
        '{"a": -0.5, "b": 1.5}',
        '{"a": 0.5, "b": 0.4}',
        '{"a": 0.5, "b": 0.6}',
        '{"a": 0, "b": 0}',
        '{"a": true}',
        '{"a": "1"}',
        '{"a": null, "b": 1}',
        '{"a": {"weight": 1}}',
        "[1.0]",
        "1",
        "{}",
        "",
        '{"a": 1',
        "[" * 100_000,
    ],
)
def test_what_is_not_on_the_simplex_is_mx061_at_the_recipes_line(tmp_path, text):
    error = error_of(tmp_path, text)
    assert error.code == "MX061"
    assert error.place == PLACE
    assert "w.json" in error.message


def test_the_sum_is_shown(tmp_path):
    assert "sum to 0.9, not to 1" in error_of(tmp_path, '{"a": 0.5, "b": 0.4}').message


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(MixcError) as raised:
        read_weights(tmp_path / "none.json", PLACE)
    assert raised.value.code == "MX061"
    (tmp_path / "w.json").write_bytes(b'{"\xff": 1}')
    with pytest.raises(MixcError) as raised:
        read_weights(tmp_path / "w.json", PLACE)
    assert raised.value.code == "MX061"


def test_open_weights_says_how_to_make_them(tmp_path):
    with pytest.raises(MixcError) as raised:
        open_weights(tmp_path / "weights.json")
    assert raised.value.code == "MX041"
    assert "solve-weights" in raised.value.help


def test_the_tolerance_of_the_sum():
    assert check_simplex({"a": 1.0 + 9e-7}, "w", PLACE) == {"a": 1.0 + 9e-7}
    with pytest.raises(MixcError):
        check_simplex({"a": 1.0 + 2e-6}, "w", PLACE)


def test_json_has_no_nan():
    assert finite_or_none(0.5) == 0.5
    assert finite_or_none(float("nan")) is None
    assert finite_or_none(float("inf")) is None
