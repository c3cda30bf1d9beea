"""The quickstart's corpus, made from a small Python environment that is not one."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import zstandard

TOOL = Path(__file__).parents[2] / "tools/make_quickstart_corpus.py"
LIBRARY = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}"
SITE = f"{LIBRARY}/site-packages"
LONG = " ".join(f"word{n}" for n in range(100))  # over what a docstring or a file must have


def source(name: str) -> str:
    return f'"""{name}. {LONG}"""\n\n\ndef {name}():\n    """Of {name}: {LONG}"""\n'


@pytest.fixture
def root(tmp_path) -> Path:
    """A prefix with a standard library and two packages."""
    files: dict[str, str | bytes] = {
        f"{LIBRARY}/os.py": "x = 1  # " + LONG,
        f"{LIBRARY}/pydoc_data/notes.rst": f"Notes\n=====\n{LONG}\n",
        f"{LIBRARY}/__pycache__/os.txt": f"cached {LONG}",
        f"{SITE}/alpha/core.h": f"// alpha {LONG}\n",
        f"{SITE}/alpha/again.hpp": f"// alpha {LONG}\n",  # the same text
        f"{SITE}/alpha/types.pyi": f"# stubs {LONG}\n",
        f"{SITE}/alpha/table.csv": "a,b\n" * 100,
        f"{SITE}/alpha/short.md": "too short",
        f"{SITE}/alpha/binary.txt": "\0" + LONG,
        f"{SITE}/alpha/latin.txt": f"caf\xe9 {LONG}".encode("latin-1"),
        f"{SITE}/alpha/minified.json": "[" + "1," * 5000 + "1]",
        f"{SITE}/alpha-1.0.dist-info/METADATA": f"Name: alpha\nVersion: 1.0\n\n# Alpha\n\n{LONG}\n",
        f"{SITE}/alpha-1.0.dist-info/direct_url.json": f'{{"url": "secret", "_": "{LONG}"}}',
        f"{SITE}/mixc/cli.py": f"# our own {LONG}",
        f"{SITE}/mixc-0.1.dist-info/METADATA": f"Name: mixc\n\nour own {LONG}",
        f"{SITE}/broken.py": f"def (: '''{LONG} {LONG}''' {LONG}",
    }
    files |= {f"{SITE}/beta/m{n}.py": source(f"m{n}") for n in range(40)}
    for name, content in files.items():
        path = tmp_path / "prefix" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path / "prefix"


def make(root: Path, out: Path, *options: str) -> dict[str, list[dict[str, str]]]:
    """Run the tool; the records of each domain."""
    command = [sys.executable, str(TOOL), str(out), "--root", str(root), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    domains = {"python", "headers", "prose", "stubs", "data"}
    assert all(domain in done.stdout for domain in domains)
    assert {path.name for path in out.iterdir()} == domains
    return {name: [r for f in sorted((out / name).iterdir()) for r in read(f)] for name in domains}


def read(path: Path) -> list[dict[str, str]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    data = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(path.read_bytes())).read()
    return [json.loads(line) for line in data.decode().splitlines()]


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_domains(root, tmp_path):
    got = make(root, tmp_path / "out")
    paths = {name: {record["path"] for record in records} for name, records in got.items()}
    assert paths["stubs"] == {"alpha/types.pyi"}
    assert paths["data"] == {"alpha/table.csv"}
    assert len(paths["headers"]) == 1, "the same text once"
    assert {"pydoc_data/notes.rst", "alpha-1.0.dist-info/METADATA"} <= paths["prose"]
    assert {record["package"] for record in got["headers"]} == {"alpha"}
    assert {r["package"] for r in got["prose"] if r["path"].startswith("pydoc")} == {"stdlib"}
    everything = json.dumps(got)
    for unwanted in ("our own", "secret", "Version", "cached", "too short", "\\u0000", "1,1,1"):
        assert unwanted not in everything
    assert str(root) not in everything, "no absolute paths"


def test_each_source_is_python_or_prose(root, tmp_path):
    got = make(root, tmp_path / "out")
    names = {f"beta/m{n}.py" for n in range(40)}
    code = {record["path"] for record in got["python"]} & names
    prose = {record["path"] for record in got["prose"]} & names
    assert code and prose and not code & prose and code | prose == names
    record = next(r for r in got["prose"] if r["path"] in prose)
    stem = Path(record["path"]).stem
    assert record["body"] == f"{stem}. {LONG}\n\nOf {stem}: {LONG}"


def test_caps_and_parts(root, tmp_path):
    all_of_it = make(root, tmp_path / "all")
    capped = make(root, tmp_path / "out", "--cap-bytes", "9000", "--part-bytes", "2000")
    size = sum(len(record["text"].encode()) for record in capped["python"])
    assert 9000 - 2000 < size <= 9000
    assert len(list((tmp_path / "out/python").iterdir())) == 3
    count = len(capped["python"])
    assert capped["python"] == all_of_it["python"][:count], "a smaller cap takes a prefix"
    paths = [record["path"] for record in capped["python"]]
    assert paths != sorted(paths), "in the order of a hash, not from A"


def test_again_is_the_same_and_touches_nothing(root, tmp_path):
    out = tmp_path / "out"
    make(root, out, "--part-bytes", "3000")
    before, times = tree(out), {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    make(root, out, "--part-bytes", "3000")
    assert tree(out) == before
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times
    make(root, tmp_path / "other", "--part-bytes", "3000")
    assert tree(tmp_path / "other") == before


def test_what_is_no_longer_there_goes(root, tmp_path):
    out = tmp_path / "out"
    make(root, out, "--part-bytes", "1000")
    for number in range(5, 40):
        (root / SITE / f"beta/m{number}.py").unlink()
    make(root, out, "--part-bytes", "1000")
    make(root, tmp_path / "other", "--part-bytes", "1000")
    assert tree(out) == tree(tmp_path / "other")
