"""One suite for every output format; then each format's own reader and limits."""

import gzip
import importlib.util
import io
import itertools
import json
import os
import re
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from build_helpers import (
    MISSING,
    all_documents,
    flat,
    make_mixture,
    make_store,
    random_corpus,
    tree_hash,
    write_corpus,
)
from datasets import ClassLabel, load_from_disk

from mixc import pipeline
from mixc.build.held import staged_sequences
from mixc.build.plan import StageWeights, make_plan
from mixc.errors import MixcError
from mixc.inspect import inspect
from mixc.recipe import load
from mixc.registry import WRITERS
from mixc.rows.stream import DomainStream
from mixc.store.hashes import hash_file
from mixc.writers.sequences import Folder, StreamSpec

# How to read a split of each format: (folder, split, manifest) -> a list of token sequences, or
# one flat list where the format has no borders. A new format adds its reader here.
READERS: dict[str, Callable[..., list]] = {}


def reads(name):
    def add(function):
        READERS[name] = function
        return function

    return add


@reads("nanogpt")
def read_nanogpt(folder, split, manifest):
    return np.memmap(folder / f"{split}.bin", np.uint16, mode="r").tolist()


@reads("megatron")
def read_megatron(folder, split, manifest):
    raw = (folder / f"{split}.idx").read_bytes()
    assert raw[:9] == b"MMIDIDX\0\0"
    assert np.frombuffer(raw, "<u8", 1, 9) == 1
    dtype = {8: "<u2", 4: "<i4"}[raw[17]]
    count, documents = np.frombuffer(raw, "<u8", 2, 18).tolist()
    lengths = np.frombuffer(raw, "<i4", count, 34)
    offsets = np.frombuffer(raw, "<i8", count, 34 + 4 * count)
    borders = np.frombuffer(raw, "<i8", documents, 34 + 12 * count)
    assert len(raw) == 34 + 12 * count + 8 * documents
    assert borders.tolist() == list(range(count + 1))
    data = (folder / f"{split}.bin").read_bytes()
    return [
        np.frombuffer(data, dtype, length, offset).tolist()
        for length, offset in zip(lengths, offsets, strict=True)
    ]


@reads("llmc")
def read_llmc(folder, split, manifest):
    dtype, kind = {
        "uint16": ("<u2", [20240520, 1]),
        "uint32": ("<u4", [20240801, 7]),
    }[manifest["dtype"]]
    found = []
    for path in sorted(folder.glob(f"*_{split}_*.bin")):
        header = np.fromfile(path, "<i4", 256)
        tokens = np.fromfile(path, dtype, offset=1024)
        assert header[:2].tolist() == kind
        assert header[2] == len(tokens)
        assert not header[3:].any()
        found += tokens.tolist()
    return found


@reads("olmo")
def read_olmo(folder, split, manifest):
    (path,) = (folder / split).glob("*.npy")
    data = np.fromfile(path, manifest["dtype"]).tolist()
    found, end = [], 0
    packed = path.with_name(path.name.replace(".npy", ".csv.gz"))
    lines = gzip.decompress(packed.read_bytes()).decode().splitlines()
    domains = list(manifest["domains"])
    labels = read_labels(folder, split, manifest)
    for number, (line, label) in enumerate(zip(lines, labels, strict=True)):
        start, stop, name, source, place = line.split(",")
        assert (int(start), name, place) == (end, str(number), str(number))
        assert source == domains[label]
        end = int(stop)
        found.append(data[int(start) : end])
    assert end == len(data)
    return found


@reads("datatrove")
def read_datatrove(folder, split, manifest):
    (path,) = (folder / split).glob("*.ds")
    dtype = np.dtype(manifest["dtype"])
    data = np.fromfile(path, dtype.newbyteorder("<"))
    ends = [0, *np.fromfile(f"{path}.index", "<u8").tolist()]
    first, second, _ = (path.parent / f"{path.name}.metadata").read_text().split("\n")
    assert int(first.split("|")[1]) == dtype.itemsize
    assert int(second) == ends[-1] == len(data)
    return [data[a:b].tolist() for a, b in pairwise(ends)]


@reads("litdata")
def read_litdata(folder, split, manifest):
    index = json.loads((folder / split / "index.json").read_text())
    config = index["config"]
    code = {"uint16": 20, "uint32": 15}[manifest["dtype"]]
    assert config["data_format"] == [f"no_header_tensor:{code}"]
    assert config["item_loader"] == "TokensLoader"
    assert config["compression"] is config["encryption"] is None
    found = []
    for chunk in index["chunks"]:
        raw = (folder / split / chunk["filename"]).read_bytes()
        assert np.frombuffer(raw, "<u4", 3).tolist() == [1, 12, len(raw)]
        tokens = np.frombuffer(raw, {20: "<u2", 15: "<i4"}[code], offset=12)
        assert (chunk["chunk_size"], chunk["dim"]) == (1, len(tokens))
        assert chunk["chunk_bytes"] == len(raw)
        found += tokens.tolist()
    return found


