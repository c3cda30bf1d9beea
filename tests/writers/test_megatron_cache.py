"""Megatron reads a mixture in its compiled order: what the command checks, then Megatron itself."""

import json
import os
import warnings
from collections import OrderedDict

import numpy as np
import pytest
from build_helpers import flat, make_mixture, mixc, random_corpus, tree_hash

from mixc.build.megatron_cache import keep_order
from mixc.errors import MixcError
from mixc.store import commit

ROWS, SEQ_LEN = 30, 16
CORPUS = random_corpus(4, {"code": (30, 20), "web": (60, 12)})


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    options = {"rows": ROWS, "seq_len": SEQ_LEN, "formats": ["megatron"]}
    return make_mixture(tmp_path_factory.mktemp("mixture"), CORPUS, mixture=options)[1]


def make_index(cache, prefix, *, name="0" * 32, epochs=1, extra=True, **changes):
    """An index as Megatron makes it, by the layout of its files."""
    generator = np.random.default_rng(1)
    cache.mkdir(exist_ok=True)
    stem = f"{name}-GPTDataset-train"
    said = {"class": "GPTDataset", "dataset_path": str(prefix), "sequence_length": SEQ_LEN}
    arrays = {
        "document_index": generator.permutation(ROWS * epochs) % ROWS,
        "shuffle_index": generator.permutation(ROWS * epochs - extra),
        "sample_index": np.array([(i, 0) for i in range(ROWS * epochs)]),
    }
    if not extra:
        arrays["sample_index"] = np.array(
            [(0, 0), *((i, SEQ_LEN) for i in range(ROWS * epochs))], np.int32
        )
    arrays |= {affix: arrays[affix][part] for affix, part in changes.pop("cut", {}).items()}
    (cache / f"{stem}-description.txt").write_text(json.dumps(said | changes, indent=4))
    for affix, array in arrays.items():
        np.save(cache / f"{stem}-{affix}.npy", array.astype(np.int32))
    return stem


def orders(cache, stem):
    """The permutations that stand in a cache."""
    names = ("document_index", "shuffle_index")
    return [np.load(cache / f"{stem}-{affix}.npy").tolist() for affix in names]


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("epochs", [1, 3])
def test_an_index_is_put_in_order(mixture, tmp_path, monkeypatch, epochs, extra, chunk):
    monkeypatch.setattr("mixc.build.megatron_cache._CHUNK", chunk)
    cache = tmp_path / "cache"
    stem = make_index(cache, mixture.root / "megatron/train", epochs=epochs, extra=extra)
    other = make_index(cache, "/another/dataset", name="1" * 32, sequence_length=3)
    others = orders(cache, other)
    before = (cache / f"{stem}-sample_index.npy").read_bytes()
    (index,) = keep_order(mixture.root, cache)
    assert (index.name, index.samples) == (stem, ROWS * epochs - extra)
    assert (index.epochs, index.changed) == (epochs, True)
    documents, samples = orders(cache, stem)
    assert documents == list(range(ROWS)) * epochs
    assert samples == list(range(ROWS * epochs - extra))
    assert np.load(cache / f"{stem}-document_index.npy").dtype == np.int32
    assert (cache / f"{stem}-sample_index.npy").read_bytes() == before
    assert orders(cache, other) == others
    done = tree_hash(cache)
    assert not keep_order(mixture.root, cache)[0].changed
    assert tree_hash(cache) == done


def test_a_mixture_is_known_by_the_path_that_megatron_was_given(mixture, tmp_path):
    cache = tmp_path / "cache"
    make_index(cache, "/far/away/train")
    (tmp_path / "link").symlink_to(mixture.root)
    make_index(cache, tmp_path / "link/megatron/train", name="1" * 32)
    assert [index.name[0] for index in keep_order(mixture.root, cache)] == ["1"]
    found = keep_order(mixture.root, cache, prefix="/far/away/train")
    assert [index.name[0] for index in found] == ["0"]


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"sequence_length": 8}, "MX063", "--seq-length 16"),
        ({"cut": {"document_index": slice(0, ROWS - 1)}}, "MX063", "--train-data-path"),
        ({"cut": {"sample_index": slice(None, None, -1)}}, "MX063", "samples that are not rows"),
        ({"cut": {"shuffle_index": slice(1, None)}}, "MX063", "samples that are not rows"),
        ({"dataset_path": "/far/away/train"}, "MX041", "/far/away/train"),
    ],
)
def test_an_index_for_something_else_is_refused_and_left(mixture, tmp_path, changes, code, words):
    cache = tmp_path / "cache"
    prefix = mixture.root / "megatron/train"
    if code != "MX041":
        make_index(cache, prefix)
    make_index(cache, prefix, name="1" * 32, **changes)
    before = tree_hash(cache)
    with pytest.raises(MixcError) as raised:
        keep_order(mixture.root, cache)
    assert raised.value.code == code
    assert words in str(raised.value)
    assert tree_hash(cache) == before


