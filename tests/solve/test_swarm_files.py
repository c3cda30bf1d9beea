import numpy as np
import pytest

from mixc.errors import MixcError
from mixc.solve.swarm import plan_swarm
from mixc.solve.swarm_files import read_swarm

RATIOS = "index,web,code\n1,0.25,0.75\n2,1.0,0\n3,0.5,0.5\n"
METRICS = "index,web_loss,acc\n2,3.5,0.25\n1,4.5,0.5\n3,4.0,1e-3\n"


def read(tmp_path, ratios=RATIOS, metrics=METRICS, domains=("code", "web")):
    (tmp_path / "ratios.csv").write_text(ratios)
    (tmp_path / "metrics.csv").write_text(metrics)
    return read_swarm(tmp_path / "ratios.csv", tmp_path / "metrics.csv", domains)


def refused(tmp_path, **files):
    with pytest.raises(MixcError) as raised:
        read(tmp_path, **files)
    error = raised.value
    name = error.place.file.rpartition("/")[2] if error.place else None
    return error.code, name, error.place.line, error.message


def test_runs_are_matched_by_index_and_domains_by_name(tmp_path):
    runs = read(tmp_path)
    assert runs.ratios.tolist() == [[0.75, 0.25], [0, 1], [0.5, 0.5]]
    assert runs.metrics.tolist() == [[4.5, 0.5], [3.5, 0.25], [4.0, 1e-3]]
    assert runs.names == ("web_loss", "acc")


def test_olmix_columns_prefixes_and_rounded_rows(tmp_path):
    ratios = "run,name,index,train_web,train_code\nr1,a,0,0.333,0.665\nr2,b,1,0,1\n"
    metrics = "\ufeffname,index,run,bpb\na,0,r1,1.5\n\nb,1,r2,2\n"
    runs = read(tmp_path, ratios, metrics)
    assert runs.ratios.sum(axis=1) == pytest.approx(1, abs=1e-15)
    assert runs.ratios[0] == pytest.approx(np.array([0.665, 0.333]) / 0.998)
    assert runs.names == ("bpb",)


def test_shares_of_next_to_nothing_are_none(tmp_path):
    runs = read(tmp_path, RATIOS.replace("1.0,0", "1.0,5e-209").replace("0.25,0.75", "1e-320,1"))
    assert runs.ratios.tolist() == [[1, 0], [0, 1], [0.5, 0.5]]
    code, name, line, message = refused(tmp_path, metrics=METRICS.replace("1e-3", "5e-209"))
    assert (code, name, line) == ("MX034", "metrics.csv", 4)
    assert "'5e-209'" in message


def test_a_swarm_as_it_is_planned_can_be_read(tmp_path):
    natural = np.geomspace(1e-6, 1, 8)
    plan = plan_swarm(natural / natural.sum(), 40, temperature=1.0)
    assert ((plan > 0) & (plan < 1e-100)).any()
    names = tuple("abcdefgh")
    rows = [",".join(map(str, (n, *row))) for n, row in enumerate(plan.tolist())]
    ratios = "\n".join([",".join(("index", *names)), *rows])
    metrics = "\n".join(["index,loss", *(f"{n},{n + 1}" for n in range(len(plan)))])
    runs = read(tmp_path, ratios, metrics, names)
    assert runs.ratios == pytest.approx(plan, abs=1e-15)


@pytest.mark.parametrize(
    ("ratios", "line", "words"),
    [
        (RATIOS.replace("0.25,", "nan,"), 2, "web"),
        (RATIOS.replace("0.25,", "inf,"), 2, "web"),
        (RATIOS.replace("0.25,", "1e200,"), 2, "web"),
        (RATIOS.replace("0.25,", "-1e-200,"), 2, "below 0"),
        (RATIOS.replace("0.25,", ","), 2, "web"),
        (RATIOS.replace("0.25,", "x,"), 2, "'x'"),
        (RATIOS.replace("1.0,0", "1.2,-0.2"), 3, "below 0"),
        (RATIOS.replace("1.0,0", "0.9,0"), 3, "sum to 0.9"),
        (RATIOS.replace("1.0,0", "0,0"), 3, "sum to 0"),
        (RATIOS.replace("1.0,0", "1.0"), 3, "2 fields"),
        (RATIOS.replace("\n2,", "\n1,"), 3, "twice"),
        (RATIOS.replace("\n2,", "\n,"), 3, "no index"),
        (RATIOS.replace("index", "number"), 1, "runs apart"),
        (RATIOS.replace("code", "web"), 1, "twice"),
        (RATIOS.replace("code", ""), 1, "no name"),
        ("index\n1\n", 1, "no column of numbers"),
        (RATIOS + '4,"0.5,0.5\n', 5, "CSV"),
        (RATIOS + "4,0.5,0.5\n", 5, "run '4' is not in 'metrics.csv'"),
        ("index,web,code\n", None, "no run"),
        ("", 1, "runs apart"),
    ],
)
def test_what_is_wrong_with_ratios(tmp_path, ratios, line, words):
    code, name, at, message = refused(tmp_path, ratios=ratios)
    assert (code, name, at) == ("MX034", "ratios.csv", line)
    assert words in message


def test_runs_without_a_mix(tmp_path):
    code, name, line, message = refused(tmp_path, metrics=METRICS + "8,1,1\n9,1,1\n")
    assert (code, name, line) == ("MX034", "metrics.csv", 5)
    assert "'8'" in message and "1 more" in message


@pytest.mark.parametrize(
    ("domains", "words"),
    [(("web",), "'code'"), (("web", "code", "prose"), "'prose' is missing")],
)
def test_domains_that_do_not_match(tmp_path, domains, words):
    code, name, line, message = refused(tmp_path, domains=domains)
    assert (code, name, line) == ("MX061", "ratios.csv", 1)
    assert words in message


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(MixcError) as raised:
        read_swarm(tmp_path / "no.csv", tmp_path / "no.csv", ("a",))
    assert raised.value.code == "MX041"
    (tmp_path / "bad.csv").write_bytes(b"index,a\n1,\xff\n")
    with pytest.raises(MixcError) as raised:
        read_swarm(tmp_path / "bad.csv", tmp_path / "bad.csv", ("a",))
    assert raised.value.code == "MX027"
