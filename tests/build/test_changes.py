"""A change of the recipe: which rows it moves, and what is built anew."""

from build_helpers import (
    all_documents,
    code_of,
    make_store,
    random_corpus,
    rows_by_domain,
    write_corpus,
    write_document_weights,
)

from mixc import pipeline
from mixc.recipe import load

BUILD = {"rows": 40, "seq_len": 16, "formats": ["nanogpt", "megatron"]}
CORPUS = random_corpus(5, {"code": (30, 20), "prose": (20, 40), "web": (60, 12)})


def test_a_change_of_weights_moves_only_a_prefix_of_each_deck(tmp_path):
    path = write_corpus(tmp_path, CORPUS, mixture=BUILD | {"rows": 30})
    found = []
    for shares in ("{code: 0.4, prose: 0.4, web: 0.2}", "{code: 0.1, prose: 0.4, web: 0.5}"):
        outputs = pipeline.run(load(path, [f"mixture.weights={shares}"]), workers=1)
        found.append(rows_by_domain(outputs.mixture))
    before, after = found
    assert [len(before[name]) for name in ("code", "prose", "web")] == [12, 12, 6]
    assert [len(after[name]) for name in ("code", "prose", "web")] == [3, 12, 15]
    assert after["code"] < before["code"]
    assert after["prose"] == before["prose"]
    assert before["web"] < after["web"]


def test_an_unchanged_recipe_builds_nothing_and_a_changed_one_builds_anew(tmp_path):
    path = write_corpus(tmp_path, CORPUS, mixture=BUILD)
    first = pipeline.run(load(path), workers=1).mixture
    inode = (first.root / "mixture.json").stat().st_ino
    again = pipeline.run(load(path), workers=1).mixture
    assert (again.root / "mixture.json").stat().st_ino == inode
    for override in ("seed=9", "mixture.rows=41", "mixture.order.shuffle_block=2", "name=other"):
        changed = pipeline.run(load(path, [override]), workers=1).mixture
        assert changed.manifest["key"] != first.manifest["key"], override
        assert changed.manifest["overrides"] == [override]
    back = pipeline.run(load(path), workers=1).mixture
    assert back.manifest == first.manifest


def test_a_missing_or_cut_file_is_built_again(tmp_path):
    path = write_corpus(tmp_path, CORPUS, mixture=BUILD)
    mixture = pipeline.run(load(path), workers=1).mixture
    for name in ("nanogpt/train.bin", "rows.parquet", "megatron/val.idx"):
        before = (mixture.root / name).read_bytes()
        (mixture.root / name).unlink()
        pipeline.build_mixture(load(path), workers=1)
        assert (mixture.root / name).read_bytes() == before
        (mixture.root / name).write_bytes(before[:-1])
        pipeline.build_mixture(load(path), workers=1)
        assert (mixture.root / name).read_bytes() == before


def test_other_weights_of_documents_are_another_mixture(tmp_path):
    options = BUILD | {"document_weights": "w.parquet"}
    store = make_store(tmp_path, CORPUS, mixture=options)
    path, recipe = tmp_path / "w.parquet", load(tmp_path / "recipe.yaml")
    assert code_of(recipe.file) == "MX041"  # no file yet
    ids = [doc_id for doc_id, _ in all_documents(store, "web")]
    write_document_weights(path, {1: 2.0})
    assert code_of(recipe.file) == "MX061"  # names no document
    write_document_weights(path, dict.fromkeys(ids, 0.001))
    assert code_of(recipe.file) == "MX061"  # weigh less than one in all
    keys = []
    for weight in (1.0, 2.0, 2.0):
        write_document_weights(path, {ids[0]: 1, ids[1]: weight, ids[2]: 1})
        keys.append(pipeline.build_mixture(recipe, workers=1).manifest["key"])
    assert keys[0] != keys[1] == keys[2]
    plain = pipeline.build_mixture(load(recipe.file, ["mixture.document_weights=null"]), workers=1)
    assert "document_weights" not in plain.manifest
    assert not (plain.root / "document_weights.parquet").exists()