@pytest.mark.parametrize("at", range(4))
def test_a_full_disk_changes_nothing(mixture, tmp_path, monkeypatch, at):
    stems = [make_index(tmp_path, mixture.root / "megatron/train", name=n * 32) for n in "01"]
    before, create, names = tree_hash(tmp_path), commit.create, []

    def fail(path):
        names.append(path)
        if len(names) == at + 1:
            raise MixcError("MX043", "no space left")
        return create(path)

    with monkeypatch.context() as patch, pytest.raises(MixcError, match="no space left"):
        patch.setattr(commit, "create", fail)
        keep_order(mixture.root, tmp_path)
    assert tree_hash(tmp_path) == before
    keep_order(mixture.root, tmp_path)
    assert all(one == sorted(one) for stem in stems for one in orders(tmp_path, stem))


@pytest.mark.parametrize("at", range(2))
def test_a_run_after_a_kill_mends_it(mixture, tmp_path, monkeypatch, at):
    stem = make_index(tmp_path, mixture.root / "megatron/train")
    rename, names = commit.rename, []

    def stop(staged, named):
        names.append(named)
        if len(names) == at + 1:
            raise KeyboardInterrupt
        rename(staged, named)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(commit, "rename", stop)
        keep_order(mixture.root, tmp_path)
    assert [one == sorted(one) for one in orders(tmp_path, stem)] == [at > 0, False]
    (index,) = keep_order(mixture.root, tmp_path)
    assert index.changed
    assert all(one == sorted(one) for one in orders(tmp_path, stem))
    assert not list(tmp_path.glob(".*"))


def test_what_a_run_that_was_stopped_has_staged_is_removed(mixture, tmp_path, monkeypatch):
    stem = make_index(tmp_path, mixture.root / "megatron/train")

    def stop(*_):
        os._exit(0)

    if not (child := os.fork()):
        monkeypatch.setattr(commit, "rename", stop)
        keep_order(mixture.root, tmp_path)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert [path.stem for path in tmp_path.rglob("staging/*.npy")]
    keep_order(mixture.root, tmp_path)
    assert not list(tmp_path.rglob("staging"))
    assert len(list(tmp_path.iterdir())) == 4  # Megatron's own
    assert all(one == sorted(one) for one in orders(tmp_path, stem))


