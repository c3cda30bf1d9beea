"""Tokens, labels and provenance that lie under right hashes."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from build_helpers import reseal
from verify.forging import change_provenance, forge, problems, set_to

from mixc.build.gather import block_digest, stream_hash
from mixc.build.mixture import SCHEMA
from mixc.verify import verify


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


# ---- rows that were swapped ----


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
    reseal(mixture / "mixture.json", SCHEMA, set_to("stream_hash", value=stream_hash(digests)))


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


# ---- provenance ----


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
