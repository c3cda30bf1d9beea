import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from build_helpers import (
    all_documents,
    make_mixture,
    make_store,
    mixc,
    random_corpus,
    reseal,
    small_blocks,
    write_corpus,
    write_document_weights,
)

from mixc import pipeline
from mixc.build.gather import block_digest, stream_hash
from mixc.build.mixture import SCHEMA, open_mixture
from mixc.errors import MixcError, MixcErrors
from mixc.recipe import load
from mixc.store.hashes import FileRecord, hash_file
from mixc.verify import verify
from mixc.verify.sources import sample

CORPUS = random_corpus(8, {"code": (20, 15), "web": (30, 10)})
MIXTURE = {
    "weights": {"code": 0.3, "web": 0.7},
    "rows": 13,
    "seq_len": 16,
    "order": {"shuffle_block": 2},
    "formats": ["nanogpt", "megatron"],
}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A store and a mixture of three blocks, in two formats."""
    folder = tmp_path_factory.mktemp("verify")
    with small_blocks(16 * 5):
        make_mixture(folder, CORPUS, mixture=MIXTURE)
    return folder / "out"


@pytest.fixture
def out(original, tmp_path):
    """A copy to damage."""
    return shutil.copytree(original, tmp_path / "out")


def problems(path, **options):
    """What verify finds, as (code, message, place)."""
    with pytest.raises((MixcError, MixcErrors)) as raised:
        verify(path, **options)
    error = raised.value
    errors = error.errors if isinstance(error, MixcErrors) else (error,)
    return [(one.code, one.message, str(one.place)) for one in errors]


def test_a_whole_mixture_and_its_store(original):
    report = verify(original / "mixture")
    assert (report.kind, report.rows, report.traced_rows) == ("mixture", 13, 13)
    listed = open_mixture(original / "mixture").files()
    assert (report.files, report.bytes) == (len(listed), sum(one.bytes for one in listed))
    report = verify(original / "store")
    assert (report.kind, report.documents, report.rows) == ("store", 50, 0)


# ---- damage to bytes ----


FILES = [
    "mixture.json",
    "rows.parquet",
    "nanogpt/train.bin",
    "megatron/train.idx",
    "nanogpt/val.bin",
    "megatron/val.idx",
    "holdout/code/nanogpt/val.bin",
    "holdout/web/megatron/val.idx",
]


def expect_damage(mixture, name):
    found = problems(mixture)
    assert {code for code, _, _ in found} == {"MX040"}
    assert any(place.endswith(name) for _, _, place in found), found


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_found(out, name):
    path = out / "mixture" / name
    whole = path.read_bytes()
    # Every byte of small files, about 250 of large ones; the bit changes from byte to byte.
    for at in range(0, len(whole), max(1, len(whole) // 250)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        expect_damage(out / "mixture", name)
    path.write_bytes(whole)
    verify(out / "mixture")


@pytest.mark.parametrize("name", FILES)
def test_a_cut_emptied_lengthened_or_missing_file_is_found(out, name):
    path = out / "mixture" / name
    whole = path.read_bytes()
    for damaged in (whole[:-1], b"", whole + b"\0", whole[1:]):
        path.write_bytes(damaged)
        expect_damage(out / "mixture", name)
    path.unlink()
    if name == "mixture.json":  # without a manifest there is no mixture
        assert problems(out / "mixture")[0][0] == "MX070"
    else:
        expect_damage(out / "mixture", name)


def test_the_files_of_two_formats_are_damaged_together(out):
    # nanogpt/train.bin and megatron/train.bin are one file in the original, two in the copy.
    mixture = out / "mixture"
    (mixture / "megatron/train.bin").unlink()
    (mixture / "megatron/train.bin").hardlink_to(mixture / "nanogpt/train.bin")
    with (mixture / "nanogpt/train.bin").open("r+b") as file:
        file.write(b"\xff\xff")
    assert len(problems(mixture)) == 2


def test_everything_that_is_wrong_is_named_at_once(out):
    (out / "mixture/rows.parquet").unlink()
    (out / "mixture/megatron/train.idx").write_bytes(b"")
    found = [place for _, _, place in problems(out / "mixture")]
    assert [place.rsplit("/", 1)[1] for place in found] == ["train.idx", "rows.parquet"]


# ---- manifests that lie under a right seal ----


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


def _set(*keys, value):
    def change(data):
        node = data
        for key in keys[:-1]:
            node = node[key]
        assert node[keys[-1]] != value
        node[keys[-1]] = value

    return change


LIES = {
    "ledger": _shift_ledger,
    "tokens read": _read_more,
    "epochs": _drop_epoch,
    "rows of domains": _swap_rows,
    "more rows": _set("rows", value=14),
    "fewer rows": _set("rows", value=12),
    "tokens": _set("tokens", value=1),
    "domain tokens": _set("domains", "web", "tokens", value=16),
    "realised weight": _set("domains", "web", "realised", value=0.1),
    "domain epochs": _set("domains", "web", "epochs", value=1.0),
    "weight": _set("domains", "web", "weight", value=0.9),
    "order": _set("order", "max_prefix_error", value=0.0),
    "bound": _set("order", "bound", value=0.9),
    "shuffle block": _set("order", "shuffle_block", value=4),
    "rows of blocks": _set("block_rows", value=4),
    "type": _set("dtype", value="uint32"),
    "end of text": _set("eot_id", value=7),
    "vocabulary": _set("tokenizer", "vocab_size", value=299),
    "held-out documents": _set("holdout", "domains", "web", "documents", value=5),
    "held-out tokens": _set("holdout", "domains", "web", "tokens", value=5),
    "held-out domain": lambda data: data["holdout"]["domains"].pop("web"),
    "stream hash": _set("stream_hash", value="0" * 32),
    "seed": _set("seed", value=5),
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


def forge(mixture, name, data=None):
    """Put a changed file under a right hash in the manifest, in every place that lists it."""
    path = mixture / name
    if data is not None:
        path.write_bytes(data)
    fresh = FileRecord(name, path.stat().st_size, hash_file(path)).as_dict()

    def change(node):
        for value in node.values() if isinstance(node, dict) else node:
            if isinstance(value, dict) and value.get("path") == name:
                value.update(fresh)
            if isinstance(value, dict | list):
                change(value)

    reseal(mixture / "mixture.json", SCHEMA, change)


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
    "room": _set("domains", "web", "room", value=10),
    "less room": _set("domains", "web", "room", value=1),
    "epochs": _set("domains", "web", "epochs", value=1.0),
    "cap": _set("max_epochs", value=0.25),
    "packing": _set("packing", value="concat"),
    "seed": _set("seed", value=5),
}


@pytest.mark.parametrize("lie", PACKED_LIES)
def test_a_manifest_that_lies_of_packed_rows_is_found(packed, tmp_path, lie):
    out = shutil.copytree(packed, tmp_path / "out")
    assert verify(out / "mixture").traced_rows == 13
    reseal(out / "mixture/mixture.json", SCHEMA, PACKED_LIES[lie])
    assert {code for code, _, _ in problems(out / "mixture")} == {"MX040"}


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
    "known": _set("document_weights", "known", value=1),
    "no weights": lambda data: data.pop("document_weights"),
    "room": _set("domains", "web", "room", value=10),
    "domain epochs": _set("domains", "web", "epochs", value=0.5),
}


@pytest.mark.parametrize("lie", WEIGHTED_LIES)
def test_a_manifest_that_lies_of_documents_weights_is_found(weighted, tmp_path, lie):
    out = shutil.copytree(weighted, tmp_path / "out")
    assert verify(out / "mixture").traced_rows == 13
    reseal(out / "mixture/mixture.json", SCHEMA, WEIGHTED_LIES[lie])
    assert {code for code, _, _ in problems(out / "mixture")} == {"MX040"}


def test_other_weights_of_documents_are_found(weighted, tmp_path):
    mixture = shutil.copytree(weighted, tmp_path / "out") / "mixture"
    name = "document_weights.parquet"
    ids = pq.read_table(mixture / name)["doc_id"].to_pylist()
    (mixture / name).write_bytes((mixture / name).read_bytes()[:-1])
    expect_damage(mixture, name)
    write_document_weights(mixture / name, dict.fromkeys(ids, 2.0))
    forge(mixture, name)
    assert {code for code, _, _ in problems(mixture)} == {"MX040"}


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


def test_other_tokens_under_right_hashes_are_found(out):
    mixture = out / "mixture"
    tokens = np.fromfile(mixture / "nanogpt/train.bin", np.uint16)
    tokens[3 * 16] = (tokens[3 * 16] + 1) % 300
    for name in ("nanogpt/train.bin", "megatron/train.bin"):
        forge(mixture, name, tokens.tobytes())
    messages = [message for _, message, _ in problems(mixture)]
    assert messages == [
        *["the tokens are not those of the stream hash"] * 2,  # of either format
        "row 3 does not hold the tokens that its provenance names",
    ]


@pytest.mark.parametrize("name", ["train", "val"])
@pytest.mark.parametrize("format_name", ["nanogpt", "megatron"])
def test_another_domain_in_a_file_of_domains_is_found(out, name, format_name):
    path = out / "mixture" / format_name / f"{name}.domains"
    labels = bytearray(path.read_bytes())
    labels[-1] ^= 1
    forge(out / "mixture", f"{format_name}/{name}.domains", bytes(labels))
    ((code, message, place),) = problems(out / "mixture")
    assert (code, place) == ("MX040", str(path))
    assert message == "the domains are not those of the sequences"


def test_other_held_out_tokens_under_a_right_hash_are_found(out):
    for name in ("nanogpt/val.bin", "holdout/web/megatron/val.bin"):
        tokens = np.fromfile(out / "mixture" / name, np.uint16)
        tokens[len(tokens) // 2] ^= 1
        forge(out / "mixture", name, tokens.tobytes())
    found = problems(out / "mixture")
    assert {place.split("/mixture/")[1] for _, _, place in found} == {
        "nanogpt/val.bin",
        "holdout/web/megatron/val.bin",
    }


def test_a_stream_that_is_cut_or_empty_under_a_right_hash_is_found(out):
    whole = (out / "mixture/megatron/train.bin").read_bytes()
    for damaged in (whole[:-32], whole[:-1], b""):
        forge(out / "mixture", "megatron/train.bin", damaged)
        assert {code for code, _, _ in problems(out / "mixture")} == {"MX040"}


def swap_in_files(mixture, a, b):
    """Swap two rows in every file that holds them, under right hashes."""
    for name in ("nanogpt/train", "megatron/train"):
        tokens = np.fromfile(mixture / f"{name}.bin", np.uint16).reshape(-1, 16)
        tokens[[a, b]] = tokens[[b, a]]
        forge(mixture, f"{name}.bin", tokens.tobytes())
        labels = np.fromfile(mixture / f"{name}.domains", np.uint8)
        labels[[a, b]] = labels[[b, a]]
        forge(mixture, f"{name}.domains", labels.tobytes())
    digests = [block_digest(tokens[i : i + 5].reshape(-1)) for i in range(0, 13, 5)]
    reseal(mixture / "mixture.json", SCHEMA, _set("stream_hash", value=stream_hash(digests)))


def swap_in_provenance(mixture, a, b):
    def swap(rows):
        for key in rows[a].keys() - {"row"}:
            rows[a][key], rows[b][key] = rows[b][key], rows[a][key]

    change_provenance(mixture, swap)


def two_rows(mixture, *, same_domain):
    """Two rows of one order block, or of one row group, to swap."""
    domains = pq.read_table(mixture / "rows.parquet")["domain"].to_pylist()
    pairs = [(a, b) for a in range(5) for b in range(a) if same_domain or a // 2 == b // 2]
    return next(p for p in pairs if (domains[p[0]] == domains[p[1]]) == same_domain)


@pytest.mark.parametrize("same_domain", [True, False])
def test_rows_that_were_swapped_everywhere_under_right_hashes_are_found(out, same_domain):
    a, b = two_rows(out / "mixture", same_domain=same_domain)
    swap_in_files(out / "mixture", a, b)
    swap_in_provenance(out / "mixture", a, b)
    found = [message for _, message, _ in problems(out / "mixture")]
    if same_domain:  # only the deck knows
        assert "do not come from where their plan says" in found[0]
    else:  # the seed tells, even without the store
        assert "by the order's seed of" in found[0]
        shutil.rmtree(out / "store")
        assert "by the order's seed of" in problems(out / "mixture")[0][1]


def test_rows_that_were_swapped_in_the_files_alone_are_found(out):
    swap_in_files(out / "mixture", *two_rows(out / "mixture", same_domain=True))
    found = {message for _, message, _ in problems(out / "mixture")}
    assert len(found) == 2  # two rows
    assert all("does not hold the tokens that its provenance names" in one for one in found)


def change_provenance(mixture, change):
    with pq.ParquetFile(mixture / "rows.parquet") as file:
        tables = [file.read_row_group(i) for i in range(file.num_row_groups)]
    rows = [table.to_pylist() for table in tables]
    change([row for group in rows for row in group])
    with pq.ParquetWriter(mixture / "rows.parquet", tables[0].schema) as writer:
        for group in rows:
            writer.write_table(pa.Table.from_pylist(group, schema=tables[0].schema))
    forge(mixture, "rows.parquet")


def _move_start(rows):
    span = rows[7]["spans"][0]
    span["start"] += 1


def _other_document(rows):
    for span in rows[2]["spans"]:
        span["document"] = 10**6


def _swap_stream_rows(rows):
    rows[0]["stream_row"], rows[1]["stream_row"] = rows[1]["stream_row"], rows[0]["stream_row"]


def _other_id(rows):
    rows[4]["spans"][0]["doc_id"] ^= 1


def _move_border(rows):
    two = next(row for row in rows if len(row["spans"]) > 1)["spans"]
    two[0]["length"] += 1
    two[1]["length"] -= 1


def _longer_and_shorter(rows):
    rows[0]["spans"][-1]["length"] += 1
    rows[1]["spans"][0]["length"] -= 1


def _other_number(rows):
    rows[3]["row"] = 2


def _other_epoch(rows):
    rows[3]["epoch"] += 1


def _unknown_domain(rows):
    rows[3]["domain"] = "prose"


def _no_spans(rows):
    rows[3]["spans"] = []


LIES_OF_ROWS = [
    *(_move_start, _other_document, _swap_stream_rows, _other_id, _move_border, _no_spans),
    *(_longer_and_shorter, _other_number, _other_epoch, _unknown_domain),
]


@pytest.mark.parametrize("lie", LIES_OF_ROWS)
def test_provenance_that_lies_under_a_right_hash_is_found(out, lie):
    change_provenance(out / "mixture", lambda rows: None)
    verify(out / "mixture")
    change_provenance(out / "mixture", lie)
    assert {code for code, _, _ in problems(out / "mixture")} == {"MX040"}


def test_provenance_that_lacks_rows_or_is_no_parquet_is_found(out):
    name = "rows.parquet"
    with pq.ParquetFile(out / "mixture" / name) as file:
        groups = [file.read_row_group(i) for i in range(file.num_row_groups)]
    for kept in (groups[:-1], groups[1:], [], [pa.concat_tables(groups)]):
        with pq.ParquetWriter(out / "mixture" / name, groups[0].schema) as writer:
            for group in kept:
                writer.write_table(group)
        forge(out / "mixture", name)
        assert {code for code, _, _ in problems(out / "mixture")} == {"MX040"}
    for data in (b"", b"PAR1"):
        forge(out / "mixture", name, data)
        assert {code for code, _, _ in problems(out / "mixture")} == {"MX040"}


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


def test_a_manifest_may_not_name_files_outside_its_folder(out):
    def escape(data):
        data["provenance"]["path"] = "../store/manifest.json"

    reseal(out / "mixture/mixture.json", SCHEMA, escape)
    assert problems(out / "mixture")[0][0] == "MX040"


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


def test_a_folder_that_holds_neither(tmp_path):
    assert problems(tmp_path)[0][0] == "MX070"


def test_the_command_line_exits_with_3_and_names_the_file(out):
    done = mixc("verify", out / "mixture")
    assert done.returncode == 0
    assert "13 of them traced to the store token by token" in done.stdout
    path = out / "mixture/rows.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    done = mixc("verify", out / "mixture")
    assert done.returncode == 3
    assert "error[MX040]" in done.stderr
    assert "rows.parquet" in done.stderr
