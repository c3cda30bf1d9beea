"""Engines against the reference, on tokenizers trained here and, where they are, on real ones."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from helpers import EOT, texts, tokenizer_json, word_tokenizer_json
from hypothesis import given, settings
from hypothesis import strategies as st

from mixc.tokenize.adversarial import pack, wide_pack
from mixc.tokenize.engines import PREFERENCE, Refused, load_engine

FAST = ("fastokens", "gigatoken")
MODES = ("text", "encode")
REAL = ("gpt2", "llama2", "llama3", "qwen3", "gpt4o")
# Where an engine is known to be wrong: a newer table of numbers, long s in a contraction.
WRONG = {("gigatoken", "llama3"), ("fastokens", "gpt4o")}
WORD = "<tool>"  # an added token that is not special


@cache
def real(name):
    folder = os.environ.get("MIXC_TOKENIZERS")
    path = Path(folder or "", f"{name}.json")
    if not folder or not path.exists():
        pytest.skip(f"MIXC_TOKENIZERS names no folder with {path.name}")
    return path.read_bytes()


@cache
def trained(kind="bytes"):
    """A tokenizer.json with a special added token and one that is not special."""
    from tokenizers import AddedToken, Regex, Tokenizer, normalizers
    from tokenizers import pre_tokenizers as pre

    tokenizer = Tokenizer.from_str(tokenizer_json(1000).decode())
    if kind == "split":
        pattern = Regex(r"'s|\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
        split = pre.Split(pattern, "isolated")
        tokenizer.pre_tokenizer = pre.Sequence(
            [split, pre.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    if kind == "nfc":
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC()])
    tokenizer.add_tokens([AddedToken(WORD, special=False, normalized=False)])
    return tokenizer.to_str().encode()


@cache
def load(name, raw, mode="text"):
    """An engine; the test is skipped where its package is missing."""
    try:
        return load_engine(name, raw, mode)
    except Refused as refused:
        if "not installed" in str(refused):
            pytest.skip(str(refused))
        raise


def specials(raw):
    return [one["content"] for one in json.loads(raw)["added_tokens"]]


def listed(encoded):
    ids, lengths = encoded
    assert ids.dtype == np.uint32
    assert lengths.dtype == np.int64
    assert lengths.sum() == len(ids)
    return (
        [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])] if len(lengths) else []
    )


def differing(name, raw, mode, batch):
    got, expected = (listed(load(one, raw, mode).encode(batch)) for one in (name, "tokenizers"))
    assert len(got) == len(expected) == len(batch)
    return [text[:60] for text, a, b in zip(batch, got, expected, strict=True) if a != b]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["bytes", "split", "nfc"])
@pytest.mark.parametrize("name", FAST)
def test_hard_texts(name, kind, mode):
    raw = trained(kind)
    if (name, kind) == ("gigatoken", "nfc"):
        load("gigatoken", trained())
        with pytest.raises(Refused, match="combining marks"):
            load_engine(name, raw, mode)
        return
    try:
        engine = load(name, raw, mode)
    except Refused:
        assert name == "gigatoken"  # knows but the patterns of well-known tokenizers
        return
    assert engine.name == name
    assert not differing(name, raw, mode, pack(specials(raw)))


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", REAL)
@pytest.mark.parametrize("name", FAST)
def test_hard_texts_for_real_tokenizers(name, tokenizer):
    raw = real(tokenizer)
    if (name, tokenizer) == ("gigatoken", "qwen3"):
        pytest.skip("gigatoken is not used with NFC")
    bad = differing(name, raw, "text", wide_pack(specials(raw)))
    assert bool(bad) == ((name, tokenizer) in WRONG), bad[:5]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tokenizer", REAL)
@pytest.mark.parametrize("name", FAST)
def test_the_pack_finds_what_is_wrong(name, tokenizer, mode):
    raw = real(tokenizer)
    if (name, tokenizer) == ("gigatoken", "qwen3"):
        pytest.skip("gigatoken is not used with NFC")
    bad = differing(name, raw, mode, pack(specials(raw)))
    assert bool(bad) == ((name, tokenizer) in WRONG), bad[:5]


@pytest.mark.parametrize("name", PREFERENCE)
def test_special_strings_are_text_or_ids(name):
    raw = trained()
    ids = {one["content"]: one["id"] for one in json.loads(raw)["added_tokens"]}
    batch = [f"a{EOT}b", EOT, EOT + EOT, f"{EOT[:-1]} >", f"x {WORD} y", WORD]
    as_text = listed(load(name, raw, "text").encode(batch))
    as_ids = listed(load(name, raw, "encode").encode(batch))
    assert all(ids[EOT] not in one for one in as_text)
    assert [one.count(ids[EOT]) for one in as_ids] == [1, 1, 2, 0, 0, 0]
    # What is not special is an id either way.
    assert [one.count(ids[WORD]) for one in as_text] == [0, 0, 0, 0, 1, 1]
    assert [one.count(ids[WORD]) for one in as_ids] == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("name", PREFERENCE)
@pytest.mark.parametrize("batch", [[], [""], ["", ""], ["", "a", ""], ["a"] * 5000, [EOT, WORD]])
def test_odd_batches(name, batch):
    got = listed(load(name, trained()).encode(batch))
    assert got == listed(load("tokenizers", trained()).encode(batch))
    assert [len(one) == 0 for one in got] == [text == "" for text in batch]


@pytest.mark.parametrize("name", PREFERENCE)
def test_what_the_file_would_add_or_cut_is_neither_added_nor_cut(name):
    plain = trained()
    data = json.loads(plain)
    end = {"id": EOT, "type_id": 0}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    data |= {
        "truncation": {
            "direction": "Right",
            "max_length": 2,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        "padding": {
            "strategy": {"Fixed": 64},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": EOT,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": end}, text],
            "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {EOT: {"id": EOT, "ids": [0], "tokens": [EOT]}},
        },
    }
    batch = texts(5, 20)
    changed = load(name, json.dumps(data).encode()).encode(batch)
    assert listed(changed) == listed(load(name, plain).encode(batch))


@pytest.mark.parametrize("name", PREFERENCE)
@settings(max_examples=60, deadline=None)
@given(
    batch=st.lists(
        st.lists(
            st.sampled_from([EOT, WORD, "<|", " ", "\n", "e\u0301", "the quick", "'s", "\0"])
            | st.text(st.characters(codec="utf-8"))
        ).map("".join)
    )
)
def test_ids_are_those_of_the_reference(name, batch):
    for mode in MODES:
        assert not differing(name, trained(), mode, batch)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        tokenizer_json()[:-5],
        tokenizer_json().replace(b'"type":"BPE"', b'"type":"NoSuchModel"'),
    ],
)
@pytest.mark.parametrize("name", PREFERENCE)
def test_what_is_no_tokenizer_is_refused(name, raw):
    with pytest.raises(Refused):
        load_engine(name, raw, "text")


@pytest.mark.parametrize("model", ["WordLevel", "Unigram"])
@pytest.mark.parametrize("name", FAST)
def test_models_of_words_are_refused_or_right(name, model):
    raw = word_tokenizer_json(["?", "a", "b", "c"], model=model)
    try:
        load(name, raw)
    except Refused:
        return
    assert not differing(name, raw, "text", ["a b c", "", "a  x c\n", "abc"])


def test_vocabularies_with_holes():
    """Some files give added tokens ids beyond a gap, and list them in the vocabulary too."""
    data = json.loads(tokenizer_json())
    vocab = data["model"]["vocab"]
    data["model"]["vocab"] = {word: vocab[word] - 1 for word in vocab if word != EOT} | {EOT: 5000}
    data["added_tokens"][0]["id"] = 5000
    raw = json.dumps(data).encode()
    for name in FAST:
        assert not differing(name, raw, "text", pack([EOT]))
        assert not differing(name, raw, "encode", pack([EOT]))


def test_a_missing_package(monkeypatch):
    for name in FAST:
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(Refused, match=f"{name} is not installed"):
            load_engine(name, tokenizer_json(), "text")


def alone(code, name, tmp_path, *arguments):
    """What a program prints that is handed an engine's name and a tokenizer file."""
    load(name, trained())
    path = tmp_path / "tokenizer.json"
    path.write_bytes(trained())
    command = [sys.executable, "-c", code, name, str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


GROWTH = """
import sys
import numpy as np
from pathlib import Path
from mixc.tokenize.engines import load_engine
name, path, megabytes = sys.argv[1:]
engine = load_engine(name, Path(path).read_bytes(), "text")
rng = np.random.default_rng(0)
def feed(megabytes):
    for _ in range(megabytes):
        letters = rng.integers(97, 123, 1 << 20, dtype=np.uint8)
        letters[rng.random(1 << 20) < 0.12] = 32
        text = letters.tobytes().decode()
        engine.encode([text[i : i + 5000] for i in range(0, len(text), 5000)])
        yield int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20
levels = list(feed(int(megabytes)))
print(max(levels[: len(levels) // 3]), max(levels))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("name", PREFERENCE)
def test_memory_stays_flat_over_words_never_seen_before(name, tmp_path):
    # Without a bound gigatoken grows by some 9 MB for each of these, fastokens by 8.
    megabytes = "3" if name == "tokenizers" else "48"
    early, late = map(int, alone(GROWTH, name, tmp_path, megabytes).split())
    assert late - early < 150


THREADS = """
import sys
from pathlib import Path
from mixc.tokenize.engines import load_engine
threads = lambda: {task: (task / "comm").read_text() for task in Path("/proc/self/task").iterdir()}
before = threads()
engine = load_engine(sys.argv[1], Path(sys.argv[2]).read_bytes(), "text")
engine.encode(["the quick brown fox jumps over %d dogs " % i * 100 for i in range(300)])
print("".join(name for task, name in threads().items() if task not in before))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
@pytest.mark.parametrize("name", PREFERENCE)
def test_one_engine_runs_on_one_core(name, tmp_path):
    """It starts no threads that share the work; fastokens encodes on one, and waits for it."""
    started = alone(THREADS, name, tmp_path).split()
    own = [one for one in started if one != "jemalloc_bg_thd"]  # that one is the allocator's
    assert len(own) == (name == "fastokens")