def mds_samples(folder, split, manifest):
    """(domain, tokens) of every sample, by the words of the format alone."""
    index = json.loads((folder / split / "index.json").read_bytes())
    for number, shard in enumerate(index["shards"]):
        raw = (folder / split / shard["raw_data"]["basename"]).read_bytes()
        assert shard["raw_data"]["basename"] == f"shard.{number:05}.mds"
        assert shard["raw_data"]["bytes"] == len(raw)
        assert shard["raw_data"]["hashes"] == {"xxh64": xxhash.xxh64_hexdigest(raw)}
        assert shard["column_names"] == ["domain", "tokens"]
        label, tokens = shard["column_encodings"]
        (count,) = struct.unpack_from("<I", raw)
        assert count == shard["samples"]
        offsets = struct.unpack_from(f"<{count + 1}I", raw, 4)
        json.loads(raw[4 * (count + 2) : offsets[0]])
        assert offsets[-1] == len(raw)
        for start, stop in itertools.pairwise(offsets):
            sample = raw[start:stop]
            if split == "val":
                assert tokens == f"ndarray:{manifest['dtype']}"
                assert struct.unpack_from("<I", sample) == (len(sample) - 5,)
                width = {4: 1, 5: 2, 6: 4}[sample[5]]
                length = int.from_bytes(sample[6 : 6 + width], "little")
                sample = sample[4:5] + sample[6 + width :]
            else:
                length = manifest["seq_len"]
                assert tokens == f"ndarray:{manifest['dtype']}:{length}"
            assert label == "uint8"
            yield sample[0], np.frombuffer(sample, manifest["dtype"], length, 1).tolist()


@reads("mds")
def read_mds(folder, split, manifest):
    return [tokens for _, tokens in mds_samples(folder, split, manifest)]


@reads("hf")
def read_hf(folder, split, manifest):
    return load_from_disk(str(folder / split))["input_ids"][:]


@reads("parquet")
def read_parquet(folder, split, manifest):
    return pq.read_table(folder / split)["input_ids"].to_pylist()


@reads("webdataset")
def read_webdataset(folder, split, manifest):
    return [tokens for _, tokens in tar_samples(folder, split, manifest)]


@reads("arrayrecord")
def read_arrayrecord(folder, split, manifest):
    library = pytest.importorskip("array_record.python.array_record_module")
    found = []
    for path in sorted(folder.glob(f"{split}-*.array_record")):
        records = library.ArrayRecordReader(str(path)).read_all()
        found += [np.frombuffer(record, manifest["dtype"]).tolist() for record in records]
    return found


def tar_samples(folder, split, manifest):
    """(domain, tokens) of each sample, by the standard library's tarfile."""
    found = []
    for path in sorted(folder.glob(f"{split}-*.tar")):
        with tarfile.open(path, "r:") as archive:
            for token, label in zip(*[iter(archive)] * 2, strict=True):
                assert (token.name, label.name) == (
                    f"{len(found):012d}.tok",
                    token.name[:12] + ".cls",
                )
                for member in (token, label):
                    assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
                    assert member.isreg()
                raw = archive.extractfile(token).read()
                number = int(archive.extractfile(label).read().decode())
                found.append((number, np.frombuffer(raw, manifest["dtype"]).tolist()))
    return found


# How to read the labels of each format that does not keep them in a file beside its tokens.
LABELS: dict[str, Callable[..., list[int]]] = {
    "mds": lambda *where: [label for label, _ in mds_samples(*where)],
    "hf": lambda folder, split, manifest: load_from_disk(str(folder / split))["domain"][:],
    "parquet": lambda folder, split, manifest: [
        list(manifest["domains"]).index(name)
        for name in pq.read_table(folder / split)["domain"].to_pylist()
    ],
}


def read_labels(folder, split, manifest):
    return np.fromfile(folder / f"{split}.domains", np.uint8).tolist()


CORPUS = random_corpus(4, {"code": (30, 20), "empty-handed": (1, 30), "web": (60, 12)})
CORPUS["web"] += CORPUS["web"][:30]  # texts twice over: held out, each is exported once
NARROW = [name for name in WRITERS if name not in MISSING]
WIDE = [name for name in NARROW if name != "nanogpt"]


CASES = [("uint16", name) for name in NARROW] + [("uint32", name) for name in WIDE]
every_format = pytest.mark.parametrize(("built", "name"), CASES, indirect=["built"])
every_width = pytest.mark.parametrize("built", ["uint16", "uint32"], indirect=True)


