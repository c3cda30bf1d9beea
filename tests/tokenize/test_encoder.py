import json

import numpy as np
import pytest
import xxhash
from helpers import EOT, texts, tokenizer_json, word_tokenizer_json
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from mixc.errors import MixcError
from mixc.tokenize.encoder import Encoder, Trust, describe


def describe_(raw, eot=None, special_tokens="text"):
    return describe(raw, eot=eot, special_tokens=special_tokens, source="t.json", key="k")


def encode(file, batch, engine="tokenizers", share=0.0):
    encoder = Encoder(file, Trust(engine, "?", share))
    ids = np.array([xxhash.xxh3_64_intdigest(text.encode()) for text in batch], np.uint64)
    sizes = np.array([len(text.encode()) for text in batch], np.uint32)
    return encoder.encode(batch, ids, sizes)


def reference(raw, text):
    """What `tokenizers` itself gives, special tokens read as the text that they are."""
    tokenizer = Tokenizer.from_str(raw.decode())
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer.encode(text, add_special_tokens=False).ids


SPECIAL = st.sampled_from([EOT, "<|", "endoftext", "|>", " ", "\n", "the quick", "漢字", "\0"])


@given(batch=st.lists(st.lists(SPECIAL | st.text(st.characters(codec="utf-8"))).map("".join)))
def test_tokens_are_those_of_the_reference_engine(batch):
    raw = tokenizer_json()
    file = describe_(raw)
    tokens, lengths = encode(file, batch)
    expected = [[*reference(raw, text), file.eot_id] for text in batch]
    assert tokens.tolist() == [token for one in expected for token in one]
    assert lengths.tolist() == [len(one) for one in expected]
    assert tokens.dtype == np.uint16
    # The end of text stands at the end of each text, and nowhere else.
    ends = np.cumsum(lengths) - 1
    assert np.flatnonzero(tokens == file.eot_id).tolist() == ends.tolist()
    # Nothing is lost.
    tokenizer = Tokenizer.from_str(raw.decode())
    for one, text in zip(expected, batch, strict=True):
        assert tokenizer.decode(one[:-1], skip_special_tokens=False) == text


def test_what_the_file_would_add_or_cut_is_neither_added_nor_cut():
    """A template, padding and truncation are for models, not for corpora."""
    data = json.loads(tokenizer_json())
    data["truncation"] = {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    data["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": EOT,
    }
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": EOT, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {EOT: {"id": EOT, "ids": [0], "tokens": [EOT]}},
    }
    batch = texts(5, 20)
    changed = encode(describe_(json.dumps(data).encode()), batch)
    plain = encode(describe_(tokenizer_json()), batch)
    assert np.array_equal(changed[0], plain[0])
    assert np.array_equal(changed[1], plain[1])


@pytest.mark.parametrize(
    ("size", "dtype"), [(65535, "uint16"), (65536, "uint16"), (65537, "uint32")]
)
def test_the_greatest_id_fits(size, dtype):
    """numpy would wrap it in silence."""
    file = describe_(word_tokenizer_json([f"w{i}" for i in range(size - 1)]))
    assert (file.vocab_size, file.eot_id) == (size, size - 1)
    tokens, _ = encode(file, [f"w1 w{size - 2} w255"])
    assert tokens.dtype == np.dtype(dtype)
    assert tokens.tolist() == [1, size - 2, 255, size - 1]


def test_a_vocabulary_with_holes_counts_to_its_greatest_id():
    data = json.loads(word_tokenizer_json(["?", "a"]))
    data["model"]["vocab"] |= {EOT: 70_000}
    data["added_tokens"][0]["id"] = 70_000
    file = describe_(json.dumps(data).encode())
    assert (file.vocab_size, file.eot_id) == (70_001, 70_000)
    assert encode(file, ["a"])[0].tolist() == [1, 70_000]


@pytest.mark.parametrize(
    ("words", "eot", "expected"),
    [
        (["a", "</s>"], None, EOT),  # the most particular of the known names
        (["a", "</s>"], "</s>", "</s>"),
        (["a", "b"], "b", "b"),
    ],
)
def test_the_end_of_text(words, eot, expected):
    file = describe_(word_tokenizer_json(words), eot)
    assert (file.eot, file.eot_id) == (expected, [*words, EOT].index(expected))


@pytest.mark.parametrize("name", ["<|end_of_text|>", "<eos>", "</s>", "[SEP]"])
def test_known_names_of_the_end_of_text(name):
    assert describe_(word_tokenizer_json(["a"], eot=name)).eot == name


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b'{"model": {}}',
        b"[" * 100_000,
        tokenizer_json()[:-5],
        tokenizer_json().replace(b'"type":"BPE"', b'"type":"NoSuchModel"'),
        tokenizer_json().replace(b'{"<|endoftext|>":0,', b'{"<|endoftext|>":-1,'),
        tokenizer_json().replace(b'{"<|endoftext|>":0,', b'{"<|endoftext|>":4294967296,'),
    ],
)
def test_what_is_no_tokenizer(raw):
    with pytest.raises(MixcError) as caught:
        describe_(raw)
    assert caught.value.code == "MX030"
    assert caught.value.place.file == "t.json"
    assert caught.value.message.startswith("the tokenizer cannot be used: ")
