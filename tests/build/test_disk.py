"""A disk that is too small is foreseen, and no larger one is asked for than a build takes."""

import re

import pytest
from build_helpers import make_store, random_corpus, small_blocks, write_corpus

from mixc import pipeline
from mixc.build import foresight, gather, reuse
from mixc.build.mixture import open_mixture
from mixc.errors import MixcError
from mixc.recipe import load
from mixc.store import commit

CORPUS = random_corpus(12, {"code": (60, 20), "prose": (20, 60), "web": (90, 9)})
FIRST, SECOND = {"code": 0.2, "prose": 0.3, "web": 0.5}, {"code": 0.4, "prose": 0.3, "web": 0.3}
MIXTURE = {"rows": 120, "seq_len": 16, "max_epochs": 9, "formats": ["nanogpt"], "weights": FIRST}
ROW, BLOCK_ROWS = 32, 9
STREAM, PROVENANCE = 120 * ROW, 120 * 16


def build(folder, how="one-pass", *, decks=False, **changes):
    mixture = {name: said for name, said in (MIXTURE | changes).items() if said is not None}
    path = write_corpus(folder, CORPUS, mixture=mixture)
    if not (folder / "out").exists():
        make_store(folder, CORPUS, mixture=mixture)
    with small_blocks(BLOCK_ROWS * 16):
        return pipeline.build_mixture(load(path), workers=1, gather=how, decks=decks)


def asked_for(folder, monkeypatch, how="one-pass", **changes):
    """What a build says that it takes, if nothing is free: before any token is read."""
    with monkeypatch.context() as patch:
        patch.setattr(foresight, "free_bytes", lambda root: -(10**9))
        patch.setattr(gather, "place_tokens", None)
        patch.setattr(reuse.Reuse, "stage", None)
        with pytest.raises(MixcError, match="takes at least") as caught:
            build(folder, how, **changes)
    assert caught.value.code == "MX043" and "mixc plan" in caught.value.help
    return int(re.search(r"at least (-?[\d,]+)", str(caught.value))[1].replace(",", ""))


def planned(folder, how="one-pass", *, decks=False):
    """What `mixc plan` says of the recipe that was built last."""
    with small_blocks(BLOCK_ROWS * 16):
        recipe = load(folder / "recipe.yaml")
        return pipeline.plan(recipe, workers=1, gather=how, decks=decks)[-1].details


def interrupt(folder, monkeypatch, blocks, **changes):
    """Build until so many blocks are staged."""
    append, lines = commit.append_line, []

    def stop(path, line):
        append(path, line)
        lines.append(line)
        if len(lines) == blocks:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(commit, "append_line", stop)
        build(folder, **changes)


def test_nothing_is_staged_on_a_disk_that_is_too_small(tmp_path, monkeypatch):
    assert asked_for(tmp_path, monkeypatch) == STREAM + PROVENANCE
    assert not [path for path in tmp_path.rglob("stream.*") if path.is_file()]
    assert open_mixture(build(tmp_path).root).whole()


def test_nor_are_blocks_taken_over(tmp_path, monkeypatch):
    build(tmp_path, formats=["mds"])
    assert asked_for(tmp_path, monkeypatch, formats=["mds"], rows=150) > 150 * ROW
    assert not [path for path in tmp_path.rglob("stream.*") if path.is_file()]


@pytest.mark.parametrize("how", ["one-pass", "two-pass"])
@pytest.mark.parametrize("formats", [["nanogpt"], ["mds", "webdataset"]])
def test_buckets_are_gone_before_formats_are_written(tmp_path, monkeypatch, how, formats):
    needed = asked_for(tmp_path, monkeypatch, how, formats=formats)
    said = planned(tmp_path, how)
    written = sum(said["disk"][name] for name in formats)
    buckets = STREAM if how == "two-pass" else 0
    assert needed == STREAM + PROVENANCE + max(buckets, written)
    assert said["disk_bytes"] == needed
    assert said["disk"].get("buckets", 0) == buckets


def test_blocks_that_are_taken_over_need_no_buckets(tmp_path, monkeypatch):
    stages = [{"until": 0.5, "weights": FIRST}, {"until": 1.0, "weights": dict(SECOND)}]
    build(tmp_path, weights=None, stages=stages)
    stages[1]["weights"] = {"code": 0.3, "prose": 0.3, "web": 0.4}
    needed = asked_for(tmp_path, monkeypatch, "two-pass", weights=None, stages=stages)
    said = planned(tmp_path, "two-pass")
    left = 120 - BLOCK_ROWS * said["reused_blocks"]
    assert 0 < left < 120
    assert said["disk_bytes"] == needed == STREAM + PROVENANCE + left * ROW


def test_what_an_earlier_run_has_staged_is_not_asked_for_again(tmp_path, monkeypatch):
    interrupt(tmp_path, monkeypatch, 6)
    left = 120 - 6 * BLOCK_ROWS
    assert asked_for(tmp_path, monkeypatch) == PROVENANCE
    assert asked_for(tmp_path, monkeypatch, "two-pass") == PROVENANCE + left * ROW
    said = planned(tmp_path, "two-pass")
    assert (said["staged_blocks"], said["disk_bytes"]) == (6, PROVENANCE + left * ROW)


def test_nor_is_a_stream_that_a_format_has(tmp_path, monkeypatch):
    build(tmp_path)
    needed = asked_for(tmp_path, monkeypatch, "two-pass", formats=["nanogpt", "mds"])
    said = planned(tmp_path, "two-pass")
    assert said["disk_bytes"] == needed == PROVENANCE + said["disk"]["mds"]


@pytest.mark.parametrize("how", ["one-pass", "two-pass"])
def test_what_decks_grow_by_is_asked_for(tmp_path, monkeypatch, how):
    buckets = ROW * (how == "two-pass")
    stay = STREAM + PROVENANCE
    needed = asked_for(tmp_path, monkeypatch, how, decks=True)
    assert needed == stay + STREAM + 120 * buckets
    build(tmp_path, decks=True)
    needed = asked_for(tmp_path, monkeypatch, how, decks=True, weights=SECOND)
    assert needed == stay + 24 * ROW + 24 * buckets  # of code: 48 rows where 24 are
    assert planned(tmp_path, how, decks=True)["disk_bytes"] == needed


def test_decks_of_other_rows_give_their_place(tmp_path, monkeypatch):
    build(tmp_path, decks=True)
    there = [path for path in (tmp_path / "out/decks").rglob("*") if path.is_file()]
    freed = sum(path.stat().st_size for path in there)
    needed = asked_for(tmp_path, monkeypatch, decks=True, seq_len=8, rows=240)
    assert needed == STREAM + 2 * PROVENANCE + STREAM - freed
    assert all(path.exists() for path in there)
