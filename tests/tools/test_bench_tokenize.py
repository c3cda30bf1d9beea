"""The tokenizing benchmark: its cut of a corpus, what it compares, and one small run of it."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zstandard
from helpers import EOT, texts, tokenizer_json

sys.path.append(str(Path(__file__).parents[2] / "tools"))

import bench_tokenize
from bench import corpus, measure, peers, tables

pytestmark = pytest.mark.skipif(shutil.which("taskset") is None, reason="taskset is not installed")
TOOL = Path(bench_tokenize.__file__)
ENVIRONMENTS = os.environ.get("MIXC_BENCH_VENVS", "")


def write_domain(path: Path, domain: list[str]) -> None:
    path.mkdir(parents=True)
    for number, part in enumerate((domain[::2], domain[1::2])):
        lines = "".join(json.dumps({"text": text, "n": 1}) + "\n" for text in part)
        packed = zstandard.ZstdCompressor().compress(lines.encode())
        (path / f"{number:03}.jsonl.zst").write_bytes(packed)


@pytest.fixture
def domains(tmp_path):
    """Three domains, of which one is small; odd texts among them."""
    odd = [" blank ends\n", f"spells {EOT}", "", "a lone \ud800", "line\u2028end\r\nand \x85"]
    write_domain(tmp_path / "corpus/web", texts(1, 300))
    write_domain(tmp_path / "corpus/long", [text * 20 for text in texts(2, 300)])
    write_domain(tmp_path / "corpus/few", odd + texts(3, 2))
    (tmp_path / "corpus/notes").mkdir()
    (tmp_path / "tokenizers").mkdir()
    (tmp_path / "tokenizers/tiny.json").write_bytes(tokenizer_json())
    return tmp_path / "corpus"


def make_cut(domains: Path, folder: Path, size: int = 30_000, files: int = 3) -> corpus.Cut:
    return corpus.cut(domains, folder, size=size, files=files, banned=(EOT,))


def plain(cut: corpus.Cut) -> list[str]:
    lines = (cut.folder / "all.jsonl").read_bytes().split(b"\n")[:-1]
    return [json.loads(line)["text"] for line in lines]


def test_a_cut_is_mixed_and_the_same_again(domains, tmp_path):
    cut = make_cut(domains, tmp_path / "one")
    found = plain(cut)
    size = sum(len(text.encode()) for text in found)
    assert 30_000 <= size == cut.text_bytes < cut.json_bytes
    web, long = (sum(len(t.encode()) for t in found if t.startswith(f"{n}.")) for n in (1, 2))
    assert abs(web - long) < 2000, "domains give alike, by bytes"
    assert cut.domains == 3 and "line\u2028end\r\nand \x85" in found
    assert cut.left_out == 2 and not any(EOT in text or "\ud800" in text for text in found)
    again = make_cut(domains, tmp_path / "two")
    for path in (tmp_path / "one").rglob("*.jsonl*"):
        assert path.read_bytes() == (again.folder / path.relative_to(cut.folder)).read_bytes()


def test_a_cut_is_the_same_in_every_format(domains, tmp_path):
    cut = make_cut(domains, tmp_path / "cut")
    assert sum(cut.counts) == len(cut.stripped) == len(plain(cut))
    assert cut.firsts == [0, cut.counts[0], cut.counts[0] + cut.counts[1]]
    assert [bool(one) for one in cut.stripped] == [text == text.strip() for text in plain(cut)]
    assert not cut.stripped.all()
    whole = b""
    for number, count in enumerate(cut.counts):
        one = (cut.folder / f"plain/{number:02}.jsonl").read_bytes()
        assert one.count(b"\n") == count > 0
        assert gzip.decompress((cut.folder / f"gz/{number:02}.json.gz").read_bytes()) == one
        packed = (cut.folder / f"zst/{number:02}.jsonl.zst").read_bytes()
        assert zstandard.ZstdDecompressor().decompress(packed) == one
        whole += one
    assert (cut.folder / "all.jsonl").read_bytes() == whole


def test_a_corpus_that_is_too_small(domains, tmp_path):
    with pytest.raises(SystemExit, match="bytes of text"):
        make_cut(domains, tmp_path / "cut", size=10_000_000)


def found(documents: list[list[int]], numbers: list[int] | None = None) -> peers.Found:
    lengths = [len(document) for document in documents]
    return peers.Found(
        np.array([token for document in documents for token in document], np.uint16),
        np.cumsum(lengths),
        np.array(range(len(documents)) if numbers is None else numbers),
    )


@pytest.mark.parametrize(
    ("documents", "numbers", "usable", "different"),
    [
        ([[1, 2], [3], [4, 5]], None, [1, 1, 1], 0),
        ([[4, 5], [1, 2], [3]], [2, 0, 1], [1, 1, 1], 0),
        ([[1, 2], [3], [4, 6]], None, [1, 1, 1], 1),
        ([[1, 2], [3], [4, 6]], None, [1, 1, 0], 0),
        ([[1], [2, 3], [4, 5]], None, [1, 1, 1], 2),
        ([[1, 2], [4, 5]], [0, 2], [1, 1, 1], 1),
        ([[1, 2], [4, 5]], [0, 2], [1, 0, 1], 0),
        ([[1, 2], [3], [3], [4, 5]], [0, 1, 1, 2], [1, 1, 1], 1),
    ],
)
def test_ids_are_compared_by_document(documents, numbers, usable, different):
    ours = found([[1, 2], [3], [4, 5]])
    checked = peers.compare(ours, found(documents, numbers), np.array(usable, bool))
    assert checked == peers.Checked(sum(usable), different)


def test_merges_for_old_readers():
    def model(merges):
        return json.dumps({"model": {"merges": merges, "type": "BPE"}}).encode()

    assert json.loads(peers.old_merges(model([["a", "b"], "c d"]))) == {
        "model": {"merges": ["a b", "c d"], "type": "BPE"}
    }
    with pytest.raises(ValueError, match="space"):
        peers.old_merges(model([["a ", "b"]]))


def test_arguments():
    needed = ["--corpus", "c", "--tokenizers", "t", "--venvs", "v"]
    usual = bench_tokenize.parse(needed)
    assert usual.only == list(bench_tokenize.PARTS) and usual.processes == [1, 2]
    quick = bench_tokenize.parse([*needed, "--quick", "--only", "mixc,datatrove"])
    assert (quick.megabytes, quick.repeat, quick.only) == (12, 1, ["datatrove"])
    for wrong in (["--only", "datatrve"], ["--repeat", "0"], ["--processes", "0"]):
        with pytest.raises(SystemExit):
            bench_tokenize.parse([*needed, *wrong])


def test_all_processes_of_a_command_are_seen(tmp_path):
    """The one that outlives its parent, too."""
    code = (
        "import subprocess, sys, time\n"
        "held = 'held = bytearray(90_000_000); import time; time.sleep(1)'\n"
        "subprocess.Popen([sys.executable, '-c', held])\n"
        "time.sleep(0.8); print('said'); sys.exit(3)"
    )
    log = tmp_path / "log"
    usage = measure.measure(
        [sys.executable, "-c", code], cores=1, log=log, env=os.environ, cwd=tmp_path
    )
    assert usage.code == 3 and log.read_text() == "said\n"
    assert usage.largest_mb > 90
    assert usage.tree_mb > 90


def run(domains: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(TOOL), "--corpus", str(domains)]
    line += ["--tokenizers", str(domains.parent / "tokenizers"), "--names", "tiny"]
    line += ["--json", str(out), "--repeat", "1", "--megabytes", "0.05", "--files", "2"]
    return subprocess.run([*line, *options], capture_output=True, text=True)


def test_a_small_run(domains, tmp_path):
    out = tmp_path / "found.json"
    options = ["--venvs", str(tmp_path / "none"), "--processes", "1", "--only", "stages"]
    done = run(domains, out, *options)
    assert done.returncode == 0, done.stderr
    data = json.loads(out.read_text())
    assert [(row["tool"], row["processes"], row["different"]) for row in data["rows"]] == [
        ("mixc", 1, 0)
    ]
    assert data["rows"][0]["compared"] == sum(data["cut"]["counts"]) > 100
    (stages,) = data["stages"]
    assert set(stages["seconds"]) == {"decompress", "parse", "encode", "write"}
    assert done.stdout == tables.render(data) + "\n"
    assert "| mixc " in done.stdout and "sum of the stages" in done.stdout


def test_the_loop_of_megatron_gives_our_ids(domains, tmp_path):
    cut = make_cut(domains, tmp_path / "cut")
    known = peers.vocabulary(tmp_path / "tokenizers/tiny.json")
    made = []
    for tool in (peers.MIXC, peers.OTHERS["megatron"]):
        job = peers.Job(cut, known, 1, tmp_path / tool.name, Path(sys.executable))
        job.out.mkdir()
        subprocess.run(tool.command(job), check=True, capture_output=True)
        made.append(tool.read(job))
    assert (made[0].tokens == known.eos_id).sum() == sum(cut.counts)
    everything = np.ones(sum(cut.counts), bool)
    assert peers.compare(*made, everything) == peers.Checked(sum(cut.counts), 0)


def test_a_tool_that_fails_is_no_success(domains, tmp_path):
    out = tmp_path / "found.json"
    options = ["--venvs", str(tmp_path), "--processes", "1", "--only", ""]
    done = run(domains, out, *options, "-s", "tokenizer.eot=<|nothing|>")
    assert done.returncode == 1
    assert "mixc: FAILED with exit code" in done.stdout
    assert json.loads(out.read_text())["rows"] == []


@pytest.mark.skipif(not ENVIRONMENTS, reason="MIXC_BENCH_VENVS names no environments of the peers")
@pytest.mark.parametrize("peer", ["datatrove", "megatron", "dolma"])
def test_a_peer_gives_our_ids(domains, tmp_path, peer):
    out = tmp_path / "found.json"
    done = run(domains, out, "--venvs", ENVIRONMENTS, "--only", peer, "--processes", "1", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 4 and all(row["compared"] > 100 for row in rows)
