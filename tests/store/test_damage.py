"""Damage to a store is found, and the file named."""

import pytest
from build_helpers import mixc
from helpers import word_tokenizer_json, write_jsonl, write_recipe

from mixc.errors import MixcError
from mixc.recipe import load
from mixc.store.store import open_store
from mixc.tokenize.stage import tokenize
from mixc.verify import verify


def with_a_bad_record(folder, **others):
    """A recipe of two documents and a bad record, which goes into quarantine, and of others."""
    write_jsonl(folder / "a.jsonl", ["first", "", "second"])
    return write_recipe(folder, {"a": {"paths": ["a.jsonl"], "on_bad_record": "skip"}, **others})


def test_every_flipped_byte_of_a_store_is_found_and_named(tmp_path):
    """Exhaustive: each byte of every file, one bit of it."""
    (tmp_path / "tokenizer.json").write_bytes(word_tokenizer_json(["?", "first"]))
    root = tokenize(load(with_a_bad_record(tmp_path, b=["third"])), workers=1).root
    files = sorted(p for p in root.rglob("*") if p.is_file())
    assert len(files) == 6
    assert verify(root).files == 5
    for file in files:
        whole = file.read_bytes()
        for position in range(len(whole)):
            changed = bytearray(whole)
            changed[position] ^= 1 << (position * 7 + 3) % 8
            file.write_bytes(changed)
            with pytest.raises(MixcError) as caught:
                verify(root)
            assert (caught.value.code, caught.value.exit_code) == ("MX040", 3)
            assert caught.value.place.file == str(file)
        file.write_bytes(whole)
    assert verify(root).documents == 3


def test_cut_and_missing_files_are_found_and_named(tmp_path):
    root = tokenize(load(with_a_bad_record(tmp_path)), workers=1).root
    assert any(root.glob("a/*.bad.jsonl"))
    for file in sorted(p for p in root.rglob("*") if p.is_file()):
        whole = file.read_bytes()
        for length in [None, *range(0, len(whole), 1 if len(whole) < 3000 else 97)]:
            file.unlink(missing_ok=True)
            if length is not None:
                file.write_bytes(whole[:length])
            with pytest.raises(MixcError) as caught:
                verify(root)
            if length is None and file.name == "manifest.json":
                assert caught.value.code == "MX070"
                continue
            assert caught.value.code == "MX040"
            assert caught.value.place.file == str(file)
            if file.name != "manifest.json":
                with pytest.raises(MixcError):
                    open_store(root).check_sizes()
        file.write_bytes(whole)


def test_all_damage_is_told_at_once(tmp_path):
    path = write_recipe(tmp_path, {"a": ["first", "second"], "b": ["third"]})
    root = tokenize(load(path), workers=1).root
    shards = sorted(root.rglob("?/*.arrow"))
    for shard in shards:
        shard.unlink()
    found = mixc("verify", root)
    assert found.returncode == 3
    for shard in shards:
        assert f"error[MX040]: a file of the manifest is missing\n --> {shard}" in found.stderr
