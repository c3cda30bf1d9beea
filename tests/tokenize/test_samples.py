"""Samples of a run's work, from the workers that stage them to the reference that judges them."""

import json

import numpy as np
import pytest
from helpers import texts, tokenizer_json, write_jsonl, write_recipe
from hypothesis import given, settings
from hypothesis import strategies as st

from mixc.inspect import inspect
from mixc.recipe import load
from mixc.store.hashes import check_file
from mixc.tokenize import encoder, samples, stage, trial, verdicts
from mixc.tokenize.encoder import EngineMismatch, describe
from mixc.tokenize.samples import Samples, Verifier
from mixc.tokenize.stage import tokenize

MARK = "zebra"


@pytest.fixture
def doubtful(monkeypatch):
    """A reference that has other ids than any engine for texts with the mark, in this process."""
    real = encoder.load_engine

    class Doubtful:
        name = "tokenizers"

        def __init__(self, inner):
            self._inner = inner
            self.vocabulary = inner.vocabulary

        def encode(self, batch):
            return self._inner.encode([text.replace(MARK, "gnu") for text in batch])

    def load_doubtful(name, raw, mode):
        found = real(name, raw, mode)
        return Doubtful(found) if name == "tokenizers" else found

    monkeypatch.setattr(encoder, "load_engine", load_doubtful)
    monkeypatch.setattr(trial, "head_bytes", lambda size: 0)
    monkeypatch.setattr("mixc.tokenize.units._BUNDLE_FILES", 1)
    encoder.load_once.cache_clear()
    yield
    encoder.load_once.cache_clear()


def recipe(folder, engine="auto", verify=1.0):
    for name in "abcdef":
        corpus = texts(ord(name), 60)
        if name == "c":
            corpus[30] = f"a {MARK} among them"
        write_jsonl(folder / f"data/{name}.jsonl", corpus)
    tokenizer = {"path": "tokenizer.json", "engine": engine, "verify": verify}
    return load(write_recipe(folder, {"web": {"paths": ["data/*"]}}, tokenizer=tokenizer))


class KilledError(Exception):
    """Stands for the end of the process."""


def killed(*_):
    raise KilledError


def killed_before_samples_are_compared(recipe, monkeypatch):
    """All units are staged; the run ends there."""
    with monkeypatch.context() as patch:
        patch.setattr(samples.Verifier, "submit", lambda *_: None)
        patch.setattr(samples.Verifier, "finish", killed)
        with pytest.raises(KilledError):
            tokenize(recipe, workers=1)


def engine_names(store):
    return [one.partition(" ")[0] for one in inspect(store.root)["sources"]["web"]["engines"]]


def tokens(store):
    return sorted(path.name for path in store.root.rglob("web/*.arrow"))


@pytest.mark.parametrize("workers", [1, 3])
def test_a_mismatch_of_a_worker_is_found_and_its_engine_dropped(
    tmp_path, doubtful, capsys, workers
):
    store = tokenize(recipe(tmp_path), workers=workers)
    said = capsys.readouterr().err
    assert "fastokens" in said
    assert "it is dropped" in said
    assert "fastokens" not in engine_names(store)
    (kept,) = (tmp_path / "out/.mixc/store/engines").glob("fastokens-*.json")
    assert json.loads(kept.read_text())["mismatch"]["text"] == f"a {MARK} among them"


def test_what_was_staged_before_a_kill_is_verified_by_the_next_run(tmp_path, monkeypatch, capsys):
    killed_before_samples_are_compared(recipe(tmp_path), monkeypatch)
    staged = {path: path.stat().st_ino for path in (tmp_path / "out").rglob("sample-*")}
    assert len(staged) >= 1
    judged = []
    monkeypatch.setattr(
        samples.Verifier,
        "_compared",
        lambda _, folder, one: judged.append(folder / one.path) and None,
    )
    store = tokenize(recipe(tmp_path), workers=1)
    assert set(judged) == set(staged)
    assert inspect(store.root)["sources"]["web"]["verified_documents"] == 360


