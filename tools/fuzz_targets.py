"""What tools/fuzz.py feeds: each target's valid inputs, its frame, and how one input is run.

An input is two bytes that choose options, then the file's bytes. A target runs an input to its
normal end or lets MixcError or MixcErrors out. Modules of mixc are imported when a target is
made, so that they can be instrumented.
"""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import fuzz_mutate
import fuzz_seeds
from fuzz_mutate import MAX_BYTES

HEAD = 2  # bytes in front of a file
Run = Callable[[bytes], None]

VARIANTS: tuple[dict[str, Any], ...] = (
    {"text": "text"},
    {"text": "text", "fields": ("id", "meta.lang", "tags", "meta.no.such")},
    {"text": "content.body", "fields": ("content.kind", "content", "text", "content.body.x")},
    {"text": "text", "replace_invalid": True, "fields": ("meta.lang", "text", "raw")},
    {"text": "text", "max_bytes": 16, "fields": ("half", "when", "price", "kind")},
    {"text": "text", "max_file_bytes": 2000, "max_ratio": 2},
    {"text": "kind", "replace_invalid": True, "fields": ("view", "large", "empty", "yes")},
    {"text": "content.body.no.such", "fields": ("content.body", "id")},
)


@dataclass(frozen=True)
class Target:
    """`make` takes an empty folder. `unpack` and `pack` get inside a file, `tree` inside JSON.

    `longest` caps the bytes of a file, `share` is of the time, `lifetime` the runs of a process.
    """

    make: Callable[[Path], Run]
    seeds: Callable[[], list[bytes]]
    tokens: tuple[bytes, ...] = ()
    unpack: Callable[[bytes], bytes] | None = None
    pack: Callable[[bytes], bytes] | None = None
    tree: Callable[[Random, bytes], bytes] | None = None
    longest: int = MAX_BYTES
    share: int = 1
    lifetime: int | None = None

    def inputs(self) -> list[bytes]:
        """The seeds under every choice of options, fewer of them where they are many."""
        seeds = self.seeds()
        return [bytes([n, 0]) + seed for seed in seeds for n in range(len(VARIANTS))]

    def mutate(self, rng: Random, data: bytes, blind: fuzz_mutate.Change) -> bytes:
        """Another input, of at most `longest` bytes behind its head. `blind` changes bytes."""
        head, body = data[:HEAD].ljust(HEAD, b"\0"), data[HEAD:]
        if rng.random() < 0.2:
            head = bytes([rng.randrange(256), rng.choice((0, rng.randrange(256)))])
        made = None
        if rng.random() < 0.7:
            # A damaged frame cannot be taken apart, which is any parser's error.
            with suppress(Exception):
                made = self._framed(rng, body, blind)
        return head + (blind(rng, body) if made is None else made)[: self.longest]

    def _framed(self, rng: Random, body: bytes, blind: fuzz_mutate.Change) -> bytes:
        if self.unpack is None or self.pack is None:
            return self._inner(rng, body, blind)
        return self.pack(self._inner(rng, self.unpack(body), blind))

    def _inner(self, rng: Random, body: bytes, blind: fuzz_mutate.Change) -> bytes:
        if self.tree is None or rng.random() < 0.2:
            return blind(rng, body)
        return self.tree(rng, body)


# Readers


def _reader(reader: str, name: str, _: Path) -> Run:
    from mixc.readers import codecs
    from mixc.readers.records import BadRecord, ReadOptions, Source
    from mixc.registry import READERS

    read = READERS[reader].load().read

    def run(data: bytes) -> None:
        variant, skip, body = data[0], data[1], data[HEAD:]
        small = variant & 0x80
        codecs.BLOCK = 61 if small else 1 << 16
        # A bomb in small blocks would take long.
        caps = {"max_bytes": 1 << 20, "max_file_bytes": 1 << 17 if small else 1 << 30}
        options = {**caps, **VARIANTS[variant % len(VARIANTS)]}
        source = Source(Path(name), name, opener=lambda: io.BytesIO(body))
        source.skip_to = skip * 8 if skip & 1 else 0
        row = -1
        for record in read(source, ReadOptions(**options)):
            assert record.row > row, "rows do not rise"
            row = record.row
            if isinstance(record, BadRecord):
                str(record.error(source))
            else:
                for one in (record.text, *record.fields):
                    (one or "").encode()
            source.skip_to = max(source.skip_to, row * 4 if skip & 2 else 0)

    return run


