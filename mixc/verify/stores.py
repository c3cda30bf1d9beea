"""Of a store: its files, its tokenizer, and every document of its shards."""

from __future__ import annotations

from hashlib import sha256

from mixc.store import store as stores
from mixc.store.holdout import among
from mixc.store.shard import ShardRecord, open_shard
from mixc.store.store import Store
from mixc.verify.report import Report, check_files


def verify_store(store: Store, report: Report) -> None:
    """See that a store is what it says."""
    check_files(store.root, store.files(), report)
    if report.problems:
        return
    tokenizer = store.root / stores.TOKENIZER
    if sha256(tokenizer.read_bytes()).hexdigest() != store.manifest["tokenizer"]["sha256"]:
        report.wrong("the tokenizer is not the manifest's", tokenizer)
    for name, domain in store.domains.items():
        counted = {"documents": 0, "tokens": 0, "held_documents": 0, "held_tokens": 0}
        for shard in domain.shards:
            _check_shard(store, shard, counted, report)
        for what, number in counted.items():
            if getattr(domain, what) != number:
                said = getattr(domain, what)
                report.wrong(f"domain '{name}': {number} {what} found, the manifest says {said}")
        report.documents += counted["documents"]


def _check_shard(store: Store, shard: ShardRecord, counted: dict[str, int], report: Report) -> None:
    path = store.root / shard.file.path
    documents = open_shard(path, shard)
    lengths = documents.lengths
    if len(lengths) and (lengths < 1).any():
        report.wrong("a document's offsets do not rise", path)
        return
    if (documents.tokens[documents.offsets[1:] - 1] != store.eot_id).any():
        report.wrong("a document does not end with the end-of-text id", path)
    if len(documents.tokens) and int(documents.tokens.max()) >= store.vocab_size:
        report.wrong("a token is out of the vocabulary", path)
    held = among(documents.doc_id, store.all_held_ids)
    counted["documents"] += len(documents)
    counted["tokens"] += int(lengths.sum())
    counted["held_documents"] += int(held.sum())
    counted["held_tokens"] += int(lengths[held].sum())