@pytest.mark.parametrize("damage", ["bit", "missing"])
def test_a_unit_whose_samples_are_damaged_is_made_again(tmp_path, monkeypatch, damage):
    killed_before_samples_are_compared(recipe(tmp_path), monkeypatch)
    sample = min((tmp_path / "out").rglob("sample-*"))
    raw = sample.read_bytes()
    sample.unlink()
    if damage == "bit":
        sample.write_bytes(bytes([raw[0] ^ 1]) + raw[1:])
    store = tokenize(recipe(tmp_path), workers=1)
    right = tokenize(recipe(tmp_path / "right"), workers=1)
    assert tokens(store) == tokens(right)
    assert (store.root / "manifest.json").read_bytes() == (
        right.root / "manifest.json"
    ).read_bytes()


@pytest.mark.parametrize("engine", ["auto", "tokenizers"])
def test_work_that_nobody_compared_is_not_laid_to_another_engine(
    tmp_path, monkeypatch, capsys, engine
):
    """A version that errs is killed before it is found out; another version goes on, or none."""
    real = encoder.load_engine

    class Errs:
        name = "fastokens"

        def __init__(self, inner):
            self._inner = inner

        def encode(self, batch):
            ids, lengths = self._inner.encode(batch)
            return ids ^ 1 if any(MARK in text for text in batch) else ids, lengths

    with monkeypatch.context() as patch:
        patch.setattr(
            encoder,
            "load_engine",
            lambda name, *a: (Errs if name == "fastokens" else (lambda e: e))(real(name, *a)),
        )
        patch.setattr(trial, "head_bytes", lambda size: 0)
        patch.setattr(verdicts, "version_of", lambda name: "0.0.1")
        encoder.load_once.cache_clear()
        killed_before_samples_are_compared(recipe(tmp_path), monkeypatch)
    encoder.load_once.cache_clear()
    store = tokenize(recipe(tmp_path, engine=engine), workers=1)
    assert engine_names(store) == ["tokenizers" if engine == "tokenizers" else "fastokens"]
    assert "other ids" not in capsys.readouterr().err
    right = tokenize(recipe(tmp_path / "right", engine="tokenizers"), workers=1)
    assert tokens(store) == tokens(right)


def test_samples_that_passed_take_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "write_tree", killed)
    with pytest.raises(KilledError):
        tokenize(recipe(tmp_path), workers=1)
    assert list((tmp_path / "out").rglob("unit.json"))
    assert not list((tmp_path / "out").rglob("sample-*"))


TEXTS = st.lists(st.text(st.characters(codec="utf-8"), max_size=40), max_size=30)


@settings(max_examples=60)
@given(batch=TEXTS, wrong=st.integers(0, 60), piece=st.integers(1, 100))
def test_what_is_staged_is_what_is_compared(tmp_path_factory, batch, wrong, piece):
    """Whatever the pieces, each text is compared once, with its own ids."""
    file = describe(tokenizer_json(), eot=None, special_tokens="text", source="t", key="k")
    reference, folder = file.engine("tokenizers"), tmp_path_factory.mktemp("samples")
    made = Samples(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "_PIECE_BYTES", piece)
        for number, text in enumerate(batch):
            ids = reference.encode([text])[0]
            made.add(
                text, np.append(ids, np.uint32(1)) if number == wrong else ids, len(text.encode())
            )
        files = made.write()
    assert not any(check_file(folder, one, rehash=True) for one in files)
    assert (made.documents, made.bytes) == (len(batch), sum(len(t.encode()) for t in batch))
    with Verifier(file, "some", 2) as verifier:
        passed = []
        if wrong >= len(batch):
            verifier.submit(folder, files, lambda: passed.append(True))
            verifier.finish()
            assert passed == [True] * bool(files)
            return
        with pytest.raises(EngineMismatch) as caught:
            verifier.submit(folder, files, lambda: passed.append(True))
            verifier.finish()
        assert not passed
    assert caught.value.mismatch.text == batch[wrong]
    assert caught.value.mismatch.got == [*caught.value.mismatch.expected, 1]
