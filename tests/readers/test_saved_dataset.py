import json

import pytest
from readers.builders import as_arrow, texts_of

from mixc.errors import MixcError
from mixc.readers import arrow
from mixc.readers.records import ReadOptions, Source
from mixc.readers.saved_dataset import saved_dataset_files


def saved(folder, names, **more):
    listed = [{"filename": name} for name in names]
    state = {"_data_files": listed, "_fingerprint": "x", **more}
    (folder / "state.json").write_text(json.dumps(state))
    return folder


def rows(paths):
    found = []
    for path in paths:
        records = list(arrow.read(Source(path, path.name), ReadOptions("text", 1000)))
        found += texts_of(records)
    return found


def test_the_files_come_in_the_order_of_the_list(tmp_path):
    names = ["data-00001-of-00002.arrow", "data-00000-of-00002.arrow"]
    for name in names:
        (tmp_path / name).write_bytes(as_arrow([name], stream=True))
    (tmp_path / "cache-1234.arrow").write_bytes(b"no data of the dataset")
    found = saved_dataset_files(saved(tmp_path, names))
    assert found == [tmp_path / name for name in names]
    assert rows(found) == names
    assert saved_dataset_files(saved(tmp_path, [])) == []


@pytest.mark.parametrize("state", [None, b"", b"{", b"[]", b'{"step": 1}', b"[" * 100_000, b"\xff"])
def test_other_folders_are_none(tmp_path, state):
    if state is not None:
        (tmp_path / "state.json").write_bytes(state)
    assert saved_dataset_files(tmp_path) is None
    assert saved_dataset_files(tmp_path / "gone") is None


@pytest.mark.parametrize(
    "entry",
    ["../a.arrow", "/etc/passwd", "a/b.arrow", "..", ".", "", "a\0b", "gone.arrow", 7, None],
)
def test_the_list_may_not_lead_elsewhere(tmp_path, entry):
    (tmp_path.parent / "a.arrow").write_bytes(b"")
    with pytest.raises(MixcError, match=r"state\.json lists") as caught:
        saved_dataset_files(saved(tmp_path, [entry]))
    assert caught.value.code == "MX035"
    assert str(caught.value.place) == str(tmp_path)


def test_a_list_of_indices_is_refused(tmp_path):
    with pytest.raises(MixcError, match="list of indices") as caught:
        saved_dataset_files(saved(tmp_path, [], _indices_files=[{"filename": "indices.arrow"}]))
    assert caught.value.code == "MX035"


def test_several_splits_ask_for_one(tmp_path):
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(MixcError, match="several splits") as caught:
        saved_dataset_files(tmp_path)
    assert caught.value.help == f"name one of them: {tmp_path}/train, {tmp_path}/test"


def test_what_the_library_itself_saves(tmp_path):
    datasets = pytest.importorskip("datasets")
    texts = [f"text {i} é" for i in range(2500)]
    table = datasets.Dataset.from_dict({"id": list(range(2500)), "text": texts})
    table.save_to_disk(tmp_path / "one", num_shards=3)
    found = saved_dataset_files(tmp_path / "one")
    assert len(found) == 3
    assert rows(found) == texts
    picked = table.select([5, 3, 1999]).filter(lambda row: row["id"] != 3)
    picked.save_to_disk(tmp_path / "picked")
    assert rows(saved_dataset_files(tmp_path / "picked")) == [texts[5], texts[1999]]
    splits = datasets.DatasetDict({"train": table, "test": picked})
    splits.save_to_disk(tmp_path / "splits")
    with pytest.raises(MixcError, match="several splits"):
        saved_dataset_files(tmp_path / "splits")
    assert rows(saved_dataset_files(tmp_path / "splits" / "test")) == [texts[5], texts[1999]]
