"""What tools/fuzz.py feeds: each target's valid inputs, its frame, and how one input is run.

An input is two bytes that choose options, then the file's bytes. A target runs an input to its
normal end or lets MixcError or MixcErrors out. Modules of mixc are imported when a target is
made, so that they can be instrumented.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import signal
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import fuzz_mutate
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
TEXTS = ["plain", "", "ü漢😀", 'a "quoted"\nline, and\r\nmore\t', "\ufeffmark", "\0", "x" * 40]


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


def _rows() -> list[dict[str, Any]]:
    return [
        {
            "id": n,
            "text": text,
            "content": {"body": text, "kind": None if n % 2 else "a"},
            "meta": {"lang": "en", "score": 0.5},
            "tags": ["x", text],
            "kind": "k" * (n % 3),
        }
        for n, text in enumerate(TEXTS)
    ]


def _jsonl() -> list[bytes]:
    rows = [json.dumps(row, ensure_ascii=n % 2 == 0).encode() for n, row in enumerate(_rows())]
    odd = [b'{"text":"\\ud800"}', b'{"text":"\xff"}', b"", b'{"id":1e400,"text":"a\\u0000"}']
    return [b"\n".join(rows) + b"\n", b"\xef\xbb\xbf" + b"\r\n".join([*odd, *rows[:2]]), rows[0]]


def _json_line(rng: Random, body: bytes) -> bytes:
    lines = body.split(b"\n")
    at = rng.randrange(len(lines))
    value = fuzz_mutate.tree(rng, json.loads(lines[at]))
    lines[at] = json.dumps(value, ensure_ascii=rng.random() < 0.7).encode(errors="surrogatepass")
    return b"\n".join(lines)[:MAX_BYTES]


def _csv(delimiter: str) -> list[bytes]:
    sink = io.StringIO()
    out = csv.writer(sink, delimiter=delimiter, lineterminator="\r\n")
    out.writerow(["id", "text", "content.body", "meta.lang", "kind"])
    out.writerows([n, text, text[::-1], "en", "k"] for n, text in enumerate(TEXTS))
    raw = sink.getvalue().encode()
    quotes = b'text\n"a\n\nb"\nc"d\n"e"f\n\xff\n"g""\n'
    return [raw, quotes, b"\xef\xbb\xbf" + raw.replace(b"\r\n", b"\n")]


def _text() -> list[bytes]:
    return [text.encode() for text in TEXTS[2:5]] + [b"\xff\xfe\xed\xa0\x80"]


def _table() -> Any:
    import pyarrow as pa

    rows = _rows()
    count = len(rows)
    texts = [None if n == 3 else row["text"] for n, row in enumerate(rows)]
    odd = pa.array([b"\xff", b"ok", None, b"\xed\xa0\x80", b"", b"a", b"b"])
    columns = {
        "id": pa.array(range(count), pa.int64()),
        "text": pa.array(texts),
        "content": pa.array([row["content"] for row in rows]),
        "meta": pa.array([row["meta"] for row in rows]),
        "tags": pa.array([row["tags"] for row in rows]),
        "kind": pa.array([row["kind"] for row in rows]).dictionary_encode(),
        "raw": odd,
        "large": pa.array(texts, pa.large_string()),
        "when": pa.array(range(count), pa.timestamp("us", "UTC")),
        "price": pa.array(range(count), pa.int64()).cast(pa.decimal128(22, 2)),
        "yes": pa.array([True, None] * 3 + [False]),
    }
    return pa.table(columns)


def _parquet() -> list[bytes]:
    import pyarrow.parquet as pq

    table = _table()
    choices: tuple[dict[str, Any], ...] = (
        {"write_page_checksum": True},
        {"compression": "none", "use_dictionary": False, "data_page_version": "2.0"},
        {"compression": "zstd", "use_dictionary": False},
        {"compression": "gzip", "row_group_size": 2, "write_page_index": True},
        {"compression": "none", "use_dictionary": False, "store_schema": False,
         "column_encoding": {"text": "DELTA_BYTE_ARRAY", "id": "DELTA_BINARY_PACKED"}},
    )  # fmt: skip
    made = []
    for number, options in enumerate(choices):
        sink = io.BytesIO()
        few = table.select(["text", "id", "content"]) if number > 2 else table
        pq.write_table(few, sink, **{"row_group_size": 4, **options})
        made.append(sink.getvalue())
    sink = io.BytesIO()
    pq.write_table(table.select(["text"]), sink, compression="none", write_statistics=False)
    return [*made, sink.getvalue()]


def _arrow() -> list[bytes]:
    import pyarrow as pa

    table = _table()
    half = pa.array([0, 1, 2, 3, 4, 5, 6], pa.int64()).cast(pa.float32()).cast(pa.float16())
    view = pa.array(TEXTS, pa.string_view())
    wide = table.append_column("half", half).append_column("view", view)
    made = []
    for shown in (wide, table.select(["text"]), table.select(["text", "kind", "content"])):
        for new in (pa.ipc.new_file, pa.ipc.new_stream):
            for compression in (None, "zstd", "lz4"):
                sink = io.BytesIO()
                options = pa.ipc.IpcWriteOptions(compression=compression)
                with new(sink, shown.schema, options=options) as out:
                    out.write_table(shown, max_chunksize=3)
                made.append(sink.getvalue())
    return made


def _unpack_zst(data: bytes) -> bytes:
    import zstandard

    try:
        return zstandard.ZstdDecompressor().stream_reader(data).read(MAX_BYTES)
    except zstandard.ZstdError as error:
        raise ValueError(error) from error


def _pack_zst(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(write_checksum=len(data) % 2 == 0).compress(data)


PACKERS: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
    "gz": (lambda data: zlib.decompressobj(31).decompress(data, MAX_BYTES), gzip.compress),
    "zst": (_unpack_zst, _pack_zst),
    "xz": (lambda data: lzma.LZMADecompressor().decompress(data, MAX_BYTES),
           partial(lzma.compress, preset=0)),
    "bz2": (lambda data: bz2.BZ2Decompressor().decompress(data, MAX_BYTES), bz2.compress),
}  # fmt: skip


def _packed(codec: str) -> list[bytes]:
    pack = PACKERS[codec][1]
    whole = [pack(seed) for seed in _jsonl()]
    return [*whole, whole[2] + whole[1], pack(b" " * 200_000), whole[2] + b"\0" * 8]


# The recipe


RECIPE = b"""\
mixture.tokens=20M
domains.web.paths.0=x/*.jsonl
seed=0x10
name: test
workdir: out
tokenizer: {path: tokenizer.json, eot: "</s>", special_tokens: error, verify: 0.5}
domains:
  web:
    paths: ["a/*.jsonl.zst", s3://bucket/b.parquet]
    text: content.body
    id: meta.id
    only: {lang: [en, de, 1, true]}
    on_bad_record: skip
    max_document_bytes: 1.5M
  code: {paths: [code.csv], split_by: lang}
holdout: {fraction: 0.1, max_tokens: 200_000, also: old/store}
solve:
  method: doremi
  proxy: {preset: nano, steps: 10, learning_rate: 1e-3}
mixture: {weights: solved, rows: 8, seq_len: 16, max_epochs: 4, formats: [nanogpt, megatron]}
seed: 0
"""
SHARES = b"""\
name: b
tokenizer: {train: {vocab_size: 300, sample_bytes: 1k}}
domains: {a: {paths: [x.txt]}, b: {paths: ['y']}}
mixture:
  weights: {a: 0.25, b: .75}
  rows: 3
  seq_len: 2
  formats: [nanogpt]
"""


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

    from mixc.tokenize.encoder import REFERENCE, Encoder, Trust, describe

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


def _tokenizers() -> list[bytes]:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    eot, words = "<|endoftext|>", ["the", "of", "fox", "[UNK]"]
    vocab = {word: n for n, word in enumerate([eot, *words, "t", "h", "e", "th"])}
    kinds = [
        models.BPE(vocab, [("t", "h"), ("th", "e")]),
        models.WordLevel(vocab, unk_token="[UNK]"),
        models.WordPiece(vocab, unk_token="[UNK]"),
        models.Unigram([(word, -1.0 - n) for word, n in vocab.items()], 4, False),
    ]
    made = []
    for kind in kinds:
        one = Tokenizer(kind)
        split = pre_tokenizers.Split(" |\\p{L}+", "isolated")
        one.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel()])
        one.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        one.decoder = decoders.ByteLevel()
        one.post_processor = processors.ByteLevel()
        one.add_special_tokens([eot])
        one.enable_truncation(3)
        made.append(one.to_str().encode())
        one.normalizer, one.pre_tokenizer = _normalizer(), _pre_tokenizer()
        one.decoder = decoders.WordPiece()
        one.post_processor = processors.TemplateProcessing("[UNK] $A", None, [("[UNK]", 4)])
        made.append(one.to_str().encode())
    return made


def _normalizer() -> Any:
    from tokenizers import normalizers as n

    some = [n.BertNormalizer(), n.Replace("a+", "b"), n.Prepend("_"), n.Strip(), n.NFKD()]
    return n.Sequence([*some, n.StripAccents(), n.Nmt(), n.ByteLevel()])


def _pre_tokenizer() -> Any:
    from tokenizers import pre_tokenizers as p

    some = [p.Metaspace(), p.Digits(True), p.Punctuation(), p.UnicodeScripts()]
    return p.Sequence([*some, p.CharDelimiterSplit("_"), p.BertPreTokenizer()])


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


def _manifests() -> list[bytes]:
    from mixc.store.hashes import seal

    shard = {"path": "web/0.arrow", "bytes": 8, "xxh3": "0" * 32, "documents": 2, "tokens": 5}
    shard |= {"text_bytes": 9, "values_offset": 64, "split": "En"}
    bad = {"path": "web/bad.jsonl", "bytes": 3, "xxh3": "1" * 32}
    unit: dict[str, Any] = {"key": "k", "inputs": [{"path": "a.jsonl"}], "shards": [shard]}
    unit |= {"engine": {"name": "x"}, "quarantine": bad, "ended": True}
    domain = {"source": "web", "documents": 2, "tokens": 5, "text_bytes": 9}
    domain |= {"held_out": {"documents": 1, "tokens": 2}}
    manifest: dict[str, Any] = {"schema": "mixc.store/2", "store_hash": "2" * 32}
    manifest |= {"key": "k", "options_key": "o", "dtype": "uint16", "files": [bad]}
    tokenizer = {"sha256": "3" * 64, "vocab_size": 300, "eot": "</s>", "eot_id": 0}
    manifest["tokenizer"] = tokenizer | {"special_tokens": "text", "source": "a", "key": "k"}
    manifest |= {"sources": {"web": [unit]}, "domains": {"web.en": domain}}
    return [seal(manifest)]


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


def _shards() -> list[bytes]:
    import tempfile

    import numpy as np
    import pyarrow as pa

    from mixc.store.shard import Documents, write_shard

    made = []
    kind: Any
    for kind, ids in ((np.uint16, None), (np.uint32, None), (np.uint16, ["a", "ü", "", "x" * 9])):
        documents = Documents(
            tokens=np.arange(10, dtype=np.uint32).astype(kind),
            offsets=np.array([0, 1, 4, 9, 10]),
            doc_id=np.arange(4, dtype=np.uint64),
            source=np.zeros(4, np.uint32),
            row=np.arange(4, dtype=np.uint64),
            n_bytes=np.arange(4, dtype=np.uint32),
            id=None if ids is None else pa.array(ids, pa.large_string()),
        )
        with tempfile.TemporaryDirectory() as folder:
            record = write_shard(Path(folder), documents)
            made.append(Path(folder, record.file.path).read_bytes())
    return made


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
    "jsonl": Target(partial(_reader, "jsonl", "x.jsonl"), _jsonl, _JSON, tree=_json_line),
    **{
        f"jsonl.{codec}": Target(
            partial(_reader, "jsonl", f"x.jsonl.{codec}"),
            partial(_packed, codec),
            unpack=unpack,
            pack=pack,
            # pyarrow leaks a block wherever it finds zstd data damaged.
            lifetime=20_000 if codec == "zst" else None,
        )
        for codec, (unpack, pack) in PACKERS.items()
    },
    "csv": Target(partial(_reader, "csv", "x.csv"), partial(_csv, ","), _CSV),
    "tsv": Target(partial(_reader, "csv", "x.tsv"), partial(_csv, "\t"), _CSV),
    "text": Target(partial(_reader, "text", "x.txt"), _text, _CSV),
    "parquet": Target(partial(_reader, "parquet", "x.parquet"), _parquet, _PARQUET),
    "arrow": Target(partial(_reader, "arrow", "x.arrow"), _arrow, _ARROW),
    "recipe": Target(
        _recipe, lambda: [RECIPE, SHARES], _YAML, tree=_yaml_tree, longest=4096, share=4
    ),
    "tokenizer": Target(_tokenizer, _tokenizers, _JSON, tree=_json_tree),
    "manifest": Target(_manifest, _manifests, _JSON, _unseal, _seal, _json_tree),
    "shard": Target(_shard, _shards, _ARROW),
}
PLANTED = Target(_planted, lambda: [b"e", b"c", b"h", b"x"])
