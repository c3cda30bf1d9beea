"""Valid files of every kind that tools/fuzz.py changes, built in memory."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import tempfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fuzz_mutate import MAX_BYTES

TEXTS = ["plain", "", "ü漢😀", 'a "quoted"\nline, and\r\nmore\t', "\ufeffmark", "\0", "x" * 40]


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


def jsonl() -> list[bytes]:
    rows = [json.dumps(row, ensure_ascii=n % 2 == 0).encode() for n, row in enumerate(_rows())]
    odd = [b'{"text":"\\ud800"}', b'{"text":"\xff"}', b"", b'{"id":1e400,"text":"a\\u0000"}']
    return [b"\n".join(rows) + b"\n", b"\xef\xbb\xbf" + b"\r\n".join([*odd, *rows[:2]]), rows[0]]


def csv_files(delimiter: str) -> list[bytes]:
    sink = io.StringIO()
    out = csv.writer(sink, delimiter=delimiter, lineterminator="\r\n")
    out.writerow(["id", "text", "content.body", "meta.lang", "kind"])
    out.writerows([n, text, text[::-1], "en", "k"] for n, text in enumerate(TEXTS))
    raw = sink.getvalue().encode()
    quotes = b'text\n"a\n\nb"\nc"d\n"e"f\n\xff\n"g""\n'
    return [raw, quotes, b"\xef\xbb\xbf" + raw.replace(b"\r\n", b"\n")]


def text() -> list[bytes]:
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


def parquet() -> list[bytes]:
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


def arrow() -> list[bytes]:
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


def packed(codec: str) -> list[bytes]:
    pack = PACKERS[codec][1]
    whole = [pack(seed) for seed in jsonl()]
    return [*whole, whole[2] + whole[1], pack(b" " * 200_000), whole[2] + b"\0" * 8]


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


def tokenizers() -> list[bytes]:
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


def manifests() -> list[bytes]:
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


def shards() -> list[bytes]:
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
