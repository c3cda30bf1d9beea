"""Rows traced to the store: a sample of them or all, and a store that is not at hand."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from build_helpers import make_mixture, small_blocks, write_corpus
from verify.forging import CORPUS, MIXTURE, change_provenance, problems

from mixc import pipeline
from mixc.build.mixture import open_mixture
from mixc.recipe import load
from mixc.verify import verify
from mixc.verify.sources import sample

# ---- a sample ----


@pytest.fixture(scope="module")
def many_groups(tmp_path_factory):
    """A mixture of 40 row groups of one row."""
    folder = tmp_path_factory.mktemp("groups")
    with small_blocks(16):
        make_mixture(folder, CORPUS, mixture={**MIXTURE, "rows": 40})
    return folder / "out"


def test_a_sample_of_row_groups_is_traced_or_all_of_them(many_groups):
    report = verify(many_groups / "mixture")
    assert (report.rows, report.groups, report.traced_groups, report.traced_rows) == (40, 40, 8, 8)
    report = verify(many_groups / "mixture", full=True)
    assert (report.groups, report.traced_groups, report.traced_rows) == (40, 40, 40)


def test_what_the_sample_misses_all_rows_find(many_groups, tmp_path):
    mixture = shutil.copytree(many_groups, tmp_path / "out") / "mixture"
    drawn = sample(40, open_mixture(mixture).manifest["seed"])
    missed = min(set(range(40)) - set(drawn))

    def lie(row):
        def change(rows):
            rows[row]["spans"][0]["doc_id"] ^= 1

        return change

    change_provenance(mixture, lie(missed))
    verify(mixture)
    assert problems(mixture, full=True)[0][0] == "MX040"
    change_provenance(mixture, lie(drawn[-1]))
    assert problems(mixture)[0][0] == "MX040"


def test_the_sample_is_fixed_sorted_and_large_enough():
    for groups in (1, 7, 8, 9, 128, 129, 1000):
        drawn = sample(groups, 3)
        assert drawn == sample(groups, 3) == sorted(set(drawn))
        assert len(drawn) == min(groups, max(8, -(-groups // 16)))
        assert set(drawn) <= set(range(groups))
    assert sample(1000, 3) != sample(1000, 4)


# ---- with and without the store ----


def test_a_mixture_that_moved_is_verified_without_its_store(out, tmp_path):
    moved = (out / "mixture").rename(tmp_path / "moved")
    report = verify(moved)
    assert (report.rows, report.traced_rows) == (13, 0)
    assert verify(moved, store=out / "store").traced_rows == 13


def test_a_store_beside_it_that_is_not_its_own_is_not_used_but_refused_if_named(out, tmp_path):
    other = write_corpus(tmp_path / "other", CORPUS, mixture=MIXTURE, holdout={"fraction": 0.4})
    store = pipeline.run(load(other), workers=1).store.root
    assert problems(out / "mixture", store=store)[0][0] == "MX045"
    shutil.rmtree(out / "store")
    shutil.copytree(store, out / "store")
    assert verify(out / "mixture").traced_rows == 0


def test_a_store_that_is_named_must_be_there(out, tmp_path):
    assert problems(out / "mixture", store=tmp_path)[0][0] == "MX041"


def test_rows_are_traced_to_a_damaged_store_and_do_not_match(out):
    shard = next((out / "store/web").glob("*.arrow"))
    data = bytearray(shard.read_bytes())
    tokens = np.fromfile(out / "mixture/nanogpt/train.bin", np.uint16)
    web = pq.read_table(out / "mixture/rows.parquet")["domain"].to_pylist().index("web")
    place = data.find(tokens[web * 16 : web * 16 + 4].tobytes())
    assert place > 0
    data[place] ^= 1
    shard.write_bytes(data)
    assert "does not hold the tokens" in problems(out / "mixture")[0][1]
    assert problems(out / "store")[0][0] == "MX040"
