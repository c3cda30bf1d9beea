"""Provenance in one file, in parts, or left out: the same rows, whoever asks for them."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
from build_helpers import (
    all_documents,
    flat,
    make_mixture,
    make_store,
    mixc,
    random_corpus,
    read_rows,
    reseal,
    small_blocks,
    tree_hash,
    write_corpus,
    write_document_weights,
)

from mixc import pipeline
from mixc.build import gather, provenance
from mixc.build.mixture import SCHEMA, open_mixture
from mixc.diff import diff
from mixc.errors import MixcError, MixcErrors
from mixc.inspect import inspect
from mixc.recipe import load
from mixc.store import commit
from mixc.verify import verify

CORPUS = random_corpus(11, {"code": (60, 20), "prose": (20, 60), "web": (90, 9)})
MIXTURE = {"rows": 120, "seq_len": 16, "max_epochs": 9, "formats": ["nanogpt", "mds"]}
FIRST, SECOND = {"code": 0.2, "prose": 0.3, "web": 0.5}, {"code": 0.4, "prose": 0.3, "web": 0.3}
HELD = {"fraction": 0.1}
BLOCK_ROWS = 9
CHANGES = {
    "concat": {},
    "best_fit": {"packing": "best_fit"},
    "weighted": {"document_weights": "w.parquet"},
    "stages": {"stages": [{"until": 0.5, "weights": FIRST}, {"until": 1.0, "weights": SECOND}]},
}


def build(folder, *, parts=None, workers=1, **changes):
    """Build over what is there; `parts`: with so many rows in a part of provenance."""
    mixture = MIXTURE | {"weights": FIRST} | changes
    if "stages" in changes:
        del mixture["weights"]
    path = write_corpus(folder, CORPUS, mixture=mixture, holdout=HELD)
    if not (folder / "out").exists():
        store = make_store(folder, CORPUS, mixture=mixture, holdout=HELD)
        ids = {doc_id for doc_id, _ in all_documents(store, "code")}
        write_document_weights(folder / "w.parquet", dict.fromkeys(ids, 1.3))
    with small_blocks(BLOCK_ROWS * 16), pytest.MonkeyPatch.context() as patch:
        if parts is not None:
            patch.setattr(provenance, "PART_ROWS", parts)
        return pipeline.build_mixture(load(path), workers=workers)


@pytest.fixture
def gathered(monkeypatch):
    """The numbers of the blocks that are gathered."""
    numbers, write = [], gather._write

    def spy(builder, task, *others):
        numbers.append(task.number)
        return write(builder, task, *others)

    monkeypatch.setattr(gather, "_write", spy)
    return numbers


def names_of(mixture):
    return [one.path for one in provenance.listed(mixture.manifest["provenance"])]


def problems(path, **options):
    with pytest.raises((MixcError, MixcErrors)) as raised:
        verify(path, **options)
    error = raised.value
    return [str(one) for one in (error.errors if isinstance(error, MixcErrors) else (error,))]


# ---- in parts ----


@pytest.mark.parametrize("changed", CHANGES)
def test_parts_have_the_rows_of_one_file(tmp_path, changed):
    changes = CHANGES[changed]
    whole = build(tmp_path / "whole", **changes)
    mixture = build(tmp_path / "parts", parts=4 * BLOCK_ROWS + 1, **changes)
    assert names_of(whole) == ["rows.parquet"]
    assert names_of(mixture) == [f"rows/{number:05}.parquet" for number in range(4)]
    sizes = [pq.read_metadata(mixture.root / name).num_rows for name in names_of(mixture)]
    assert sizes == [36, 36, 36, 12]
    assert read_rows(mixture) == read_rows(whole)
    assert verify(mixture.root, full=True).traced_rows == 120
    assert verify(mixture.root).traced_groups == 8
    for row in (0, 35, 36, 107, 108, 119):
        assert inspect(mixture.root, row=row) == inspect(whole.root, row=row)
    found = diff(whole.root, mixture.root)
    assert found["equal"]
    assert all(one["in_place"] == one["a"]["rows"] for one in found["domains"].values())


def test_a_mixture_that_fits_in_a_part_has_one_file(tmp_path):
    assert names_of(build(tmp_path / "a", parts=126)) == ["rows.parquet"]
    assert len(names_of(build(tmp_path / "b", parts=125))) == 2


def test_parts_are_the_same_for_any_workers_and_after_a_kill(tmp_path, monkeypatch):
    expected = tree_hash(build(tmp_path / "a", parts=20).root)
    for workers in (2, 5):
        assert tree_hash(build(tmp_path / str(workers), parts=20, workers=workers).root) == expected
    append, lines = commit.append_line, []

    def stop(path, line):
        append(path, line)
        lines.append(line)
        if len(lines) == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(commit, "append_line", stop)
        build(tmp_path / "b", parts=20)
    left = [path.name for path in (tmp_path / "b/out/.mixc").rglob("rows/*")]
    assert sorted(left) == ["00000.parquet", "00001.parquet", "00002.parquet"]
    assert tree_hash(build(tmp_path / "b", parts=20).root) == expected


@pytest.mark.parametrize("how", ["flipped", "missing", "swapped", "merged"])
def test_damage_to_a_part_is_found(tmp_path, how):
    root = build(tmp_path, parts=36).root
    first, second = root / "rows/00000.parquet", root / "rows/00001.parquet"
    if how == "flipped":
        data = bytearray(second.read_bytes())
        data[len(data) // 2] ^= 1
        second.write_bytes(data)
    elif how == "missing":
        second.unlink()
    else:

        def change(data):
            parts = data["provenance"]["parts"]
            if how == "swapped":
                parts[0], parts[1] = parts[1], parts[0]
            else:
                parts.pop(1)

        reseal(root / "mixture.json", SCHEMA, change)
    assert all("MX040" in one for one in problems(root))
    if how in ("missing", "merged"):
        with pytest.raises(MixcError) as raised:
            inspect(root, row=118 if how == "merged" else 40)
        assert raised.value.code == "MX040"
    assert first.exists()


@pytest.mark.parametrize("blocks", [0, -1])
def test_parts_of_no_blocks_are_damage(tmp_path, blocks):
    root = build(tmp_path, parts=36).root
    change = {"part_blocks": blocks}
    reseal(root / "mixture.json", SCHEMA, lambda data: data["provenance"].update(change))
    assert all("MX040" in one for one in problems(root))
    with pytest.raises(MixcError, match="parts hold no blocks"):
        inspect(root, row=40)


def test_a_mixture_in_parts_is_taken_over(tmp_path, gathered):
    build(tmp_path / "a", parts=20, **CHANGES["stages"])
    gathered.clear()
    stages = [{"until": 0.5, "weights": FIRST}, {"until": 1.0, "weights": dict(FIRST)}]
    mixture = build(tmp_path / "a", parts=20, stages=stages)
    assert gathered and min(gathered) >= 6
    assert tree_hash(mixture.root) == tree_hash(build(tmp_path / "b", parts=20, stages=stages).root)


# ---- left out ----


@pytest.mark.parametrize("changed", CHANGES)
def test_what_is_left_out_is_derived(tmp_path, changed):
    changes = CHANGES[changed]
    whole = build(tmp_path / "whole", **changes)
    mixture = build(tmp_path / "none", provenance=False, **changes)
    assert names_of(mixture) == ["blocks.bin"]
    assert not list(mixture.root.glob("rows*"))
    assert (flat(mixture) == flat(whole)).all()
    for key in ("ledger", "domains", "stream_hash", "formats"):
        assert mixture.manifest[key] == whole.manifest[key]
    report = verify(mixture.root, full=True)
    assert (report.derived, report.traced_rows) == (True, 120)
    for row in (0, 35, 36, 107, 108, 119):
        assert inspect(mixture.root, row=row) == inspect(whole.root, row=row)
        assert inspect(mixture.root, token=16 * row) == inspect(whole.root, token=16 * row)
    found = diff(whole.root, mixture.root)
    assert found["equal"]
    assert all(one["in_place"] == one["a"]["rows"] for one in found["domains"].values())


def test_it_is_the_same_for_any_workers(tmp_path):
    trees = [
        tree_hash(build(tmp_path / str(workers), provenance=False, workers=workers).root)
        for workers in (1, 2, 5)
    ]
    assert len(set(trees)) == 1


def test_without_the_store_it_is_said_what_cannot_be_derived(tmp_path):
    build(tmp_path / "a", provenance=False)
    moved = (tmp_path / "a/out/mixture").rename(tmp_path / "moved")
    store = tmp_path / "a/out/store"
    report = verify(moved)
    assert (report.rows, report.derived, report.traced_rows) == (120, False, 0)
    assert verify(moved, store=store).traced_rows > 0
    with pytest.raises(MixcError, match="without provenance") as caught:
        inspect(moved, row=3)
    assert caught.value.code == "MX041" and "--store" in caught.value.help
    assert inspect(moved, row=3, store=store)["row"] == 3
    done = mixc("verify", moved)
    assert done.returncode == 0 and "no provenance, and no store beside it" in done.stdout
    found = diff(moved, moved)
    assert found["equal"] and "neither provenance nor the store" in found["notes"][0]
    assert found["domains"]["web"]["common"] is None


def _shift(data):
    epoch = data["ledger"]["web"]["epochs"][0]
    epoch["in_rows"] += 1
    epoch["left"] -= 1


def _lose(data):
    data["ledger"]["web"]["epochs"][0]["left"] -= 1


def _seed(data):
    data["seed"] += 1


@pytest.mark.parametrize("lie", [_shift, _lose, _seed])
@pytest.mark.parametrize("store", [True, False])
def test_lies_are_found_without_it(tmp_path, lie, store):
    build(tmp_path, provenance=False)
    if not store:
        shutil.rmtree(tmp_path / "out/store")
    reseal(tmp_path / "out/mixture/mixture.json", SCHEMA, lie)
    assert all("MX040" in one for one in problems(tmp_path / "out/mixture"))


def test_other_tokens_are_found_without_it(tmp_path):
    """Row by row, by the store; by the stream's hash alone without one."""
    root = build(tmp_path, provenance=False, formats=["nanogpt"]).root
    data = bytearray((root / "nanogpt/train.bin").read_bytes())
    data[700] ^= 1
    (root / "nanogpt/train.bin").write_bytes(data)
    assert "nanogpt/train.bin" in problems(root)[0]