@pytest.fixture(scope="module")
def built(request, tmp_path_factory):
    """A store and a mixture in every format that can hold its tokens."""
    wide = request.param == "uint32"
    mixture = {"rows": 30, "seq_len": 16, "formats": WIDE if wide else NARROW}
    options = {"mixture": mixture, "holdout": {"fraction": 0.2}, "words": 70_000 if wide else 300}
    store, built = make_mixture(tmp_path_factory.mktemp(request.param), CORPUS, **options)
    assert built.manifest["dtype"] == request.param
    return store, built


def joined(sequences):
    return [token for one in sequences for token in (one if isinstance(one, list) else [one])]


def same(found, sequences):
    """Whether what a reader found is these sequences, with their borders if it has any."""
    if found and isinstance(found[0], list):
        return found == sequences
    return found == joined(sequences)


def held_documents(store, domain):
    """The documents that a domain holds out, each text once, in the store's order."""
    held = set(store.held_ids.get(domain, np.zeros(0)).tolist())
    found = {doc_id: tokens for doc_id, tokens in all_documents(store, domain) if doc_id in held}
    return list(found.values())


def test_every_format_has_a_reader_here():
    assert set(READERS) == set(WRITERS)


@every_format
def test_the_rows_read_back(built, name):
    store, mixture = built
    streams = {d: DomainStream(store, d, seq_len=16, seed=0) for d in store.domains}
    rows = [inspect(mixture.root, row=i) for i in range(30)]
    expected = [
        streams[row["domain"]].tokens(np.array([row["stream_row"]]))[0].tolist() for row in rows
    ]
    assert same(READERS[name](mixture.root / name, "train", mixture.manifest), expected)
    assert flat(mixture).tolist() == expected


@every_format
def test_the_rows_read_back_by_the_writers_own_reader(built, name):
    _, mixture = built
    expected = flat(mixture)
    for first, count in ((0, 30), (0, 1), (7, 11), (29, 1), (30, 0)):
        found = mixture.read(first, count, of=name)
        assert found.tolist() == expected[first : first + count].tolist()
        assert found.dtype.itemsize == expected.dtype.itemsize


@every_format
def test_each_row_and_document_is_labelled_with_its_domain(built, name):
    store, mixture = built
    names = list(mixture.manifest["domains"])
    found = LABELS.get(name, read_labels)(mixture.root / name, "train", mixture.manifest)
    assert [names[i] for i in found] == [inspect(mixture.root, row=i)["domain"] for i in range(30)]
    found = LABELS.get(name, read_labels)(mixture.root / name, "val", mixture.manifest)
    assert [names[i] for i in found] == [
        domain for domain in store.domains for _ in held_documents(store, domain)
    ]


@every_format
def test_the_held_out_documents_read_back(built, name):
    store, mixture = built
    manifest = mixture.manifest["holdout"]
    together = []
    for domain in store.domains:
        expected = held_documents(store, domain)
        together += expected
        if not expected:
            assert domain not in manifest["domains"]
            continue
        entry = manifest["domains"][domain]
        assert entry["documents"] == len(expected)
        assert entry["tokens"] == sum(map(len, expected))
        folder = mixture.root / "holdout" / domain / name
        assert same(READERS[name](folder, "val", mixture.manifest), expected)
    assert set(manifest["domains"]) == {"code", "web"}
    assert same(READERS[name](mixture.root / name, "val", mixture.manifest), together)


@every_width
def test_every_file_is_listed_as_it_is(built):
    _, mixture = built
    listed = {record.path: record for record in mixture.files()}
    there = {
        path.relative_to(mixture.root).as_posix(): path
        for path in mixture.root.rglob("*")
        if path.is_file()
    }
    assert there.keys() == listed.keys() | {"mixture.json"}
    for name, record in listed.items():
        assert record.bytes == there[name].stat().st_size
        assert record.xxh3 == hash_file(there[name])


@every_width
def test_files_of_equal_bytes_are_one_file(built):
    _, mixture = built
    inodes = {}
    for record in mixture.files():
        if not record.path.endswith(".json"):
            inode = (mixture.root / record.path).stat().st_ino
            inodes.setdefault(record.xxh3, set()).add(inode)
    assert all(len(one) == 1 for one in inodes.values())