def _json_line(rng: Random, body: bytes) -> bytes:
    lines = body.split(b"\n")
    at = rng.randrange(len(lines))
    value = fuzz_mutate.tree(rng, json.loads(lines[at]))
    lines[at] = json.dumps(value, ensure_ascii=rng.random() < 0.7).encode(errors="surrogatepass")
    return b"\n".join(lines)[:MAX_BYTES]


# The recipe


def _recipe(folder: Path) -> Run:
    from mixc.recipe import load

    path = folder / "recipe.yaml"

    def run(data: bytes) -> None:
        count = data[0] % 4
        *lines, body = data[HEAD:].split(b"\n", count)
        path.write_bytes(body)
        load(path, [line.decode("utf-8", "replace") for line in lines])

    return run


def _yaml_tree(rng: Random, body: bytes) -> bytes:
    import yaml

    lines = body.split(b"\n")
    first = next((n for n, line in enumerate(lines) if b"=" not in line), 0)
    try:
        value = yaml.safe_load(b"\n".join(lines[first:]))
    except yaml.YAMLError as error:
        raise ValueError(error) from error
    changed = yaml.safe_dump(fuzz_mutate.tree(rng, value), sort_keys=False, allow_unicode=True)
    return b"\n".join([*lines[:first], changed.encode(errors="surrogatepass")])[:MAX_BYTES]


# The tokenizer


def _tokenizer(_: Path) -> Run:
    import numpy as np

    from mixc.tokenize.encoder import Encoder, Trust, describe
    from mixc.tokenize.engines import REFERENCE

    texts = ["the fox of th", "", " ü漢 <|endoftext|>\t"]
    doc_id, n_bytes = np.zeros(3, np.uint64), np.zeros(3, np.uint32)

    def run(data: bytes) -> None:
        eot = (None, "the", "\0", "")[data[0] % 4]
        options = {"special_tokens": "error", "source": "tokenizer.json", "key": "k"}
        file = describe(data[HEAD:], eot=eot, **options)
        assert 0 <= file.eot_id < file.vocab_size
        str((file.specials, file.normalizes, file.as_dict()))
        Encoder(file, Trust(REFERENCE, "", 0.0)).encode(texts, doc_id, n_bytes)

    return run


def _json_tree(rng: Random, body: bytes) -> bytes:
    return json.dumps(fuzz_mutate.tree(rng, json.loads(body))).encode()[:MAX_BYTES]


# The store


def _manifest(folder: Path) -> Run:
    from mixc.store.store import open_store

    path = folder / "manifest.json"
    (folder / "web").mkdir(exist_ok=True)
    (folder / "web" / "0.arrow").write_bytes(bytes(8))
    (folder / "web" / "bad.jsonl").write_bytes(bytes(3))

    def run(data: bytes) -> None:
        path.write_bytes(data[HEAD:])
        store = open_store(folder)
        str((store.store_hash, store.vocab_size, store.eot_id, store.dtype))
        store.check_sizes()

    return run


def _unseal(data: bytes) -> bytes:
    return json.dumps({k: v for k, v in json.loads(data).items() if k != "manifest_xxh3"}).encode()


def _seal(data: bytes) -> bytes:
    from mixc.store.hashes import seal

    return seal(json.loads(data))


def _shard(folder: Path) -> Run:
    from mixc.store.hashes import FileRecord
    from mixc.store.shard import ShardRecord, open_shard

    path = folder / "shard.arrow"

    def run(data: bytes) -> None:
        path.write_bytes(data[HEAD:])
        file = FileRecord("shard.arrow", len(data) - HEAD, "")
        found = open_shard(
            path, ShardRecord(file, documents=4, tokens=10, text_bytes=9, values_offset=0)
        )
        # Every page is touched: a view that leads outside the file is a crash.
        str((found.tokens.sum(), found.lengths.sum(), found.doc_id.sum(), found.source.sum()))
        str((found.row.sum(), found.n_bytes.sum(), [found.own_id(n) for n in range(4)]))

    return run


