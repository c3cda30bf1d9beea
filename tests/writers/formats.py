"""The output formats that can be written here, and how to read each, by its words alone."""

import gzip
import itertools
import json
import struct
import tarfile
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
import xxhash
from build_helpers import MISSING
from datasets import load_from_disk

from mixc.registry import WRITERS

# How to read a split of each format: (folder, split, manifest) -> a list of token sequences, or
# one flat list where the format has no borders. A new format adds its reader here.
READERS: dict[str, Callable[..., list]] = {}


def reads(name):
    def add(function):
        READERS[name] = function
        return function

    return add


@reads("nanogpt")
def read_nanogpt(folder, split, manifest):
    return np.memmap(folder / f"{split}.bin", np.uint16, mode="r").tolist()


@reads("megatron")
def read_megatron(folder, split, manifest):
    raw = (folder / f"{split}.idx").read_bytes()
    assert raw[:9] == b"MMIDIDX\0\0"
    assert np.frombuffer(raw, "<u8", 1, 9) == 1
    dtype = {8: "<u2", 4: "<i4"}[raw[17]]
    count, documents = np.frombuffer(raw, "<u8", 2, 18).tolist()
    lengths = np.frombuffer(raw, "<i4", count, 34)
    offsets = np.frombuffer(raw, "<i8", count, 34 + 4 * count)
    borders = np.frombuffer(raw, "<i8", documents, 34 + 12 * count)
    assert len(raw) == 34 + 12 * count + 8 * documents
    assert borders.tolist() == list(range(count + 1))
    data = (folder / f"{split}.bin").read_bytes()
    return [
        np.frombuffer(data, dtype, length, offset).tolist()
        for length, offset in zip(lengths, offsets, strict=True)
    ]


@reads("llmc")
def read_llmc(folder, split, manifest):
    dtype, kind = {
        "uint16": ("<u2", [20240520, 1]),
        "uint32": ("<u4", [20240801, 7]),
    }[manifest["dtype"]]
    found = []
    for path in sorted(folder.glob(f"*_{split}_*.bin")):
        header = np.fromfile(path, "<i4", 256)
        tokens = np.fromfile(path, dtype, offset=1024)
        assert header[:2].tolist() == kind
        assert header[2] == len(tokens)
        assert not header[3:].any()
        found += tokens.tolist()
    return found


@reads("olmo")
def read_olmo(folder, split, manifest):
    (path,) = (folder / split).glob("*.npy")
    data = np.fromfile(path, manifest["dtype"]).tolist()
    found, end = [], 0
    packed = path.with_name(path.name.replace(".npy", ".csv.gz"))
    lines = gzip.decompress(packed.read_bytes()).decode().splitlines()
    domains = list(manifest["domains"])
    labels = read_labels(folder, split, manifest)
    for number, (line, label) in enumerate(zip(lines, labels, strict=True)):
        start, stop, name, source, place = line.split(",")
        assert (int(start), name, place) == (end, str(number), str(number))
        assert source == domains[label]
        end = int(stop)
        found.append(data[int(start) : end])
    assert end == len(data)
    return found


@reads("datatrove")
def read_datatrove(folder, split, manifest):
    (path,) = (folder / split).glob("*.ds")
    dtype = np.dtype(manifest["dtype"])
    data = np.fromfile(path, dtype.newbyteorder("<"))
    ends = [0, *np.fromfile(f"{path}.index", "<u8").tolist()]
    first, second, _ = (path.parent / f"{path.name}.metadata").read_text().split("\n")
    assert int(first.split("|")[1]) == dtype.itemsize
    assert int(second) == ends[-1] == len(data)
    return [data[a:b].tolist() for a, b in pairwise(ends)]


@reads("litdata")
def read_litdata(folder, split, manifest):
    index = json.loads((folder / split / "index.json").read_text())
    config = index["config"]
    code = {"uint16": 20, "uint32": 15}[manifest["dtype"]]
    assert config["data_format"] == [f"no_header_tensor:{code}"]
    assert config["item_loader"] == "TokensLoader"
    assert config["compression"] is config["encryption"] is None
    found = []
    for chunk in index["chunks"]:
        raw = (folder / split / chunk["filename"]).read_bytes()
        assert np.frombuffer(raw, "<u4", 3).tolist() == [1, 12, len(raw)]
        tokens = np.frombuffer(raw, {20: "<u2", 15: "<i4"}[code], offset=12)
        assert (chunk["chunk_size"], chunk["dim"]) == (1, len(tokens))
        assert chunk["chunk_bytes"] == len(raw)
        found += tokens.tolist()
    return found