def test_what_a_format_takes_is_foreseen(tmp_path):
    """At least, and not much less: tokens compress as they will."""
    corpus = random_corpus(5, {"code": (1000, 200), "web": (2000, 200)})
    mixture = {"rows": 2000, "seq_len": 256, "formats": NARROW}
    _, built = make_mixture(tmp_path, corpus, mixture=mixture, holdout={"fraction": 0.0})
    shared = {path.stat().st_ino for path in (built.root / "nanogpt").iterdir()}
    for name, entry in built.manifest["formats"].items():
        found = [(built.root / file["path"]).stat() for file in entry["files"]]
        own = sum(one.st_size for one in found if one.st_ino not in shared)
        least = WRITERS[name].load().disk_bytes(built.spec)
        most = own if name == "parquet" else 4 * least + 4096
        assert least <= own <= most, name


def tokens_of(sample):
    """The tokens of what a reader gives for a row."""
    if not isinstance(sample, dict):
        return sample
    return sample["tokens" if "tokens" in sample else "input_ids"]


def make_torchvision_importable():
    """MosaicML Streaming imports it, for images alone: a build that is not torch's, as one for
    CUDA beside a torch for the CPU, cannot even be imported, and is made empty here.
    """
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        for name in ("", ".datasets", ".transforms", ".transforms.functional"):
            spec = ModuleSpec(f"torchvision{name}", None, is_package=True)
            module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
            module.__file__ = __file__  # torch asks for it
        sys.modules["torchvision.datasets"].VisionDataset = object
        sys.modules["torchvision.transforms.functional"].to_tensor = None


@pytest.mark.readers
@every_format
def test_the_lines_to_paste_work(built, name):
    _, mixture = built
    lines = mixture.manifest["formats"][name]["how_to_load"]
    if name == "mds":
        make_torchvision_importable()
    for module in re.findall(r"^from (\S+) import", lines, re.MULTILINE):
        if not module.startswith(("numpy", "mixc")):
            pytest.importorskip(module, reason=f"the real reader, {module}, is not installed")
    scope = {}
    exec(lines.replace("PATH", str(mixture.root / name)), scope)
    rows = [tokens_of(scope["rows"][i]) for i in range(30)]
    assert [np.asarray(row).tolist() for row in rows] == flat(mixture).tolist()
    assert len(scope["rows"]) == 30


# ---- megatron ----


def megatron():
    reason = "megatron-core is not installed: pip install --no-deps megatron-core==0.16.1"
    return pytest.importorskip("megatron.core.datasets.indexed_dataset", reason=reason)


@pytest.mark.readers
@every_width
def test_megatrons_own_reader_and_builder_agree(built, tmp_path):
    module = megatron()
    store, mixture = built
    dtype = np.uint16 if mixture.manifest["dtype"] == "uint16" else np.int32
    held = [one for domain in store.domains for one in held_documents(store, domain)]
    for split, expected in (("train", flat(mixture).tolist()), ("val", held)):
        prefix = mixture.root / "megatron" / split
        found = module.IndexedDataset(str(prefix), mmap=True)
        assert found.index.dtype == dtype
        assert len(found) == len(expected)
        assert [found[i].tolist() for i in range(len(found))] == expected
        assert found.document_indices.tolist() == list(range(len(expected) + 1))
        builder = module.IndexedDatasetBuilder(str(tmp_path / f"{split}.bin"), dtype=dtype)
        for one in expected:
            builder.add_document(np.array(one), [len(one)])
        builder.finalize(str(tmp_path / f"{split}.idx"))
        for suffix in (".bin", ".idx"):
            ours = prefix.with_suffix(suffix).read_bytes()
            assert ours == (tmp_path / split).with_suffix(suffix).read_bytes()


def spec(**changes):
    fields = {
        "dtype": np.dtype(np.uint32),
        "vocab_size": 100,
        "eot_id": 0,
        "seq_len": 8,
        "rows": 8,
        "domains": ("a", "b"),
    }
    return StreamSpec(**{**fields, **changes})


# ---- limits and borders, without building a mixture ----


@pytest.mark.parametrize(
    ("name", "fits", "does_not"),
    [
        ("megatron", {"seq_len": (1 << 31) - 1}, {"seq_len": 1 << 31}),
        ("megatron", {"rows": (1 << 31) - 1}, {"rows": 1 << 31}),
        ("megatron", {"vocab_size": 1 << 31}, {"vocab_size": (1 << 31) + 1}),
        ("nanogpt", {"vocab_size": 1 << 16}, {"vocab_size": (1 << 16) + 1}),
        ("llmc", {"seq_len": (1 << 30) - 513}, {"seq_len": (1 << 30) - 512}),
        ("olmo", {"rows": (1 << 32) - 2}, {"rows": (1 << 32) - 1}),
        ("datatrove", {"seq_len": 2}, {"seq_len": 1}),
        ("litdata", {"seq_len": (1 << 30) - 4}, {"seq_len": (1 << 30) - 3}),
        ("litdata", {"vocab_size": 1 << 31}, {"vocab_size": (1 << 31) + 1}),
        ("webdataset", {"seq_len": (1 << 31) - 1}, {"seq_len": 1 << 31}),
        ("webdataset", {"rows": 10**12}, {"rows": 10**12 + 1}),
    ],
)
def test_a_format_refuses_what_it_cannot_hold(name, fits, does_not):
    module = WRITERS[name].load()
    module.check(spec(**fits))
    with pytest.raises(MixcError) as raised:
        module.check(spec(**does_not))
    assert raised.value.code == "MX062"
    assert name in raised.value.message


