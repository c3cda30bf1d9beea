"""Mixtures that are damaged or forged, and what verify finds in them."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from build_helpers import random_corpus, reseal

from mixc.build.mixture import SCHEMA
from mixc.errors import MixcError, MixcErrors
from mixc.store.hashes import FileRecord, hash_file
from mixc.verify import verify

CORPUS = random_corpus(8, {"code": (20, 15), "web": (30, 10)})
MIXTURE = {
    "weights": {"code": 0.3, "web": 0.7},
    "rows": 13,
    "seq_len": 16,
    "order": {"shuffle_block": 2},
    "formats": ["nanogpt", "megatron"],
}


def problems(path, **options):
    """What verify finds, as (code, message, place)."""
    with pytest.raises((MixcError, MixcErrors)) as raised:
        verify(path, **options)
    error = raised.value
    errors = error.errors if isinstance(error, MixcErrors) else (error,)
    return [(one.code, one.message, str(one.place)) for one in errors]


def expect_damage(mixture, name):
    """Verify finds damage alone, and names the file."""
    found = problems(mixture)
    assert {code for code, _, _ in found} == {"MX040"}
    assert any(place.endswith(name) for _, _, place in found), found


def set_to(*keys, value):
    """A change of a manifest: another value under these keys."""

    def change(data):
        node = data
        for key in keys[:-1]:
            node = node[key]
        assert node[keys[-1]] != value
        node[keys[-1]] = value

    return change


def forge(mixture, name, data=None):
    """Put a changed file under a right hash in the manifest, in every place that lists it."""
    path = mixture / name
    if data is not None:
        path.write_bytes(data)
    fresh = FileRecord(name, path.stat().st_size, hash_file(path)).as_dict()

    def change(node):
        for value in node.values() if isinstance(node, dict) else node:
            if isinstance(value, dict) and value.get("path") == name:
                value.update(fresh)
            if isinstance(value, dict | list):
                change(value)

    reseal(mixture / "mixture.json", SCHEMA, change)


def change_provenance(mixture, change):
    """Change the rows of the provenance, group by group, under a right hash."""
    with pq.ParquetFile(mixture / "rows.parquet") as file:
        tables = [file.read_row_group(i) for i in range(file.num_row_groups)]
    rows = [table.to_pylist() for table in tables]
    change([row for group in rows for row in group])
    with pq.ParquetWriter(mixture / "rows.parquet", tables[0].schema) as writer:
        for group in rows:
            writer.write_table(pa.Table.from_pylist(group, schema=tables[0].schema))
    forge(mixture, "rows.parquet")
