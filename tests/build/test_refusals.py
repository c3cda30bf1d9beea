"""What cannot be built: recipes that ask too much, and stores that do not fit or are damaged."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from build_helpers import code_of, random_corpus, rows_by_domain, write_corpus
from helpers import write_jsonl

from mixc import pipeline
from mixc.build import gather
from mixc.errors import MixcError
from mixc.recipe import load
from mixc.tokenize.stage import tokenize

BUILD = {"rows": 40, "seq_len": 16, "formats": ["nanogpt", "megatron"]}
CORPUS = random_corpus(5, {"code": (30, 20), "prose": (20, 40), "web": (60, 12)})


def test_what_cannot_be_built(tmp_path):
    path = write_corpus(tmp_path, CORPUS, mixture=BUILD)
    assert code_of(path) == "MX041"  # no store yet
    pipeline.run(load(path), workers=1)
    assert code_of(path, "mixture.max_epochs=0.01") == "MX060"
    assert code_of(path, "mixture.rows=null", "mixture.tokens=15") == "MX060"
    assert code_of(path, "mixture.weights=w.json") == "MX061"
    (tmp_path / "w.json").write_text('{"code": 0.5, "prose": 0.5}')
    assert code_of(path, "mixture.weights=w.json") == "MX061"  # web is not named
    (tmp_path / "w.json").write_text('{"code": 0.5, "prose": 0.25, "web": 0.25, "x": 0}')
    assert code_of(path, "mixture.weights=w.json") == "MX061"
    (tmp_path / "w.json").write_text('{"code": 0.5, "prose": 0.5, "web": 0}')
    overrides = ["mixture.weights=w.json", "mixture.rows=20"]
    built = pipeline.build_mixture(load(path, overrides), workers=1)
    assert built.manifest["domains"]["web"]["rows"] == 0
    assert set(rows_by_domain(built)) == {"code", "prose"}


def longer(spans, *changes):
    """Spans that are longer, each change a pair of the span's number and by how much."""
    length = spans.length.copy()
    for number, more in changes:
        length[number] += more
    return replace(spans, length=length)


WRONG_SPANS = {
    "short": ("concat", lambda s: longer(s, (0, -1))),
    "moved": ("concat", lambda s: longer(s, (0, -1), (np.flatnonzero(s.row == 1)[0], 1))),
    "out of the shard": ("concat", lambda s: longer(s, (0, 1 << 40))),
    "over": ("best_fit", lambda s: longer(s, (0, 16))),
}


@pytest.mark.parametrize("wrong", WRONG_SPANS)
def test_spans_that_do_not_fill_their_rows_are_not_written(tmp_path, monkeypatch, wrong):
    packing, change = WRONG_SPANS[wrong]
    path = write_corpus(tmp_path, CORPUS, mixture=BUILD | {"packing": packing})
    tokenize(load(path), workers=1)
    sources = gather.sources_of

    def lie(builder, task):
        rows = sources(builder, task)
        return replace(rows, spans=change(rows.spans))

    monkeypatch.setattr(gather, "sources_of", lie)
    with pytest.raises(MixcError, match="do not fill") as caught:
        pipeline.build_mixture(load(path), workers=1)
    assert caught.value.code == "MX040"
    assert Path(caught.value.place.file).parent.parent == tmp_path / "out/store"
    assert not (tmp_path / "out/mixture").exists()


def test_a_shard_that_is_cut_while_it_is_read_is_named(tmp_path, monkeypatch):
    path = write_corpus(
        tmp_path, CORPUS, mixture=BUILD | {"weights": {"code": 0, "prose": 0, "web": 1}}
    )
    tokenize(load(path), workers=1)
    (shard,), sources = (tmp_path / "out/store/web").iterdir(), gather.sources_of

    def cut(builder, task):
        rows = sources(builder, task)
        os.truncate(shard, 0)
        return rows

    monkeypatch.setattr(gather, "sources_of", cut)
    with pytest.raises(MixcError, match="cannot be read any more") as caught:
        pipeline.build_mixture(load(path), workers=1)
    assert (caught.value.code, caught.value.place.file) == ("MX040", str(shard))


def test_a_store_of_other_domains_is_stale(tmp_path):
    path = write_corpus(tmp_path, CORPUS, mixture=BUILD)
    pipeline.run(load(path), workers=1)
    extra = write_jsonl(tmp_path / "extra.jsonl", ["a1 a2"])
    assert code_of(path, f"domains.extra={{paths: [{Path(extra).name}]}}") == "MX045"
