"""One suite for every output format, and what the trainers' own readers make of it."""

import importlib.util
import re
import sys
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
from build_helpers import all_documents, flat, make_mixture, random_corpus
from writers.exports import CORPUS, every_dtype, staged
from writers.formats import LABELS, NARROW, READERS, WIDE, every_width, read_labels, same

from mixc.inspect import inspect
from mixc.registry import WRITERS
from mixc.rows.stream import DomainStream
from mixc.store.hashes import hash_file
from mixc.writers.sequences import Folder

CASES = [("uint16", name) for name in NARROW] + [("uint32", name) for name in WIDE]
every_format = pytest.mark.parametrize(("built", "name"), CASES, indirect=["built"])


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


def test_without_a_holdout_nothing_is_written_for_it(tmp_path):
    mixture = {"rows": 3, "seq_len": 16, "formats": NARROW}
    _, built = make_mixture(tmp_path, CORPUS, mixture=mixture, holdout={"fraction": 0})
    assert built.manifest["holdout"] == {"domains": {}, "formats": {}}
    assert not list(built.root.rglob("*val*"))


# ---- the trainers' own readers, and writers ----


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
