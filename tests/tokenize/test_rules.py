"""Which records become documents, and of which domain: id, only, split_by, policies, quarantine."""

import gzip
import json

import numpy as np
import pytest
from helpers import EOT, identity, write_recipe

from mixc.errors import MixcError, MixcErrors
from mixc.inspect import inspect
from mixc.pipeline import build_mixture
from mixc.recipe import load
from mixc.tokenize import rules, staged
from mixc.tokenize.stage import tokenize
from mixc.verify import verify


def write(folder, records, name="a.jsonl"):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in records]
    (folder / name).write_bytes(b"\n".join(lines) + b"\n")


def store_of(folder, records, options, *, workers=1, **recipe):
    write(folder, records)
    path = write_recipe(folder, {"web": {"paths": ["a.jsonl"], **options}}, **recipe)
    return tokenize(load(path), workers=workers)


def code_of(folder, records, options):
    with pytest.raises(MixcError) as caught:
        store_of(folder, records, options)
    return caught.value


RECORDS = [
    {"content": {"body": "one"}, "meta": {"lang": "en", "year": 2020, "good": True}, "id": "a"},
    {"content": {"body": "zwei"}, "meta": {"lang": "de", "year": 2021, "good": True}, "id": 7},
    {"content": {"body": "trois"}, "meta": {"lang": "fr", "year": 2020, "good": False}, "id": "c"},
    {"content": {"body": "four"}, "meta": {"lang": "en", "year": 2021}, "id": "d"},
]


def rows(store, domain="web"):
    return np.concatenate([one.row for one in store.documents(domain)]).tolist()


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ({"meta.lang": ["en", "de"]}, [0, 1, 3]),
        ({"meta.lang": ["en"], "meta.year": [2020]}, [0]),
        ({"meta.year": ["2021"]}, [1, 3]),
        ({"meta.good": [True]}, [0, 1]),  # a record without the field is not among them
    ],
)
def test_only_records_with_these_values(tmp_path, only, expected):
    store = store_of(tmp_path, RECORDS, {"text": "content.body", "only": only})
    assert rows(store) == expected
    source = inspect(store.root)["sources"]["web"]
    assert source["not_selected"] == len(RECORDS) - len(expected)
    assert verify(store.root).documents == len(expected)


def test_a_file_of_which_nothing_is_selected_is_no_error_but_a_domain_is(tmp_path):
    write(tmp_path, RECORDS, "b.jsonl")
    write(tmp_path, RECORDS[2:3])
    options = {"paths": ["*.jsonl"], "text": "content.body", "only": {"meta.lang": ["de"]}}
    path = write_recipe(tmp_path, {"web": options})
    assert rows(tokenize(load(path), workers=1)) == [1]
    with pytest.raises(MixcError) as caught:
        tokenize(load(path, ["domains.web.only={meta.lang: [xx]}"]), workers=1)
    assert caught.value.code == "MX028"


def test_own_ids_are_kept(tmp_path):
    store = store_of(tmp_path, RECORDS, {"text": "content.body", "id": "id"})
    (documents,) = store.documents("web")
    assert documents.id.to_pylist() == ["a", "7", "c", "d"]
    found = inspect(store.root, doc=int(documents.doc_id[1]), decode=True)["copies"]
    assert [(one["id"], one["text"][:4]) for one in found] == [("7", "zwei")]
    assert documents.select(np.array([2, 0])).id.to_pylist() == ["c", "a"]
    missing = [*RECORDS, {"content": {"body": "five"}, "meta": {}}]
    error = code_of(tmp_path / "2", missing, {"text": "content.body", "id": "id"})
    assert (error.code, "field 'id'" in error.message) == ("MX021", True)


def test_one_domain_per_value(tmp_path):
    options = {"text": "content.body", "split_by": "meta.lang", "id": "id"}
    store = store_of(tmp_path, RECORDS, options)
    assert list(store.domains) == ["web.de", "web.en", "web.fr"]
    assert list(store.sources) == ["web"]
    assert [rows(store, name) for name in store.domains] == [[1], [0, 3], [2]]
    assert [one.id.to_pylist() for one in store.documents("web.en")] == [["a", "d"]]
    assert verify(store.root).documents == 4
    again = tokenize(load(tmp_path / "recipe.yaml"), workers=1)
    assert again.store_hash == store.store_hash


def test_a_split_store_is_adopted_unit_by_unit(tmp_path):
    options = {"text": "content.body", "split_by": "meta.lang"}
    store = store_of(tmp_path, RECORDS, options)
    before = {p.name: identity(p) for p in store.root.rglob("*.arrow") if p.parent != store.root}
    after = tokenize(load(tmp_path / "recipe.yaml", ["holdout.fraction=0.5"]), workers=1)
    files = {p.name: identity(p) for p in after.root.rglob("*.arrow") if p.parent != after.root}
    assert files == before


