import numpy as np
import pyarrow as pa
import pytest
from helpers import texts, write_recipe
from hypothesis import example, given
from hypothesis import strategies as st

from mixc.errors import MixcError
from mixc.recipe import load
from mixc.rows.stream import DomainStream
from mixc.store import holdout
from mixc.tokenize.stage import tokenize

IDS = st.lists(st.integers(0, 2**64 - 1), max_size=60).map(lambda x: np.array(x, np.uint64))


def size_of(ids):
    """Lengths that are a function of the id, as equal texts have equal lengths."""
    return (ids % np.uint64(50)).astype(np.int64) + 1


@given(
    ids=IDS,
    copies=st.integers(1, 3),
    fraction=st.floats(0, 0.5),
    cap=st.integers(0, 300),
)
@example(np.array([1, 1, 1], np.uint64), 1, 0.5, 300)
@example(np.array([5], np.uint64), 1, 0.5, 300)
def test_the_laws_of_the_choice(ids, copies, fraction, cap):
    ids = np.tile(ids, copies)
    sizes = size_of(ids)
    options = {"fraction": fraction, "max_tokens": cap}
    held = holdout.choose(ids, sizes, **options)

    distinct = np.unique(ids)
    assert held.dtype == np.uint64
    assert np.array_equal(held, np.unique(held))
    assert np.isin(held, distinct).all()
    assert size_of(held).sum() <= cap
    assert len(held) <= max(1, fraction * len(distinct))
    if len(distinct):
        assert len(held) < len(distinct)  # never all
    if fraction > 0 and len(distinct) > 1 and size_of(distinct).min() <= cap:
        assert len(held) >= 1
    if fraction == 0:
        assert len(held) == 0

    # It depends on the set of documents alone.
    order = np.random.default_rng(0).permutation(len(ids))
    assert np.array_equal(holdout.choose(ids[order], sizes[order], **options), held)
    assert np.array_equal(holdout.choose(distinct, size_of(distinct), **options), held)


@given(ids=IDS)
def test_a_larger_fraction_holds_out_the_same_and_more(ids):
    taken = np.zeros(0, np.uint64)
    for fraction in (0.0, 0.01, 0.1, 0.3, 0.5):
        more = holdout.choose(ids, size_of(ids), fraction=fraction, max_tokens=10**9)
        assert np.isin(taken, more).all()
        taken = more


def test_what_is_held_out_now_stays_so_in_later_versions():
    ids = np.arange(1000, dtype=np.uint64)
    held = holdout.choose(ids, size_of(ids), fraction=0.1, max_tokens=10**9)
    assert len(held) == 100
    assert held.tolist()[:5] == [0, 4, 20, 26, 47]


def test_what_does_not_fit_is_passed_over():
    ids = np.arange(1000, dtype=np.uint64)
    sizes = np.full(1000, 10)
    first = holdout.choose(ids, sizes, fraction=0.1, max_tokens=10**9)
    sizes[first[:50]] = 10**6
    held = holdout.choose(ids, sizes, fraction=0.1, max_tokens=500)
    assert np.array_equal(held, first[50:])


def test_the_seed_of_the_recipe_changes_no_holdout(tmp_path):
    path = write_recipe(tmp_path, {"web": texts(1, 50)})
    store = tokenize(load(path), workers=1)
    assert tokenize(load(path, ["seed=1"]), workers=1).manifest == store.manifest


