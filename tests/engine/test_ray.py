"""Tasks on a Ray cluster: as on this machine, even when a part of the cluster is lost."""

import json
import os
import shutil
import socket
import sys
import threading
from pathlib import Path

import pytest
from build_helpers import mixc, random_corpus, small_blocks, tree_hash, write_corpus
from ray_tasks import add, context, count_calls, no_context

from mixc import __version__, pipeline
from mixc.cli import cli
from mixc.engine import ray as engine
from mixc.errors import MixcError
from mixc.recipe import load
from mixc.store import commit
from mixc.tokenize.stage import tokenize

ROOT = Path(__file__).parents[2]
PYTHONPATH = os.pathsep.join(map(str, (ROOT, ROOT / "kernels", ROOT / "tests")))


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each, on this machine; the second can be killed."""
    pytest.importorskip("ray", reason="ray is not installed: pip install 'mixc[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", PYTHONPATH)
        patch.delenv("RAY_ADDRESS", raising=False)
        from ray.cluster_utils import Cluster

        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        try:
            nodes.add_node(num_cpus=1)
            nodes.wait_for_nodes()
            yield nodes
        finally:
            nodes.shutdown()


def run(cluster, tasks, *, function=add, setup=context, report=lambda amount: None, **options):
    where = engine.Cluster(cluster.address)
    options |= {"setup": setup, "arguments": (10,), "cluster": where, "report": report}
    return list(engine.run(function, tasks, **options))


@pytest.fixture
def connected(cluster):
    """A connection that the caller has already; without, every run makes one."""
    import ray

    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    assert ray.is_initialized()
    ray.shutdown()


def test_tasks_and_their_errors(connected, tmp_path):
    reported = []
    found = run(connected, list(range(100)), report=reported.append)
    assert found == list(range(10, 110)) and sum(reported) == 100

    with pytest.raises(MixcError) as caught:
        run(connected, [1, "wrong", 2])
    assert str(caught.value) == "error[MX020]: not JSON\n --> file:3\nhelp: mend it"
    with pytest.raises(MixcError, match="the shard is damaged"):
        run(connected, [1, 2], setup=no_context)

    # A worker that dies: its task is made again, so often and no more.
    assert run(connected, [1, str(tmp_path / "died"), 2]) == [11, 10, 12]
    with pytest.raises(MixcError, match="died 3 times") as caught:
        run(connected, [1, "die", 2])
    assert caught.value.code == "MX046"

    # A result that is refused is made again as well.
    calls = {"function": count_calls, "whole": lambda result: result == 2}
    assert run(connected, [str(tmp_path / "calls")], **calls) == [2]


def test_a_result_that_is_refused_too_often_is_an_error():
    work = engine._Work([0, 1], 4, lambda result: result != "torn")
    for _ in range(3):
        assert work.next() == 0 and not work.failures
        assert list(work.done(0, "torn")) == []
    assert work.next() is None
    assert work.failures[0].code == "MX080" and "does not arrive" in work.failures[0].message


def test_a_file_that_a_node_does_not_share_is_named(connected, tmp_path):
    (tmp_path / "token").write_text("token")
    own = Path("/proc/self/cmdline")  # under this name every process finds something of its own
    with pytest.raises(MixcError, match="it holds other bytes there") as caught:
        run(connected, [1], shared=[tmp_path / "token", own])
    assert (caught.value.code, str(caught.value.place)) == ("MX080", str(own))


def test_a_file_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "_PATIENCE_SECONDS", 0)
    problem = engine._look([(tmp_path / "token", "")], __version__)
    assert problem.code == "MX080" and "no such file or directory" in problem.message
    problem = engine._look([], "0.0.0")
    assert problem.help == "install the same mixc on every node"


def small_recipe(folder):
    corpus = random_corpus(1, {"a": (200, 50), "b": (300, 30)})
    weights = {"a": 0.5, "b": 0.5}
    mixture = {"rows": 600, "seq_len": 32, "formats": ["nanogpt", "parquet"], "weights": weights}
    return write_corpus(folder, corpus, mixture=mixture)


def test_a_node_is_killed_and_the_bytes_are_the_same(cluster, tmp_path, monkeypatch, capsys):
    recipe = load(small_recipe(tmp_path))
    append, lines = commit.append_line, []

    def append_and_kill(path, line):
        append(path, line)
        lines.append(line)
        if len(lines) == 50:
            (node,) = cluster.worker_nodes
            cluster.remove_node(node, allow_graceful=False)

    with small_blocks(64):
        outputs = pipeline.run(recipe, workers=1)
        expected = tree_hash(outputs.mixture.root)
        shutil.rmtree(outputs.mixture.root)
        monkeypatch.setattr(commit, "append_line", append_and_kill)
        where = engine.Cluster(cluster.address)
        mixture = pipeline.build_mixture(recipe, workers=1, cluster=where)
    assert len(lines) == 300 and not cluster.worker_nodes
    assert "a worker of the Ray cluster was lost" in capsys.readouterr().err
    assert tree_hash(mixture.root) == expected
    assert not list(tmp_path.rglob(".seen-*"))


def test_a_cluster_that_is_lost_is_an_error_in_words(cluster, tmp_path):
    path = small_recipe(tmp_path)
    tokenize(load(path), workers=1)
    staging = tmp_path / "out/.mixc/mixture/staging"

    def kill():
        while not any(len(file.read_bytes()) > 200 for file in staging.glob("*/blocks.jsonl")):
            if over.wait(0.05):
                return
        cluster.head_node.kill_raylet()

    over = threading.Event()
    killer = threading.Thread(target=kill)
    killer.start()
    options = ("--engine", "ray", "--ray-address", cluster.address, "--json")
    done = mixc("build-mixture", path, *options, block_tokens=64)
    over.set()
    killer.join()
    (error,) = json.loads(done.stdout)["errors"]
    assert (done.returncode, error["code"]) == (1, "MX080"), done.stderr
    assert error["message"] == "the Ray cluster was lost"
    assert "Traceback" not in done.stderr


def test_without_an_address_a_cluster_of_this_machine_is_started(tmp_path):
    pytest.importorskip("ray", reason="ray is not installed: pip install 'mixc[ray]'")
    path = small_recipe(tmp_path)
    outputs = pipeline.run(load(path), workers=1)
    expected = tree_hash(outputs.mixture.root)
    shutil.rmtree(outputs.mixture.root)
    environment = {"PYTHONPATH": PYTHONPATH, "RAY_ADDRESS": ""}
    done = mixc("build-mixture", path, "--engine", "ray", "--workers", 1, env=environment)
    assert done.returncode == 0, done.stderr
    assert tree_hash(outputs.mixture.root) == expected
    assert all(line.startswith("build mixture: ") for line in done.stderr.splitlines())


def test_an_address_where_nothing_answers():
    pytest.importorskip("ray", reason="ray is not installed: pip install 'mixc[ray]'")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for address, message in (
        (f"127.0.0.1:{port}", "no Ray cluster answers there"),
        ("nonsense", "no Ray cluster answers there"),
        ("ray://127.0.0.1:1", "a Ray address is HOST:PORT"),
    ):
        where = engine.Cluster(address)
        with pytest.raises(MixcError, match=message) as caught:
            options = {"setup": context, "arguments": (0,), "cluster": where, "report": int}
            list(engine.run(add, [1], **options))
        assert caught.value.code == "MX080"


def test_without_the_package_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    for command in ("run", "build-mixture"):
        with pytest.raises(MixcError) as caught:
            cli.main([command, str(tmp_path / "r.yaml"), "--engine", "ray"], standalone_mode=False)
        assert caught.value.code == "MX037" and caught.value.help == "pip install 'mixc[ray]'"


def test_an_address_without_the_engine_is_refused(tmp_path):
    done = mixc("run", tmp_path / "recipe.yaml", "--ray-address", "127.0.0.1:6379")
    assert done.returncode == 2 and "--ray-address needs --engine ray" in done.stderr
