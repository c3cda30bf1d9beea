"""How much memory a build will hold at its height, from counts alone."""

from __future__ import annotations

import numpy as np

from mixc.build.buckets import bucket_bytes
from mixc.build.plan import BuildPlan
from mixc.rows.stream import AT_ONCE, EPOCHS_HELD
from mixc.store.store import Store
from mixc.writers.sequences import label_dtype

_PROCESS = 250 << 20  # Python, its libraries, compiled kernels
_DOCUMENT = 8  # which documents train, and their lengths
_DOCUMENT_OF_EPOCH = 12  # where each stands, and where each ends
_WEIGHT = 8
_PACKED = 32  # a document's place in the rows of an epoch, where rows hold whole documents
_ROW_OF_DECK = 4
_ROW_OF_EPOCH = 4  # the document that it begins in
_OPENED = 48  # of a document while its domain is opened
_SORTED = 24  # of what is put in order, while it is
_SPAN = 200  # columns of a block's spans, and their table
_LABEL = 2


def memory_bytes(plan: BuildPlan, store: Store, *, workers: int, twice: bool = False) -> int:
    """About the memory of `build` by so many workers, without pages of the files it maps.

    `twice`: whether it gathers in two passes.

    Documents and rows of 10^9 fit in tens of GiB: a label for each row, and for each document
    its length, its place in each epoch that rows are being cut from, and where it ends there.
    """
    domains = [store.domains[name] for name in plan.domains]
    documents = np.array([one.documents for one in domains], np.int64)
    tokens = np.array([one.training_tokens for one in domains], np.int64)
    used = plan.counts.rows > 0
    laid = np.clip(np.ceil(plan.supply.epochs(plan.counts.rows)), 0, EPOCHS_HELD)
    decks = tokens // plan.row_len
    packed = 0 if plan.layout.packing == "concat" else _PACKED
    held = _DOCUMENT + _WEIGHT * plan.layout.weighted
    streams = documents * (held + laid * (_DOCUMENT_OF_EPOCH + packed))
    streams = streams + decks * laid * (_ROW_OF_DECK + _ROW_OF_EPOCH)
    passing = np.where(used, np.maximum(documents * _OPENED, decks * _SORTED), 0)
    passing = np.sort(passing)[-min(workers, AT_ONCE) :]
    written = label_dtype(len(domains)).itemsize  # a copy of labels, if it is another type
    labels = plan.rows * (_LABEL + written * (written != _LABEL))
    if len(plan.schedule.stages) > 1:
        labels += plan.rows * _LABEL  # while stages are joined
    rows, threads = min(plan.block_rows, plan.rows), workers + 1
    # A window each; then the buckets of the blocks under way, of which one is being read.
    buckets = twice * (threads + 1) * bucket_bytes(plan.bytes)
    length = max(1, int(tokens.sum()) // max(1, int(documents.sum())))
    spans = rows * (1 + plan.row_len // length)
    # As many blocks as are under way: they go through memory, or staged ones are read again.
    blocks = rows * plan.row_len * plan.spec.dtype.itemsize * (threads + 1)
    blocks += spans * _SPAN * threads + buckets
    return int(_PROCESS + labels + streams.sum() + passing.sum() + blocks)
