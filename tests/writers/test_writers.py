"""One suite for every output format; then each format's own reader and limits."""

import re
from collections.abc import Callable

import numpy as np
import pytest
from build_helpers import all_documents, flat, make_mixture, make_store, random_corpus, write_corpus

from mixc import pipeline
from mixc.build.plan import make_plan
from mixc.errors import MixcError
from mixc.inspect import inspect
from mixc.recipe import load
from mixc.registry import WRITERS
from mixc.rows.stream import DomainStream
from mixc.store.hashes import hash_file
from mixc.writers.sequences import StreamSpec

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


# How to read the labels of each format that does not keep them in a file beside its tokens.
LABELS: dict[str, Callable[..., list[int]]] = {}


def read_labels(folder, split, manifest):
    return np.fromfile(folder / f"{split}.domains", np.uint8).tolist()


CORPUS = random_corpus(4, {"code": (30, 20), "empty-handed": (1, 30), "web": (60, 12)})
CORPUS["web"] += CORPUS["web"][:30]  # texts twice over: held out, each is exported once
NARROW = list(WRITERS)
WIDE = [name for name in WRITERS if name != "nanogpt"]


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
        if record.path.endswith(".bin"):
            inodes.setdefault(record.xxh3, set()).add((mixture.root / record.path).stat().st_ino)
    assert all(len(one) == 1 for one in inodes.values())


@every_format
def test_the_lines_to_paste_work(built, name):
    _, mixture = built
    lines = mixture.manifest["formats"][name]["how_to_load"]
    for module in re.findall(r"^from (\S+) import", lines, re.MULTILINE):
        if not module.startswith(("numpy", "mixc")):
            pytest.importorskip(module, reason=f"the real reader, {module}, is not installed")
    scope = {}
    exec(lines.replace("PATH", str(mixture.root / name)), scope)
    rows = [np.asarray(scope["rows"][i]).tolist() for i in range(30)]
    assert rows == flat(mixture).tolist()
    assert len(scope["rows"]) == 30


# ---- megatron ----


def megatron():
    reason = "megatron-core is not installed: pip install --no-deps megatron-core==0.16.1"
    return pytest.importorskip("megatron.core.datasets.indexed_dataset", reason=reason)


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
    fields = {"dtype": np.dtype(np.uint32), "vocab_size": 100, "eot_id": 0, "seq_len": 8, "rows": 8}
    return StreamSpec(**{**fields, **changes})


@pytest.mark.parametrize(
    ("fits", "does_not"),
    [
        ({"seq_len": (1 << 31) - 1}, {"seq_len": 1 << 31}),
        ({"rows": (1 << 31) - 1}, {"rows": 1 << 31}),
        ({"vocab_size": 1 << 31}, {"vocab_size": (1 << 31) + 1}),
    ],
)
def test_megatron_refuses_what_int32_cannot_hold(fits, does_not):
    module = WRITERS["megatron"].load()
    module.check(spec(**fits))
    with pytest.raises(MixcError) as raised:
        module.check(spec(**does_not))
    assert raised.value.code == "MX062"
    assert str(1 << 31) in raised.value.message


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
    make_plan(load(tmp_path / "recipe.yaml"), store, {"code": 0.5, "empty-handed": 0, "web": 0.5})
