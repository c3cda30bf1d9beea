"""Manifests that lie under a right seal."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from build_helpers import (
    all_documents,
    make_mixture,
    make_store,
    reseal,
    small_blocks,
    write_document_weights,
)
from verify.forging import CORPUS, MIXTURE, expect_damage, forge, problems, set_to

from mixc import pipeline
from mixc.build.mixture import SCHEMA
from mixc.recipe import load
from mixc.verify import verify


def _shift_ledger(data):
    epoch = data["ledger"]["web"]["epochs"][0]
    epoch["in_rows"] += 1
    epoch["left"] -= 1


def _read_more(data):
    for entry in (data["ledger"]["web"], *data["ledger"]["web"]["epochs"]):
        entry["read" if "read" in entry else "left"] += 5


def _drop_epoch(data):
    data["ledger"]["web"]["epochs"].pop()


def _swap_rows(data):
    code, web = data["domains"]["code"], data["domains"]["web"]
    code["rows"], web["rows"] = web["rows"], code["rows"]


LIES = {
    "ledger": _shift_ledger,
    "tokens read": _read_more,
    "epochs": _drop_epoch,
    "rows of domains": _swap_rows,
    "more rows": set_to("rows", value=14),
    "fewer rows": set_to("rows", value=12),
    "tokens": set_to("tokens", value=1),
    "domain tokens": set_to("domains", "web", "tokens", value=16),
    "realised weight": set_to("domains", "web", "realised", value=0.1),
    "domain epochs": set_to("domains", "web", "epochs", value=1.0),
    "weight": set_to("domains", "web", "weight", value=0.9),
    "order": set_to("order", "max_prefix_error", value=0.0),
    "bound": set_to("order", "bound", value=0.9),
    "shuffle block": set_to("order", "shuffle_block", value=4),
    "rows of blocks": set_to("block_rows", value=4),
    "type": set_to("dtype", value="uint32"),
    "end of text": set_to("eot_id", value=7),
    "vocabulary": set_to("tokenizer", "vocab_size", value=299),
    "held-out documents": set_to("holdout", "domains", "web", "documents", value=5),
    "held-out tokens": set_to("holdout", "domains", "web", "tokens", value=5),
    "held-out domain": lambda data: data["holdout"]["domains"].pop("web"),
    "stream hash": set_to("stream_hash", value="0" * 32),
    "seed": set_to("seed", value=5),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_lies_under_a_right_seal_is_found(out, lie):
    reseal(out / "mixture/mixture.json", SCHEMA, LIES[lie])
    assert {code for code, _, _ in problems(out / "mixture")} == {"MX040"}


KEYS = ["rows", "ledger", "domains", "order", "block_rows", "stream_hash", "seed", "holdout"]


@pytest.mark.parametrize("key", KEYS)
def test_a_manifest_without_a_key_or_with_nonsense_is_damaged(out, key):
    for change in (lambda data: data.pop(key), lambda data: data.update({key: None})):
        path = out / "mixture/mixture.json"
        whole = path.read_bytes()
        reseal(path, SCHEMA, change)
        assert {code for code, _, _ in problems(out / "mixture")} == {"MX040"}
        path.write_bytes(whole)


def test_a_manifest_may_not_name_files_outside_its_folder(out):
    def escape(data):
        data["provenance"]["path"] = "../store/manifest.json"

    reseal(out / "mixture/mixture.json", SCHEMA, escape)
    assert problems(out / "mixture")[0][0] == "MX040"


# ---- rows of whole documents ----


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The same with packing best_fit, under a cap on epochs."""
    folder = tmp_path_factory.mktemp("packed")
    with small_blocks(16 * 5):
        make_mixture(folder, CORPUS, mixture=MIXTURE | {"packing": "best_fit", "max_epochs": 2})
    return folder / "out"


def _pad_more(data):
    entry = data["ledger"]["web"]
    entry["padding"] += 1
    entry["epochs"][0]["in_rows"] -= 1
    entry["epochs"][0]["left"] += 1


