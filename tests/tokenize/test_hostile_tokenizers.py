"""A tokenizer.json is untrusted: whatever it holds, a run ends with an error of ours, or right."""

import json
import os
import subprocess
import sys

import pytest
from helpers import EOT, texts, tokenizer_json, write_recipe

from mixc.errors import MixcError
from mixc.recipe import load
from mixc.tokenize import encoder
from mixc.tokenize.engines import PREFERENCE, Refused
from mixc.tokenize.stage import tokenize


def changed(**parts):
    """The tiny tokenizer with other parts; those of the model are merged into it."""
    data = json.loads(tokenizer_json())
    model = {**data["model"], **parts.pop("model", {})}
    return json.dumps({**data, "model": model, **parts}).encode()


def with_id(number):
    """The tiny tokenizer with a hole in its ids, up to `number`."""
    vocab = json.loads(tokenizer_json())["model"]["vocab"]
    return changed(model={"vocab": {**vocab, "zzz": number}})


def describe(raw):
    return encoder.describe(raw, eot=None, special_tokens="text", source="t.json", key="")


def nested(depth):
    inner = '{"type":"Lowercase"}'
    text = '{"type":"Sequence","normalizers":[' * depth + inner + "]}" * depth
    return changed().replace(b'"normalizer": null', b'"normalizer": ' + text.encode())


SPECIAL = json.loads(tokenizer_json())["added_tokens"][0]
REFUSED = {
    "an id of 2^22": with_id(1 << 22),
    "an id of 2^31": with_id(1 << 31),
    "an id of 2^32": with_id(1 << 32),
    "an id of 2^64": with_id(1 << 64),
    "a negative id": with_id(-1),
    "an id that is no integer": with_id(0.5),
    "no vocabulary": changed(model={"vocab": {}, "merges": []}, added_tokens=[]),
    "no end of text": tokenizer_json().replace(EOT.encode(), b"<|other|>"),
    "a merge of what is no token": changed(model={"merges": [["zz", "yy"]]}),
    "a merge of three": changed(model={"merges": ["a b c"]}),
    "an expression that is none": changed(
        normalizer={"type": "Replace", "pattern": {"Regex": "("}, "content": ""}
    ),
    "added tokens that are none": changed(added_tokens=5),
    "an added token that is none": changed(added_tokens=[SPECIAL, {"id": 3}]),
    "a normalizer in itself": nested(3000),
    "a normalizer of no kind": changed(normalizer={"type": "Shell", "command": "true"}),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_used(what):
    with pytest.raises(MixcError) as caught:
        describe(REFUSED[what])
    assert caught.value.code == "MX030"
    assert caught.value.place.file == "t.json"


def test_holes_are_borne_up_to_a_bound():
    """Engines hold a table of all ids: a file of kilobytes must not make them ask for gigabytes."""
    file = describe(with_id((1 << 20) - 1))
    assert file.vocab_size == 1 << 20
    for name in PREFERENCE:
        try:
            engine = file.engine(name)
        except Refused:
            continue
        ids, _ = engine.encode(["the quick brown fox"])
        assert ids.max() < 400


def test_a_token_that_is_added_under_an_id_of_its_own_wish():
    """The library numbers such tokens itself; what counts is the id that it gives."""
    raw = changed(added_tokens=[SPECIAL, {**SPECIAL, "content": "<x>", "id": 4_000_000_000}])
    assert describe(raw).vocab_size < 1000


def test_the_file_has_a_cap(monkeypatch):
    monkeypatch.setattr(encoder, "MAX_FILE_BYTES", len(tokenizer_json()))
    assert describe(tokenizer_json()).vocab_size == 320
    with pytest.raises(MixcError, match="bytes long"):
        describe(tokenizer_json() + b" ")


def fails(path):
    """The error of a run in a process of its own, which must end by itself."""
    command = [sys.executable, "-m", "mixc", "tokenize", str(path), "--json", "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr
    (error,) = json.loads(done.stdout)["errors"]
    assert not (path.parent / "out/store").exists()
    return error["code"], error["message"]


def test_what_is_no_file_or_a_huge_one_is_not_read(tmp_path):
    path = write_recipe(tmp_path, {"web": texts(1, 9)})
    file = tmp_path / "tokenizer.json"
    file.unlink()
    os.mkfifo(file)  # to open it would wait for a writer
    assert fails(path) == ("MX030", "cannot read the tokenizer: not a regular file")
    file.unlink()
    file.touch()
    os.truncate(file, 1 << 40)  # to read it would take all memory
    with pytest.raises(MixcError, match="it is over 268435456 bytes long"):
        tokenize(load(path), workers=1)
    file.unlink()
    file.symlink_to("/dev/zero")
    with pytest.raises(MixcError, match="not a regular file"):
        tokenize(load(path), workers=1)


@pytest.mark.parametrize("engine", ["auto", "tokenizers"])
def test_an_expression_that_takes_for_ever_is_given_up(tmp_path, engine):
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    raw = changed(pre_tokenizer={**split, "pattern": {"Regex": "(a+)+$"}})
    (tmp_path / "tokenizer.json").write_bytes(raw)
    documents = [*texts(1, 20), "a" * 60 + "!"]
    path = write_recipe(
        tmp_path, {"web": documents}, tokenizer={"path": "tokenizer.json", "engine": engine}
    )
    code, message = fails(path)
    assert code == "MX030"
    assert message.startswith("the tokenizer gave up on a text: ")
