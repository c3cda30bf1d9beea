"""Tasks on local processes: order, errors, and a display that fails."""

import os
import signal

import pytest

from mixc.engine import local
from mixc.errors import MixcError, Place


def context(offset):
    return offset


def no_context(offset):
    raise MixcError("MX040", "the shard is damaged", place=Place("shard"), help="make it anew")


def add(offset, task, report):
    report(1.0)
    if task == "wrong":
        raise MixcError("MX020", "not JSON")
    if task == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return offset + task


def run(tasks, workers, *, setup=context, report=lambda amount: None):
    options = {"setup": setup, "arguments": (10,), "workers": workers, "report": report}
    return list(local.run(add, tasks, **options))


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_the_order_of_tasks(workers):
    reported = []
    assert run(list(range(40)), workers, report=reported.append) == list(range(10, 50))
    assert sum(reported) == 40


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_task_is_the_same_with_any_number_of_workers(workers):
    with pytest.raises(MixcError) as caught:
        run([1, "wrong", 2], workers)
    assert caught.value.code == "MX020"


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_the_set_up_is_the_same_with_any_number_of_workers(workers):
    with pytest.raises(MixcError) as caught:
        run([1, 2], workers, setup=no_context)
    assert str(caught.value) == (
        "error[MX040]: the shard is damaged\n --> shard\nhelp: make it anew"
    )


def test_a_worker_that_dies_is_noticed():
    with pytest.raises(MixcError) as caught:
        run([1, "die", 2], 2)
    assert caught.value.code == "MX046"


def test_a_display_that_fails_stops_nothing():
    def broken(amount):
        raise BrokenPipeError

    assert run(list(range(3000)), 2, report=broken) == list(range(10, 3010))
