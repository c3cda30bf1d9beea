"""Weights that change along the mixture: whole rows of stages, ramps, and their order."""

import tempfile

import numpy as np
import pytest
from build_helpers import make_mixture, random_corpus, read_rows, reseal, write_corpus
from hypothesis import given, settings
from hypothesis import strategies as st

from mixc import pipeline
from mixc.build.order import bound, schedule_error, schedule_order
from mixc.build.schedule import Asked, asked_of, constant, describe, make_schedule
from mixc.errors import MixcError, MixcErrors
from mixc.recipe import load
from mixc.verify import verify


def simplex(generator, domains):
    """Random weights, some of them 0, some tiny."""
    weights = np.exp(generator.uniform(0, 4) * generator.standard_normal(domains))
    weights *= generator.random(domains) < 0.8
    weights[generator.integers(domains)] += 1e-3
    return weights / weights.sum()


@st.composite
def asked_stages(draw, most_domains=40):
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    domains = draw(st.integers(1, most_domains))
    count = draw(st.integers(1, 5))
    ends = [*sorted(generator.random(count - 1)), 1.0]
    stages, before = [], simplex(generator, domains)
    for end in ends:
        after, ramp = simplex(generator, domains), draw(st.booleans())
        stages.append(Asked(float(end), before if ramp else after, after, ramp))
        before = after
    return stages


def due(stages, rows, n):
    """Rows of each domain due by the weights asked for, after n rows: step by step."""
    ends = [0, *(int(one.until * rows + 0.5) for one in stages[:-1]), rows]
    total = np.zeros(len(stages[0].end))
    for one, first, stop in zip(stages, ends, ends[1:], strict=False):
        steps = np.arange(1, min(max(n - first, 0), stop - first) + 1)
        part = ((steps - 0.5) / max(stop - first, 1))[:, None]
        total += (one.begin * (1 - part) + one.end * part).sum(axis=0)
    return total


@settings(max_examples=150, deadline=None)
@given(asked_stages(), st.integers(1, 3000), st.sampled_from([1, 7, 64]))
def test_stages_and_ramps_keep_their_promise_at_every_blocks_end(stages, rows, block):
    domains = len(stages[0].end)
    schedule = make_schedule(stages, rows, np.full(domains, rows))
    assert sum(one.rows for one in schedule.stages) == rows
    for one in schedule.stages:
        assert (one.counts >= 0).all()
        assert (one.begin >= 0).all()
        assert (one.begin <= 2 * one.counts).all()
        assert one.begin.sum() == one.rows
        # Borders are less than a row off what was asked for: nothing rounded off is lost.
        end = one.first + one.rows
        so_far = sum(other.counts for other in schedule.stages if other.first + other.rows <= end)
        if one.rows:
            assert np.abs(so_far - due(stages, rows, end)).max() < 1 + 1e-6
    labels = schedule_order(schedule, shuffle_block=block, seed=1)
    assert np.bincount(labels, minlength=domains).tolist() == schedule.counts.rows.tolist()
    error, most = schedule_error(labels, schedule, shuffle_block=block)
    assert error <= most < 1
    if block == 1:  # against the weights themselves, not against what whole rows make of them
        for n in np.linspace(1, rows, 5).astype(int):
            seen = np.bincount(labels[:n], minlength=domains)
            assert np.abs(seen - due(stages, rows, n)).max() < 3


@settings(max_examples=80, deadline=None)
@given(asked_stages(12), st.integers(50, 3000), st.integers(0, 2**32))
def test_a_cap_is_kept_over_all_stages(stages, rows, seed):
    domains = len(stages[0].end)
    room = np.random.default_rng(seed).integers(0, rows, domains)
    try:
        schedule = make_schedule(stages, rows, room)
    except MixcError as error:
        assert error.code == "MX060"
        return
    assert (schedule.counts.rows <= room).all()
    assert schedule.counts.rows.sum() == rows
    labels = schedule_order(schedule, shuffle_block=1, seed=0)
    error, most = schedule_error(labels, schedule, shuffle_block=1)
    assert error <= most < 1


def test_a_cap_cuts_a_domain_by_one_factor_in_every_stage():
    first, second = np.array([0.5, 0.3, 0.2]), np.array([0.8, 0.2, 0.0])
    stages = [Asked(0.5, first, first), Asked(1.0, second, second)]
    schedule = make_schedule(stages, 2000, np.array([700, 2000, 2000]))
    one, two = (stage.counts / stage.rows for stage in schedule.stages)
    assert schedule.counts.rows[0] == 700
    assert schedule.counts.capped.tolist() == [True, False, False]
    odds = [share[0] / share[1] for share in (one, two)]
    assert odds[0] / (0.5 / 0.3) == pytest.approx(odds[1] / (0.8 / 0.2), rel=0.02)
    assert one[1] / one[2] == pytest.approx(0.3 / 0.2, rel=0.02)


def test_a_stage_of_a_domain_that_is_spent_cannot_be_built():
    stages = [Asked(0.5, *[np.array([0.5, 0.5])] * 2), Asked(1.0, *[np.array([1.0, 0.0])] * 2)]
    with pytest.raises(MixcError, match="stages"):
        make_schedule(stages, 100, np.array([40, 100]))


