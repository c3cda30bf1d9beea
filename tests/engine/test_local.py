"""Tasks on local processes: order, errors, and a display that fails."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from mixc.engine import local
from mixc.engine.schedule import Chain
from mixc.errors import MixcError, Place


def context(offset):
    return offset


def no_context(offset):
    raise MixcError("MX040", "the shard is damaged", place=Place("shard"), help="make it anew")


def add(offset, task, report):
    report(1.0)
    if task == "wrong":
        raise MixcError("MX020", "not JSON")
    if task == "leave":
        os._exit(0)
    if task == "swell":
        resource.setrlimit(resource.RLIMIT_AS, (1 << 32, 1 << 32))
        bytearray(1 << 33)
    if task == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return offset + task


def run(tasks, workers, *, function=add, setup=context, report=lambda amount: None):
    with local.Crew(workers) as crew:
        crew.prepare(setup, 10)
        return list(crew.run(function, tasks, report))


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


@pytest.mark.parametrize("how", ["die", "leave"])
def test_a_worker_that_dies_is_noticed(how):
    with pytest.raises(MixcError) as caught:
        run([1, how, 2], 2)
    assert (caught.value.code, caught.value.message) == ("MX046", "a worker process died")


def test_a_worker_that_runs_out_of_memory_says_so():
    with pytest.raises(MixcError) as caught:
        run([1, "swell", 2], 2)
    assert caught.value.code == "MX046"
    assert caught.value.message == "a worker process ran out of memory"


def test_a_display_that_fails_stops_nothing():
    def broken(amount):
        raise BrokenPipeError

    assert run(list(range(3000)), 2, report=broken) == list(range(10, 3010))


def visit(offset, task, report):
    """A chain of so many parts: says whether this part is its last."""
    chain, number, length = task
    report(1.0)
    return chain, number, number + 1 >= length


def chains_of(lengths):
    return [
        Chain(lambda n, c=c, k=k: (c, n, k), size=k, length=None) for c, k in enumerate(lengths)
    ]


def run_chains(lengths, workers):
    with local.Crew(workers) as crew:
        crew.prepare(context, 0)
        options = {"accept": lambda result: result[2], "report": lambda amount: None}
        done = crew.run_chains(visit, chains_of(lengths), **options)
        return [(chain, n) for chain, n, result in done]


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("lengths", [[], [1], [12], [3, 1, 1, 4], [1] * 9])
def test_every_task_of_every_chain_is_done_once(workers, lengths):
    found = run_chains(lengths, workers)
    assert sorted(found) == [(c, n) for c, k in enumerate(lengths) for n in range(k)]


def test_one_long_chain_is_shared_by_all_workers():
    with local.Crew(2) as crew:
        crew.prepare(context, 0)
        options = {"accept": lambda result: result[1], "report": lambda amount: None}
        done = crew.run_chains(whoami, chains_of([40]), **options)
        assert len({result[0] for _, _, result in done}) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_a_crew_is_prepared_anew_between_runs_and_outlives_errors(workers):
    ignore = {"report": lambda amount: None}
    with local.Crew(workers) as crew:
        for setup, offset in ((context, 10), (context, 20), (no_context, 0), (context, 30)):
            crew.prepare(setup, offset)
            if setup is no_context:
                with pytest.raises(MixcError, match="damaged"):
                    list(crew.run(add, [1, 2, 3], **ignore))
                continue
            assert list(crew.run(add, [1, 2, 3], **ignore)) == [offset + n for n in (1, 2, 3)]
            with pytest.raises(MixcError, match="not JSON"):
                list(crew.run(add, [1, "wrong", 3], **ignore))
            assert list(crew.run(add, [4], **ignore)) == [offset + 4]


@pytest.mark.parametrize("workers", [1, 3])
def test_a_result_that_is_refused_counts_as_an_error_and_the_crew_goes_on(workers):
    def judge(result):
        if result[:2] == (1, 3):
            raise MixcError("MX020", "refused")
        return result[2]

    with local.Crew(workers) as crew:
        crew.prepare(context, 0)
        for _ in range(2):
            with pytest.raises(MixcError, match="refused"):
                list(crew.run_chains(visit, chains_of([5, 5, 5]), accept=judge, report=int))
        whole = crew.run_chains(visit, chains_of([5, 5]), accept=lambda r: r[2], report=int)
        assert len(list(whole)) == 10


def whoami(offset, task, report):
    time.sleep(0.05)
    return os.getpid(), task[1] + 1 >= task[2]


def fail_all(offset, task, report):
    time.sleep(0.2 if task == 0 else 0.0)
    raise MixcError("MX020", f"task {task}")


def test_of_the_errors_under_way_the_first_in_order_is_raised():
    with pytest.raises(MixcError, match="task 0"):
        run(list(range(20)), 2, function=fail_all)


def fail_strangely(offset, task, report):
    raise ZeroDivisionError("by design")


def test_an_error_that_is_not_ours_brings_its_traceback():
    with pytest.raises(RuntimeError, match="fail_strangely"):
        run([1, 2], 2, function=fail_strangely)


LOADED = []


def load():
    LOADED.append(os.getpid())


def fail_to_load():
    raise MixcError("MX030", "no tokenizer")


def loaded(offset, task, report):
    time.sleep(0.05)
    return os.getpid(), tuple(LOADED)


def test_what_is_loaded_first_is_loaded_once_and_shared_by_all():
    with local.Crew(3, load) as crew:
        crew.prepare(context, 0)
        found = set(crew.run(loaded, list(range(12)), lambda amount: None))
    assert len(found) == 3  # workers
    (first,) = {where for _, where in found}
    assert len(first) == 1 and first[0] not in {own for own, _ in found}
    assert LOADED == []


def test_one_worker_may_be_a_process_by_itself():
    with local.Crew(1, load, apart=True) as crew:
        crew.prepare(context, 0)
        ((worker, first),) = set(crew.run(loaded, [1, 2], lambda amount: None))
    assert worker != os.getpid() and first[0] != worker
    assert crew.workers == 1


def test_a_head_start_that_fails_is_no_error():
    with local.Crew(2, fail_to_load) as crew:
        crew.prepare(context, 1)
        assert list(crew.run(add, [1, 2], lambda amount: None)) == [2, 3]


def sleep_long(offset, task, report):
    report(os.getpid())
    time.sleep(600)


def alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_workers_are_gone_when_a_crew_is_dismissed():
    """Whatever they were at: who follows may remove their files."""

    seen = []
    crew = local.Crew(2)
    crew.prepare(context, 0)
    work = crew.run(sleep_long, [1, 2], seen.append)
    waiter = threading.Thread(target=suppressed, args=(work,), daemon=True)
    waiter.start()
    while len(seen) < 2:
        time.sleep(0.01)
    crew.dismiss()
    assert not any(map(alive, seen))


def suppressed(work):
    with suppress(MixcError, OSError):
        list(work)


def test_workers_do_not_outlive_the_process_that_hired_them(tmp_path):
    script = tmp_path / "hires.py"
    script.write_text(HIRES)
    path = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env={**os.environ, **path}
    ) as process:
        workers = [int(process.stdout.readline()) for _ in range(2)]
        assert all(map(alive, workers))
        process.kill()
        process.wait()
        deadline = time.monotonic() + 30
        while any(map(alive, workers)) and time.monotonic() < deadline:
            time.sleep(0.02)
    assert not any(map(alive, workers))


HIRES = """
import os, time
from mixc.engine import local


def nothing():
    return None


def work(context, task, report):
    report(os.getpid())
    time.sleep(600)


if __name__ == "__main__":
    with local.Crew(2) as crew:
        crew.prepare(nothing)
        list(crew.run(work, [1, 2], lambda pid: print(pid, flush=True)))
"""