PACKED_LIES = {
    "padding": _pad_more,
    "no padding": lambda data: data["ledger"]["web"].pop("padding"),
    "room": set_to("domains", "web", "room", value=10),
    "less room": set_to("domains", "web", "room", value=1),
    "epochs": set_to("domains", "web", "epochs", value=1.0),
    "cap": set_to("max_epochs", value=0.25),
    "packing": set_to("packing", value="concat"),
    "seed": set_to("seed", value=5),
}


def expect_found(whole, tmp_path, lie):
    """A mixture of 13 rows, whole, of which the manifest is made to lie."""
    out = shutil.copytree(whole, tmp_path / "out")
    assert verify(out / "mixture").traced_rows == 13
    reseal(out / "mixture/mixture.json", SCHEMA, lie)
    assert {code for code, _, _ in problems(out / "mixture")} == {"MX040"}


@pytest.mark.parametrize("lie", PACKED_LIES)
def test_a_manifest_that_lies_of_packed_rows_is_found(packed, tmp_path, lie):
    expect_found(packed, tmp_path, PACKED_LIES[lie])


def test_padding_that_is_no_padding_is_found(packed, tmp_path):
    mixture = shutil.copytree(packed, tmp_path / "out") / "mixture"
    tokens = np.fromfile(mixture / "nanogpt/train.bin", np.uint16)
    rows = pq.read_table(mixture / "rows.parquet").to_pylist()
    held = [sum(span["length"] for span in row["spans"]) for row in rows]
    row = next(i for i, length in enumerate(held) if length < 16)
    assert (tokens[row * 16 + held[row] : (row + 1) * 16] == 300).all()
    tokens[row * 16 + 15] = 0
    for name in ("nanogpt/train.bin", "megatron/train.bin"):
        forge(mixture, name, tokens.tobytes())
    assert f"row {row} does not hold the tokens" in problems(mixture)[-1][1]


# ---- documents with weights ----


@pytest.fixture(scope="module")
def weighted(tmp_path_factory):
    """The same under documents' weights and a cap on epochs."""
    folder, options = tmp_path_factory.mktemp("weighted"), {"document_weights": "w.parquet"}
    store = make_store(folder, CORPUS, mixture=MIXTURE | options | {"max_epochs": 2})
    ids = [doc_id for doc_id, _ in all_documents(store, "web")]
    write_document_weights(folder / "w.parquet", dict.fromkeys(ids, 1.5))
    with small_blocks(16 * 5):
        pipeline.build_mixture(load(folder / "recipe.yaml"), workers=1)
    return folder / "out"


def _draw_more(data):
    epoch = data["ledger"]["web"]["epochs"][0]
    epoch["drawn"] += 1
    epoch["left"] += 1


WEIGHTED_LIES = {
    "drawn": _draw_more,
    "no drawn": lambda data: data["ledger"]["web"]["epochs"][0].pop("drawn"),
    "epochs": _drop_epoch,
    "known": set_to("document_weights", "known", value=1),
    "no weights": lambda data: data.pop("document_weights"),
    "room": set_to("domains", "web", "room", value=10),
    "domain epochs": set_to("domains", "web", "epochs", value=0.5),
}


@pytest.mark.parametrize("lie", WEIGHTED_LIES)
def test_a_manifest_that_lies_of_documents_weights_is_found(weighted, tmp_path, lie):
    expect_found(weighted, tmp_path, WEIGHTED_LIES[lie])


def test_other_weights_of_documents_are_found(weighted, tmp_path):
    mixture = shutil.copytree(weighted, tmp_path / "out") / "mixture"
    name = "document_weights.parquet"
    ids = pq.read_table(mixture / name)["doc_id"].to_pylist()
    (mixture / name).write_bytes((mixture / name).read_bytes()[:-1])
    expect_damage(mixture, name)
    write_document_weights(mixture / name, dict.fromkeys(ids, 2.0))
    forge(mixture, name)
    assert {code for code, _, _ in problems(mixture)} == {"MX040"}