def test_a_mixture_of_split_domains(tmp_path):
    records = [
        {"text": f"document {i} of some words", "lang": ["en", "DE", "Old Norse"][i % 3]}
        for i in range(90)
    ]
    mixture = {"weights": {"web.en": 0.5, "web.de": 0.3, "web.old-norse": 0.2}, "rows": 20}
    store = store_of(tmp_path, records, {"split_by": "lang"}, mixture=mixture)
    assert list(store.domains) == ["web.de", "web.en", "web.old-norse"]
    built = build_mixture(load(tmp_path / "recipe.yaml"), workers=1)
    assert {n: d["rows"] for n, d in built.manifest["domains"].items()} == {
        "web.de": 6,
        "web.en": 10,
        "web.old-norse": 4,
    }
    with pytest.raises(MixcError) as caught:
        changed = ["mixture.weights={web.en: 0.5, web.xx: 0.5}"]
        build_mixture(load(tmp_path / "recipe.yaml", changed), workers=1)
    assert caught.value.code == "MX061"
    with pytest.raises((MixcError, MixcErrors), match="it is split"):
        load(tmp_path / "recipe.yaml", ["mixture.weights={web: 1}"])


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (["A b", "a-b"], "both make"),
        (["x" * 80], "is no domain name"),
    ],
)
def test_values_that_cannot_be_domains(tmp_path, values, reason):
    records = [{"text": "t", "kind": value} for value in values]
    error = code_of(tmp_path, records, {"split_by": "kind"})
    assert (error.code, reason in error.message) == ("MX049", True)


def test_too_many_values(tmp_path, monkeypatch):
    records = [{"text": "t", "kind": str(value)} for value in range(5)]
    for where in ("assemble", "staged"):
        monkeypatch.setattr(f"mixc.tokenize.{where}.MAX_SPLITS", 3)
        assert code_of(tmp_path / where, records, {"split_by": "kind"}).code == "MX049"


def test_a_record_without_the_value_that_splits_is_bad(tmp_path):
    records = [{"text": "a", "kind": "x"}, {"text": "b"}, {"text": "c", "kind": ""}]
    assert code_of(tmp_path, records, {"split_by": "kind"}).code == "MX021"
    store = store_of(tmp_path, records, {"split_by": "kind", "on_bad_record": "skip"})
    assert store.sources["web"][0].inputs[0]["skipped"] == {"MX021": 2}


INVALID = [b'{"text": "a\xffb"}', b'{"text": "a\\ud800b"}', {"text": "good"}]


def test_invalid_unicode_is_an_error_unless_told_otherwise(tmp_path):
    assert code_of(tmp_path, INVALID, {}).code == "MX022"
    assert code_of(tmp_path, INVALID, {"invalid_unicode": "error"}).code == "MX022"
    strict = {"on_bad_record": "skip", "invalid_unicode": "error"}
    assert code_of(tmp_path, INVALID, strict).code == "MX022"


def test_invalid_unicode_skipped(tmp_path):
    store = store_of(tmp_path, INVALID, {"invalid_unicode": "skip"})
    assert rows(store) == [2]
    assert store.sources["web"][0].inputs[0]["skipped"] == {"MX022": 2}
    assert code_of(tmp_path, [*INVALID, b"{"], {"invalid_unicode": "skip"}).code == "MX020"


def test_invalid_unicode_replaced(tmp_path):
    store = store_of(tmp_path, INVALID, {"invalid_unicode": "replace"})
    counts = store.sources["web"][0].inputs[0]
    assert (counts["documents"], counts["replaced"], counts["skipped"]) == (3, 2, {})
    (documents,) = store.documents("web")
    (found,) = inspect(store.root, doc=int(documents.doc_id[0]), decode=True)["copies"][:1]
    assert found["text"].startswith("a\ufffdb")


def test_bad_records_go_into_quarantine(tmp_path):
    records = [{"text": "good"}, b'{"text": \xff\x00"', {"text": ""}, {"body": "x" * 500}]
    store = store_of(tmp_path, records, {"on_bad_record": "skip"})
    (path,) = inspect(store.root)["sources"]["web"]["quarantine"]
    entries = [json.loads(line) for line in (store.root / path).read_text().splitlines()]
    assert [(one["file"], one["row"], one["code"]) for one in entries] == [
        ("a.jsonl", 1, "MX020"),
        ("a.jsonl", 2, "MX023"),
        ("a.jsonl", 3, "MX021"),
    ]
    assert entries[0]["position"] == 17
    assert entries[0]["excerpt"].startswith('{"text": \\xff')
    assert all(one["reason"] for one in entries)
    assert len(entries[2]["excerpt"]) <= 200
    (store.root / path).write_bytes((store.root / path).read_bytes().replace(b"MX020", b"MX021"))
    with pytest.raises(MixcError, match="damaged"):
        verify(store.root)


