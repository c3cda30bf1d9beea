"""What single formats promise beyond the suite of all."""

import gzip
import io
import json
import tarfile

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, load_from_disk
from writers.exports import counted, export
from writers.formats import every_width


def test_the_sidecar_of_olmo_holds_no_time(tmp_path):
    folder, _ = export(tmp_path / "x", "olmo", counted([8, 8]))
    raw = (folder / "train/part-00000.csv.gz").read_bytes()
    assert raw[3:8] == bytes(5)  # neither a name nor a time
    assert gzip.decompress(raw) == b"0,8,0,a,0\n8,16,1,b,1\n"


def test_tars_are_those_of_the_standard_library(tmp_path):
    documents = counted([8, 300, 1])
    _, files = export(tmp_path / "x", "webdataset", documents)
    with tarfile.open(tmp_path / "theirs.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        for number, tokens in enumerate(documents):
            for suffix, data in (
                ("tok", np.array(tokens, "<u4").tobytes()),
                ("cls", str(number % 2).encode()),
            ):
                member = tarfile.TarInfo(f"{number:012d}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    theirs = (tmp_path / "theirs.tar").read_bytes()
    ours = files[0].read_bytes()
    assert theirs[: len(ours)] == ours
    assert not any(theirs[len(ours) :])


def test_litdata_tells_its_cache_of_other_tokens_alone(tmp_path):
    said = []
    for folder, rows in (("a", [8, 8]), ("b", [8, 8]), ("c", [8])):
        folder, _ = export(tmp_path / folder, "litdata", counted(rows))
        said.append(json.loads((folder / "train/index.json").read_text())["updated_at"])
    assert said[0] == said[1] != said[2]


@every_width
def test_hf_is_mapped_and_described(built):
    _, mixture = built
    value = "uint16" if mixture.manifest["dtype"] == "uint16" else "int32"
    pa.default_memory_pool().release_unused()
    before = pa.total_allocated_bytes()
    dataset = load_from_disk(str(mixture.root / "hf/train"))
    column = dataset.data.column("input_ids")
    assert pa.total_allocated_bytes() == before
    assert column.type == pa.list_(getattr(pa, value)(), 16)
    assert len(dataset) == 30
    assert dataset.features["domain"] == ClassLabel(names=list(mixture.manifest["domains"]))
    documents = load_from_disk(str(mixture.root / "hf/val"))
    assert documents.data.column("input_ids").type == pa.list_(getattr(pa, value)())
    assert dataset._fingerprint != documents._fingerprint
    assert dataset._fingerprint == load_from_disk(str(mixture.root / "hf/train"))._fingerprint