MANIFEST = {"dtype": "uint32", "seq_len": 8, "domains": {"a": {}, "b": {}}}
# Formats in several files; the constant that cuts them.
SHARDED = {"llmc": "_SHARD_TOKENS", "litdata": "_CHUNK_TOKENS"}


def export(folder, name, sequences, split="train", dtype="uint32", row_len=None):
    """Write sequences in a format: its folder and files."""
    folder.mkdir()
    path = folder / "stream.bin"
    np.array(joined(sequences), dtype).tofile(path)
    lengths = np.array([len(one) for one in sequences], np.int64)
    labels = (np.arange(len(sequences)) % 2).astype(np.uint8)
    staged = staged_sequences(path, np.dtype(dtype), lengths, labels, ("a", "b"), row_len=row_len)
    files = WRITERS[name].load().write(staged, Folder(folder / name), split)
    return folder / name, [folder / name / file for file in files]


def counted(lengths):
    """Sequences of these lengths, every token another."""
    ends = np.cumsum(lengths).tolist()
    return [list(range(end - length, end)) for length, end in zip(lengths, ends, strict=True)]


@pytest.mark.parametrize("name", WIDE)
def test_one_row_is_enough(tmp_path, name):
    rows = counted([8])
    folder, files = export(tmp_path / "x", name, rows, row_len=8)
    assert same(READERS[name](folder, "train", MANIFEST), rows)
    assert WRITERS[name].load().read(files, spec(rows=1), 0, 1).tolist() == rows


@pytest.mark.parametrize("name", WIDE)
def test_no_sequence_at_all_is_no_failure(tmp_path, name):
    folder, files = export(tmp_path / "x", name, [], "val")
    assert same(READERS[name](folder, "val", MANIFEST), [])
    assert list(LABELS.get(name, read_labels)(folder, "val", MANIFEST)) == []
    assert all(path.exists() for path in files)


def test_without_a_holdout_nothing_is_written_for_it(tmp_path):
    mixture = {"rows": 3, "seq_len": 16, "formats": NARROW}
    _, built = make_mixture(tmp_path, CORPUS, mixture=mixture, holdout={"fraction": 0})
    assert built.manifest["holdout"] == {"domains": {}, "formats": {}}
    assert not list(built.root.rglob("*val*"))