def test_such_a_mixture_is_taken_over(tmp_path, gathered):
    build(tmp_path / "a", provenance=False, **CHANGES["stages"])
    gathered.clear()
    stages = [{"until": 0.5, "weights": FIRST}, {"until": 1.0, "weights": dict(FIRST)}]
    mixture = build(tmp_path / "a", provenance=False, stages=stages)
    assert gathered and min(gathered) >= 6
    gathered.clear()
    both = build(tmp_path / "a", stages=stages)
    assert gathered == []
    assert tree_hash(both.root) == tree_hash(build(tmp_path / "b", stages=stages).root)
    assert names_of(mixture) == ["blocks.bin"]


def test_a_recipe_that_does_not_say_it_is_the_same_recipe(tmp_path):
    path = write_corpus(tmp_path, CORPUS, mixture=MIXTURE)
    said = load(path, ["mixture.provenance=true"])
    assert said.canonical() == load(path).canonical()
    assert load(path, ["mixture.provenance=false"]).canonical() != said.canonical()


def test_the_plan_asks_for_no_disk_for_it(tmp_path):
    make_mixture(tmp_path, CORPUS, mixture=MIXTURE)
    done = mixc("plan", tmp_path / "recipe.yaml", "--json", "-s", "mixture.provenance=false")
    assert json.loads(done.stdout)["stages"][-1]["details"]["disk"]["provenance"] == 0
    assert open_mixture(tmp_path / "out/mixture").whole()
