"""What a format cannot hold, or cannot be written here, is refused in words."""

import os
import subprocess
import sys

import numpy as np
import pytest
from build_helpers import make_store, write_corpus
from writers.exports import CORPUS, SHARDED, counted, export, spec
from writers.formats import needs_array_record

from mixc import pipeline
from mixc.build.plan import StageWeights, make_plan
from mixc.errors import MixcError
from mixc.recipe import load
from mixc.registry import WRITERS


@pytest.mark.parametrize(
    ("name", "fits", "does_not"),
    [
        ("megatron", {"seq_len": (1 << 31) - 1}, {"seq_len": 1 << 31}),
        ("megatron", {"rows": (1 << 31) - 1}, {"rows": 1 << 31}),
        ("megatron", {"vocab_size": 1 << 31}, {"vocab_size": (1 << 31) + 1}),
        ("nanogpt", {"vocab_size": 1 << 16}, {"vocab_size": (1 << 16) + 1}),
        ("llmc", {"seq_len": (1 << 30) - 513}, {"seq_len": (1 << 30) - 512}),
        ("olmo", {"rows": (1 << 32) - 2}, {"rows": (1 << 32) - 1}),
        ("datatrove", {"seq_len": 2}, {"seq_len": 1}),
        ("litdata", {"seq_len": (1 << 30) - 4}, {"seq_len": (1 << 30) - 3}),
        ("litdata", {"vocab_size": 1 << 31}, {"vocab_size": (1 << 31) + 1}),
        ("webdataset", {"seq_len": (1 << 31) - 1}, {"seq_len": 1 << 31}),
        ("webdataset", {"rows": 10**12}, {"rows": 10**12 + 1}),
    ],
)
def test_a_format_refuses_what_it_cannot_hold(name, fits, does_not):
    module = WRITERS[name].load()
    module.check(spec(**fits))
    with pytest.raises(MixcError) as raised:
        module.check(spec(**does_not))
    assert raised.value.code == "MX062"
    assert name in raised.value.message


@pytest.mark.parametrize(
    ("name", "limit", "most"), [("llmc", "_MOST_TOKENS", 8), ("litdata", "_MOST_BYTES", 32)]
)
def test_a_document_that_no_file_can_hold_is_refused(tmp_path, monkeypatch, name, limit, most):
    monkeypatch.setattr(WRITERS[name].load(), SHARDED[name], 4)
    monkeypatch.setattr(WRITERS[name].load(), limit, most)
    export(tmp_path / "fits", name, counted([3, 8]), "val")
    with pytest.raises(MixcError) as raised:
        export(tmp_path / "does not", name, counted([3, 9]), "val")
    assert raised.value.code == "MX062"


@pytest.mark.parametrize("name", ["hf", "parquet"])
def test_ids_over_int32_are_refused(name):
    WRITERS[name].load().check(spec(vocab_size=1 << 31))
    with pytest.raises(MixcError) as raised:
        WRITERS[name].load().check(spec(vocab_size=(1 << 31) + 1))
    assert raised.value.code == "MX062"


def test_mds_refuses_a_shard_that_uint32_cannot_address():
    header = WRITERS["mds"].load()._header
    header(np.array([(1 << 32) - 15]), b"{}")
    with pytest.raises(MixcError) as raised:
        header(np.array([(1 << 32) - 14]), b"{}")
    assert raised.value.code == "MX062"


def test_nanogpt_refuses_ids_over_uint16_before_anything_is_built(tmp_path):
    path = write_corpus(tmp_path, CORPUS, words=1 << 16, mixture={"formats": ["nanogpt"]})
    with pytest.raises(MixcError) as raised:
        pipeline.run(load(path), workers=1)
    assert raised.value.code == "MX062"
    assert "65536" in raised.value.message
    assert not (tmp_path / "out/mixture").exists()


def test_nanogpt_holds_every_id_of_uint16(tmp_path):
    store = make_store(tmp_path, CORPUS, words=(1 << 16) - 1)
    assert (store.vocab_size, store.dtype) == (1 << 16, np.uint16)
    weights = {"code": 0.5, "empty-handed": 0, "web": 0.5}
    make_plan(load(tmp_path / "recipe.yaml"), store, [StageWeights(1.0, weights)])


@needs_array_record
def test_a_full_disk_is_noticed_though_a_package_writes(tmp_path):
    code = (
        "import resource, signal\n"
        "from pathlib import Path; from writers.exports import counted, export\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "import array_record.python.array_record_module\n"
        "rows = counted([1 << 17] * 4)  # as large as a file may be, without headers\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 21, 1 << 21))\n"
        f"export(Path({str(tmp_path / 'x')!r}), 'arrayrecord', rows)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert "error[MX043]" in done.stderr
    assert "File too large" in done.stderr
    left = [path.name for path in (tmp_path / "x").rglob("*") if path.is_file()]
    assert sorted(left) == ["stream.bin", "stream.domains"]


def test_without_its_package_a_format_is_refused_in_words(monkeypatch):
    monkeypatch.setitem(sys.modules, "array_record", None)
    monkeypatch.delitem(sys.modules, "array_record.python", raising=False)
    monkeypatch.delitem(sys.modules, "array_record.python.array_record_module", raising=False)
    with pytest.raises(MixcError) as raised:
        WRITERS["arrayrecord"].load().check(spec())
    assert raised.value.code == "MX037"
    assert "pip install 'mixc[arrayrecord]'" in str(raised.value)
