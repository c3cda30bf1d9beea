"""Make the quickstart's corpus: real text of five kinds, from the Python environment itself.

    python tools/make_quickstart_corpus.py build/quickstart-corpus

Needs no network: the standard library and the installed packages hold tens of megabytes of
source, headers, documentation, stubs and data. The same environment gives the same bytes:
files are taken in the order of a hash of their path, up to a cap for each domain, so that a
capped domain is a fair sample and not the packages from A to F.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
import zstandard

from mixc import progress
from mixc.report import tables

CAP_BYTES, PART_BYTES = 12_000_000, 4_000_000
MIN_BYTES, MAX_BYTES, MAX_LINE = 200, 2_000_000, 4_000
MIN_DOCSTRING = 400
SITE = ("site-packages", "dist-packages")
OURS = ("mixc", "mixc_kernels")

PYTHON, METADATA = ".py", "METADATA"
SUFFIXES = {
    PYTHON: "python",
    **dict.fromkeys((".h", ".hh", ".hpp", ".cuh", ".inl"), "headers"),
    **dict.fromkeys((".md", ".rst", ".txt"), "prose"),
    ".pyi": "stubs",
    **dict.fromkeys(
        (".cfg", ".csv", ".ini", ".json", ".toml", ".tsv", ".xml", ".yaml", ".yml"), "data"
    ),
}
IN_PARQUET = ("prose", "data")


@dataclass(frozen=True)
class Candidate:
    """A file that may become a document. `name` is its path inside its library."""

    path: Path
    name: str
    package: str
    domain: str
    rank: int  # a hash: its place in the order in which files are taken

    @property
    def gives_docstrings(self) -> bool:
        """Whether this source gives its docstrings to prose. No source gives to both domains."""
        return self.domain == "python" and self.rank % 2 == 0


@dataclass(frozen=True)
class Document:
    """One record of the corpus."""

    text: str
    path: str
    package: str


@dataclass
class Gathered:
    """The documents of a domain, and how many files were looked at and left out."""

    documents: list[Document] = field(default_factory=list)
    bytes: int = 0
    left_out: int = 0


def libraries(root: Path | None) -> list[Path]:
    """The folders of the standard library and of the packages, of this Python or one at `root`."""
    base = None
    if root is not None:
        base = dict.fromkeys(("base", "platbase", "installed_base"), str(root))
    paths = sysconfig.get_paths("venv", vars=base)
    return list(dict.fromkeys(Path(paths[key]) for key in ("stdlib", "purelib", "platlib")))


def find(library: Path) -> Iterator[Candidate]:
    """Every file of a library that belongs to a domain by its name."""
    for folder, folders, names in os.walk(library):
        folders[:] = sorted(name for name in folders if _enters(name))
        inside = Path(folder).relative_to(library)
        for name in sorted(names):
            path, inner = Path(folder, name), inside / name
            top = inner.parts[0].removesuffix(PYTHON)
            package = top.split("-")[0] if library.name in SITE else "stdlib"
            domain = _domain(inside, name)
            if domain and package not in OURS and not path.is_symlink():
                rank = xxhash.xxh3_64_intdigest(os.fsencode(inner))
                yield Candidate(path, inner.as_posix(), package, domain, rank)


def _enters(folder: str) -> bool:
    return folder not in (*SITE, "__pycache__") and not folder.startswith(".")


def _domain(folder: Path, name: str) -> str | None:
    if folder.parts and folder.parts[0].endswith((".dist-info", ".egg-info")):
        return "prose" if name == METADATA else None  # the rest is lists, hashes and local paths
    return SUFFIXES.get(Path(name).suffix.lower())


def by_domain(found: list[Candidate]) -> dict[str, list[Candidate]]:
    """Candidates by domain, in the order in which they are taken."""
    domains: dict[str, list[Candidate]] = {name: [] for name in dict.fromkeys(SUFFIXES.values())}
    for one in sorted(found, key=lambda one: (one.rank, one.name)):
        domains["prose" if one.gives_docstrings else one.domain].append(one)
    return domains


def gather(name: str, candidates: list[Candidate], cap: int, seen: set[int]) -> Gathered:
    """Take files in order until `cap` bytes of text are there. `seen`: hashes of texts taken."""
    result = Gathered()
    size = sum(one.path.stat().st_size for one in candidates)
    with progress.task(f"gather {name}", min(cap, size), "B") as bar:
        for one in candidates:
            text = read(one)
            data = text.encode()
            key = xxhash.xxh3_128_intdigest(data)
            if not data or key in seen:
                result.left_out += 1
                continue
            if result.bytes + len(data) > cap:
                break
            seen.add(key)
            result.documents.append(Document(text, one.name, one.package))
            result.bytes += len(data)
            bar.advance(len(data))
    return result


def read(one: Candidate) -> str:
    """A file's document, or nothing if it is no good text."""
    if one.path.stat().st_size > MAX_BYTES:
        return ""
    try:
        text = one.path.read_bytes().decode()
        if one.path.name == METADATA:
            text = text.partition("\n\n")[2]  # the long description, without the headers
        elif one.gives_docstrings:
            text = docstrings(text)
        good = len(text.encode()) >= MIN_BYTES and "\0" not in text
    except UnicodeError:
        return ""
    return text if good and max(map(len, text.splitlines())) <= MAX_LINE else ""


