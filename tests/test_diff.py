import json
import shutil

import pytest
from build_helpers import make_mixture, mixc, random_corpus, read_rows, reseal, small_blocks

from mixc import diff as module
from mixc.build.mixture import SCHEMA
from mixc.diff import diff

CORPUS = random_corpus(9, {"code": (20, 15), "web": (30, 10)})
MIXTURE = {"rows": 13, "seq_len": 16, "formats": ["nanogpt"], "weights": {"code": 0.3, "web": 0.7}}
OTHERS = {
    "equal": {},
    "weights": {"mixture": {**MIXTURE, "weights": {"code": 0.6, "web": 0.4}}},
    "seed": {"seed": 5},
    "length": {"mixture": {**MIXTURE, "seq_len": 8}},
    "tokenizer": {"words": 400},
    "store": {"holdout": {"fraction": 0.4}},
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A mixture, and one that differs in each thing."""
    with small_blocks(16 * 3):
        return {
            name: make_mixture(
                tmp_path_factory.mktemp(name), CORPUS, **{"mixture": MIXTURE, **options}
            )[1]
            for name, options in {"first": {}, **OTHERS}.items()
        }


def slow(a, b, name):
    """Rows in common and in place, by plain dicts."""

    def keys(mixture):
        return {
            (
                row["stream_row"],
                tuple((s["doc_id"], s["start"], s["length"]) for s in row["spans"]),
            ): row["row"]
            for row in read_rows(mixture)
            if row["domain"] == name
        }

    mine, theirs = keys(a), keys(b)
    common = mine.keys() & theirs.keys()
    return len(common), sum(mine[key] == theirs[key] for key in common)


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("pass_rows", [1 << 21, 4])
def test_two_mixtures(built, other, pass_rows, monkeypatch):
    monkeypatch.setattr(module, "_PASS_ROWS", pass_rows)
    a, b = built["first"], built[other]
    data = diff(a.root, b.root)
    assert data["equal"] == data["stream_equal"] == (other == "equal")
    for name, entry in data["domains"].items():
        for side, mixture in (("a", a), ("b", b)):
            said = mixture.manifest["domains"][name]
            assert entry[side] == {key: said[key] for key in entry[side]}
        found = (entry["common"], entry["in_place"])
        if other in ("length", "tokenizer"):
            assert found == (None, None)
        else:
            assert found == slow(a, b, name)
    assert any("tokenizers" in note for note in data["notes"]) == (other == "tokenizer")
    assert any("row lengths" in note for note in data["notes"]) == (other == "length")
    assert any("stores" in note for note in data["notes"]) == (other in ("store", "tokenizer"))


def test_a_change_of_weights_keeps_rows(built):
    data = diff(built["first"].root, built["weights"].root)
    for entry in data["domains"].values():
        assert entry["common"] == min(entry["a"]["rows"], entry["b"]["rows"])


def test_the_command_line(built):
    first = built["first"].root
    done = mixc("diff", first, built["equal"].root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("equal\n")
    done = mixc("diff", first, built["seed"].root, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["equal"] is False
    assert mixc("diff", first, built["length"].root).stdout.endswith("not equal\n")


def test_trouble_is_no_difference(built, tmp_path):
    """As `diff` and `cmp` have it: 1 says that they were compared."""
    first = built["first"].root
    shutil.copytree(first, tmp_path / "damaged")
    (tmp_path / "empty").mkdir()
    for name, how in [("missing", 2), ("empty", 2), ("damaged", 3)]:
        if name == "damaged":
            (tmp_path / "damaged/rows.parquet").write_bytes(b"PAR1")
        done = mixc("diff", first, tmp_path / name)
        assert done.returncode == how, done.stderr
        assert "error[MX04" in done.stderr
    (tmp_path / "damaged/rows.parquet").unlink()
    assert mixc("diff", first, tmp_path / "damaged").returncode == 3
    assert mixc("diff", first).returncode == 2


def test_a_fault_of_ours_is_no_difference(built, tmp_path):
    """What nobody foresaw ends with 2 as well."""
    mixture = shutil.copytree(built["first"].root, tmp_path / "odd")
    reseal(mixture / "mixture.json", SCHEMA, lambda data: data.pop("domains"))
    done = mixc("diff", mixture, mixture)
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_a_mixture_of_another_algorithm_is_no_damage(built, tmp_path):
    mixture = shutil.copytree(built["first"].root, tmp_path / "older")
    for change in (lambda data: data.update(algorithm=1), lambda data: data.pop("algorithm")):
        reseal(mixture / "mixture.json", SCHEMA, change)
        for line in (("diff", mixture, built["first"].root), ("verify", mixture)):
            done = mixc(*line)
            assert done.returncode == (2 if line[0] == "diff" else 1)
            assert "error[MX044]" in done.stderr and "help: use the version" in done.stderr
    (mixture / "nanogpt/train.bin").write_bytes(b"")
    assert mixc("verify", mixture).returncode == 3  # damage is damage