@pytest.mark.parametrize("affix", ["description.txt", "document_index.npy", "sample_index.npy"])
@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY\x01\x00", b"{", None])
def test_a_damaged_cache_is_named(mixture, tmp_path, affix, damage):
    stem = make_index(tmp_path / "cache", mixture.root / "megatron/train")
    path = tmp_path / "cache" / f"{stem}-{affix}"
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    with pytest.raises(MixcError) as raised:
        keep_order(mixture.root, tmp_path / "cache")
    assert raised.value.code == (
        "MX041" if (affix, damage) == ("description.txt", None) else "MX040"
    )


def test_objects_in_a_cache_are_not_loaded(mixture, tmp_path):
    stem = make_index(tmp_path / "cache", mixture.root / "megatron/train")
    np.save(tmp_path / "cache" / f"{stem}-shuffle_index.npy", np.array([{}], object))
    with pytest.raises(MixcError) as raised:
        keep_order(mixture.root, tmp_path / "cache")
    assert raised.value.code == "MX040"


def test_a_mixture_without_the_format_is_refused(tmp_path):
    options = {"rows": 3, "seq_len": 16, "formats": ["olmo"]}
    _, other = make_mixture(tmp_path, CORPUS, mixture=options)
    with pytest.raises(MixcError) as raised:
        keep_order(other.root, tmp_path)
    assert raised.value.code == "MX070"


def test_the_command_says_what_it_did(mixture, tmp_path):
    stem = make_index(tmp_path / "cache", mixture.root / "megatron/train")
    done = mixc("megatron-cache", mixture.root, tmp_path / "cache")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{stem}: 29 samples, 1 epochs, put in order\n"
    again = mixc("megatron-cache", mixture.root, tmp_path / "cache", "--json")
    (index,) = json.loads(again.stdout)["indices"]
    assert index == {"name": stem, "samples": 29, "epochs": 1, "changed": False}


# ---- Megatron's own GPTDataset ----


class Tokenizer:
    vocab_size, eod, eos, pad = 301, 300, 300, -1

    @property
    def unique_identifiers(self):
        return OrderedDict({"class": "words"})


def dataset(mixture, cache, *, samples, extra, fast=False, seed=1234, seq_len=SEQ_LEN, blend=None):
    """Megatron's training dataset, as its builder makes it."""
    gpt = pytest.importorskip("megatron.core.datasets.gpt_dataset", reason="no megatron-core")
    from megatron.core.datasets.blended_megatron_dataset_builder import (
        BlendedMegatronDatasetBuilder,
    )

    blend = blend or [([str(mixture.root / "megatron/train")], None), None, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = gpt.GPTDatasetConfig(
            random_seed=seed,
            sequence_length=seq_len,
            blend_per_split=blend,
            path_to_cache=str(cache),
            fast_cache_load=fast,
            tokenizer=Tokenizer(),
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            add_extra_token_to_sequence=extra,
        )
        builder = BlendedMegatronDatasetBuilder
        return builder(gpt.GPTDataset, [samples, 0, 0], lambda: True, config).build()[0]


def read(found, count):
    return [found[i]["tokens"].tolist() for i in range(count)]


@pytest.mark.readers
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(
    ("extra", "samples", "expected"),
    [
        (False, ROWS, ROWS),
        (False, None, ROWS),
        (False, 3 * ROWS - 5, 3 * ROWS),
        (True, ROWS - 1, ROWS - 1),
        (True, 10, ROWS - 1),
        (True, 2 * ROWS + 5, 3 * ROWS - 1),
    ],
)
def test_megatron_reads_every_row_in_the_compiled_order(
    mixture, tmp_path, extra, samples, expected, fast
):
    rows = (flat(mixture).tolist() * 3)[:expected]
    shuffled = dataset(mixture, tmp_path, samples=samples, extra=extra)
    assert len(shuffled) == expected
    assert read(shuffled, expected) != rows
    (index,) = keep_order(mixture.root, tmp_path)
    assert (index.samples, index.changed) == (expected, True)
    found = dataset(mixture, tmp_path, samples=samples, extra=extra, fast=fast)
    assert len(found) == expected
    assert read(found, expected) == rows
    if extra:  # the last label is the first token of the next row
        labels = [found[i]["labels"].tolist() for i in range(expected)]
        follow = (flat(mixture).tolist() * 4)[1 : expected + 1]
        assert labels == [[*row[1:], after[0]] for row, after in zip(rows, follow, strict=True)]


@pytest.mark.readers
@pytest.mark.parametrize("change", [{"samples": 20}, {"seed": 1}, {"seq_len": 8}])
def test_megatron_stops_instead_of_shuffling_when_an_argument_differs(mixture, tmp_path, change):
    options = {"samples": ROWS, "extra": False}
    dataset(mixture, tmp_path, **options)
    keep_order(mixture.root, tmp_path)
    with pytest.raises(FileNotFoundError):
        dataset(mixture, tmp_path, **{**options, **change}, fast=True)
    assert len(dataset(mixture, tmp_path, **options, fast=True)) == ROWS


@pytest.mark.readers
def test_an_index_of_another_sequence_length_is_refused(mixture, tmp_path):
    dataset(mixture, tmp_path, samples=ROWS, extra=False, seq_len=8)
    with pytest.raises(MixcError) as raised:
        keep_order(mixture.root, tmp_path)
    assert raised.value.code == "MX063"
