"""What tests of writers write: a corpus, or sequences of counted tokens without any mixture."""

import numpy as np
import pytest
from build_helpers import random_corpus
from writers.formats import joined

from mixc.build.held import staged_sequences
from mixc.registry import WRITERS
from mixc.writers.sequences import Folder, StreamSpec

CORPUS = random_corpus(4, {"code": (30, 20), "empty-handed": (1, 30), "web": (60, 12)})
CORPUS["web"] += CORPUS["web"][:30]  # texts twice over: held out, each is exported once
MANIFEST = {"dtype": "uint32", "seq_len": 8, "domains": {"a": {}, "b": {}}}
# Formats in several files; the constant that cuts them.
SHARDED = {"llmc": "_SHARD_TOKENS", "litdata": "_CHUNK_TOKENS"}
SMALL = {  # constants that put borders between the rows of a small mixture, 3 to 5 rows a file
    "mds": {"_SHARD_BYTES": 550},
    "hf": {"_FILE_BYTES": 200},
    "parquet": {"_GROUP_BYTES": 100, "_FILE_GROUPS": 2},
}


def spec(**changes):
    """A stream of 8 rows of 8 tokens, but for what changes."""
    fields = {
        "dtype": np.dtype(np.uint32),
        "vocab_size": 100,
        "eot_id": 0,
        "seq_len": 8,
        "rows": 8,
        "domains": ("a", "b"),
    }
    return StreamSpec(**{**fields, **changes})


def counted(lengths):
    """Sequences of these lengths, every token another."""
    ends = np.cumsum(lengths).tolist()
    return [list(range(end - length, end)) for length, end in zip(lengths, ends, strict=True)]


def export(folder, name, sequences, split="train", dtype="uint32", row_len=None):
    """Write sequences in a format: its folder and files."""
    folder.mkdir()
    path = folder / "stream.bin"
    np.array(joined(sequences), dtype).tofile(path)
    lengths = np.array([len(one) for one in sequences], np.int64)
    labels = (np.arange(len(sequences)) % 2).astype(np.uint8)
    staged = staged_sequences(path, np.dtype(dtype), lengths, labels, ("a", "b"), row_len=row_len)
    files = WRITERS[name].load().write(staged, Folder(folder / name), split)
    return folder / name, [folder / name / file for file in files]


def staged(folder, dtype, lengths, *, row_len=None, domains=("a", "b", "c")):
    """Sequences of counted tokens, and the same as lists."""
    folder.mkdir(parents=True)
    tokens = np.arange(sum(lengths)).astype(dtype)
    tokens.tofile(folder / "stream.bin")
    labels = (np.arange(len(lengths)) % len(domains)).astype(
        np.uint8 if len(domains) <= 256 else np.uint16
    )
    lengths = np.array(lengths, np.int64)
    made = staged_sequences(
        folder / "stream.bin", np.dtype(dtype), lengths, labels, domains, row_len=row_len
    )
    return made, [one.tolist() for one in np.split(tokens, np.cumsum(lengths)[:-1])]


every_dtype = pytest.mark.parametrize("dtype", ["uint16", "uint32"])
