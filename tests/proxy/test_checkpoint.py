"""A training that is stopped and goes on ends with the same bits as one that was not."""

import json

import numpy as np
import pytest
import torch
from proxy_helpers import OPTIONS, batches, same_weights
from safetensors.torch import load, save

from mixc.errors import MixcError
from mixc.proxy.checkpoint import Checkpoint
from mixc.proxy.train import train


class StopError(Exception):
    """What a test stops a training with."""


def fresh_records():
    return {"path": np.zeros((OPTIONS.steps, 2))}


def objective_of(records):
    """An objective whose weight of a step follows from the records of the step before."""

    def objective(step, losses, batch):
        before = records["path"][step - 1, 0] if step else 0.5
        records["path"][step] = 0.9 * before + 0.1 * losses.mean().item(), step
        return losses.mean() * records["path"][step, 0]

    return objective


def run(checkpoint=None, stop_at=None, **options):
    def on_step(step, loss):
        if step == stop_at:
            raise StopError

    records = fresh_records()
    trained = train(
        OPTIONS,
        batches,
        objective_of(records),
        records=records,
        checkpoint=checkpoint,
        on_step=on_step,
        **options,
    )
    return trained, records


@pytest.fixture(scope="module")
def whole():
    return run()


@pytest.mark.parametrize("stops", [(0,), (1,), (6,), (7,), (2, 4), (3, 3, 3)])
def test_a_stopped_run_ends_with_the_same_bits(whole, tmp_path, stops):
    for stop in stops:
        with pytest.raises(StopError):
            run(Checkpoint(tmp_path / "run", "key", every_seconds=0), stop_at=stop)
    trained, records = run(Checkpoint(tmp_path / "run", "key", every_seconds=0))
    assert same_weights(trained.model, whole[0].model)
    assert np.array_equal(trained.losses, whole[0].losses)
    assert np.array_equal(records["path"], whole[1]["path"])
    assert (trained.tokens, trained.flops) == (whole[0].tokens, whole[0].flops)


def test_a_run_that_ended_trains_nothing_again(whole, tmp_path):
    run(Checkpoint(tmp_path / "run", "key"))
    asked = []
    records = fresh_records()
    again = train(
        OPTIONS, asked.append, None, records=records, checkpoint=Checkpoint(tmp_path / "run", "key")
    )
    assert asked == []
    assert same_weights(again.model, whole[0].model)
    assert np.array_equal(records["path"], whole[1]["path"])


def test_it_is_written_no_more_often_than_asked(tmp_path):
    with pytest.raises(StopError):
        run(Checkpoint(tmp_path / "run", "key", every_seconds=3600), stop_at=6)
    assert not (tmp_path / "run").exists()


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def without_metadata(data):
    return save(load(data))


def of_no_hash(data):
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    del header["__metadata__"]["xxh3"]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: flipped(data, len(data) - 1),
        lambda data: flipped(data, len(data) // 2),
        lambda data: flipped(data, 20),
        lambda data: flipped(data, 6),
        lambda data: data[:-4],
        lambda data: data[:5],
        lambda data: b"",
        lambda data: b"\x80\x04K\x01.",  # a pickle
        without_metadata,
        of_no_hash,
    ],
)
def test_a_damaged_one_is_refused_and_training_starts_anew(whole, tmp_path, capsys, damage):
    path = tmp_path / "run"
    with pytest.raises(StopError):
        run(Checkpoint(path, "key", every_seconds=0), stop_at=2)
    path.write_bytes(damage(path.read_bytes()))
    trained, _ = run(Checkpoint(path, "key"))
    assert "the checkpoint run is damaged: training starts anew" in capsys.readouterr().err
    assert same_weights(trained.model, whole[0].model)


def test_one_of_another_run_is_refused(whole, tmp_path, capsys):
    with pytest.raises(StopError):
        run(Checkpoint(tmp_path / "run", "another", every_seconds=0), stop_at=2)
    trained, _ = run(Checkpoint(tmp_path / "run", "key"))
    assert "is of a run with other options" in capsys.readouterr().err
    assert same_weights(trained.model, whole[0].model)


def test_where_a_run_diverges_the_state_before_it_is_kept(tmp_path):
    records = fresh_records()
    plain = objective_of(records)

    def poisoned(step, losses, batch):
        return plain(step, losses, batch) * (float("nan") if step == 5 else 1.0)

    def diverge():
        checkpoint = Checkpoint(tmp_path / "run", "key")
        with pytest.raises(MixcError, match="step 5 of 8") as raised:
            train(OPTIONS, batches, poisoned, records=records, checkpoint=checkpoint)
        assert raised.value.code == "MX050"
        assert str(tmp_path / "run") in raised.value.help
        return load((tmp_path / "run").read_bytes())

    kept = diverge()
    assert kept["counts"].tolist() == [5, 5 * 16 * OPTIONS.seq_len]
    assert all(torch.isfinite(value).all() for name, value in kept.items() if "records" not in name)
    again = diverge()  # at once, from the state that was kept
    assert all(torch.equal(kept[name], again[name]) for name in kept if "records" not in name)


def test_weights_that_diverge_at_first_are_not_kept(tmp_path):
    with pytest.raises(MixcError):
        train(
            OPTIONS,
            batches,
            lambda step, losses, batch: losses.sum() * float("inf"),
            checkpoint=Checkpoint(tmp_path / "run", "key"),
        )
    assert not (tmp_path / "run").exists()