def test_a_damaged_list_lets_nothing_through(tmp_path):
    path = write_recipe(tmp_path / "old", {"web": texts(1, 50)})
    old = tokenize(load(path), workers=1)
    raw = bytearray((old.root / "holdout.arrow").read_bytes())
    raw[len(raw) // 2] ^= 1
    (old.root / "holdout.arrow").write_bytes(raw)
    path = write_recipe(tmp_path / "new", {"web": texts(1, 50)}, holdout={"also": str(old.root)})
    with pytest.raises(MixcError) as caught:
        tokenize(load(path), workers=1)
    assert caught.value.code == "MX040"


def test_a_list_comes_back(tmp_path):
    held = {
        "web": np.array([3, 2**64 - 1], np.uint64),
        "code": np.array([3], np.uint64),
        "empty": np.zeros(0, np.uint64),
    }
    record = holdout.write(tmp_path, held)
    assert record.path == holdout.FILE
    found = holdout.read(tmp_path / holdout.FILE)
    assert {name: ids.tolist() for name, ids in found.items()} == {
        "web": [3, 2**64 - 1],
        "code": [3],
    }
    again = holdout.write(tmp_path / "again", dict(reversed(held.items())))
    assert again.xxh3 == record.xxh3


def test_a_damaged_list_is_never_read_as_less(tmp_path):
    """Cut anywhere, or of other columns. A bit flipped in an id only a hash can notice."""
    path = tmp_path / holdout.FILE
    holdout.write(tmp_path, {"web": np.arange(5, dtype=np.uint64)})
    whole = path.read_bytes()
    other = tmp_path / "other.arrow"
    for length in range(len(whole)):
        other.unlink(missing_ok=True)
        other.write_bytes(whole[:length])
        with pytest.raises(MixcError) as caught:
            holdout.read(other)
        assert (caught.value.code, caught.value.place.file) == ("MX040", str(other))
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        other.unlink(missing_ok=True)
        other.write_bytes(changed)
        try:
            assert sum(map(len, holdout.read(other).values())) == 5
        except MixcError as error:
            assert error.code == "MX040"
    for table in (
        pa.table({"domain": ["web"]}),
        pa.table({"domain": ["web"], "doc_id": ["x"]}),
        pa.table({"domain": ["web"], "doc_id": pa.array([None], pa.uint64())}),
    ):
        with pa.OSFile(str(other), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        with pytest.raises(MixcError) as caught:
            holdout.read(other)
        assert caught.value.code == "MX040"


def test_no_list(tmp_path):
    with pytest.raises(MixcError) as caught:
        holdout.read(tmp_path / "gone.arrow")
    assert caught.value.code == "MX041"


# Through the stage


def training_ids(store, name):
    stream = DomainStream(store, name, seq_len=16, seed=0)
    rows = np.arange(3 * stream.epoch_tokens // 16)
    return np.unique(stream.doc_ids(stream.spans(rows).document))


def ids_of(store, name):
    return np.concatenate([shard.doc_id for shard in store.documents(name)])


def test_no_held_out_document_trains(small_store):
    for name, domain in small_store.domains.items():
        held, trained = small_store.held_ids[name], training_ids(small_store, name)
        assert len(held) == domain.documents // 10
        assert len(np.intersect1d(held, trained)) == 0
        assert np.array_equal(np.union1d(held, trained), np.unique(ids_of(small_store, name)))
        copies = list(small_store.held_out(name))
        assert np.sort(np.concatenate([one.doc_id for one in copies])).tolist() == held.tolist()


def test_what_one_domain_holds_out_no_other_trains_on(tmp_path):
    """Both domains share most texts, some twice; `code` holds fewer out by its cap."""
    shared = texts(1, 80)
    path = write_recipe(
        tmp_path,
        {"web": shared + shared[:20], "code": shared[:60] + texts(2, 40)},
        holdout={"fraction": 0.2, "max_tokens": 150},
    )
    store = tokenize(load(path), workers=1)
    every = store.all_held_ids
    crossing = 0
    for name, domain in store.domains.items():
        ids = ids_of(store, name)
        lengths = np.concatenate([shard.lengths for shard in store.documents(name)])
        out = np.isin(ids, every)
        assert not np.isin(training_ids(store, name), every).any()
        assert (domain.held_documents, domain.held_tokens) == (out.sum(), lengths[out].sum())
        assert domain.training_tokens == lengths[~out].sum()
        _, first = np.unique(ids, return_index=True)
        chosen = first[np.isin(ids[first], store.held_ids[name])]
        assert 0 < lengths[chosen].sum() <= 150
        assert len(np.concatenate([one.doc_id for one in store.held_out(name)])) == len(chosen)
        crossing += int(np.isin(ids, every).sum() - np.isin(ids, store.held_ids[name]).sum())
    assert crossing > 0


@pytest.mark.parametrize("place", ["old/out/store", "old/out/store/holdout.arrow"])
def test_what_was_held_out_stays_out_when_the_data_grow(tmp_path, place):
    """`also` takes the earlier store, or its list; domains that are gone count as well."""
    first = texts(1, 50)
    old = tokenize(
        load(write_recipe(tmp_path / "old", {"web": first, "gone": texts(3, 30)})), workers=1
    )
    # The texts of `gone` stand in `web` by now, and a smaller share is held out.
    corpus = {"web": first + texts(2, 500) + texts(3, 30)}
    alone = tokenize(
        load(write_recipe(tmp_path / "alone", corpus, holdout={"fraction": 0.02})), workers=1
    )
    assert not np.isin(old.all_held_ids, alone.all_held_ids).all()

    path = write_recipe(tmp_path / "new", corpus, holdout={"fraction": 0.02, "also": f"../{place}"})
    new = tokenize(load(path), workers=1)
    assert np.isin(old.all_held_ids, new.all_held_ids).all()
    assert np.isin(alone.all_held_ids, new.all_held_ids).all()
    assert new.held_ids["gone"].tolist() == old.held_ids["gone"].tolist()
    assert not np.isin(training_ids(new, "web"), old.all_held_ids).any()


def test_a_fraction_of_nothing_holds_nothing_out(tmp_path):
    path = write_recipe(tmp_path, {"web": texts(1, 20)}, holdout={"fraction": 0})
    store = tokenize(load(path), workers=1)
    assert store.domains["web"].held_documents == 0
    assert list(store.held_ids) == []
    assert len(training_ids(store, "web")) == 20


_IDS = st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 300))


@given(_IDS, _IDS, st.integers(0, 5))
def test_which_of_many_stand_in_a_short_list(ids, others, both):
    many = np.array(ids, np.uint64)
    chosen = np.unique(np.array([*others, *ids[:both]], np.uint64))
    assert holdout.among(many, chosen).tolist() == np.isin(many, chosen).tolist()
