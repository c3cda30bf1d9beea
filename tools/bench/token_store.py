"""A token store of random tokens, written through mixc's own functions, and a recipe for it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixc.recipe import Recipe, load
from mixc.store import commit
from mixc.store.shard import Documents, ShardRecord, write_shard
from mixc.store.store import Unit
from mixc.tokenize.assemble import StagedDomain, StagedSource, write_tree
from mixc.tokenize.encoder import describe

VOCABULARY = 50257
EOT = "<|endoftext|>"
_SHARD_TOKENS = 1 << 26
# Lengths as web text has them: the median 420 tokens, the mean 790, the longest 100 thousand.
_MEDIAN, _SIGMA, _LONGEST = 420, 1.125, 100_000


def make_recipe(
    folder: Path,
    *,
    gigabytes: float,
    domains: int,
    seq_len: int,
    formats: Sequence[str],
    venue: str = "work",
) -> Recipe:
    """Write a recipe for a mixture of so many gigabytes of uint16 tokens.

    Domains shrink in size, and the smaller are asked for more often: from 0.7 epochs to about 2.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer()))
    names = [f"domain-{number:02}" for number in range(domains)]
    weights = sizes(domains) ** 0.7
    recipe = {
        "name": "bench",
        "seed": 1,
        "workdir": venue,
        "tokenizer": {"path": "tokenizer.json", "eot": EOT},
        "domains": {name: {"paths": [f"none/{name}/*.jsonl"]} for name in names},
        "holdout": {"fraction": 0.001},
        "mixture": {
            "weights": dict(zip(names, (weights / weights.sum()).tolist(), strict=True)),
            "rows": int(gigabytes * 1e9 / 2 / seq_len),
            "seq_len": seq_len,
            "max_epochs": 8,
            "formats": list(formats),
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return load(path)


def sizes(domains: int) -> NDArray[np.float64]:
    """The domains' shares of the store, float64[domains]."""
    shares = 1.0 / np.arange(1, domains + 1)
    return np.asarray(shares / shares.sum(), np.float64)


def make_store(recipe: Recipe, gigabytes: float) -> None:
    """Write a store of about so many gigabytes of tokens where the recipe's commands look for it.

    Its units name input files that never were: nothing can be tokenized again from it.
    """
    root = recipe.workdir_path / "store"
    raw = recipe.resolve("tokenizer.json").read_bytes()
    file = describe(raw, eot=EOT, special_tokens="text", source="tokenizer.json", key="")
    names = sorted(recipe.domains)
    with commit.locked(root) as staging:
        tree = staging / "tree"
        sources = {
            name: _source(tree, name, number, int(share * gigabytes * 5e8), file.eot_id)
            for number, (name, share) in enumerate(zip(names, sizes(len(names)), strict=True))
        }
        write_tree(recipe, "bench", file, sources, tree)
        commit.publish_tree(tree, root)
        commit.remove(staging)


def _source(tree: Path, name: str, number: int, tokens: int, eot_id: int) -> StagedSource:
    """One domain, in shards of 128 MiB."""
    generator = np.random.Generator(np.random.Philox(number))
    shards: list[ShardRecord] = []
    ids: list[NDArray[np.uint64]] = []
    lengths: list[NDArray[np.int64]] = []
    for documents in _documents(generator, tokens, eot_id):
        record = write_shard(tree / name, documents)
        path = f"{name}/{record.file.path}"
        moved = {**record.as_dict(), "path": path}
        shards.append(ShardRecord.from_dict(moved))
        ids.append(documents.doc_id)
        lengths.append(documents.lengths)
    one: dict[str, Any] = {
        "path": f"none/{name}/0.jsonl",
        "documents": sum(map(len, ids)),
        "not_selected": 0,
        "replaced": 0,
        "skipped": {},
    }
    engine = {
        "name": "none",
        "version": "0",
        "verified_documents": 0,
        "verified_bytes": 0,
        "gave_up": 0,
    }
    unit = Unit(f"{number:032x}", (one,), tuple(shards), engine)
    domain = StagedDomain(name, tuple(shards), np.concatenate(ids), np.concatenate(lengths))
    return StagedSource((unit,), {name: domain})


def _documents(generator: np.random.Generator, tokens: int, eot_id: int) -> Iterator[Documents]:
    row = 0
    while tokens > 0:
        size = min(tokens, _SHARD_TOKENS)
        drawn = generator.lognormal(np.log(_MEDIAN), _SIGMA, size // 200 + 2)
        lengths = np.clip(drawn, 2, _LONGEST).astype(np.int64)
        ends = np.cumsum(lengths)
        lengths = lengths[: max(1, int(np.searchsorted(ends, size)))]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        values = generator.integers(0, eot_id, int(offsets[-1]), dtype=np.uint16)
        values[offsets[1:] - 1] = eot_id
        yield Documents(
            tokens=values,
            offsets=offsets,
            doc_id=generator.integers(0, 1 << 64, len(lengths), dtype=np.uint64),
            source=np.zeros(len(lengths), np.uint32),
            row=np.arange(row, row + len(lengths), dtype=np.uint64),
            n_bytes=(lengths * 4).astype(np.uint32),
        )
        row += len(lengths)
        tokens -= size


def _tokenizer() -> dict[str, Any]:
    """A list of words, as many as GPT-2 has tokens."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    words = {f"a{number}": number for number in range(VOCABULARY - 1)}
    return {
        "version": "1.0",
        "added_tokens": [{"id": VOCABULARY - 1, "content": EOT, "special": True, **flags}],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": {**words, EOT: VOCABULARY - 1}, "unk_token": "a0"},
    }
