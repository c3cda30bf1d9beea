"""The racks: which readers, methods and writers there are, and the module that holds each.

To add one, write its file and add its line here. Modules are named, not imported, so that
`mixc --help` loads none of them.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True)
class Entry:
    """One entry of a rack.

    `suffixes` are the file names that a reader takes by default. `source` is a method's paper,
    `forward_passes` its cost: forward passes of the small model for each token of a run, of which a
    method with a `run_count` makes several, beside the floating-point operations that one with
    `beside_flops` says; `reads_mixture` says that its weights depend on the mixture's tokens and
    cap on epochs. A change of what it finds, from the same store and options, raises its
    `revision`.
    """

    module: str
    summary: str
    suffixes: tuple[str, ...] = ()
    source: str = ""
    forward_passes: float = 0.0
    reads_mixture: bool = False
    revision: int = 0

    @property
    def trains(self) -> bool:
        """Whether a method trains small models."""
        return bool(self.forward_passes)

    def load(self) -> ModuleType:
        """Import the module that holds the entry."""
        return importlib.import_module(self.module)


def _packed(*stems: str) -> tuple[str, ...]:
    """The endings of files that may be compressed."""
    return tuple(stem + codec for stem in stems for codec in ("", ".gz", ".zst", ".xz", ".bz2"))


READERS: dict[str, Entry] = {
    "jsonl": Entry(
        "mixc.readers.jsonl",
        "one JSON object a line, plain or gz, zst, xz, bz2",
        suffixes=_packed(".jsonl", ".ndjson"),
    ),
    "parquet": Entry("mixc.readers.parquet", "one document a row", suffixes=(".parquet",)),
    "arrow": Entry(
        "mixc.readers.arrow",
        "one document a row of an Arrow or Feather file",
        suffixes=(".arrow", ".feather", ".ipc"),
    ),
    "csv": Entry(
        "mixc.readers.csv",
        "one document a row of CSV or TSV, plain or gz, zst, xz, bz2",
        suffixes=_packed(".csv", ".tsv"),
    ),
    "hub": Entry("mixc.readers.hub", "data sets of the Hugging Face hub, by hf:// URLs"),
    "text": Entry("mixc.readers.text", "one document a file", suffixes=(".txt", ".md", ".rst")),
}

METHODS: dict[str, Entry] = {
    "natural": Entry("mixc.methods.natural", "in proportion to token counts"),
    "uniform": Entry("mixc.methods.uniform", "the same for every domain"),
    "unimax": Entry(
        "mixc.methods.unimax",
        "as uniform as a cap on epochs allows",
        source="arXiv:2304.09151",
        reads_mixture=True,
    ),
    "temperature": Entry(
        "mixc.methods.temperature",
        "token counts to the power 1/T",
        source="arXiv:1907.05019",
    ),
    "doremi": Entry(
        "mixc.methods.doremi",
        "group DRO on the excess loss of a proxy over a reference",
        source="arXiv:2305.10429",
        forward_passes=6.0,  # 3 to train the reference, 3 the proxy
        revision=1,
    ),
    "doge": Entry(
        "mixc.methods.doge",
        "domains whose gradients align with the target's",
        source="arXiv:2310.15393",
        forward_passes=3.0,
        revision=2,
    ),
    "odm": Entry(
        "mixc.methods.odm",
        "a bandit over domains, rewarded by loss: a mix that changes along the run",
        source="arXiv:2312.02406",
        forward_passes=3.0,
    ),
    "ir_dro": Entry(
        "mixc.methods.ir_dro",
        "documents weighted by their loss, and domains by their documents",
        source="arXiv:2402.14270",
        forward_passes=3.0,
    ),
    "tracin_we": Entry(
        "mixc.methods.tracin_we",
        "influence on the target through word embeddings",
        source="arXiv:2202.11844",
        forward_passes=3.0,
        revision=2,
    ),
    "mixing_law": Entry(
        "mixc.methods.mixing_law",
        "the lowest point of log-linear laws fitted to many runs",
        source="arXiv:2403.16952",
        forward_passes=3.0,  # to train one of its runs
        reads_mixture=True,
    ),
    "mixmin": Entry(
        "mixc.methods.mixmin",
        "the best ensemble of models of one domain each",
        source="arXiv:2502.10510",
        forward_passes=3.0,
    ),
    "skill_it": Entry(
        "mixc.methods.skill_it",
        "what domains still lose, along who helps whom: a mix that changes along the run",
        source="arXiv:2307.14430",
        forward_passes=3.0,
    ),
    "aioli": Entry(
        "mixc.methods.aioli",
        "who helps whom, learnt while training: a mix that changes along the run",
        source="arXiv:2411.05735",
        forward_passes=3.0,
    ),
    "regression": Entry(
        "mixc.methods.regression",
        "the lowest point of surfaces fitted to many runs",
        source="arXiv:2407.01492",
        forward_passes=3.0,  # to train one of its runs
        reads_mixture=True,
    ),
}

WRITERS: dict[str, Entry] = {
    "nanogpt": Entry("mixc.writers.nanogpt", "train.bin and val.bin of uint16"),
    "megatron": Entry("mixc.writers.megatron", "IndexedDataset .bin and .idx"),
    "llmc": Entry("mixc.writers.llmc", "shards of llm.c and modded-nanogpt"),
    "olmo": Entry("mixc.writers.olmo", "raw .npy and .csv.gz of OLMo-core"),
    "datatrove": Entry("mixc.writers.datatrove", ".ds and .ds.index of datatrove and nanotron"),
    "litdata": Entry("mixc.writers.litdata", "chunks and index.json of LitData's TokensLoader"),
    "mds": Entry("mixc.writers.mds", "MosaicML Streaming shards and index.json"),
    "hf": Entry("mixc.writers.hf", "Hugging Face datasets, as save_to_disk lays them out"),
    "parquet": Entry("mixc.writers.parquet", "Parquet with a row of tokens and its domain a row"),
    "webdataset": Entry("mixc.writers.webdataset", "tar shards of tokens and domains"),
    "arrayrecord": Entry("mixc.writers.arrayrecord", "ArrayRecord files of grain and MaxText"),
}


def reader_for(file_name: str) -> str | None:
    """The reader that takes a file by its name's ending, or None."""
    for name, entry in READERS.items():
        if file_name.lower().endswith(entry.suffixes):
            return name
    return None
