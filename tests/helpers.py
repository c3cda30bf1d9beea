"""What tests share: a tiny tokenizer, recipes over small corpora on disk, and what came of them."""

import hashlib
import json
import os
import random
import signal
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from mixc.store.store import Store

EOT = "<|endoftext|>"
_WORDS = ["the", "of", "quick", "brown", "fox", "12", "def", "=", "+", "(", "naïve", "漢字"]


def identity(path: Path) -> tuple[int, int]:
    """Equal before and after for a file that was kept or linked.

    The inode alone does not tell: a new file may be given that of one just deleted.
    """
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def tree(root: Path) -> dict[str, str]:
    """Every file under a folder, with a hash of its bytes."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def documents_of(store: Store, domain: str) -> list[tuple[list[int], int, str, int, int]]:
    """(tokens, doc_id, input file, record, bytes) of each document, in order."""
    found = []
    for piece in store.domains[domain].units:
        for shard in piece.shards:
            opened = store.open(shard)
            for i in range(len(opened)):
                tokens = opened.tokens[opened.offsets[i] : opened.offsets[i + 1]].tolist()
                path = piece.inputs[opened.source[i]]["path"]
                numbers = (int(opened.doc_id[i]), path, int(opened.row[i]), int(opened.n_bytes[i]))
                found.append((tokens, *numbers))
    return found


def texts(seed: int, count: int, words: int = 12) -> list[str]:
    """Random texts of 1 to 2 * words words, all different."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        picked = rng.choices(_WORDS, k=rng.randint(1, 2 * words))
        made.append(f"{seed}.{number} " + " ".join(picked) + rng.choice(["", "\n", "."]))
    return made


@cache
def tokenizer_json(vocab_size: int = 320) -> bytes:
    """A byte-level BPE tokenizer.json; its end-of-text token is `<|endoftext|>`, id 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(0, 200), trainer)
    return tokenizer.to_str().encode()


def write_jsonl(path: Path, texts: list[str], field: str = "text") -> Path:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({field: text}, ensure_ascii=False) + "\n" for text in texts]
    path.write_text("".join(lines), encoding="utf-8", newline="")
    return path


def write_recipe(
    tmp_path: Path, domains: dict[str, list[str] | dict[str, Any]], **overrides: Any
) -> Path:
    """Write corpora, `tokenizer.json` and `recipe.yaml` into a folder; return the recipe's path.

    A domain is a list of texts (written to `corpus/<domain>.jsonl`), or the domain's section of
    the recipe, over files of the caller. An override replaces a top-level key of the recipe; one
    that is a mapping is merged into it, as in `mixture={"rows": 9}`. The store will be in
    `tmp_path / "out" / "store"`.
    """
    data: dict[str, Any] = {
        "name": "test",
        "workdir": "out",
        "tokenizer": {"path": "tokenizer.json"},
        "domains": {},
        "holdout": {"fraction": 0.1},
        "mixture": {"weights": "natural", "rows": 8, "seq_len": 16, "formats": ["nanogpt"]},
        "seed": 0,
    }
    tmp_path.mkdir(parents=True, exist_ok=True)
    for name, content in domains.items():
        if isinstance(content, list):
            write_jsonl(tmp_path / "corpus" / f"{name}.jsonl", content)
            content = {"paths": [f"corpus/{name}.jsonl"]}
        data["domains"][name] = content
    for key, value in overrides.items():
        merges = isinstance(value, dict) and isinstance(data.get(key), dict) and key != "tokenizer"
        data[key] = {**data[key], **value} if merges else value
    # Trying an engine out takes a second: tests of engines ask for it.
    data["tokenizer"] = {"engine": "tokenizers", **data["tokenizer"]}
    if not (tmp_path / "tokenizer.json").exists():
        (tmp_path / "tokenizer.json").write_bytes(tokenizer_json())
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def word_tokenizer_json(words: list[str], *, model: str = "WordLevel", eot: str = EOT) -> bytes:
    """A tokenizer.json of whole words between spaces; the end-of-text token has the last id."""
    vocab = {word: number for number, word in enumerate([*words, eot])}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    special = {"id": vocab[eot], "content": eot, "special": True, **flags}
    kinds: dict[str, Any] = {
        "WordLevel": {"vocab": vocab, "unk_token": words[0]},
        "Unigram": {"vocab": [[word, -1.0] for word in vocab], "unk_id": 0},
    }
    data = {
        "version": "1.0",
        "truncation": {
            "direction": "Right",
            "max_length": 3,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        "padding": None,
        "added_tokens": [special],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": model, **kinds[model]},
    }
    return json.dumps(data).encode()


def killed_unit(worker: object, task: object, report: object) -> None:
    """A unit whose worker process dies, as by the kernel's out-of-memory killer."""
    os.kill(os.getpid(), signal.SIGKILL)