@pytest.mark.parametrize("most", [1, 8, 20, 24, 56, 1000])
@pytest.mark.parametrize("name", list(SHARDED))
def test_files_are_cut_between_rows(tmp_path, monkeypatch, name, most):
    module, rows = WRITERS[name].load(), counted([8] * 7)
    monkeypatch.setattr(module, SHARDED[name], most)
    folder, files = export(tmp_path / "x", name, rows)
    shards = [path for path in files if path.suffix == ".bin"]
    held = [(path.stat().st_size - module._HEADER_BYTES) / 32 for path in shards]
    assert len(held) == min(7, -(-56 // most))
    assert all(map(float.is_integer, held))
    assert max(held) - min(held) <= 1  # llm.c refuses a set with a shard smaller than a batch
    assert READERS[name](folder, "train", MANIFEST) == joined(rows)
    for first in range(8):
        for count in range(8 - first):
            found = module.read(files, spec(rows=7), first, count)
            assert found.shape == (count, 8)
            assert found.tolist() == rows[first : first + count]


@pytest.mark.parametrize("name", list(SHARDED))
def test_files_are_cut_between_documents(tmp_path, monkeypatch, name):
    documents = counted([3, 4, 50, 1, 9, 1, 10])
    monkeypatch.setattr(WRITERS[name].load(), SHARDED[name], 10)
    folder, files = export(tmp_path / "x", name, documents, "val")
    header = WRITERS[name].load()._HEADER_BYTES
    sizes = [(p.stat().st_size - header) // 4 for p in files if p.suffix == ".bin"]
    assert sizes == [57, 1, 10, 10]
    assert READERS[name](folder, "val", MANIFEST) == joined(documents)


@pytest.mark.parametrize(
    ("name", "limit", "most"), [("llmc", "_MOST_TOKENS", 8), ("litdata", "_MOST_BYTES", 32)]
)
def test_a_document_that_no_file_can_hold_is_refused(tmp_path, monkeypatch, name, limit, most):
    monkeypatch.setattr(WRITERS[name].load(), SHARDED[name], 4)
    monkeypatch.setattr(WRITERS[name].load(), limit, most)
    export(tmp_path / "fits", name, counted([3, 8]), "val")
    with pytest.raises(MixcError) as raised:
        export(tmp_path / "does not", name, counted([3, 9]), "val")
    assert raised.value.code == "MX062"


def test_the_sidecar_of_olmo_holds_no_time(tmp_path):
    folder, _ = export(tmp_path / "x", "olmo", counted([8, 8]))
    raw = (folder / "train/part-00000.csv.gz").read_bytes()
    assert raw[3:8] == bytes(5)  # neither a name nor a time
    assert gzip.decompress(raw) == b"0,8,0,a,0\n8,16,1,b,1\n"


@pytest.mark.parametrize("lines", [1, 3])
def test_sidecars_are_written_in_pieces(tmp_path, monkeypatch, lines):
    monkeypatch.setattr(WRITERS["olmo"].load(), "_LINES", lines)
    monkeypatch.setattr(WRITERS["datatrove"].load(), "_CHUNK", lines)
    documents = counted([3, 1, 4, 1, 5, 9, 2])
    for name in ("olmo", "datatrove"):
        folder, _ = export(tmp_path / name, name, documents)
        assert READERS[name](folder, "train", MANIFEST) == documents


def test_tars_are_cut_between_sequences(tmp_path, monkeypatch):
    module = WRITERS["webdataset"].load()
    monkeypatch.setattr(module, "_SHARD_TOKENS", 20)
    monkeypatch.setattr(module, "_PIECE_TOKENS", 10)
    rows, documents = counted([8] * 7), counted([3, 4, 50, 1, 9, 1, 10, 256, 128, 127, 129])
    folder, files = export(tmp_path / "rows", "webdataset", rows)
    assert tar_samples(folder, "train", MANIFEST) == [(i % 2, row) for i, row in enumerate(rows)]
    assert [path.name for path in files[:3]] == [f"train-{i:06d}.tar" for i in range(3)]
    for first in range(8):
        for count in range(8 - first):
            found = module.read(files, spec(rows=7), first, count)
            assert found.tolist() == rows[first : first + count]
    folder, _ = export(tmp_path / "documents", "webdataset", documents, "val")
    expected = [(i % 2, one) for i, one in enumerate(documents)]
    assert tar_samples(folder, "val", MANIFEST) == expected


needs_array_record = pytest.mark.skipif(bool(MISSING), reason="array_record is not installed")


@needs_array_record
def test_records_are_cut_between_rows(tmp_path, monkeypatch):
    module = WRITERS["arrayrecord"].load()
    monkeypatch.setattr(module, "_SHARD_TOKENS", 20)
    rows = counted([8] * 7)
    folder, files = export(tmp_path / "x", "arrayrecord", rows)
    assert [path.name for path in files[:3]] == [f"train-{i:06d}.array_record" for i in range(3)]
    assert READERS["arrayrecord"](folder, "train", MANIFEST) == rows
    for first in range(8):
        for count in range(8 - first):
            found = module.read(files, spec(rows=7), first, count)
            assert found.tolist() == rows[first : first + count]
    again, _ = export(tmp_path / "again", "arrayrecord", rows)
    assert tree_hash(again) == tree_hash(folder)
    files[0].write_bytes(files[0].read_bytes()[:-1000])
    with pytest.raises(MixcError) as raised:
        module.read(files, spec(rows=7), 0, 7)
    assert raised.value.code == "MX040"


@needs_array_record
def test_a_full_disk_is_noticed_though_a_package_writes(tmp_path):
    code = (
        "import resource, signal\n"
        "from pathlib import Path; from test_writers import counted, export\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "import array_record.python.array_record_module\n"
        "rows = counted([1 << 17] * 4)  # as large as a file may be, without headers\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 21, 1 << 21))\n"
        f"export(Path({str(tmp_path / 'x')!r}), 'arrayrecord', rows)\n"
    )
    path = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert "error[MX043]" in done.stderr
    assert "File too large" in done.stderr
    left = [path.name for path in (tmp_path / "x").rglob("*") if path.is_file()]
    assert sorted(left) == ["stream.bin", "stream.domains"]


def test_without_its_package_a_format_is_refused_in_words(monkeypatch):
    monkeypatch.setitem(sys.modules, "array_record", None)
    monkeypatch.delitem(sys.modules, "array_record.python", raising=False)
    monkeypatch.delitem(sys.modules, "array_record.python.array_record_module", raising=False)
    with pytest.raises(MixcError) as raised:
        WRITERS["arrayrecord"].load().check(spec())
    assert raised.value.code == "MX037"
    assert "pip install 'mixc[arrayrecord]'" in str(raised.value)


def test_tars_are_those_of_the_standard_library(tmp_path):
    documents = counted([8, 300, 1])
    _, files = export(tmp_path / "x", "webdataset", documents)
    with tarfile.open(tmp_path / "theirs.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        for number, tokens in enumerate(documents):
            for suffix, data in (
                ("tok", np.array(tokens, "<u4").tobytes()),
                ("cls", str(number % 2).encode()),
            ):
                member = tarfile.TarInfo(f"{number:012d}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    theirs = (tmp_path / "theirs.tar").read_bytes()
    ours = files[0].read_bytes()
    assert theirs[: len(ours)] == ours
    assert not any(theirs[len(ours) :])


def test_litdata_tells_its_cache_of_other_tokens_alone(tmp_path):
    said = []
    for folder, rows in (("a", [8, 8]), ("b", [8, 8]), ("c", [8])):
        folder, _ = export(tmp_path / folder, "litdata", counted(rows))
        said.append(json.loads((folder / "train/index.json").read_text())["updated_at"])
    assert said[0] == said[1] != said[2]


# ---- nanogpt ----


def test_nanogpt_refuses_ids_over_uint16_before_anything_is_built(tmp_path):
    path = write_corpus(tmp_path, CORPUS, words=1 << 16, mixture={"formats": ["nanogpt"]})
    with pytest.raises(MixcError) as raised:
        pipeline.run(load(path), workers=1)
    assert raised.value.code == "MX062"
    assert "65536" in raised.value.message
    assert not (tmp_path / "out/mixture").exists()


def test_nanogpt_holds_every_id_of_uint16(tmp_path):
    store = make_store(tmp_path, CORPUS, words=(1 << 16) - 1)
    assert (store.vocab_size, store.dtype) == (1 << 16, np.uint16)
    weights = {"code": 0.5, "empty-handed": 0, "web": 0.5}
    make_plan(load(tmp_path / "recipe.yaml"), store, [StageWeights(1.0, weights)])


# ---- formats that hold rows of columns ----

SMALL = {  # constants that put borders between the rows of a small mixture, 3 to 5 rows a file
    "mds": {"_SHARD_BYTES": 550},
    "hf": {"_FILE_BYTES": 200},
    "parquet": {"_GROUP_BYTES": 100, "_FILE_GROUPS": 2},
}


def staged(folder, dtype, lengths, *, row_len=None, domains=("a", "b", "c")):
    """Sequences of counted tokens, and the same as lists."""
    folder.mkdir(parents=True)
    tokens = np.arange(sum(lengths)).astype(dtype)
    tokens.tofile(folder / "stream.bin")
    labels = (np.arange(len(lengths)) % len(domains)).astype(
        np.uint8 if len(domains) <= 256 else np.uint16
    )
    lengths = np.array(lengths, np.int64)
    made = staged_sequences(
        folder / "stream.bin", np.dtype(dtype), lengths, labels, domains, row_len=row_len
    )
    return made, [one.tolist() for one in np.split(tokens, np.cumsum(lengths)[:-1])]


@pytest.fixture
def small(monkeypatch):
    for name, constants in SMALL.items():
        for constant, value in constants.items():
            monkeypatch.setattr(f"mixc.writers.{name}.{constant}", value)


every_dtype = pytest.mark.parametrize("dtype", ["uint16", "uint32"])


@every_dtype
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("count", [1, 2, 29, 30])
def test_rows_cut_into_files(small, tmp_path, name, dtype, count):
    sequences, rows = staged(tmp_path / "staged", dtype, [16] * count, row_len=16)
    module, domains = WRITERS[name].load(), [chr(ord("a") + i) for i in range(3)]
    manifest = {"dtype": dtype, "seq_len": 16, "domains": domains}
    files = module.write(sequences, Folder(tmp_path / "out"), "train")
    assert (len(files) > 4) == (count > 2)
    assert READERS[name](tmp_path / "out", "train", manifest) == rows
    labels = LABELS[name](tmp_path / "out", "train", manifest)
    assert labels == sequences.labels.tolist()
    paths = [tmp_path / "out" / file for file in files]
    holds = spec(dtype=np.dtype(dtype), seq_len=16, rows=count)
    for first in range(count):
        for stop in range(first, count + 1):
            found = module.read(paths, holds, first, stop - first)
            assert found.dtype == dtype
            assert found.tolist() == rows[first:stop]
    module.write(sequences, Folder(tmp_path / "again"), "train")
    assert tree_hash(tmp_path / "again") == tree_hash(tmp_path / "out")


@every_dtype
@pytest.mark.parametrize("name", SMALL)
def test_documents_cut_into_files(small, tmp_path, name, dtype):
    lengths = [1, 300, 7, 255, 256, 65_535, 65_536, 3, 3, 3, 3, 3]
    sequences, documents = staged(tmp_path / "staged", dtype, lengths)
    manifest = {"dtype": dtype, "domains": ["a", "b", "c"]}
    WRITERS[name].load().write(sequences, Folder(tmp_path / "out"), "val")
    assert READERS[name](tmp_path / "out", "val", manifest) == documents
    assert LABELS[name](tmp_path / "out", "val", manifest) == sequences.labels.tolist()


@pytest.mark.parametrize("name", SMALL)
def test_one_row_and_no_holdout(tmp_path, name):
    mixture = {"rows": 1, "seq_len": 16, "formats": ["megatron", name]}
    _, built = make_mixture(tmp_path, CORPUS, mixture=mixture, holdout={"fraction": 0})
    assert built.read(0, 1, of=name).tolist() == flat(built).tolist()
    assert not (built.root / name / "val").exists()


@pytest.mark.parametrize("name", ["hf", "parquet"])
def test_ids_over_int32_are_refused(name):
    WRITERS[name].load().check(spec(vocab_size=1 << 31))
    with pytest.raises(MixcError) as raised:
        WRITERS[name].load().check(spec(vocab_size=(1 << 31) + 1))
    assert raised.value.code == "MX062"


# ---- mds ----


def streaming():
    make_torchvision_importable()
    reason = "MosaicML Streaming is not installed: pip install mosaicml-streaming"
    return pytest.importorskip("streaming", reason=reason)


@pytest.mark.readers
@every_dtype
@pytest.mark.parametrize("domains", [3, 300])
@pytest.mark.parametrize(
    ("split", "lengths"),
    [("train", [16] * 30), ("train", [16]), ("val", [1, 70, 7, 80, 3, 3, 3, 3, 40])],
)
def test_mds_is_what_its_own_writer_writes(small, tmp_path, dtype, domains, split, lengths):
    module = streaming()
    names = tuple(f"d{i:03}" for i in range(domains))
    row_len = 16 if split == "train" else None
    sequences, rows = staged(tmp_path / "staged", dtype, lengths, row_len=row_len, domains=names)
    files = WRITERS["mds"].load().write(sequences, Folder(tmp_path), split)
    columns = {
        "tokens": f"ndarray:{dtype}:16" if row_len else f"ndarray:{dtype}",
        "domain": sequences.labels.dtype.name,
    }
    theirs = tmp_path / "theirs"
    with module.MDSWriter(
        columns=columns, out=str(theirs), hashes=["xxh64"], size_limit=550
    ) as writer:
        for row, label in zip(rows, sequences.labels, strict=True):
            writer.write({"tokens": np.array(row, dtype), "domain": label})
    assert {file.name for file in theirs.iterdir()} == {file.split("/")[1] for file in files}
    for file in files:
        assert (tmp_path / file).read_bytes() == (theirs / file.split("/")[1]).read_bytes()
    found = list(module.StreamingDataset(local=str(tmp_path / split), batch_size=1, shuffle=False))
    assert [one["tokens"].tolist() for one in found] == rows
    assert [int(one["domain"]) for one in found] == sequences.labels.tolist()


def test_mds_refuses_a_shard_that_uint32_cannot_address():
    header = WRITERS["mds"].load()._header
    header(np.array([(1 << 32) - 15]), b"{}")
    with pytest.raises(MixcError) as raised:
        header(np.array([(1 << 32) - 14]), b"{}")
    assert raised.value.code == "MX062"


# ---- hf ----


@every_width
def test_hf_is_mapped_and_described(built):
    _, mixture = built
    value = "uint16" if mixture.manifest["dtype"] == "uint16" else "int32"
    pa.default_memory_pool().release_unused()
    before = pa.total_allocated_bytes()
    dataset = load_from_disk(str(mixture.root / "hf/train"))
    column = dataset.data.column("input_ids")
    assert pa.total_allocated_bytes() == before
    assert column.type == pa.list_(getattr(pa, value)(), 16)
    assert len(dataset) == 30
    assert dataset.features["domain"] == ClassLabel(names=list(mixture.manifest["domains"]))
    documents = load_from_disk(str(mixture.root / "hf/val"))
    assert documents.data.column("input_ids").type == pa.list_(getattr(pa, value)())
    assert dataset._fingerprint != documents._fingerprint
    assert dataset._fingerprint == load_from_disk(str(mixture.root / "hf/train"))._fingerprint
