"""The benchmark's input: a mixed cut of a corpus, written once for every tool's own format."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Cut:
    """A cut corpus. Documents are numbered through, file after file.

    Under `folder` stand `zst/NN.jsonl.zst`, `gz/NN.json.gz`, `plain/NN.jsonl`, and `all.jsonl`,
    the plain files end to end. `counts` are documents of each file; `stripped` bool[documents]
    says whose text has no white space at its ends.
    """

    folder: Path
    counts: tuple[int, ...]
    stripped: NDArray[np.bool_]
    text_bytes: int
    json_bytes: int
    domains: int
    left_out: int

    @property
    def firsts(self) -> list[int]:
        """The number of each file's first document."""
        return [sum(self.counts[:i]) for i in range(len(self.counts))]

    def as_dict(self) -> dict[str, Any]:
        """What reports say of it."""
        names = ("counts", "text_bytes", "json_bytes", "domains", "left_out")
        return {name: getattr(self, name) for name in names}


def special_strings(tokenizers: Sequence[Path]) -> tuple[str, ...]:
    """What no document may spell: tools differ in whether that is text or a token."""
    added = (json.loads(path.read_bytes()).get("added_tokens", []) for path in tokenizers)
    return tuple(sorted({token["content"] for tokens in added for token in tokens}))


def texts(domain: Path) -> Iterator[str]:
    """The texts of a folder of .jsonl.zst files, in order."""
    for path in sorted(domain.glob("*.jsonl.zst")):
        with path.open("rb") as raw:
            stream = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
            for line in io.TextIOWrapper(stream, encoding="utf-8", newline="\n"):
                text = json.loads(line)["text"]
                if isinstance(text, str) and text:
                    yield text


def mixed(corpus: Path, seed: int) -> Iterator[tuple[str, str, int]]:
    """(domain, text, bytes) from all by turns: next is the domain that has given least so far."""
    names = [path.name for path in corpus.iterdir() if any(path.glob("*.jsonl.zst"))]
    names.sort(key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    streams = {name: texts(corpus / name) for name in names}
    given = dict.fromkeys(names, 0)
    while given:
        name = min(given, key=lambda name: given[name])
        text = next(streams[name], None)
        if text is None:
            del given[name]
            continue
        length = len(text.encode(errors="surrogatepass"))
        given[name] += length
        yield name, text, length


def cut(
    corpus: Path, folder: Path, *, size: int, files: int, banned: Sequence[str], seed: int = 0
) -> Cut:
    """Cut about `size` bytes of text, spread over `files` files of like size.

    Documents that spell one of `banned`, or that have no UTF-8 form, are left out.
    """
    lines: list[list[bytes]] = [[] for _ in range(files)]
    stripped: list[list[bool]] = [[] for _ in range(files)]
    sizes, left_out, domains = [0] * files, 0, set()
    for name, text, length in mixed(corpus, seed):
        if sum(sizes) >= size and all(sizes):
            break
        if not _plain(text, banned):
            left_out += 1
            continue
        file = sizes.index(min(sizes))
        record = {"id": f"{file}-{len(lines[file])}", "text": text}
        lines[file].append(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        stripped[file].append(text == text.strip())
        sizes[file] += length
        domains.add(name)
    if sum(sizes) < size or not all(sizes):
        raise SystemExit(
            f"{corpus} holds {sum(sizes)} bytes of text; wanted: {size}, {files} files"
        )
    _write(folder, lines)
    return Cut(
        folder=folder,
        counts=tuple(map(len, lines)),
        stripped=np.array([one for file in stripped for one in file], np.bool_),
        text_bytes=sum(sizes),
        json_bytes=sum(len(line) for file in lines for line in file),
        domains=len(domains),
        left_out=left_out,
    )


def _plain(text: str, banned: Sequence[str]) -> bool:
    return not any(string in text for string in banned) and not _LONE_SURROGATE.search(text)


def _write(folder: Path, lines: list[list[bytes]]) -> None:
    for name in ("zst", "gz", "plain"):
        (folder / name).mkdir(parents=True)
    with (folder / "all.jsonl").open("wb") as whole:
        for number, file in enumerate(lines):
            plain = folder / f"plain/{number:02}.jsonl"
            plain.write_bytes(b"".join(file))
            packed = zstandard.ZstdCompressor(3).compress(plain.read_bytes())
            (folder / f"zst/{number:02}.jsonl.zst").write_bytes(packed)
            with plain.open("rb") as raw:
                shutil.copyfileobj(raw, whole)
                raw.seek(0)
                with gzip.open(folder / f"gz/{number:02}.json.gz", "wb", 6) as gz:
                    shutil.copyfileobj(raw, gz)