def test_a_thousand_domains():
    generator = np.random.default_rng(3)
    ends = [simplex(generator, 1000) for _ in range(3)]
    stages = [Asked(0.4, ends[0], ends[1], True), Asked(1.0, ends[2], ends[2])]
    schedule = make_schedule(stages, 100_000, np.full(1000, 100_000))
    labels = schedule_order(schedule, shuffle_block=1, seed=0)
    error, most = schedule_error(labels, schedule, shuffle_block=1)
    assert error <= most < 1
    assert describe(schedule, [str(i) for i in range(1000)])[0]["rows"] == 40_000


def test_one_stage_is_the_plain_mixture():
    weights, room = np.array([0.2, 0.5, 0.3]), np.array([10, 1000, 1000])
    plain = make_schedule(constant(weights), 101, room)
    assert len(plain.stages) == 1
    assert bound(plain.counts.rows) == 0.75
    split = make_schedule([Asked(1.0, weights, weights)], 101, room)
    assert split.counts.rows.tolist() == plain.counts.rows.tolist()
    again = asked_of(describe(plain, "abc"))
    assert [one.end.tolist() for one in again] == [weights.tolist()]


CORPUS = random_corpus(5, {"code": (30, 20), "prose": (20, 40), "web": (60, 12)})
STAGES = [
    {"until": 0.25, "weights": {"code": 0.1, "prose": 0.1, "web": 0.8}},
    {"until": 0.75, "weights": {"code": 0.6, "prose": 0.4, "web": 0.0}, "ramp": True},
    {"until": 1.0, "weights": "natural"},
]
BUILD = {"rows": 80, "seq_len": 16, "formats": ["nanogpt"], "order": {"shuffle_block": 4}}


def test_a_mixture_of_stages_says_so_and_is_verified(tmp_path):
    _, mixture = make_mixture(tmp_path, CORPUS, mixture=BUILD | {"stages": STAGES})
    manifest = mixture.manifest
    assert [(one["first"], one["rows"]) for one in manifest["stages"]] == [
        (0, 20),
        (20, 40),
        (60, 20),
    ]
    ramp = manifest["stages"][1]["domains"]
    assert ramp["web"]["begin"] == 0.8
    assert ramp["web"]["realised_begin"] == pytest.approx(0.8, abs=0.1)
    assert ramp["web"]["rows"] == 16
    assert manifest["order"]["max_prefix_error"] < manifest["order"]["bound"] < 1
    found = [row["domain"] for row in read_rows(mixture)]
    for stage in manifest["stages"]:
        part = found[stage["first"] : stage["first"] + stage["rows"]]
        for name, one in stage["domains"].items():
            assert part.count(name) == one["rows"]
    assert verify(mixture.root, full=True).traced_rows == 80

    def forge(data):
        data["stages"][1]["domains"]["web"]["weight"] = 0.1

    reseal(mixture.root / "mixture.json", "mixc.mixture/1", forge)
    with pytest.raises((MixcError, MixcErrors)):
        verify(mixture.root)


def test_a_first_ramp_begins_at_the_weights_of_the_mixture(tmp_path):
    stages = [{"until": 1.0, "weights": {"code": 0, "prose": 0, "web": 1}, "ramp": True}]
    own = {"weights": {"code": 0.5, "prose": 0.5, "web": 0}, "stages": stages}
    _, mixture = make_mixture(tmp_path, CORPUS, mixture=BUILD | own)
    web = mixture.manifest["stages"][0]["domains"]["web"]
    assert (web["begin"], web["weight"], web["rows"]) == (0, 1, 40)
    assert verify(mixture.root).traced_rows == 80


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ("[{until: 0.5, weights: natural}]", "the last be 1.0"),
        ("[{until: 0.5, weights: natural}, {until: 0.5, weights: natural}]", "must rise"),
        ("[{until: 1.0, weights: solved}]", "no 'solve' section"),
        ("[{until: 1.0, weights: {code: 0.5, prose: 0.4, web: 0.2}}]", "sum to 1.1"),
        ("[{until: 1.0, weights: {code: 0.5, prose: 0.5}}]", "'web' is missing"),
        ("[{weights: natural}]", "until"),
        ("[{until: 1.0, weights: natural, slope: 1}]", "slope"),
    ],
)
def test_stages_that_are_wrong(stages, says):
    with tempfile.TemporaryDirectory() as folder:
        path = write_corpus(folder, CORPUS, mixture=BUILD)
        with pytest.raises((MixcError, MixcErrors), match=says):
            load(path, [f"mixture.stages={stages}"])


def test_workers_and_blocks_change_nothing(tmp_path):
    path = write_corpus(tmp_path, CORPUS, mixture=BUILD | {"stages": STAGES})
    hashes = set()
    for workers in (1, 2):
        recipe = load(path, [f"workdir=out{workers}"])
        hashes.add(pipeline.run(recipe, workers=workers).mixture.manifest["stream_hash"])
    assert len(hashes) == 1
