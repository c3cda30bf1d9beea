"""Stores and mixtures whose tokens are known exactly.

The tokenizer is a list of words: the word `a7` has the id 7, and the last id closes a document.
"""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import EOT, write_jsonl, write_recipe

from mixc import pipeline
from mixc.build import plan as plan_module
from mixc.build import provenance
from mixc.errors import MixcError
from mixc.recipe import load
from mixc.store import parts
from mixc.store.hashes import hash_file, seal, unseal
from mixc.tokenize.stage import tokenize

WORDS = 300
# One format is written by a package that need not be there.
MISSING = set() if importlib.util.find_spec("array_record") else {"arrayrecord"}


def write_tokenizer(path, words=WORDS):
    """A tokenizer.json of `words` words: `a0` is id 0, `a1` is id 1; the end of text is `words`."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    data = {
        "version": "1.0",
        "added_tokens": [{"id": words, "content": EOT, "special": True, **flags}],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {
            "type": "WordLevel",
            "vocab": {f"a{i}": i for i in range(words)} | {EOT: words},
            "unk_token": "a0",
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def text_of(document):
    """The text that has the tokens `document` (ids, without the end of text)."""
    return " ".join(f"a{i}" for i in document)


def write_corpus(folder, corpus, *, words=WORDS, files=1, **overrides):
    """Write corpora, a tokenizer and a recipe under `folder`; return the recipe's path.

    `corpus` maps a domain to its documents, each a list of ids below `words`, dealt to `files`
    files. Overrides are those of `write_recipe`.
    """
    folder = Path(folder)
    write_tokenizer(folder / "tokenizer.json", words)
    domains = {}
    for name, documents in corpus.items():
        texts = [text_of(one) for one in documents]
        for number in range(files):
            write_jsonl(folder / "corpus" / name / f"{number}.jsonl", texts[number::files])
        domains[name] = {"paths": [f"corpus/{name}/*.jsonl"]}
    return write_recipe(folder, domains, **overrides)


def make_store(folder, corpus, **options):
    """Write corpora and tokenize them."""
    return tokenize(load(write_corpus(folder, corpus, **options)), workers=1)


def make_mixture(folder, corpus, **options):
    """Write corpora, tokenize and build: the store and the mixture."""
    outputs = pipeline.run(load(write_corpus(folder, corpus, **options)), workers=1)
    return outputs.store, outputs.mixture


def code_of(path, *overrides):
    """The code of the error that ends a build."""
    with pytest.raises(MixcError) as raised:
        pipeline.build_mixture(load(path, overrides), workers=1)
    return raised.value.code


def random_corpus(seed, domains, *, words=WORDS):
    """Documents of random ids. `domains` maps a name to (documents, mean length)."""
    generator = np.random.default_rng(seed)
    return {
        name: [
            generator.integers(0, words, 1 + generator.poisson(length)).tolist()
            for _ in range(documents)
        ]
        for name, (documents, length) in domains.items()
    }


@contextmanager
def small_blocks(tokens):
    """Cut output blocks of about `tokens` tokens. Workers are told by the tasks they get."""
    before = plan_module._BLOCK_TOKENS
    plan_module._BLOCK_TOKENS = tokens
    try:
        yield
    finally:
        plan_module._BLOCK_TOKENS = before


def watch_blocks(patch, told):
    """Have `told(path, offset)` called before a block is written, whichever way it goes."""
    write_from, write = parts.write_from, parts.Window.write

    def through(path, offset, *others):
        told(path, offset)
        write_from(path, offset, *others)

    def past(window, path, offset, size):
        told(path, offset)
        write(window, path, offset, size)

    patch.setattr(parts, "write_from", through)
    patch.setattr(parts.Window, "write", past)


def past_the_page_cache(folder):
    """Whether files in a folder can be written past the page cache."""
    parts.reserve(folder / "probe", 1)
    return parts.Window.fits(folder / "probe")


# ---- what a store holds, the slow way ----


def all_documents(store, domain):
    """Every document of a domain as (id, tokens), in the store's order."""
    found = []
    for shard in store.documents(domain):
        for i in range(len(shard)):
            tokens = shard.tokens[shard.offsets[i] : shard.offsets[i + 1]]
            found.append((int(shard.doc_id[i]), tokens.tolist()))
    return found


def every_held_id(store):
    """The ids of all held-out documents."""
    return {int(i) for ids in store.held_ids.values() for i in ids}


def training_documents(store, domain):
    """The numbers of the documents that mixtures may use, and their tokens."""
    held = every_held_id(store)
    documents = enumerate(all_documents(store, domain))
    return [(number, tokens) for number, (name, tokens) in documents if name not in held]


def write_document_weights(path, weights):
    """A file of documents' weights, from id to weight."""
    ids = np.array(list(weights), np.uint64)
    pq.write_table(
        pa.table({"doc_id": ids, "weight": np.array(list(weights.values()), float)}), path
    )
    return path


def worst_error(labels, counts, ends=None):
    """The largest |rows of a domain - its share| over prefixes (all, or those of `ends` rows)."""
    total = int(np.sum(counts))
    ends = np.arange(1, total + 1) if ends is None else np.asarray(ends)
    worst = 0
    for domain, count in enumerate(counts):
        seen = np.cumsum(labels == domain)[ends - 1]
        worst = max(worst, int(np.abs(seen * total - ends * int(count)).max(initial=0)))
    return Fraction(worst, max(total, 1))


def tijdeman(counts):
    """1 - 1/(2k-2) over the k domains that have rows, exactly."""
    used = int(np.count_nonzero(counts))
    return 1 - Fraction(1, 2 * used - 2) if used > 1 else Fraction(0)


# ---- what a mixture holds ----


def read_rows(mixture):
    """The provenance as plain data, a dict a row."""
    files = provenance.listed(mixture.manifest["provenance"])
    tables = [pq.read_table(mixture.root / one.path) for one in files]
    return pa.concat_tables(tables).to_pylist()


def rows_by_domain(mixture):
    """The rows of each domain's stream that a mixture holds."""
    rows = {}
    for row in read_rows(mixture):
        rows.setdefault(row["domain"], set()).add(row["stream_row"])
    return rows


def flat(mixture):
    """The rows of a format that has them as train.bin, [rows, row_len]."""
    manifest = mixture.manifest
    path = min(mixture.root.glob("*/train.bin"))
    tokens = np.fromfile(path, manifest["dtype"])
    return tokens.reshape(manifest["rows"], manifest["row_len"])


def tree_hash(root):
    """A hash of every file under a folder, names and bytes."""
    digest = hashlib.sha256()
    for path in sorted(Path(root).rglob("*")):
        if path.is_file() and ".mixc" not in path.parts:
            digest.update(f"{path.relative_to(root)}\0{hash_file(path)}\n".encode())
    return digest.hexdigest()


def reseal(path, schema, change):
    """Change a manifest as a forger would, with a right seal."""
    data = unseal(path, schema)
    change(data)
    path.write_bytes(seal(data))


def mixc(*arguments, cwd=None, env=None, umask=-1, block_tokens=None):
    """Run the command line in a process of its own."""
    patch = (
        ""
        if block_tokens is None
        else f"import mixc.build.plan as p; p._BLOCK_TOKENS = {block_tokens}; "
    )
    code = f"{patch}from mixc.__main__ import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        umask=umask,
        capture_output=True,
        text=True,
        check=False,
    )