def test_quarantine_does_not_grow_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(staged, "_MAX_ENTRIES", 5)
    store = store_of(tmp_path, [{"text": "x"}, *[b"{"] * 20], {"on_bad_record": "skip"})
    (path,) = inspect(store.root)["sources"]["web"]["quarantine"]
    lines = (store.root / path).read_text().splitlines()
    assert (len(lines), json.loads(lines[-1])) == (6, {"omitted": 15})
    assert store.sources["web"][0].inputs[0]["skipped"] == {"MX020": 20}


def test_empty_files_pass_only_if_allowed(tmp_path):
    write(tmp_path, [{"text": "x"}], "b.jsonl")
    (tmp_path / "a.jsonl").write_bytes(b"")
    path = write_recipe(tmp_path, {"web": {"paths": ["*.jsonl"]}})
    with pytest.raises(MixcError) as caught:
        tokenize(load(path), workers=1)
    assert (caught.value.code, str(caught.value.place)) == ("MX028", "a.jsonl")
    for change in ("domains.web.on_bad_record=skip",):
        with pytest.raises(MixcError, match="no document"):
            tokenize(load(path, [change]), workers=1)
    store = tokenize(load(path, ["domains.web.allow_empty_files=true"]), workers=1)
    assert store.domains["web"].documents == 1


@pytest.mark.parametrize("kind", ["text", "encode", "error"])
def test_special_tokens_in_a_text(tmp_path, kind):
    records = [{"text": f"a {EOT} b"}, {"text": "plain"}]
    tokenizer = {"path": "tokenizer.json", "special_tokens": kind}
    write(tmp_path, records)
    path = write_recipe(tmp_path, {"web": {"paths": ["a.jsonl"]}}, tokenizer=tokenizer)
    if kind == "error":
        with pytest.raises(MixcError) as caught:
            tokenize(load(path), workers=1)
        assert caught.value.code == "MX032"
        skip = ["domains.web.on_bad_record=skip"]
        assert rows(tokenize(load(path, skip), workers=1)) == [1]
        return
    store = tokenize(load(path), workers=1)
    (documents,) = store.documents("web")
    tokens = documents.tokens[: documents.offsets[1]].tolist()
    assert tokens.count(store.eot_id) == (2 if kind == "encode" else 1)
    assert verify(store.root).documents == 2


def test_values_are_compared_as_text():
    assert [rules.as_text(one) for one in ("en", True, 5)] == ["en", "true", "5"]


def test_a_split_may_not_be_called_like_a_file_of_the_store(tmp_path):
    write(tmp_path, [{"text": "t", "kind": "json"}])
    domains = {"manifest": {"paths": ["a.jsonl"], "split_by": "kind"}}
    with pytest.raises(MixcError) as caught:
        tokenize(load(write_recipe(tmp_path, domains)), workers=1)
    assert caught.value.code == "MX049"


def test_what_was_allowed_to_be_empty_is_no_longer(tmp_path):
    write(tmp_path, [{"text": "x"}], "b.jsonl")
    (tmp_path / "a.jsonl").write_bytes(b"")
    path = write_recipe(tmp_path, {"web": {"paths": ["*.jsonl"]}})
    tokenize(load(path, ["domains.web.allow_empty_files=true"]), workers=1)
    with pytest.raises(MixcError) as caught:
        tokenize(load(path), workers=1)
    assert (caught.value.code, str(caught.value.place)) == ("MX028", "a.jsonl")


def test_a_name_that_changes_how_a_file_is_read_is_read_again(tmp_path):
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"text\tid\none\t1\ntwo\t2\n"))
    path = write_recipe(tmp_path, {"web": {"paths": ["a.*"], "on_bad_record": "skip"}})
    with pytest.raises(MixcError):  # one column, of another name
        tokenize(load(path), workers=1)
    (tmp_path / "a.csv.gz").rename(tmp_path / "a.tsv.gz")
    assert rows(tokenize(load(path), workers=1)) == [0, 1]


def test_the_quarantine_names_files_as_they_are_called_now(tmp_path):
    write(tmp_path, [{"text": "x"}, b"{"])
    path = write_recipe(tmp_path, {"web": {"paths": ["*.jsonl"], "on_bad_record": "skip"}})
    tokenize(load(path), workers=1)
    (tmp_path / "a.jsonl").rename(tmp_path / "z.jsonl")
    store = tokenize(load(path), workers=1)
    (name,) = inspect(store.root)["sources"]["web"]["quarantine"]
    assert json.loads((store.root / name).read_text())["file"] == "z.jsonl"