def docstrings(source: str) -> str:
    """The long docstrings of a module, its classes and their functions, in their order."""
    quoted = (part for quotes in ('"""', "'''") for part in source.split(quotes)[1::2])
    if not any(len(part) > MIN_DOCSTRING for part in quoted):
        return ""  # most files; parsing them would take most of the time
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    return "\n\n".join(_long_docstrings(tree))


def _long_docstrings(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> Iterator[str]:
    text = ast.get_docstring(node)
    if text and len(text) > MIN_DOCSTRING:
        yield text
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _long_docstrings(child)


def parts(documents: list[Document], part_bytes: int) -> Iterator[list[Document]]:
    """Documents in parts of about so many bytes of text."""
    part: list[Document] = []
    size = 0
    for document in documents:
        part.append(document)
        size += len(document.text.encode())
        if size >= part_bytes:
            yield part
            part, size = [], 0
    if part:
        yield part


def as_jsonl_zst(documents: list[Document]) -> bytes:
    """One JSON object a line: text, path, package."""
    lines = [json.dumps(vars(one), ensure_ascii=False) + "\n" for one in documents]
    return zstandard.ZstdCompressor(level=6, write_checksum=True).compress("".join(lines).encode())


def as_parquet(documents: list[Document]) -> bytes:
    """One row a document: body, path, package."""
    rows = [{"body": one.text, "path": one.path, "package": one.package} for one in documents]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, compression="zstd")
    return bytes(sink.getvalue())


def write(folder: Path, name: str, documents: list[Document], part_bytes: int) -> int:
    """Bring a domain's folder up to date, leaving equal files alone. Returns how many there are."""
    suffix, encode = ("jsonl.zst", as_jsonl_zst)
    if name in IN_PARQUET:
        suffix, encode = ("parquet", as_parquet)
    folder.mkdir(parents=True, exist_ok=True)
    written = set()
    for number, part in enumerate(parts(documents, part_bytes)):
        path, data = folder / f"part-{number:03}.{suffix}", encode(part)
        written.add(path)
        if not path.exists() or path.read_bytes() != data:
            unfinished = path.with_name(f".{path.name}.unfinished")
            unfinished.write_bytes(data)
            unfinished.replace(path)
    for old in set(folder.glob("part-*")) - written:
        old.unlink()
    return len(written)


def make(out: Path, root: Path | None, cap: int, part_bytes: int) -> None:
    """Gather and write every domain, then print what there is."""
    found = [one for library in libraries(root) for one in find(library)]
    seen: set[int] = set()
    rows = []
    for name, candidates in by_domain(found).items():
        got = gather(name, candidates, cap, seen)
        files = write(out / name, name, got.documents, part_bytes)
        counts = (f"{files}", f"{len(got.documents):,}", progress.quantity(got.bytes, "B"))
        rows.append([name, *counts, f"{got.left_out:,}"])
    tables.table(f"corpus {out}", ("domain", "files", "documents", "text", "left out"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--root", type=Path, help="another Python's prefix, instead of this one's")
    parser.add_argument("--cap-bytes", type=int, default=CAP_BYTES, help="text of a domain")
    parser.add_argument("--part-bytes", type=int, default=PART_BYTES, help="text of a file")
    arguments = parser.parse_args()
    make(arguments.out, arguments.root, arguments.cap_bytes, arguments.part_bytes)


if __name__ == "__main__":
    main()
