import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixc.errors import MixcError
from mixc.store.hashes import FileRecord, check_file, check_names, hash_file, key_of, seal, unseal
from mixc.store.store import MANIFEST, SCHEMA, open_store

DATA = {"schema": "mixc.test/1", "text": "ä\n", "list": [1, 2.5, None, True], "map": {"b": 1}}


def code_of(path, schema="mixc.test/1"):
    with pytest.raises(MixcError) as caught:
        unseal(path, schema)
    assert caught.value.place.file == str(path)
    return caught.value.code


def test_a_sealed_manifest_comes_back(tmp_path):
    path = tmp_path / MANIFEST
    path.write_bytes(seal(DATA))
    assert unseal(path, "mixc.test/1") == DATA


@given(data=st.dictionaries(st.text(max_size=5), st.integers() | st.text() | st.none()))
def test_seals_depend_on_the_data_alone(tmp_path_factory, data):
    data["schema"] = "mixc.test/1"
    data.pop("manifest_xxh3", None)
    turned = dict(reversed(list(data.items())))
    assert seal(data) == seal(turned)
    assert key_of(data) == key_of(turned) != key_of({**data, "one": "more"})
    path = tmp_path_factory.mktemp("seal") / MANIFEST
    path.write_bytes(seal(data))
    assert unseal(path, "mixc.test/1") == data


def test_a_manifest_cut_anywhere_is_damaged(tmp_path):
    path, whole = tmp_path / MANIFEST, seal(DATA)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert code_of(path) == "MX040"


def test_every_flipped_bit_of_a_manifest_is_noticed(tmp_path):
    path, whole = tmp_path / MANIFEST, seal(DATA)
    for position in range(len(whole)):
        for bit in range(8):
            changed = bytearray(whole)
            changed[position] ^= 1 << bit
            path.write_bytes(changed)
            assert code_of(path) == "MX040"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"schema": "mixc.test/1"}',
        b'{"manifest_xxh3": "0"}',
        b'{"manifest_xxh3": "0", "schema": "mixc.test/1", "x": NaN}',
        b'{"manifest_xxh3": "0", "schema": "mixc.test/1", "x": 1e999}',
        b"[" * 100_000,
        seal(DATA) + b"\n",
        seal(DATA).replace(b"\n", b"\r\n"),
        json.dumps(json.loads(seal(DATA))).encode(),  # the same data, written otherwise
        seal(DATA).decode().encode("utf-16"),
    ],
)
def test_what_is_not_a_sealed_manifest(tmp_path, raw):
    path = tmp_path / MANIFEST
    path.write_bytes(raw)
    assert code_of(path) == "MX040"


def test_no_manifest_and_one_of_another_version(tmp_path):
    path = tmp_path / MANIFEST
    assert code_of(path) == "MX041"
    path.write_bytes(seal({**DATA, "schema": "mixc.test/2"}))
    assert code_of(path) == "MX044"
    (tmp_path / "file").touch()
    assert code_of(tmp_path / "file" / MANIFEST) == "MX041"


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../outside", "web/../../outside", "web/..", "//etc/passwd"]
)
def test_a_manifest_may_not_name_files_outside_its_folder(tmp_path, name, small_store):
    """Neither as a file of the store nor as a shard, though its seal is good."""
    with pytest.raises(MixcError) as caught:
        check_names(tmp_path / MANIFEST, [FileRecord(name, 0, "")])
    assert (caught.value.code, caught.value.message) == ("MX040", f"the manifest names '{name}'")

    for change in ("file", "shard"):
        manifest = json.loads(seal(small_store.manifest))
        del manifest["manifest_xxh3"]
        if change == "file":
            manifest["files"][0]["path"] = name
        else:
            manifest["sources"]["web"][0]["shards"][0]["path"] = name
        (tmp_path / MANIFEST).write_bytes(seal(manifest))
        assert unseal(tmp_path / MANIFEST, SCHEMA) == manifest
        with pytest.raises(MixcError) as caught:
            open_store(tmp_path)
        assert caught.value.code == "MX040"


def test_names_within_the_folder_are_fine(tmp_path):
    names = ["a.arrow", "web/a.arrow", "web/..hidden", "...", "a..b/c"]
    check_names(tmp_path / MANIFEST, [FileRecord(name, 0, "") for name in names])


def test_files_are_compared_with_their_records(tmp_path):
    (tmp_path / "a").write_bytes(b"0123456789")
    record = FileRecord("a", 10, hash_file(tmp_path / "a"))
    assert check_file(tmp_path, record, rehash=True) is None

    (tmp_path / "a").write_bytes(b"0123456780")
    assert check_file(tmp_path, record, rehash=False) is None  # sizes alone do not tell
    changed = check_file(tmp_path, record, rehash=True)
    assert (changed.code, changed.message) == (
        "MX040",
        "the file is damaged: its hash does not match",
    )
    (tmp_path / "a").write_bytes(b"012345678")
    cut = check_file(tmp_path, record, rehash=False)
    assert cut.message == "the file holds 9 bytes, its manifest says 10"
    (tmp_path / "a").unlink()
    gone = check_file(tmp_path, record, rehash=False)
    assert (gone.code, gone.message) == ("MX040", "a file of the manifest is missing")
    assert gone.place.file == str(tmp_path / "a")


def test_hashes_are_those_of_xxhsum(tmp_path):
    """`xxhsum -H2` of nothing, of three bytes, and of more than one chunk."""
    (tmp_path / "a").write_bytes(b"")
    assert hash_file(tmp_path / "a") == "99aa06d3014798d86001c324468d497f"
    (tmp_path / "a").write_bytes(b"abc")
    assert hash_file(tmp_path / "a") == "06b05ab6733a618578af5f94892f3950"
    (tmp_path / "a").write_bytes(bytes(1 << 20) + b"x")
    assert hash_file(tmp_path / "a") == "04aa3a3725aba37acd15cf954762fc52"