def mds_samples(folder, split, manifest):
    """(domain, tokens) of every sample, by the words of the format alone."""
    index = json.loads((folder / split / "index.json").read_bytes())
    for number, shard in enumerate(index["shards"]):
        raw = (folder / split / shard["raw_data"]["basename"]).read_bytes()
        assert shard["raw_data"]["basename"] == f"shard.{number:05}.mds"
        assert shard["raw_data"]["bytes"] == len(raw)
        assert shard["raw_data"]["hashes"] == {"xxh64": xxhash.xxh64_hexdigest(raw)}
        assert shard["column_names"] == ["domain", "tokens"]
        label, tokens = shard["column_encodings"]
        (count,) = struct.unpack_from("<I", raw)
        assert count == shard["samples"]
        offsets = struct.unpack_from(f"<{count + 1}I", raw, 4)
        json.loads(raw[4 * (count + 2) : offsets[0]])
        assert offsets[-1] == len(raw)
        for start, stop in itertools.pairwise(offsets):
            sample = raw[start:stop]
            if split == "val":
                assert tokens == f"ndarray:{manifest['dtype']}"
                assert struct.unpack_from("<I", sample) == (len(sample) - 5,)
                width = {4: 1, 5: 2, 6: 4}[sample[5]]
                length = int.from_bytes(sample[6 : 6 + width], "little")
                sample = sample[4:5] + sample[6 + width :]
            else:
                length = manifest["seq_len"]
                assert tokens == f"ndarray:{manifest['dtype']}:{length}"
            assert label == "uint8"
            yield sample[0], np.frombuffer(sample, manifest["dtype"], length, 1).tolist()


@reads("mds")
def read_mds(folder, split, manifest):
    return [tokens for _, tokens in mds_samples(folder, split, manifest)]


@reads("hf")
def read_hf(folder, split, manifest):
    return load_from_disk(str(folder / split))["input_ids"][:]


@reads("parquet")
def read_parquet(folder, split, manifest):
    return pq.read_table(folder / split)["input_ids"].to_pylist()


@reads("webdataset")
def read_webdataset(folder, split, manifest):
    return [tokens for _, tokens in tar_samples(folder, split, manifest)]


@reads("arrayrecord")
def read_arrayrecord(folder, split, manifest):
    library = pytest.importorskip("array_record.python.array_record_module")
    found = []
    for path in sorted(folder.glob(f"{split}-*.array_record")):
        records = library.ArrayRecordReader(str(path)).read_all()
        found += [np.frombuffer(record, manifest["dtype"]).tolist() for record in records]
    return found


def tar_samples(folder, split, manifest):
    """(domain, tokens) of each sample, by the standard library's tarfile."""
    found = []
    for path in sorted(folder.glob(f"{split}-*.tar")):
        with tarfile.open(path, "r:") as archive:
            for token, label in zip(*[iter(archive)] * 2, strict=True):
                assert (token.name, label.name) == (
                    f"{len(found):012d}.tok",
                    token.name[:12] + ".cls",
                )
                for member in (token, label):
                    assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
                    assert member.isreg()
                raw = archive.extractfile(token).read()
                number = int(archive.extractfile(label).read().decode())
                found.append((number, np.frombuffer(raw, manifest["dtype"]).tolist()))
    return found


# How to read the labels of each format that does not keep them in a file beside its tokens.
LABELS: dict[str, Callable[..., list[int]]] = {
    "mds": lambda *where: [label for label, _ in mds_samples(*where)],
    "hf": lambda folder, split, manifest: load_from_disk(str(folder / split))["domain"][:],
    "parquet": lambda folder, split, manifest: [
        list(manifest["domains"]).index(name)
        for name in pq.read_table(folder / split)["domain"].to_pylist()
    ],
}


def read_labels(folder, split, manifest):
    """The labels of a format that keeps them in a file beside its tokens."""
    return np.fromfile(folder / f"{split}.domains", np.uint8).tolist()


def joined(sequences):
    """The tokens of all sequences, end to end."""
    return [token for one in sequences for token in (one if isinstance(one, list) else [one])]


def same(found, sequences):
    """Whether what a reader found is these sequences, with their borders if it has any."""
    if found and isinstance(found[0], list):
        return found == sequences
    return found == joined(sequences)


NARROW = [name for name in WRITERS if name not in MISSING]
WIDE = [name for name in NARROW if name != "nanogpt"]
every_width = pytest.mark.parametrize("built", ["uint16", "uint32"], indirect=True)
needs_array_record = pytest.mark.skipif(bool(MISSING), reason="array_record is not installed")
