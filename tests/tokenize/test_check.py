"""The verification of engines, and the sampler of documents."""

import json
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from helpers import EOT, texts, tokenizer_json
from hypothesis import given, settings
from hypothesis import strategies as st

from mixc.tokenize.adversarial import pack, wide_pack
from mixc.tokenize.check import (
    LONG_BYTES,
    STRETCH_CHARS,
    Sampler,
    compare,
    cpu_features,
    differing,
    stretch,
    trials,
    verify_engine,
)
from mixc.tokenize.engines import Failed, load_engine


class Double:
    """The reference, but for what `change` makes of the ids of a text."""

    name = "double"

    def __init__(self, change):
        self.inner = load_engine("tokenizers", tokenizer_json(), "text")
        self.change = change

    def encode(self, batch):
        ids, lengths = self.inner.encode(batch)
        parts = np.split(ids, np.cumsum(lengths)[:-1]) if batch else []
        parts = [self.change(text, part, batch) for text, part in zip(batch, parts, strict=True)]
        whole = np.concatenate([np.empty(0, np.uint32), *parts])
        return whole, np.array([len(part) for part in parts], np.int64)


@pytest.fixture(scope="module")
def reference():
    return load_engine("tokenizers", tokenizer_json(), "text")


def tried(engine, reference, specials, heads):
    """The first mismatch of a whole trial."""
    found = (
        verify_engine(engine, texts, reference.encode(texts)) for texts in trials(specials, heads)
    )
    return next((mismatch for mismatch in found if mismatch), None)


def right(text, ids, batch):
    return ids


def wrong_id(text, ids, batch):
    return np.where(np.arange(len(ids)) == len(ids) - 1, ids + 1, ids) if "fox" in text else ids


def failing(text, ids, batch):
    if "fox" in text:
        raise Failed("too deep")
    return ids


def test_equal_engines(reference):
    assert compare(Double(right), texts(1, 50), reference.encode(texts(1, 50))) is None
    assert compare(Double(right), [], reference.encode([])) is None
    assert tried(Double(right), reference, [EOT], texts(1, 50)) is None


@pytest.mark.parametrize("change", [wrong_id, failing])
def test_the_first_wrong_text_is_told(reference, change):
    batch = ["good", "", "a fox", "another fox"]
    found = compare(Double(change), batch, reference.encode(batch))
    assert (found.engine, found.text) == ("double", "a fox")
    assert found.expected == reference.encode(["a fox"])[0].tolist()
    assert found.got != found.expected
    assert ("too deep" in found.error) == (change is failing)
    told = json.loads(json.dumps(found.as_dict()))
    assert told["got"] == found.got
    assert told["first_difference"] == (0 if change is failing else len(found.expected) - 1)
    assert "fox" in tried(Double(change), reference, [], []).text


def test_the_heads_of_domains_are_checked(reference):
    def weak(text, ids, batch):
        return ids[:-1] if "xyzzy" in text else ids

    heads = [*texts(1, 50), "say xyzzy", *texts(2, 50)]
    assert tried(Double(weak), reference, [EOT], heads).text == "say xyzzy"


def test_ids_of_a_run_are_compared(reference):
    batch = ["a fox", "b"]
    expected = reference.encode(batch)
    assert differing("double", batch, expected, expected) is None
    assert differing("double", batch, Double(wrong_id).encode(batch), expected).text == "a fox"
    short = reference.encode(batch[:1])
    assert "came back" in differing("double", batch, short, expected).error


def test_a_border_at_the_wrong_place(reference):
    ids, lengths = reference.encode(["a b", "b"])
    moved = ids, lengths + np.array([-1, 1])
    assert differing("double", ["a b", "b"], moved, (ids, lengths)).text == "a b"


@pytest.mark.parametrize(
    "hard",
    ["'\u017f", "e\u0301", "\u1100\u1161", EOT, "\r\n", "\0", "\U0001f1e9", "\ue000", "\ufeff"],
)
def test_the_pack_finds_a_weakness(reference, hard):
    def weak(text, ids, batch):
        return ids[:-1] if hard in text else ids

    assert hard in tried(Double(weak), reference, [EOT], []).text


def test_an_engine_that_errs_alone_or_among_others(reference):
    def alone(text, ids, batch):
        return ids[:-1] if len(batch) == 1 and len(text) > 50_000 else ids

    def among(text, ids, batch):
        return ids[:-1] if len(batch) > 1 and len(text) > 50_000 else ids

    assert tried(Double(alone), reference, [EOT], []) is not None
    assert tried(Double(among), reference, [EOT], []) is not None


def test_an_engine_that_remembers(reference):
    """What was encoded before must not matter, in an order or its reverse."""

    class Remembers(Double):
        last = ""

        def encode(self, batch):
            found = super().encode(batch)
            wrong = len(batch) == 1 and batch[0][:4096] == self.last[:4096] != ""
            self.last = batch[-1] if len(batch[-1]) >= 4096 else ""
            return (found[0] + np.uint32(wrong), found[1])

    assert tried(Remembers(right), reference, [EOT], []) is not None