# A target that is broken on purpose, by which the tool itself is tested.


def _planted(_: Path) -> Run:
    def run(data: bytes) -> None:
        if data[HEAD : HEAD + 1] == b"e":
            raise ZeroDivisionError("planted")
        if data[HEAD : HEAD + 1] == b"c":
            os.kill(os.getpid(), signal.SIGSEGV)
        if data[HEAD : HEAD + 1] == b"h":
            signal.pause()

    return run


_JSON = (b'"', b'\\"', b"\\ud800", b"\\udc00", b"{", b"}", b"[", b"]", b":", b",", b"null", b"\n",
         b'"text"', b"\r\n", b"1e9", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf",
         b"\0")  # fmt: skip
_CSV = (b'"', b'""', b",", b"\t", b"\n", b"\r", b"\r\n", b"\0", b"\xff", b"\xef\xbb\xbf", b"text")
_YAML = (b": ", b"- ", b"&a ", b"*a", b"!!python/object:x ", b"<<: ", b"---\n", b"...\n", b"|\n",
         b">-\n", b"'", b'"', b"\\x", b'"\\ud800"', b"{", b"}", b"[", b"]", b"#", b"%YAML 9.9\n",
         b"? ", b"\t", b"\n", b"\r", b"\xc2\x85", b"\xe2\x80\xa8", b"=", b".", b"0x", b".inf",
         b"1_0", b"~", b"9" * 5000)  # fmt: skip
_ARROW = (b"\xff\xff\xff\xff", b"ARROW1", b"FEA1", bytes(8), b"\xff" * 8, b"\0\0\0\x80")
_PARQUET = (b"PAR1", b"PARE", bytes(8), b"\xff" * 8, b"\x15\x80\x80\x80\x80\x10", b"\x19\x1c")


TARGETS: dict[str, Target] = {
    "jsonl": Target(partial(_reader, "jsonl", "x.jsonl"), fuzz_seeds.jsonl, _JSON, tree=_json_line),
    **{
        f"jsonl.{codec}": Target(
            partial(_reader, "jsonl", f"x.jsonl.{codec}"),
            partial(fuzz_seeds.packed, codec),
            unpack=unpack,
            pack=pack,
            # pyarrow leaks a block wherever it finds zstd data damaged.
            lifetime=20_000 if codec == "zst" else None,
        )
        for codec, (unpack, pack) in fuzz_seeds.PACKERS.items()
    },
    "csv": Target(partial(_reader, "csv", "x.csv"), partial(fuzz_seeds.csv_files, ","), _CSV),
    "tsv": Target(partial(_reader, "csv", "x.tsv"), partial(fuzz_seeds.csv_files, "\t"), _CSV),
    "text": Target(partial(_reader, "text", "x.txt"), fuzz_seeds.text, _CSV),
    "parquet": Target(partial(_reader, "parquet", "x.parquet"), fuzz_seeds.parquet, _PARQUET),
    "arrow": Target(partial(_reader, "arrow", "x.arrow"), fuzz_seeds.arrow, _ARROW),
    "recipe": Target(
        _recipe,
        lambda: [fuzz_seeds.RECIPE, fuzz_seeds.SHARES],
        _YAML,
        tree=_yaml_tree,
        longest=4096,
        share=4,
    ),
    "tokenizer": Target(_tokenizer, fuzz_seeds.tokenizers, _JSON, tree=_json_tree),
    "manifest": Target(_manifest, fuzz_seeds.manifests, _JSON, _unseal, _seal, _json_tree),
    "shard": Target(_shard, fuzz_seeds.shards, _ARROW),
}
PLANTED = Target(_planted, lambda: [b"e", b"c", b"h", b"x"])