def test_packs_are_the_same_in_every_run():
    code = (
        "import hashlib; from mixc.tokenize.adversarial import pack;"
        "print(hashlib.sha256(repr(pack(['<s>', '<|x|>'])).encode()).hexdigest())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] != ""


@pytest.mark.parametrize("build", [pack, wide_pack])
def test_packs_are_utf8_of_many_kinds(build):
    made = build([EOT, "<s>"])
    joined = "".join(made)
    joined.encode()  # no surrogate among them
    assert "" in made
    assert any(EOT in text for text in made)
    assert len(set(joined)) > 5000
    assert max(map(len, made)) > (900_000 if build is wide_pack else 50_000)
    if build is pack:
        assert len(joined.encode()) < 1_000_000


WORDS = st.sampled_from(
    ["plain text", EOT, "cafe\u0301", "na\u00efve", "\u6f22", " ", "\U0001f600"]
)
DOCUMENTS = st.lists(
    st.tuples(st.lists(WORDS, max_size=8).map("".join), st.integers(1, 500)), max_size=40
)


def arrays(documents):
    made = [text * times for text, times in documents]
    ids = np.array([hash_of(text) for text in made], np.uint64)
    return made, ids, np.array([len(text.encode()) for text in made], np.uint32)


def hash_of(text):
    import xxhash

    return xxhash.xxh3_64_intdigest(text.encode())


@settings(deadline=None)
@given(
    documents=DOCUMENTS,
    cuts=st.lists(st.integers(0, 40)),
    share=st.sampled_from([0.0, 0.002, 0.05, 0.3, 1.0, 2.0]),
    normalizer=st.booleans(),
)
def test_batches_do_not_matter(documents, cuts, share, normalizer):
    made, ids, sizes = arrays(documents)
    whole = Sampler(share, normalizer, (EOT,)).choose(made, ids, sizes)
    assert whole.dtype == np.int64
    assert np.all(np.diff(whole) > 0)
    sampler = Sampler(share, normalizer, (EOT,))
    edges = sorted({0, len(made), *(cut for cut in cuts if cut < len(made))})
    parts = [
        start + sampler.choose(made[start:end], ids[start:end], sizes[start:end])
        for start, end in pairwise(edges)
    ]
    assert np.concatenate([np.empty(0, np.int64), *parts]).tolist() == whole.tolist()
    if share == 0:
        assert not len(whole)
    if share >= 1:
        assert whole.tolist() == list(range(len(made)))


def test_a_share_of_the_bytes_is_drawn():
    sizes = np.tile(np.array([100, 1000, 10_000], np.uint32), 30_000)
    ids = np.arange(len(sizes), dtype=np.uint64)
    chosen = Sampler(0.002, False, ()).choose(["a"] * len(sizes), ids, sizes)
    assert 0.0015 < sizes[chosen].sum() / sizes.sum() < 0.0025


def test_copies_of_a_document_are_not_drawn_together():
    sizes = np.full(50_000, 1000, np.uint32)
    for copy in range(5):
        ids = np.full(50_000, copy, np.uint64)
        chosen = Sampler(0.002, False, ()).choose(["a"] * 50_000, ids, sizes)
        assert 50 < len(chosen) < 170


@pytest.mark.parametrize(
    ("text", "normalizer"), [("e\u0301", False), (f"a{EOT}", False), ("\u212b", True)]
)
def test_risky_documents_are_looked_for_but_bounded(text, normalizer):
    count, share = 40_000, 0.002
    sizes = np.full(count, 1000, np.uint32)
    ids = np.arange(count, dtype=np.uint64)
    plain = Sampler(share, normalizer, (EOT,)).choose(["\u00e9"] * count, ids, sizes)
    risky = Sampler(share, normalizer, (EOT,)).choose([text] * count, ids, sizes)
    extra = set(risky.tolist()) - set(plain.tolist())
    assert set(plain.tolist()) <= set(risky.tolist())
    bound = share * int(sizes.sum()) + (16 << 10)
    assert 0.9 * bound - 1000 < len(extra) * 1000 <= bound


def test_without_a_normalizer_unnormalised_signs_are_plain():
    sizes, ids = np.full(40_000, 1000, np.uint32), np.arange(40_000, dtype=np.uint64)
    angstrom = Sampler(0.002, False, (EOT,)).choose(["\u212b"] * 40_000, ids, sizes)
    plain = Sampler(0.002, False, (EOT,)).choose(["a"] * 40_000, ids, sizes)
    assert angstrom.tolist() == plain.tolist()


def test_long_documents_are_risky_and_a_stretch_of_them_is_enough():
    sizes = np.full(4000, LONG_BYTES, np.uint32)
    ids = np.arange(4000, dtype=np.uint64)
    few = Sampler(0.002, False, ()).choose(["a"] * 4000, ids, sizes)
    more = Sampler(0.002, False, ()).choose(["a"] * 4000, ids, sizes + np.uint32(1))
    assert len(few) < len(more) <= len(few) + 9
    assert len(Sampler(1.0, False, ()).choose(["a"] * 4000, ids, sizes * np.uint32(99))) == 4000


@given(st.integers(0, 2**64 - 1), st.integers(STRETCH_CHARS, 3 * STRETCH_CHARS))
def test_a_stretch_lies_where_the_id_says(doc_id, size):
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 5000))) * (size // 5000 + 1)
    part = stretch(text[:size], doc_id)
    assert len(part) == STRETCH_CHARS
    assert part in text
    assert stretch(text[:size], doc_id) == part


def test_many_special_strings_are_found_by_their_starts():
    many = (*(f"<|reserved_{i}|>" for i in range(300)), "[INST]", "</s>")
    sizes, ids = np.full(40_000, 1000, np.uint32), np.arange(40_000, dtype=np.uint64)
    plain = Sampler(0.002, False, many).choose(["a <b> | c"] * 40_000, ids, sizes)
    for one in many[-3:]:
        found = Sampler(0.002, False, many).choose([f"a {one}"] * 40_000, ids, sizes)
        assert len(found) > len(plain)


def test_features_of_the_machine():
    assert cpu_features() == cpu_features()
    assert len(cpu_features()) < 60
